"""What a sweep file can say, the names and commands that follow from it, and what is refused."""

import ast
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from configs.sweeps import Stage, Sweep, chain, product, vary, zipped
from cxr_jax.config_reading import read_config
from launch.sweep import parse_flags
from launch.sweeping import slurm, xpk
from launch.sweeping.runs import SweepError, load_sweep, read_manifest, resolve, run_name, short_keys, write_manifest

ROOT = Path(__file__).parents[2]
RATE, RATIO = "optim.base_learning_rate", "objective.mask_ratio"


def sweep(runs, **options):
    return Sweep(config="configs/pretrain/small_mae.py", runs=runs, **options)


def test_a_product_is_every_combination_last_part_fastest():
    runs = product(vary("a", 1, 2), vary("b", 3, 4, 5), vary("c", 6))
    wanted = [{"a": a, "b": b, "c": 6} for a, b in itertools.product((1, 2), (3, 4, 5))]
    assert runs == wanted


def test_zipped_pairs_and_chain_appends():
    assert zipped(vary("a", 1, 2), vary("b", 3, 4)) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert chain(vary("a", 1), zipped(vary("b", 2))) == [{"a": 1}, {"b": 2}]
    assert product(zipped(vary("a", 1, 2), vary("b", 3, 4)), vary("c", 5, 6))[-1] == {"a": 2, "b": 4, "c": 6}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: product(vary("a", 1), vary("a", 2)), "a is set twice"),
        (lambda: zipped(vary("a", 1, 2), vary("b", 3)), "2, 1 runs"),
        (lambda: sweep([]), "at least one run"),
        (lambda: sweep(vary("a", 1), fixed={"a": 2}), "both set a"),
        (lambda: sweep(vary("a", 1), entry="convert"), "legal are train, evaluate"),
        (lambda: sweep(vary("a", 1), then={"x": Stage("c.py", init_from="y")}), "legal are the stages before it"),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_is_written(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_names_are_the_shortest_endings_that_tell_keys_apart():
    assert short_keys({RATE, RATIO}) == {RATE: "base_learning_rate", RATIO: "mask_ratio"}
    assert short_keys({"a.depth", "b.depth", "depth"}) == {"a.depth": "a.depth", "b.depth": "b.depth", "depth": "depth"}


def test_names_need_no_quotes_and_fit_a_file_system():
    key = {"k": "k"}
    assert run_name({"k": ("view:AP", 'a "b"/c')}, key) == "k=view-AP-a-b-c"
    assert run_name({}, {}) == "base"
    long = [run_name({"k": "x" * 300 + end}, key) for end in "yz"]
    assert long[0] != long[1] and all(len(name.encode()) <= 150 for name in long)


def test_commands_carry_overrides_and_stages_start_from_their_run():
    given = {"data.path": "D", "total_steps": "7"}
    then = {
        "glori": Stage("configs/finetune/small_glori.py", {"data.targets": ("sex:F",)}, entry="train"),
        "report": Stage("configs/eval/head.py", init_from="glori"),
    }
    (run,) = resolve(sweep(vary(RATE, 1e-3), fixed={"total_steps": 9, "seed": 3}, then=then), "out", given)
    train, glori, report = run.commands
    assert run.name == "base_learning_rate=0.001"
    assert train.line()[:3] == ["python", "-m", "cxr_jax.train"]
    assert set(train.arguments) == {
        "--config=configs/pretrain/small_mae.py",
        f"--workdir=out/{run.name}",
        "--config.total_steps=7",
        "--config.seed=3",
        "--config.data.path=D",
        "--config.optim.base_learning_rate=0.001",
    }
    assert train.overrides == {"seed": 3, RATE: 1e-3}, "what the command line sets is no longer the sweep file's"
    assert {f"--config.init_from=out/{run.name}", "--config.data.path=D", "--config.data.targets=('sex:F',)"} < set(
        glori.arguments
    )
    assert report.arguments[-1] == f"--config.init_from=out/{run.name}/glori" and report.entry == "evaluate"


def test_the_config_file_itself_can_be_varied():
    runs = resolve(sweep(vary("config", "configs/smoke.py", "configs/demo.py")), "out", {})
    assert [run.name for run in runs] == ["config=smoke", "config=demo"]
    assert [run.commands[0].arguments[0] for run in runs] == ["--config=configs/smoke.py", "--config=configs/demo.py"]


def test_the_same_run_twice_is_refused():
    with pytest.raises(SweepError, match=r"runs 0 and 2 of the sweep are the same, a=1: both set \{'a': 1\}"):
        resolve(sweep(chain(vary("a", 1, 2), vary("a", 1))), "out", {})


def test_runs_whose_values_are_written_alike_get_names_of_their_own_and_keep_them():
    def names_of(*values, key="a"):
        return [run.name for run in resolve(sweep(vary(key, *values)), "out", {})]

    names = names_of("x y", "x/y", "x,y", True, "True")
    assert names[0] == "a=x-y" and names[3] == "a=True" and len(set(names)) == 5
    for name, start in ((names[1], "a=x-y-"), (names[2], "a=x-y-"), (names[4], "a=True-")):
        assert re.fullmatch(f"{start}[0-9a-f]{{8}}", name)
    assert names_of("x y", "x/y") == names[:2], "a sweep that grows keeps its names"
    files = names_of("configs/a/base.py", "configs/b/base.py", key="config")
    assert files[0] == "config=base" and files[1].startswith("config=base-")
    scripts = names_of("é", "ü", "")
    assert len(set(scripts)) == 3 and scripts[2] == "a=empty" and all(name.isascii() for name in scripts)


def test_numpy_values_are_python_values():
    given = {"fixed": {"flag": np.bool_(True)}, "then": {"view": Stage("c.py", {"k": np.int64(3)})}}
    runs = product(vary("seed", *np.arange(2)), vary("rate", *np.geomspace(1e-3, 1e-2, 2)), vary("pair", np.ones(2)))
    found = resolve(sweep(runs, **given), "out", {})
    assert [run.overrides["seed"] for run in found] == [0, 0, 1, 1]
    first = found[0]
    assert {type(value) for value in first.overrides.values()} == {int, float, list}
    assert {"--config.rate=0.001", "--config.flag=True"} < set(first.commands[0].arguments)
    assert first.commands[1].overrides == {"k": 3} and first.name == "seed=0,rate=0.001,pair=1.0-1.0"
    json.dumps([run.overrides for run in found])


def test_values_that_no_command_line_can_say_are_refused():
    assert resolve(sweep(vary("data.path", Path("a/b"))), "out", {})[0].overrides == {"data.path": "a/b"}
    with pytest.raises(SweepError, match=r"config\.a=\{1\} is a set; legal are numbers"):
        resolve(sweep(vary("a", {1})), "out", {})


@pytest.mark.parametrize("name", ["logs/../..", "checkpoints", "state", "run", "", ".", "run.json", "a b", "x" * 65, 3])
def test_a_stage_may_not_be_called_as_what_a_run_has(name):
    with pytest.raises(ValueError, match="a stage's name is a folder in its run"):
        sweep(vary("a", 1), then={name: Stage("c.py")})


def test_the_command_line_may_not_set_what_the_sweep_varies():
    with pytest.raises(SweepError, match=r"--config\.seed: the sweep varies this key"):
        resolve(sweep(vary("seed", 1, 2)), "out", {"seed": "3"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_sweep():\n    return prodct()\n", r"NameError: name 'prodct' is not defined \(line 2\)"),
        ("def get_sweep():\n    return []\n", "returned list, not a configs.sweeps.Sweep"),
        ("def get_sweep(:\n", r": SyntaxError: [^(]* \(line 1\)$"),
        ("def get_sweep(rate):\n    pass\n", r"get_sweep\(\) needs an argument, 'rate'; write .*mine\.py:RATE$"),
        ("", r"has no get_sweep\(\)$"),
    ],
)
def test_a_sweep_file_that_fails_is_named_with_its_line(text, words, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(SweepError, match=words):
        load_sweep(str(file))


def test_a_sweep_file_may_take_an_argument(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs.sweeps import Sweep, vary\n"
        "def get_sweep(seeds='1'):\n"
        "    return Sweep(config='configs/smoke.py', runs=vary('seed', *range(int(seeds))))\n"
    )
    none = tmp_path / "none.py"
    none.write_text("def get_sweep():\n    pass\n")
    with pytest.raises(SweepError, match=r"get_sweep\(\) takes no argument; write .*none\.py alone$"):
        load_sweep(f"{none}:4")
    assert len(load_sweep(f"{file}:4").runs) == 4 and len(load_sweep(str(file)).runs) == 1


@pytest.mark.parametrize("file", sorted((ROOT / "configs/sweeps").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_stored_sweeps_have_legal_keys_and_say_how_to_run_them(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = resolve(load_sweep(str(file)), "out", {"data.path": "D"})
    for command in (command for run in runs for command in run.commands):
        read_config([word for word in command.arguments if not word.startswith("--workdir=")])
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    assert f"--sweep=configs/sweeps/{file.name}" in docstring and "launch.collect" in docstring


def test_the_manifest_gives_the_runs_back(tmp_path):
    runs = resolve(sweep(product(vary(RATE, 1e-3, 1e-2), vary(RATIO, 0.5))), str(tmp_path), {"data.path": "a b"})
    write_manifest(tmp_path, "x.py", runs)
    assert read_manifest(tmp_path) == runs
    (tmp_path / "sweep.json").write_text('{"runs": [')
    with pytest.raises(SweepError, match=r"sweep\.json is damaged"):
        read_manifest(tmp_path)


def test_the_slurm_array_has_an_element_per_run_and_gives_way():
    text = slurm.script("grid", "my runs", count=6, parallel=2, options=["--time=8:00:00"], setup="source env")
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert {"#SBATCH --array=0-5%2", "#SBATCH --requeue", "#SBATCH --time=8:00:00", "source env"} <= set(lines)
    assert lines[-1] == "exec python -m launch.sweeping.slurm --output='my runs' --task=\"$SLURM_ARRAY_TASK_ID\""


def test_slurm_options_with_blanks_are_quoted():
    options = ["--comment=a b", '--comment=say "x"', r"--comment=c:\d e", "--gres=gpu:a100:4"]
    lines = slurm.script("grid", "my 100% runs", count=1, parallel=0, options=options, setup="").splitlines()
    assert '#SBATCH "--output=my 100%% runs/logs/slurm-%A_%a.log"' in lines
    assert '#SBATCH "--comment=a b"' in lines and r'#SBATCH "--comment=say \"x\""' in lines
    assert r'#SBATCH "--comment=c:\\d e"' in lines and "#SBATCH --gres=gpu:a100:4" in lines


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--backend=slurm", "--slurm=--comment='a b"], "--slurm=--comment='a b: No closing quotation"),
        (["--backend=xpk", '--xpk=--cluster="c'], "No closing quotation"),
        (["--submit"], "--submit means nothing with --backend=local; it goes with --backend=slurm or --backend=xpk"),
        (["--slurm=--nodes=2"], "--slurm means nothing with --backend=local; it goes with --backend=slurm"),
        (["--backend=slurm", "--retry_failed"], "--retry_failed means nothing with --backend=slurm"),
        (["--backend=xpk", "--xpk= "], "--xpk is empty"),
    ],
)
def test_flags_that_cannot_be_meant_are_one_line(words, told, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_flags(["--sweep=x.py", *words])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and told in err and err.count("\n") == 1


def test_xpk_workloads_have_names_that_kubernetes_takes_and_differ():
    runs = resolve(sweep(product(vary(RATE, 1e-3, 1e-2), vary(RATIO, 0.5, 0.75))), "out", {})
    commands = xpk.commands("My_Grid", runs, ["--cluster=c"])
    names = [command[3].removeprefix("--workload=") for command in commands]
    assert len(set(names)) == 4 and all(name.startswith("my-grid-") and len(name) <= 39 for name in names)
    assert commands[0][-1].startswith("--command=python -m cxr_jax.train --config=")
    assert commands[0][-1].endswith("--coordinator_address=auto")
