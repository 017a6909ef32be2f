"""Runs compared: values against a direct reading of what was written, and half-written runs of every kind."""

import csv
import json
import re

import numpy as np
import pytest

from launch import collect
from launch.collecting import figure, table
from launch.collecting.runs import find

RATES, RATIOS, STEPS = (1e-3, 1e-2), (0.5, 0.75), 40


def losses(rate, ratio):
    rng = np.random.default_rng(round(1000 * rate + 100 * ratio))
    return np.exp(-100 * rate * np.arange(STEPS) / STEPS) + ratio + 0.01 * rng.normal(size=STEPS)


def write_run(folder, rate, ratio, steps=STEPS, total=STEPS):
    """What a training leaves, as far as a comparison reads it."""
    folder.mkdir(parents=True)
    config = {
        "total_steps": total,
        "seed": 0,
        "optim": {"base_learning_rate": rate},
        "objective": {"mask_ratio": ratio},
    }
    about = {
        "command": f"python -m cxr_jax.train --config=configs/pretrain/small_mae.py --workdir={folder}",
        "overrides": {"optim.base_learning_rate": rate, "objective.mask_ratio": ratio, "total_steps": total},
        "config": config,
        "environment": {"packages": {"jax": f"0.{round(1000 * rate)}"}, "cpu_threads": 2},
        "fingerprint": "f",
    }
    (folder / "run.json").write_text(json.dumps(about))
    values = losses(rate, ratio)[:steps]
    lines = [{"step": t, "loss": float(v), "learning_rate": rate} for t, v in enumerate(values)]
    lines[5] |= {"probe_auroc_x": 0.9, "probe_auroc_x_low": 0.85, "probe_auroc_x_high": 0.95}
    probe = {"step": STEPS - 1, "probe_auroc_x": 0.7, "probe_auroc_x_low": 0.6, "probe_auroc_x_high": 0.8}
    if steps == STEPS:
        lines.append(probe)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "checkpoints" / str(steps)).mkdir(parents=True)


def write_evaluation(folder, value, run=""):
    folder.mkdir(parents=True, exist_ok=True)
    results = {"auroc_macro": value, "auroc_macro_interval": [value - 0.1, value + 0.1], "evaluated": {"run": str(run)}}
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A grid of four runs, evaluated within and without; one run stopped, others broken in every way."""
    root = tmp_path_factory.mktemp("grid")
    for rate in RATES:
        for ratio in RATIOS:
            folder = root / f"rate={rate:g},ratio={ratio:g}"
            write_run(folder, rate, ratio, steps=STEPS if rate < 0.01 else 30)
            write_evaluation(folder / "view", 0.5 + ratio / 4)
    write_evaluation(root / "elsewhere", 0.9, root / "rate=0.001,ratio=0.5")
    write_evaluation(root / "stranger", 0.9, root / "nowhere")
    (root / "cut").mkdir()
    (root / "cut" / "run.json").write_text('{"config": {"total_st')
    (root / "cut" / "metrics.jsonl").write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "lo')
    (root / "damaged").mkdir()
    (root / "damaged" / "metrics.jsonl").write_text('{"step": 0, "loss": 2.0}\nnoise\n{"step": 2, "loss": 1.0}\n')
    (root / "young").mkdir()
    (root / "young" / "run.json").write_text(json.dumps({"config": {"total_steps": STEPS}, "overrides": {}}))
    (root / "odd").mkdir()
    (root / "odd" / "metrics.jsonl").write_text("[1, 2]\n[3]\n")
    (root / "odd" / "results.json").write_text("[]")
    return root


@pytest.fixture
def without_figure(monkeypatch):
    """Drawing takes longer than all else; one test looks at the figure."""
    monkeypatch.setattr(figure, "draw", lambda runs, metrics: None)


@pytest.mark.usefixtures("without_figure")
def test_best_last_and_interval_of_every_run(collected, capsys):
    assert collect.main([f"--runs={collected}"]) == 0
    with (collected / "collected.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    for rate in RATES:
        for ratio in RATIOS:
            row = rows[f"rate={rate:g},ratio={ratio:g}"]
            values = losses(rate, ratio)[: STEPS if rate < 0.01 else 30]
            tail = values[-round(0.1 * len(values)) :]
            found = {key: float(row[key]) for key in ("loss", "loss_best", "loss_best_step", "loss_low", "loss_high")}
            wanted = (values[-1], values.min(), values.argmin(), tail.min(), tail.max())
            assert tuple(found.values()) == pytest.approx(wanted)
            assert float(row["optim.base_learning_rate"]) == rate and float(row["objective.mask_ratio"]) == ratio
            assert float(row["view/auroc_macro"]) == pytest.approx(0.5 + ratio / 4)
            assert float(row["view/auroc_macro_high"]) == pytest.approx(0.6 + ratio / 4)
            assert row["state"] == ("finished" if rate < 0.01 else "stopped at 30")
    first = rows["rate=0.001,ratio=0.5"]
    assert (first["probe_auroc_x"], first["probe_auroc_x_low"], first["probe_auroc_x_high"]) == ("0.7", "0.6", "0.8")
    assert (first["probe_auroc_x_best"], first["probe_auroc_x_best_step"]) == ("0.9", "5"), (
        "the best AUROC is the highest"
    )
    assert float(first["elsewhere/auroc_macro"]) == 0.9, "an evaluation outside belongs to the run that it names"
    assert "total_steps" not in table.varied(find([collected])[0]), "what all share is no column"


@pytest.mark.usefixtures("without_figure")
def test_half_written_and_damaged_runs_are_shown_and_told(collected, capsys):
    assert collect.main([f"--runs={collected}"]) == 0
    out, err = capsys.readouterr()
    for name, state in (
        ("cut", "stopped at 1"),
        ("damaged", "stopped at 3"),
        ("odd", "damaged"),
        ("young", "stopped at 0"),
    ):
        assert re.search(rf"^{name} .*{state}", out, re.MULTILINE), name
    for words in (
        "cut: run.json cannot be read",
        "damaged: metrics.jsonl is damaged: 1 of its 3 lines cannot be read, the first is line 2",
        "stranger: the run that",
    ):
        assert words in err


@pytest.mark.usefixtures("without_figure")
def test_csv_and_parquet_agree(collected, capsys):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    assert collect.main([f"--runs={collected}"]) == 0
    rows = pyarrow.read_table(collected / "collected.parquet").to_pylist()
    with (collected / "collected.csv").open() as file:
        for row, text in zip(rows, csv.DictReader(file), strict=True):
            assert {key: "" if value is None else str(value) for key, value in row.items()} == text


def test_the_page_holds_every_curve_and_loads_nothing(collected, capsys):
    assert collect.main([f"--runs={collected}"]) == 0
    page = (collected / "collected.html").read_text()
    assert "<script" not in page and not re.findall(r'(?:src|href)="(?!#)', page)
    assert not re.findall(r"url\((?!#)", page)
    for rate in RATES:
        assert page.count(f"<title>rate={rate:g},ratio=0.5</title>") >= 2, "curve and last value name their run"
    assert (collected / "collected.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.usefixtures("without_figure")
def test_metrics_are_chosen_by_pattern_and_unknown_ones_refused(collected, capsys, tmp_path):
    assert collect.main([f"--runs={collected}", "--metrics=learning*", f"--output={tmp_path}"]) == 0
    assert "learning_rate_best" in (tmp_path / "collected.csv").read_text().splitlines()[0]
    with pytest.raises(SystemExit) as stop:
        collect.main([f"--runs={collected}", "--metrics=los"])
    assert stop.value.code == 2
    assert "--metrics=los: no run has it; legal are loss, " in capsys.readouterr().err


@pytest.mark.usefixtures("without_figure")
def test_two_runs_are_told_apart_by_config_and_environment(collected, capsys):
    names = "rate=0.001,ratio=0.5,rate=0.01,ratio=0.5"
    assert collect.main([f"--runs={collected}", f"--diff={names}"]) == 0
    out = capsys.readouterr().out
    told = out[out.index("- rate=0.001,ratio=0.5") :]
    assert "config:\n  optim.base_learning_rate\n    - 0.001\n    + 0.01\nenvironment:\n  packages.jax" in told
    assert "mask_ratio" not in told.partition("run:")[0].partition("config:")[2]
    with pytest.raises(SystemExit):
        collect.main([f"--runs={collected}", "--diff=rate=0.001,nothing"])
    assert "names no two of the runs" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "better"), [("loss", "min"), ("probe_auroc_x", "max"), ("koleo_loss", "min")])
def test_best_means_lowest_for_losses_and_highest_for_scores(name, better):
    assert table.higher_is_better(name) == (better == "max")


@pytest.mark.usefixtures("without_figure")
def test_a_sweeps_plan_shows_runs_that_have_not_begun_or_failed(tmp_path, capsys):
    plan = []
    for name in ("a", "b", "c"):
        command = {"stage": "run", "entry": "train", "arguments": [], "workdir": f"{tmp_path}/{name}", "overrides": {}}
        plan.append({"name": name, "overrides": {"seed": 1}, "commands": [command]})
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": plan}))
    write_run(tmp_path / "a", 1e-3, 0.5)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "b.json").write_text(json.dumps({"run": {"arguments": [], "exit_code": 1, "secs": 1.0}}))
    assert collect.main([f"--runs={tmp_path}"]) == 0
    out = capsys.readouterr().out.splitlines()
    states = {line.split("  ")[0]: line for line in out}
    assert "finished" in states["a"] and "failed (run, exit code 1)" in states["b"] and "waiting" in states["c"]


def test_nothing_found_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        collect.main([f"--runs={tmp_path}"])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
