"""Every config through its entry's own `main`, on eight fake devices: training ones, shrunk, take two steps.

Sections and switches are those of the config; only sizes are cut, so that a config whose parts do not fit together
fails here in seconds instead of on a pod.
"""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cxr_jax import checkpoint, evaluate, train
from cxr_jax import config as door
from cxr_jax.export.run import read_run

ROOT = Path(__file__).parents[2]
PRETRAINING = ("smoke", "demo", *(f"pretrain/{path.stem}" for path in sorted((ROOT / "configs/pretrain").glob("*.py"))))
FINETUNING = tuple(f"finetune/{path.stem}" for path in sorted((ROOT / "configs/finetune").glob("*.py")))
EVALUATION = tuple(f"eval/{path.stem}" for path in sorted((ROOT / "configs/eval").glob("*.py")))
STEPS, BATCH = 2, 16


# They learn and score masks and boxes: `test_mae_downstream`.
PICTURES = ("finetune/lung_masks", "finetune/lung_masks_upernet", "eval/segmentation", "eval/localisation")

# Cut down, these are another config of the list: eval/small_glori_cached.
SHRUNK_ALIKE = ("eval/glori_cached",)


def names(candidates):
    there = [name for name in candidates if not name.endswith("__init__") and (ROOT / f"configs/{name}.py").exists()]
    return [name for name in there if name not in (*PICTURES, *SHRUNK_ALIKE)]


def load(name):
    spec = importlib.util.spec_from_file_location("config_under_test", ROOT / f"configs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def shrink(config, dataset):
    """Sizes that fit a test, in every section that a config may have."""
    config.batch_size, config.total_steps, config.data.path = BATCH, STEPS, str(dataset)
    config.data.where.update(source="", view="", sex="")
    config.log.update(every_steps=1, tensorboard=False)
    config.mesh.update(replica=1, fsdp=-1, tensor=1)
    if "model" in config:
        config.model.update(image_size=16)
        config.model.update({"width": 16, "depth": 2, "num_heads": 2, "patch_size": 8})
    if "crops" in config:
        config.crops.update(global_size=16, local_size=8, num_local=2)
        config.objective.group_size = 2
    if "decoder" in config:
        config.decoder.update(width=16, depth=1, num_heads=2)
    for head in config.get("heads", {}).values():
        head.update(hidden=16, bottleneck=8, num_prototypes=16)
    if "head" in config and config.objective.name == "supervised":
        config.data.targets = ("Effusion", "Nodule")
        config.head.blocks = 2
        small = {"decoder_width": 16, "num_heads": 2, "ffn_width": 16, "num_groups": 2, "pyramid": (2,)}
        config.head.update({key: value for key, value in small.items() if config.head.get(key)})
        if "lora" in config:
            config.lora.rank = 2
        if config.objective.get("drop_path"):
            # Two images are the least that a group can lose one of.
            config.objective.update(drop_path=0.5, group_size=2)
    config.lock()
    return config


def run(config, workdir, monkeypatch, generator="unsafe_rbg"):
    """`python -m cxr_jax.train` without the command line.

    The smoke config runs with JAX's usual random numbers, the others with ones that compile in half of the time.
    """
    monkeypatch.setattr(train, "flags", SimpleNamespace(FLAGS=SimpleNamespace(config=config, workdir=str(workdir))))
    monkeypatch.setattr(door, "overrides", dict)
    monkeypatch.setattr(door, "start_distributed", lambda: None, raising=False)
    with jax.default_prng_impl(generator):
        train.main()
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def evaluated(config, workdir, monkeypatch):
    """`python -m cxr_jax.evaluate` without the command line; its results.json."""
    config.batch_size, config.bootstrap.resamples = BATCH, 10
    if "training" in config:
        config.head.blocks = 2
        config.training.update(steps=STEPS, batch_size=BATCH, learning_rates=(1e-3, 1e-2))
        if config.head.name == "glori":
            config.head.update(decoder_width=16, num_heads=2, ffn_width=16)
    if "label_efficiency" in config:
        config.label_efficiency.update(fractions=(0.5, 1.0), shots=(2,), seeds=(0, 1))
    monkeypatch.setattr(evaluate, "flags", SimpleNamespace(FLAGS=SimpleNamespace(config=config, workdir=str(workdir))))
    evaluate.main()
    return json.loads((workdir / "results.json").read_text())


def check(workdir, lines, term):
    assert [line["step"] for line in lines] == list(range(STEPS))
    for line in lines:
        for name in ("loss", term, "learning_rate", "grad_norm", "images_per_sec", "data_wait_frac"):
            assert np.isfinite(line[name]), f"{name} at step {line['step']}"
        assert line["skipped_updates"] == 0
    assert (workdir / "run.json").exists() and (workdir / "examples" / "first_batch.png").exists()
    assert checkpoint.read_meta(workdir)["step"] == STEPS


@pytest.fixture(scope="module")
def pretrained(phantom_dataset, tmp_path_factory, compiled_once):
    """The run that fine-tuning starts from, made by the smoke config."""
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        lines = run(shrink(load("smoke"), phantom_dataset), workdir, monkeypatch, "threefry2x32")
    return workdir, lines


def test_the_smoke_config_trains(pretrained):
    check(*pretrained, "koleo_loss")


@pytest.mark.parametrize("name", [name for name in names(PRETRAINING) if name != "smoke"])
def test_pretraining_configs_train(name, pretrained, phantom_dataset, tmp_path, monkeypatch):
    config = load(name)
    if config.init_from:
        # A later stage names the run of its first one.
        config.init_from = str(pretrained[0])
    config = shrink(config, phantom_dataset)
    term = {"self_distillation": "ibot_loss", "mae": "reconstruction_loss"}[config.objective.name]
    check(tmp_path / "run", run(config, tmp_path / "run", monkeypatch), term)
    if config.log.get("examples_every_steps"):
        sheets = {path.name: path.read_bytes() for path in (tmp_path / "run" / "examples").iterdir()}
        assert sheets.keys() == {"first_batch.png", "first_batch_step_0.png", f"first_batch_step_{STEPS}.png"}
        assert sheets["first_batch.png"] == sheets["first_batch_step_0.png"] != sheets[f"first_batch_step_{STEPS}.png"]


@pytest.mark.parametrize("name", names(FINETUNING))
def test_finetuning_configs_train(name, pretrained, phantom_dataset, tmp_path, monkeypatch):
    config = load(name)
    config.init_from = str(pretrained[0])
    config = shrink(config, phantom_dataset)
    lines = run(config, tmp_path / "run", monkeypatch)
    check(tmp_path / "run", lines, "bce_best")
    before, full = checkpoint.read_item(pretrained[0], "targets"), config.objective.backbone == "full"
    after = checkpoint.read_item(tmp_path / "run", "params" if full else "targets")
    before, after = (tree["backbone"]["blocks"]["attn"]["qkv"]["kernel"] for tree in (before, after))
    assert (before == after).all() == (not full)
    assert checkpoint.read_meta(tmp_path / "run")["backbone"]["mode"] == config.objective.backbone
    if config.objective.backbone != "frozen":
        check_trained_backbone(tmp_path, before, monkeypatch)


def check_trained_backbone(folder, before, monkeypatch):
    """A run whose backbone was trained, by factors or as a whole, is evaluated and exported with what it has become."""
    config = load("eval/head")
    config.init_from, config.baselines.floor, config.attention_images = str(folder / "run"), False, 0
    assert evaluated(config, folder / "results", monkeypatch)["counts"]["images"] > 0
    contents, _ = read_run(folder / "run")
    (network,) = contents.networks.values()
    assert set(network) == {"backbone", "head"} and contents.options["head"]["num_classes"] == 2
    assert not (np.asarray(network["backbone"]["blocks"]["attn"]["qkv"]["kernel"]) == before).all()
    config.data.targets = ("Effusion",)
    with pytest.raises(door.ConfigError, match=r"was trained for \['Effusion', 'Nodule'\], not for \['Effusion'\]"):
        evaluated(config, folder / "others", monkeypatch)


@pytest.mark.parametrize("name", names(EVALUATION))
def test_evaluation_configs_score_beside_their_baselines(name, pretrained, phantom_dataset, tmp_path, monkeypatch):
    """With every baseline that the config switches on: the hand-made floor stands in all of them."""
    config = load(name)
    config.init_from, config.data.targets = str(pretrained[0]), ("Effusion",)
    if config.protocol == "head":
        finetuning = load("finetune/glori")
        finetuning.init_from, config.init_from, config.data.targets = str(pretrained[0]), str(tmp_path / "glori"), ()
        run(shrink(finetuning, phantom_dataset), tmp_path / "glori", monkeypatch)
    results = evaluated(config, tmp_path / "results", monkeypatch)
    assert results["counts"]["images"] > 0
    random = ["random network"] if config.baselines.random else []
    assert list(results["baselines"]) == [*random, "hand-made features"]
    report = (tmp_path / "results/report.html").read_text()
    assert all(column in report for column in results["baselines"])
    if config.protocol == "label_efficiency":
        assert list(results["label_efficiency"]) == ["pretrained (teacher)", *results["baselines"]]
        assert "Label efficiency" in report
