"""Public weights are started from, trained, and given back: DINOv2-style files of 3 channels and of 1, with heads."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from cxr_jax import checkpoint
from cxr_jax import convert as entry
from cxr_jax.config import ConfigError
from cxr_jax.data.records import DataError
from cxr_jax.export.folder import read_weights
from cxr_jax.export.foreign import Hints
from cxr_jax.export.layouts import Target
from tests.export.tiny import assert_same, grey_target, random_parts, tiny_model, write
from tests.test_init_from import one_device, start, trained  # noqa: F401

MODEL = tiny_model(depth=2, layer_scale=1.0)
HEAD = {"width": 24, "hidden": 16, "bottleneck": 8, "num_prototypes": 16}
PARTS = {"backbone": MODEL, "dino_head": HEAD, "ibot_head": HEAD}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """`{channels: file}` of a whole DINOv2 training checkpoint: student and teacher with their heads."""
    found = {}
    for channels in (1, 3):
        folder = tmp_path_factory.mktemp("public")
        networks = {name: random_parts(PARTS, i) for i, name in enumerate(("teacher", "student"))}
        write(folder, MODEL, networks, grey_target("dinov2", channels=channels, chunks=2))
        found[channels] = folder / "training.safetensors"
        (folder / "model.safetensors").rename(found[channels])
    return found, networks


def hints(channels):
    return Hints(num_heads=2, pos_resize="offset", mean=(0.5,) * channels, std=(0.25,) * channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_imported_trained_two_steps_and_exported_again(files, trained, tmp_path, channels):  # noqa: F811
    """Through a run directory: both networks with their heads go in, are trained, and come out in the same layout."""
    file = files[0][channels]
    report = entry.convert(file, tmp_path / "in", format="cxr_jax", hints=hints(channels))
    assert report["tensors"]["ours"] == len(jax.tree.leaves(files[1]))
    for item, network in (("targets", "teacher"), ("params", "student")):
        assert_same(checkpoint.read_item(tmp_path / "in", item), files[1][network])
    run, lines = trained(init_from=str(tmp_path / "in"), init_network="both", total_steps=2)
    assert [line["step"] for line in lines] == [0, 1]
    options = {"format": "dinov2", "network": "both", "num_channels": channels, "block_chunks": 2}
    entry.convert(run, tmp_path / "out", **options)
    before, after = load_file(file), load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    changed = [name for name in after if not np.array_equal(after[name], before[name])]
    assert any(name.startswith("student.dino_head") for name in changed)
    back = read_weights(tmp_path / "out").contents.networks
    for item, network in (("targets", "teacher"), ("params", "student")):
        assert_same(back[network], checkpoint.read_item(run, item))


@pytest.mark.parametrize(("parts", "network"), [("networks", "both"), ("networks", "teacher"), ("backbone", "teacher")])
def test_a_file_is_started_from_directly(files, phantom_dataset, one_device, parts, network):  # noqa: F811
    """Given as `init_from` itself; the report says what the file did not."""
    file, networks = files[0][1], files[1]
    begun, _ = start(phantom_dataset, one_device, init_from=str(file), init_parts=parts, init_network=network)
    for item, whose in (("params", "student" if network == "both" else "teacher"), ("targets", "teacher")):
        found = jax.tree.map(np.asarray, getattr(begun.state, item))
        if parts == "networks":
            assert_same(found, networks[whose])
        else:
            assert_same(found["backbone"], networks[whose]["backbone"])
    assert begun.report["assumed"] == ["normalisation (x - 0.5) / 0.25"]
    assert "assumed, as the file does not say: normalisation (x - 0.5) / 0.25" in begun.describe()


def test_what_is_not_there_is_refused(files, phantom_dataset, one_device, tmp_path):  # noqa: F811
    write(tmp_path, MODEL, {"backbone": random_parts({"backbone": MODEL})["backbone"]}, grey_target("dinov2"))
    (tmp_path / "model.safetensors").rename(tmp_path / "alone.safetensors")
    alone = str(tmp_path / "alone.safetensors")
    for changes, words in (
        ({"init_from": alone}, "holds weights of backbone alone; legal is backbone"),
        ({"init_from": alone, "init_parts": "backbone", "init_network": "both"}, "the weights of one network"),
        ({"init_from": alone, "init_parts": "everything"}, "legal are backbone, networks"),
        ({"init_from": alone, "init_parts": "backbone", "model.norm_epsilon": 1e-5}, "was trained with 1e-06"),
        ({"init_from": str(files[0][1]), "heads.dino_head.hidden": 12, "heads.ibot_head.hidden": 12}, "dino_head"),
    ):
        with pytest.raises(ConfigError, match=words):
            start(phantom_dataset, one_device, **changes)
    (tmp_path / "alone.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match="not a readable safetensors file"):
        start(phantom_dataset, one_device, init_from=alone, init_parts="backbone")


def test_imported_weights_are_a_run_for_heads_and_evaluations(files, tmp_path):
    """A public backbone with ImageNet's normalisation becomes a run that fine-tuning and `evaluate` read."""
    from configs.finetune import linear
    from cxr_jax.experiments import build

    network = {"backbone": random_parts({"backbone": MODEL})["backbone"]}
    write(tmp_path, MODEL, network, Target("dinov2", 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    file = tmp_path / "dinov2_pretrain.safetensors"
    (tmp_path / "model.safetensors").rename(file)
    report = entry.convert(file, tmp_path / "run", format="cxr_jax", hints=Hints(num_heads=2))
    assert report["assumed"] == ["pos_resize=antialias", "normalisation of ImageNet"]
    config = linear.get_config()
    config.init_from, config.data.targets = str(file), ("Effusion",)
    with pytest.raises(ConfigError, match=r"make one first: python -m cxr_jax\.convert --input=.*--format=cxr_jax"):
        build(config)
    config.init_from, config.data.targets, config.head.blocks = str(tmp_path / "run"), ("Effusion",), 1
    meta = build(config).meta
    assert meta["model"]["pos_resize"] == "antialias" and meta["pretrained"]["network"] == "student"
