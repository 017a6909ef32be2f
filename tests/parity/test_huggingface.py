"""Our ViT against transformers' own models, random weights, float32, 1e-5 on every token. No network is used."""

import json
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cxr_jax.data.geometry import fit_images, normalise
from cxr_jax.export.contents import Contents, Geometry
from cxr_jax.export.huggingface import config_json
from cxr_jax.export.model_card import example
from cxr_jax.export.ours import features
from cxr_jax.export.parity import (
    TOKENS,
    differences,
    largest,
    our_outputs,
    random_images,
    their_outputs,
    transformers_model,
    transformers_pixels,
)
from tests.export.tiny import VARIANTS, grey_target, random_backbone, tiny_model
from tests.export.tiny import read_hf as read_folder
from tests.export.tiny import write_hf as write_folder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from cxr_jax.export import cxr_torch  # noqa: E402

PAD = Geometry("pad", 32)


def compare(folder, model, backbone, images):
    """Our features and those of the folder, on the same grey images."""
    config = json.loads((folder / "config.json").read_text())
    target = grey_target("hf", config["image_size"], config["num_channels"])
    pixels = np.repeat(images[:, None], config["num_channels"], axis=1)
    ours = our_outputs(Contents({"teacher": {"backbone": backbone}}, model, PAD), images)
    return differences(ours, their_outputs(folder, target, {}, None, pixels))


def _theirs(model, num_channels):
    """transformers' model built from our config, with random weights of a size that matters."""
    name = "Dinov2WithRegisters" if model["num_registers"] else "Dinov2"
    config = config_json(model, image_size=model["image_size"], num_channels=num_channels, geometry=PAD)
    built = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in built.named_parameters():
            values = 0.1 * torch.randn(parameter.shape, generator=generator)
            norm = "norm" in parameter_name and parameter_name.endswith("weight")
            parameter.copy_(values + 1 if norm else values)
            if "lambda1" in parameter_name and model["layer_scale"] is None:
                parameter.fill_(1.0)
    return built


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_our_export_gives_our_features(tmp_path, name, num_channels):
    model = tiny_model(**VARIANTS[name])
    backbone = random_backbone(model)
    write_folder(tmp_path, model, backbone, 32, num_channels)
    report = compare(tmp_path, model, backbone, random_images(32))
    assert set(report) == {"cls", "patches"} | ({"registers"} if model["num_registers"] else set())
    assert largest(report) < 1e-5, report


@pytest.mark.parametrize("rule", ["offset", "size", "antialias"])
@pytest.mark.parametrize("image_size", [48, 24])
def test_baked_export_gives_our_features_at_another_size(tmp_path, rule, image_size):
    model = tiny_model(pos_resize=rule)
    backbone = random_backbone(model)
    write_folder(tmp_path, model, backbone, image_size, 3)
    report = compare(tmp_path, model, backbone, random_images(image_size))
    assert largest(report) < 1e-5, report


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_their_weights_give_their_features_here(tmp_path, name, num_channels):
    model = tiny_model(**VARIANTS[name])
    theirs = _theirs(model, num_channels)
    theirs.save_pretrained(tmp_path)
    _write_preprocessor(tmp_path, num_channels)
    backbone, kwargs = read_folder(tmp_path)
    assert kwargs == model
    images = random_images(32)
    pixels = torch.from_numpy(images)[:, None].expand(-1, num_channels, -1, -1)
    with torch.no_grad():
        tokens = theirs(pixels).last_hidden_state.numpy()
    ours = features(kwargs, backbone, jnp.asarray(images))
    together = np.concatenate([ours.cls[-1][:, None], ours.registers[-1], ours.patches[-1]], axis=1)
    np.testing.assert_allclose(together, tokens, atol=1e-5)


@pytest.mark.parametrize(
    ("registers", "rule", "image_size"),
    [
        (4, "antialias", 48),
        (4, "antialias", 24),
        (4, "antialias", 72),
        (0, "size", 48),
        (0, "size", 24),
        (0, "size", 72),
    ],
)
def test_interpolated_positions_agree_by_the_matching_rule(tmp_path, registers, rule, image_size):
    """Both sides keep the trained grid and resize it themselves."""
    model = tiny_model(num_registers=registers, pos_resize=rule)
    backbone = random_backbone(model)
    write_folder(tmp_path, model, backbone, 32, 3)
    report = compare(tmp_path, model, backbone, random_images(image_size))
    assert largest(report) < 1e-5, report


@pytest.mark.parametrize("ffn", ["swiglu", "mlp"])
@pytest.mark.parametrize(("registers", "rule"), [(4, "antialias"), (0, "size")])
def test_their_weights_give_their_features_here_at_other_resolutions(tmp_path, registers, rule, ffn):
    """Dinov2WithRegistersModel and Dinov2Model below and above the trained side (that is the test before), both FFNs.

    Our `features` on the imported weights, whose rule is the one that the import gives a published folder.
    """
    model = tiny_model(num_registers=registers, pos_resize=rule, ffn=ffn)
    theirs = _theirs(model, 3)
    theirs.save_pretrained(tmp_path)
    _write_preprocessor(tmp_path, 3)
    published = json.loads((tmp_path / "config.json").read_text())
    del published["cxr_jax"]
    (tmp_path / "config.json").write_text(json.dumps(published))
    backbone, kwargs = read_folder(tmp_path)
    assert kwargs == model
    for image_size in (24, 56):
        images = random_images(image_size)
        with torch.no_grad():
            pixels = torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1)
            tokens = theirs(pixels).last_hidden_state.numpy()
        ours = features(kwargs, backbone, jnp.asarray(images))
        together = np.concatenate([ours.cls[-1][:, None], ours.registers[-1], ours.patches[-1]], axis=1)
        np.testing.assert_allclose(together, tokens, atol=1e-5, err_msg=f"{image_size} px")


def test_interpolated_positions_differ_by_another_rule(tmp_path):
    """The check above can fail: our published rule is not transformers'."""
    model = tiny_model(pos_resize="offset")
    backbone = random_backbone(model)
    write_folder(tmp_path, model, backbone, 32, 3)
    assert largest(compare(tmp_path, model, backbone, random_images(48))) > 1e-3


def test_every_block_agrees_through_the_final_norm(tmp_path):
    model = tiny_model()
    backbone = random_backbone(model)
    write_folder(tmp_path, model, backbone, 32, 3)
    images = random_images(32)
    theirs = transformers.AutoModel.from_pretrained(tmp_path, local_files_only=True).eval()
    pixels = torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1)
    with torch.no_grad():
        hidden = theirs(pixels, output_hidden_states=True).hidden_states
        normed = [theirs.layernorm(h).numpy() for h in hidden[-3:]]
    ours = features(model, backbone, jnp.asarray(images), blocks=3)
    for block, tokens in enumerate(normed):
        np.testing.assert_allclose(ours.cls[block], tokens[:, 0], atol=1e-5)
        np.testing.assert_allclose(ours.patches[block], tokens[:, 5:], atol=1e-5)


def test_a_tensor_that_transformers_does_not_know_is_an_error(tmp_path):
    from safetensors.numpy import load_file, save_file

    model = tiny_model()
    write_folder(tmp_path, model, random_backbone(model))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["layernorm.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layernorm\.bias"):
        transformers_model(tmp_path)


def test_imagenet_normalised_weights_fold_into_one_grey_channel(tmp_path):
    """A published model expects ImageNet's constants; here it gets (x - 0.5) / 0.25 of the same grey picture."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    theirs = _theirs(tiny_model(), 3)
    theirs.save_pretrained(tmp_path)
    transformers.BitImageProcessor(image_mean=mean, image_std=std).save_pretrained(tmp_path)
    backbone, kwargs = read_folder(tmp_path)
    grey = np.random.default_rng(0).uniform(0, 1, (2, 32, 32)).astype(np.float32)
    pixels = np.stack([(grey - m) / s for m, s in zip(mean, std, strict=True)], axis=1).astype(np.float32)
    with torch.no_grad():
        tokens = theirs(torch.from_numpy(pixels)).last_hidden_state.numpy()
    ours = features(kwargs, backbone, jnp.asarray((grey - 0.5) / 0.25))
    np.testing.assert_allclose(ours.cls[-1], tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(ours.patches[-1], tokens[:, 5:], atol=1e-5)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("shape", [(61, 40), (40, 61), (20, 27)])
def test_code_of_the_model_card_gives_our_features(tmp_path, monkeypatch, fit, num_channels, shape):
    """The same PNG through the card's own code and through our geometry and model."""
    model = tiny_model(num_registers=4 if num_channels == 3 else 0)
    backbone = random_backbone(model)
    write_folder(tmp_path, model, backbone, 32, num_channels, fit)
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "chest_xray.png")
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(cxr_torch.__file__, tmp_path / "cxr_torch.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cxr_torch", raising=False)
    names = {}
    exec(example("hf"), names)
    assert Path(names["cxr_torch"].__file__).parent == tmp_path
    pixels = normalise(fit_images(jnp.asarray(picture[None]), jnp.array([shape]), 32, fit))
    np.testing.assert_allclose(names["pixels"][0, 0], pixels[0], atol=1e-5)
    ours = features(model, backbone, pixels)
    for name in TOKENS:
        np.testing.assert_allclose(getattr(ours, name), names[name], atol=1e-5)
    np.testing.assert_array_equal(names["cls_token"], names["cls"][-1])


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_preprocessor_is_near(tmp_path, fit, num_channels):
    """transformers' preprocessor on a smooth picture: same size and range, within a few grey levels of ours."""
    if int(transformers.__version__.split(".")[0]) < 5 and (fit == "pad" or num_channels == 1):
        pytest.skip("transformers 4 has neither max_height nor grey pictures in this preprocessor")
    model = tiny_model()
    write_folder(tmp_path, model, random_backbone(model), 32, num_channels, fit)
    y, x = np.mgrid[:128, :96]
    picture = (128 + 100 * np.sin(y / 40) * np.cos(x / 30)).astype(np.uint8)
    theirs = transformers_pixels(tmp_path, picture)
    ours = normalise(fit_images(jnp.asarray(picture[None]), jnp.array([picture.shape]), 32, fit))
    assert theirs.shape == (1, num_channels, 32, 32)
    grey_levels = 255 * 0.25 * np.abs(theirs - np.asarray(ours)[:, None])
    assert np.median(grey_levels) < 2 and grey_levels.max() < 16


def _write_preprocessor(folder, num_channels):
    constants = {"image_mean": [0.5] * num_channels, "image_std": [0.25] * num_channels}
    transformers.BitImageProcessor(**constants).save_pretrained(folder)
