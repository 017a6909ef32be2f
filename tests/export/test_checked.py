"""What folders of others say: every illegal value of a config.json is one line that names the file and the key."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cxr_jax.export.folder import answered, read_weights
from cxr_jax.export.foreign import Hints
from cxr_jax.export.rules import LayoutError
from tests.export.tiny import DECODER, assert_same, grey_target, random_backbone, random_parts, tiny_model, write

PLAIN = {"num_registers": 0, "ffn": "mlp"}
MAE = tiny_model(**PLAIN, layer_scale=None, positions="sincos")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder each of transformers with registers, of its MAE, and of DINOv2's layout; and what they say."""
    found, root = {}, tmp_path_factory.mktemp("folders")
    for name, layout, model, more in (
        ("hf", "hf", tiny_model(), {}),
        ("mae", "hf", MAE, {"decoder": DECODER}),
        ("own", "dinov2", tiny_model(), {}),
    ):
        (root / name).mkdir()
        write(root / name, model, random_parts({"backbone": model, **more}), grey_target(layout), more)
        found[name] = root / name, {file.name: json.loads(file.read_text()) for file in (root / name).glob("*.json")}
    return found


@pytest.fixture
def lying(folders, tmp_path):
    """`lying(name, file, changes)`: the same folder with other values in one of its files."""

    def make(name, file, changes):
        folder, said = folders[name]
        for weights in folder.glob("*.safetensors"):
            (tmp_path / weights.name).symlink_to(weights)
        for other, content in said.items():
            content = json.loads(json.dumps(content))
            for key, value in changes.items() if other == file else ():
                *parents, leaf = key.split(".")
                node = content
                for parent in parents:
                    node = node[parent]
                node[leaf] = value
            (tmp_path / other).write_text(json.dumps(content))
        return tmp_path

    return make


CONFIG, PIXELS = "config.json", "preprocessor_config.json"
LIES = [
    *(("hf", CONFIG, {"cxr_jax": value}, "cxr_jax=") for value in ("hello", [1], None)),
    *(("hf", CONFIG, {"hidden_size": value}, "hidden_size=") for value in (-64, "64", 0, True, 10**9, 25)),
    *(("hf", CONFIG, {"num_attention_heads": value}, "num_attention_heads=") for value in (5, 0, "2", 2.0)),
    *(("hf", CONFIG, {"patch_size": value}, "patch_size=") for value in (-8, "8", 8.0, 7)),
    *(("hf", CONFIG, {"image_size": value}, "image_size=") for value in (33, [32, 32], 8 * 10**6)),
    *(("hf", CONFIG, {"num_hidden_layers": value}, "num_hidden_layers=") for value in (-1, "3", 10**8)),
    *(("hf", CONFIG, {"layer_norm_eps": value}, "layer_norm_eps=") for value in ("x", -1.0, 0, float("nan"), None)),
    *(("hf", CONFIG, {"num_register_tokens": value}, "num_register_tokens=") for value in ("3", -1, 2.5)),
    *(("hf", CONFIG, {"num_channels": value}, "num_channels=") for value in ("3", 0)),
    ("hf", CONFIG, {"cxr_jax.layer_scale": "x"}, "cxr_jax.layer_scale='x'"),
    ("hf", CONFIG, {"model_type": ["dinov2"]}, "model_type=['dinov2']"),
    ("hf", CONFIG, {"architectures": 5}, "architectures=5"),
    *(("hf", CONFIG, {"cxr_jax.positions": value}, "cxr_jax.positions=") for value in ("bogus", ["learned"], "rope")),
    ("hf", CONFIG, {"cxr_jax.pos_resize": "bogus"}, "cxr_jax.pos_resize='bogus'; legal are offset, size, antialias"),
    ("hf", CONFIG, {"cxr_jax.fit": "bogus"}, "cxr_jax.fit='bogus'; legal are pad, crop, stretch"),
    ("hf", CONFIG, {"cxr_jax.step": "x"}, "cxr_jax.step='x'"),
    ("hf", CONFIG, {"cxr_jax.options": {"head": {"name": "glori"}}}, "head.width=None"),
    ("hf", CONFIG, {"num_hidden_layers": 10**6}, "holds nothing of layer 3, counted from 0, of 1000000"),
    *(("hf", PIXELS, {"image_mean": value}, "image_mean=") for value in (list("abc"), [None] * 3, [0.5] * 2, "x")),
    *(("hf", PIXELS, {"image_std": value}, "image_std=") for value in ([0, 0, 0], [float("inf")] * 3, [-1.0] * 3)),
    ("mae", CONFIG, {"decoder_num_attention_heads": 5}, "decoder_hidden_size=16; legal are multiples of decoder_num_"),
    ("mae", CONFIG, {"decoder_hidden_size": "16"}, "decoder_hidden_size='16'"),
    ("mae", CONFIG, {"decoder_num_hidden_layers": 7}, "holds nothing of layer 2, counted from 0, of 7"),
    ("own", CONFIG, {"cxr_jax.model.width": "24"}, "cxr_jax.model.width='24'"),
    ("own", CONFIG, {"cxr_jax.model": {"width": 24}}, "cxr_jax"),
    ("own", CONFIG, {"cxr_jax.std": [0.25, 0, 0.25]}, "cxr_jax.std="),
    ("own", CONFIG, {"cxr_jax.fit": "bogus"}, "cxr_jax.fit='bogus'"),
]


@pytest.mark.parametrize(("name", "file", "changes", "words"), LIES)
def test_an_illegal_value_is_named(lying, name, file, changes, words):
    folder = lying(name, file, changes)
    with pytest.raises(LayoutError) as caught:
        read_weights(folder)
    (line,) = str(caught.value).splitlines()
    where = folder if "holds nothing" in words else folder / file
    assert line.startswith(f"{where}: ") and words in line, line


def test_architectures_may_be_absent(lying):
    assert "decoder" in read_weights(lying("mae", CONFIG, {"architectures": None})).contents.networks["teacher"]


def test_a_folder_without_a_preprocessor_takes_the_user_s_normalisation(lying):
    folder = lying("hf", CONFIG, {})
    hints = Hints(mean=(0.5,) * 3, std=(0.25,) * 3)
    before = read_weights(folder).contents.networks
    assert answered(folder, hints).startswith("--image_mean and --image_std: ")
    (folder / PIXELS).unlink()
    with pytest.raises(LayoutError, match="pass --image_mean and --image_std"):
        read_weights(folder)
    assert answered(folder, hints) is None
    assert_same(read_weights(folder, hints).contents.networks, before)
    with pytest.raises(LayoutError, match=r"image_mean=.*lists of 3 numbers"):
        read_weights(folder, Hints(mean=(0.5,), std=(0.25,)))


@pytest.mark.parametrize("name", ["hf", "own"])
def test_what_a_folder_says_is_not_overruled_in_silence(folders, name):
    folder = folders[name][0]
    for hints, flag in (
        (Hints(num_heads=4), "--num_heads=4: "),
        (Hints(pos_resize="size"), "--pos_resize=size: "),
        (Hints(format="timm"), "--layout=timm: "),
        (Hints(mean=(0.5,) * 3, std=(0.25,) * 3), "--image_mean and --image_std: "),
    ):
        assert answered(folder, hints).startswith(flag)
    assert answered(folder, Hints()) is None


def test_a_named_file_is_not_passed_over_for_another(lying):
    folder = lying("hf", CONFIG, {})
    (folder / "pytorch_model.bin").write_bytes(b"other weights")
    with pytest.raises(LayoutError, match=r"pytorch_model\.bin: model\.safetensors lies beside it"):
        read_weights(folder / "pytorch_model.bin")
    assert read_weights(folder / "model.safetensors").tensors == read_weights(folder).tensors


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, value):
    model = tiny_model()
    write(tmp_path, model, {"backbone": random_backbone(model)}, grey_target("hf"))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["layernorm.bias"][3] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(LayoutError, match=r"layernorm\.bias: holds NaN or infinity"):
        read_weights(tmp_path)


def test_the_newer_spelling_of_a_decoder_is_read(lying, folders):
    folder, _ = folders["mae"]
    tensors = load_file(folder / "model.safetensors")
    new = {name.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer."): t for name, t in tensors.items()}
    assert new.keys() != tensors.keys()
    other = lying("mae", CONFIG, {})
    (other / "model.safetensors").unlink()
    save_file(new, other / "model.safetensors")
    assert_same(read_weights(other).contents.networks, read_weights(folder).contents.networks)
