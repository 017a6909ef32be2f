"""A run of masked autoencoding, which has no teacher, through every entry that reads a pretraining run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training_configs import check, evaluated, load, run, shrink

from cxr_jax import checkpoint, convert
from cxr_jax.config import ConfigError
from cxr_jax.data.records import DataError
from cxr_jax.evals import localisation
from cxr_jax.experiments import build


@pytest.fixture(scope="module")
def pretrained(phantom_dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("mae") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(shrink(load("pretrain/small_mae"), phantom_dataset), workdir, monkeypatch)
    return workdir


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_heads_are_trained_on_the_one_network(network, pretrained, phantom_dataset, tmp_path, monkeypatch):
    config = load("finetune/linear")
    config.init_from, config.init_network = str(pretrained), network
    workdir = tmp_path / "run"
    check(workdir, run(shrink(config, phantom_dataset), workdir, monkeypatch), "bce_best")
    before = checkpoint.read_item(pretrained, "params")["backbone"]
    after = checkpoint.read_item(workdir, "targets")["backbone"]
    np.testing.assert_array_equal(before["blocks"]["attn"]["qkv"]["kernel"], after["blocks"]["attn"]["qkv"]["kernel"])
    assert checkpoint.read_meta(workdir)["pretrained"]["network"] == "student"


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_probes_read_the_one_network_and_say_so(protocol, pretrained, phantom_dataset, tmp_path, monkeypatch, capsys):
    config = load(f"eval/{protocol}")
    config.init_from, config.data.targets = str(pretrained), ("Effusion",)
    config.baselines.update(random=False, floor=False)
    evaluated(config, tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert "trained without a teacher" in printed and "pretrained (student)" in printed


def test_it_goes_to_transformers_with_its_decoder_and_comes_back(pretrained, tmp_path):
    assert convert.convert(pretrained, tmp_path / "out")["architecture"] == "ViTMAEForPreTraining"
    convert.convert(tmp_path / "out", tmp_path / "back", format="cxr_jax")
    before, after = (checkpoint.read_item(run, "params") for run in (pretrained, tmp_path / "back"))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_pretraining_continues_from_it(pretrained, phantom_dataset, tmp_path, monkeypatch):
    config = load("pretrain/small_mae")
    config.init_from = str(pretrained)
    lines = run(shrink(config, phantom_dataset), tmp_path / "run", monkeypatch)
    check(tmp_path / "run", lines, "reconstruction_loss")


def segmentation(name, pretrained, dataset, **changes):
    config = load(f"finetune/{name}")
    config.init_from = str(pretrained)
    config.update(changes)
    config.head.blocks = 2
    if "channels" in config.head:
        config.head.channels = 4
    return shrink(config, dataset)


@pytest.fixture(scope="module")
def trained(pretrained, phantom_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lungs") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        check(folder, run(segmentation("lung_masks", pretrained, phantom_dataset), folder, monkeypatch), "dice_best")
    return folder


def test_the_backbone_stays_and_the_checkpoint_says_what_it_segments(trained, pretrained):
    before = checkpoint.read_item(pretrained, "params")["backbone"]
    after = checkpoint.read_item(trained, "targets")["backbone"]
    np.testing.assert_array_equal(before["blocks"]["attn"]["qkv"]["kernel"], after["blocks"]["attn"]["qkv"]["kernel"])
    meta = checkpoint.read_meta(trained)
    assert meta["objective"] == "segmentation" and meta["head"]["name"] == "linear"


def test_upernet_is_what_its_config_asks_for(pretrained, phantom_dataset):
    """Traced, not compiled, which takes a minute; `tests/parity` has its numbers and gradients."""
    objective = build(segmentation("lung_masks_upernet", pretrained, phantom_dataset)).objective
    params = jax.eval_shape(objective.init, jax.random.key(0))
    targets = jax.eval_shape(objective.init_targets, params)
    shapes = {"image": ((16, 80, 80), "uint8"), "size": ((16, 2), "int32"), "mask": ((16, 80, 80), "uint8")}
    shapes["has_mask"] = ((16,), "bool")
    batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    gradient = jax.grad(objective.loss, has_aux=True)
    grads, aux = jax.eval_shape(gradient, params, targets, batch, jax.random.key(0), jnp.zeros((), "int32"))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(grads["head"])} == {2}
    assert grads["head"]["fuse"]["conv"]["kernel"].shape == (2, 3, 3, 16, 4) and "dice_best" in aux.metrics


def test_masks_are_scored_beside_other_runs_and_the_floor(trained, tmp_path, monkeypatch):
    config = load("eval/segmentation")
    config.init_from, config.baselines.runs = str(trained), (str(trained),)
    config.attention_images = 4
    results = evaluated(config, tmp_path, monkeypatch)
    columns = results["scores"]["All images"]
    name = "linear head on student, frozen"
    assert list(columns) == [name, f"{name}, {trained}", "mean training mask and darkness"]
    first = columns[name]["dice"]
    assert results["dice_mean"] == first["mean"] and first["interval"][0] <= first["mean"] <= first["interval"][1]
    assert columns["mean training mask and darkness"]["dice"]["mean"] > 0.5
    assert columns[f"{name}, {trained}"]["iou"]["difference"]["mean"] == 0.0
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1 + first["images"]
    assert (tmp_path / "report.html").read_text().count("data:image/jpeg") == 8
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_runs_without_masks_and_labels_where_masks_are_learnt_are_refused(
    trained, pretrained, phantom_dataset, tmp_path, monkeypatch
):
    config = load("eval/segmentation")
    config.init_from = str(pretrained)
    with pytest.raises(ConfigError, match="was trained for mae; legal is segmentation"):
        evaluated(config, tmp_path / "a", monkeypatch)
    config = segmentation("lung_masks", pretrained, phantom_dataset)
    with config.unlocked():
        config.data.targets = ("Effusion",)
    with pytest.raises(ConfigError, match=r"segmentation learns the masks of the records; legal is \(\)"):
        run(config, tmp_path / "b", monkeypatch)


def test_attention_is_scored_against_boxes_beside_rivals_that_see_no_image(
    pretrained, phantom_dataset, tmp_path, monkeypatch
):
    """A GLoRI head on phantoms, whose records have boxes; `train` is scored, where there are boxes of both targets."""
    finetuning = load("finetune/small_glori")
    finetuning.init_from = str(pretrained)
    finetuning = shrink(finetuning, phantom_dataset)
    finetuning.data.split, finetuning.batch_size, finetuning.optim.learning_rates = "val+test", 8, (1e-3,)
    run(finetuning, tmp_path / "glori", monkeypatch)
    config = load("eval/localisation")
    config.init_from, config.attention_images = str(tmp_path / "glori"), 2
    config.data.update(train_split="val", select_split="test", split="train")
    results = evaluated(config, tmp_path / "boxes", monkeypatch)
    whole = results["scores"]["All images"]
    assert list(whole)[:2] == ["GLoRI on student, frozen", "middle of the picture"]
    assert set(results["scores"]) == {"All images", "Effusion", "Nodule"}
    for entries in whole.values():
        assert all(0 <= entry["mean"] <= 1 for entry in entries.values())
        assert entries["chance"]["mean"] == whole["GLoRI on student, frozen"]["chance"]["mean"]
    assert results["hit_mean"] == whole["GLoRI on student, frozen"]["hit"]["mean"]
    assert (tmp_path / "boxes/report.html").read_text().count("data:image/jpeg") == 4
    monkeypatch.setattr(localisation, "boxed_images", lambda *_: ([], {}))
    with pytest.raises(DataError, match="split 'train' has no box of Effusion, Nodule; boxes that it has: none"):
        evaluated(config, tmp_path / "none", monkeypatch)
