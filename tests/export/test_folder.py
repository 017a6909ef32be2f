"""The Hugging Face folder: written and read without torch, bit-exact, positions baked, faults refused by name."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cxr_jax.export.contents import Contents, Geometry
from cxr_jax.export.folder import read_weights, write_folder
from cxr_jax.export.huggingface import config_json, model_from_config, preprocessor_json
from cxr_jax.export.layouts import bake_positions
from cxr_jax.export.ours import features
from cxr_jax.export.report import position_difference
from cxr_jax.export.rules import LayoutError
from cxr_jax.models.positions import resize_positions
from tests.export.tiny import VARIANTS, assert_same, grey_target, random_backbone, read_hf, tiny_model
from tests.export.tiny import write_hf as _write

PAD = Geometry("pad", 32)


def to_state_dict(tmp_path, backbone, model, image_size=32, num_channels=3):
    """The tensors of the folder that is written, by name."""
    _write(tmp_path, model, backbone, image_size, num_channels)
    return load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_folder_round_trip_is_bit_exact(tmp_path, name, num_channels):
    model = tiny_model(**VARIANTS[name])
    backbone = random_backbone(model)
    _write(tmp_path, model, backbone, num_channels=num_channels)
    back, kwargs = read_hf(tmp_path)
    assert kwargs == model
    assert_same(back, backbone)


def test_one_channel_export_keeps_the_patch_embedding(tmp_path):
    model = tiny_model()
    backbone = random_backbone(model)
    tensors = to_state_dict(tmp_path, backbone, model, num_channels=1)
    ours = backbone["patch_embed"]["kernel"].reshape(8, 8, 24)
    theirs = tensors["embeddings.patch_embeddings.projection.weight"]
    np.testing.assert_array_equal(theirs[:, 0].transpose(1, 2, 0), ours)


@pytest.mark.parametrize("rule", ["offset", "size", "antialias"])
def test_positions_are_baked_by_the_model_s_own_rule(rule, tmp_path):
    model = tiny_model(pos_resize=rule)
    backbone = random_backbone(model)
    same = bake_positions(backbone["pos_embed"], model, 32)
    np.testing.assert_array_equal(same, backbone["pos_embed"])
    tensors = to_state_dict(tmp_path, backbone, model, image_size=48)
    baked = tensors["embeddings.position_embeddings"]
    assert baked.shape == (1, 1 + 36, 24)
    np.testing.assert_allclose(baked[0], resize_positions(jnp.asarray(backbone["pos_embed"]), 4, 6, rule), atol=1e-6)
    np.testing.assert_array_equal(baked[0, 0], backbone["pos_embed"][0])


def test_baked_model_gives_the_features_of_the_resized_one(tmp_path):
    model = tiny_model(pos_resize="offset")
    backbone = random_backbone(model)
    images = jnp.asarray(np.random.default_rng(0).uniform(-2, 2, (2, 48, 48)), jnp.float32)
    _write(tmp_path, model, backbone, image_size=48)
    back, kwargs = read_hf(tmp_path)
    assert kwargs == {**model, "image_size": 48}
    ours, theirs = features(model, backbone, images), features(kwargs, back, images)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_position_difference_is_nought_only_for_the_same_rule():
    pos = random_backbone(tiny_model())["pos_embed"]
    assert position_difference(pos, tiny_model(pos_resize="antialias"), 32, 64) == 0
    assert position_difference(pos, tiny_model(pos_resize="offset"), 32, 64) > 1e-3
    assert position_difference(pos, tiny_model(pos_resize="size", num_registers=0), 32, 64) == 0


def test_image_size_must_be_a_multiple_of_the_patch():
    with pytest.raises(ValueError, match="image_size=30: must be a positive multiple of the patch size 8"):
        bake_positions(np.zeros((17, 24), np.float32), tiny_model(), 30)


def test_config_reads_back_as_the_model():
    for changes in VARIANTS.values():
        model = tiny_model(**changes)
        config = config_json(model, image_size=32, num_channels=3, geometry=PAD)
        assert model_from_config(config, Path("config.json")) == (model, {})


def test_config_that_we_cannot_reproduce_is_refused():
    config = config_json(tiny_model(), image_size=32, num_channels=3, geometry=PAD)
    with pytest.raises(LayoutError, match=r"config\.json: hidden_act='relu'; legal are gelu"):
        model_from_config({**config, "hidden_act": "relu"}, Path("config.json"))


def test_preprocessor_says_what_it_does_per_fit():
    colour = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    fits = ("pad", "crop", "stretch")
    sizes = {fit: preprocessor_json(Geometry(fit, 32), image_size=32, **colour) for fit in fits}
    assert sizes["stretch"]["size"] == {"height": 32, "width": 32} and not sizes["stretch"]["do_center_crop"]
    assert sizes["crop"]["size"] == {"shortest_edge": 32} and sizes["crop"]["do_center_crop"]
    assert sizes["pad"]["size"] == {"max_height": 32, "max_width": 32} and sizes["pad"]["do_center_crop"]
    grey = preprocessor_json(PAD, image_size=32, mean=(0.5,), std=(0.25,))
    assert grey["image_mean"] == [0.5] and grey["image_std"] == [0.25] and not grey["do_convert_rgb"]


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "half_written", "no_file"])
def test_faulty_weights_are_refused_by_name(tmp_path, fault):
    model = tiny_model()
    _write(tmp_path, model, random_backbone(model))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    message = {
        "missing": "1 missing: layernorm.weight",
        "extra": "1 unmapped: classifier.weight",
        "shape": "encoder.layer.1.mlp.weights_out.weight",
        "half_written": "not a readable safetensors file",
        "no_file": "not a readable safetensors file",
    }[fault]
    if fault == "missing":
        del tensors["layernorm.weight"]
    elif fault == "extra":
        tensors["classifier.weight"] = np.zeros((2, 24), np.float32)
    elif fault == "shape":
        tensors["encoder.layer.1.mlp.weights_out.weight"] = np.zeros((24, 8), np.float32)
    save_file(tensors, file)
    if fault == "half_written":
        file.write_bytes(file.read_bytes()[:-100])
    elif fault == "no_file":
        file.unlink()
    with pytest.raises(LayoutError) as caught:
        read_weights(tmp_path)
    (line,) = str(caught.value).splitlines()
    assert message in line and str(tmp_path) in line


def test_unmapped_parameter_leaves_no_doubt_unless_it_is_allowed(tmp_path):
    model = tiny_model()
    backbone = random_backbone(model)
    backbone["adapter"] = {"kernel": np.zeros((2, 2), np.float32)}
    with pytest.raises(LayoutError, match="1 unmapped: backbone/adapter/kernel"):
        _write(tmp_path, model, backbone)
    contents = Contents({"teacher": {"backbone": backbone}}, model, PAD)
    write_folder(tmp_path, contents, grey_target("hf"), allow=("backbone/adapter/kernel",))
    del backbone["adapter"]
    assert_same(read_hf(tmp_path)[0], backbone)


def test_written_files_are_plain_and_readable(tmp_path):
    model = tiny_model()
    _write(tmp_path, model, random_backbone(model))
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Dinov2WithRegistersModel"] and config["num_register_tokens"] == 4
    assert config["use_swiglu_ffn"] and config["layerscale_value"] == 1e-5 and config["layer_norm_eps"] == 1e-6
