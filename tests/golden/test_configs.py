"""Every config as text, compared with a stored file, and accepted by those who consume it.

After a wanted change, rewrite the stored files and read the difference:

    PYTHONPATH=. python tests/golden/test_configs.py
"""

import importlib.util
from pathlib import Path

import pytest

from cxr_jax.config_reading import as_text, flatten
from cxr_jax.experiments import build

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent
CONFIGS = {
    str(path.relative_to(ROOT / "configs").with_suffix("")).replace("/", "."): path
    for path in sorted((ROOT / "configs").rglob("*.py"))
    if path.name not in ("__init__.py", "base.py") and path.parent.name != "sweeps"
}


def load(name):
    """`get_config()` of a config file, as `--config` would call it."""
    spec = importlib.util.spec_from_file_location(f"config_under_test_{name}", CONFIGS[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def test_there_is_one_stored_file_per_config():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_is_the_stored_one(name):
    stored = (GOLDEN / f"{name}.txt").read_text()
    assert as_text(load(name)) == stored, "if the change is wanted: PYTHONPATH=. python tests/golden/test_configs.py"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_docstring_has_the_command_and_a_result(name):
    text = CONFIGS[name].read_text().split('"""')[1]
    assert f"--config=configs/{name.replace('.', '/')}.py" in text and "--workdir=" in text


TRAINING_KEYS = ("seed", "batch_size", "total_steps", "init_from", "data.path", "data.split")
TRAINING = [name for name in CONFIGS if name == "smoke" or name.startswith(("pretrain.", "finetune."))]


@pytest.mark.parametrize("name", TRAINING)
def test_training_configs_have_the_keys_that_others_rely_on(name):
    keys = flatten(load(name))
    for key in (*TRAINING_KEYS, "checkpoint.every_steps", "log.every_steps"):
        assert key in keys, f"config.{key}"


@pytest.mark.parametrize("name", [name for name in TRAINING if not name.startswith("finetune.")])
def test_every_section_is_accepted_by_its_consumer(name):
    """`build` refuses unknown keys and impossible values of model, heads, crops, objective and optim."""
    config = load(name)
    config.lock()
    experiment = build(config)
    assert {"learning_rate"} <= experiment.schedules.keys()
    assert experiment.meta["model"]["width"] > 0


if __name__ == "__main__":
    for path in GOLDEN.glob("*.txt"):
        path.unlink()
    for name in CONFIGS:
        (GOLDEN / f"{name}.txt").write_text(as_text(load(name)))
