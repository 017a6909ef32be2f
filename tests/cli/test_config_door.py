"""What a config can be asked at the door: an argument, overrides of every type, the whole of it in print."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cxr_jax.config_reading import ConfigError, read_config

ROOT = Path(__file__).parents[2]
SMOKE = f"--config={ROOT}/configs/smoke.py"
FILE = """from configs import smoke

def get_config(depth):
    config = smoke.get_config()
    config.model.depth = int(depth)
    return config
"""


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        ("--config.batch_size=8", "batch_size", 8),
        ("--config.optim.base_learning_rate=1", "optim.base_learning_rate", 1.0),
        ("--config.optim.weight_decay=(0.1,0.2)", "optim.weight_decay", (0.1, 0.2)),
        ("--config.data.targets=('sex:F',)", "data.targets", ("sex:F",)),
        ("--config.model.scan=False", "model.scan", False),
        ("--noconfig.model.scan", "model.scan", False),
        ("--config.log.trackers=mlflow", "log.trackers", ("mlflow",)),
        ("--config.data.targets=('A,B',)", "data.targets", ("A,B",)),
        ("--config.data.path=a=b,c", "data.path", "a=b,c"),
    ],
)
def test_overrides_take_the_type_of_the_key(words, path, value):
    config = read_config([SMOKE, words])
    for part in path.split("."):
        config = config[part]
    assert config == value and type(config) is type(value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--config.batch_size=8.5", "config.batch_size='8.5' is no int; legal are values such as 16"),
        ("--config.optim.base_learning_rate=fast", "config.optim.base_learning_rate='fast' is no float"),
        ("--config.model.scan=maybe", "config.model.scan='maybe' is no bool"),
        ("--config.data.targets=Pleural Thickening", "is no tuple; legal are values such as"),
        ("--config.optim.weight_decay=a,b", "its items are numbers; legal are values such as (0.04, 0.2)"),
        ("--config.model.dpeth=2", "did you mean config.model.depth"),
        ("--config.optim.lr=2", "did you mean config.optim.base_learning_rate or "),
        ("--config.optim.wd=2", "did you mean config.optim.weight_decay?"),
        ("--config.optim.ema=2", "did you mean config.objective.ema?"),
        ("--config.totl=2", "did you mean config.total_steps?"),
        ("--config.crops.size=2", "did you mean config.crops.global_size or config.crops.local_size?"),
        ("--config.optim={}", "config.optim is a section; write its keys, --config.optim.KEY=...; legal are base_"),
        ("--config.optim=3", "config.optim is a section; write its keys, --config.optim.KEY=...; legal are base_"),
        ("--config.optim", "config.optim is a section; write its keys, --config.optim.KEY=...; legal are base_"),
        (
            "--config.batch_size",
            "config.batch_size has no value; write --config.batch_size=..., the config file has 16",
        ),
        ("--config.=1", "config. is not a key of config; legal are accumulate_steps, "),
        ("--config", "--config has no value; write --config=FILE"),
        ("--config.data.targets=A,B", """write --config.data.targets="('A', 'B')", or for one item"""),
        ("--config.seed.x=2", "nothing below the value 0"),
        ("seed=2", "unexpected argument 'seed=2'"),
    ],
)
def test_a_wrong_override_is_one_line(words, told):
    with pytest.raises(ConfigError) as error:
        read_config([SMOKE, words])
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_key_that_is_none_says_why_it_cannot_be_set():
    with pytest.raises(ConfigError, match=r"config\.model\.layer_scale is None in the config file"):
        read_config([f"--config={ROOT}/configs/pretrain/small_mae.py", "--config.model.layer_scale=0.1"])


def test_an_argument_reaches_the_file_and_its_mistakes_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = tmp_path / "deep.py"
    file.write_text(FILE)
    assert read_config([f"--config={file}:3"]).model.depth == 3
    assert read_config([f"--config={file}:3", "--config.model.depth=5"]).model.depth == 5
    with pytest.raises(ConfigError, match=r"deep.py:three: ValueError.*'three' \(line 5\)"):
        read_config([f"--config={file}:three"])
    with pytest.raises(ConfigError, match=r"get_config\(\) needs an argument, 'depth'; write .*deep\.py:DEPTH$"):
        read_config([f"--config={file}"])
    with pytest.raises(ConfigError, match=r"get_config\(\) takes no argument; write .*smoke\.py alone$"):
        read_config([f"{SMOKE}:3"])


def test_a_python_file_that_is_no_config_says_so(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"^--config=configs/base\.py: it has no get_config\(\); legal are"):
        read_config(["--config=configs/base.py"])
    with pytest.raises(ConfigError, match=r"README\.md: SyntaxError: [^(]* \(line \d+\)$"):
        read_config(["--config=configs/README.md"])


def test_print_config_is_the_golden_text_with_the_overrides_and_starts_nothing(tmp_path):
    command = [sys.executable, "-m", "cxr_jax.train", "--config=configs/smoke.py", "--config.seed=7", "--print_config"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ)
    golden = (ROOT / "tests/golden/smoke.txt").read_text()
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == golden.replace("seed = 0\n", "seed = 7\n") != golden
