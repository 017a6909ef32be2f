"""`convert` between runs and the other layouts: what is written, said and refused, as its caller sees it."""

import json
import re
import runpy
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from cxr_jax import checkpoint, imported
from cxr_jax import convert as entry
from cxr_jax.config import ConfigError
from cxr_jax.data.records import DataError
from cxr_jax.export import parity
from cxr_jax.export.contents import Contents, Geometry
from cxr_jax.export.foreign import Hints
from tests.export.tiny import DECODER, GLORI, PROJECTION, assert_same, grid_of, random_parts, tiny_model

MAE = tiny_model(ffn="mlp", num_registers=0, layer_scale=None, positions="sincos")
RATES = [1e-4, 1e-3, 1e-2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs: a self-distillation, a fine-tuning of three learning rates, a masked autoencoder."""
    folder, model = tmp_path_factory.mktemp("runs"), tiny_model()
    heads = {"dino_head": PROJECTION, "ibot_head": PROJECTION}
    both = {name: random_parts({"backbone": model, **heads}, i) for i, name in enumerate(("teacher", "student"))}
    tuned = random_parts({"backbone": model, "head": GLORI})
    tuned["head"] = grid_of(tuned["head"], 3)
    mae = random_parts({"backbone": MAE, "decoder": DECODER})
    facts = {"step": 9, "targets": list("abcde"), "learning_rates": RATES}
    for name, networks, arguments, options, said in (
        ("pretrained", both, model, {}, {"step": 7, "objective": "self_distillation"}),
        ("tuned", {"teacher": tuned}, model, {"head": GLORI}, facts),
        ("mae", {"student": mae}, MAE, {"decoder": DECODER}, {"step": 3, "objective": "mae"}),
    ):
        imported.write_run(folder / name, Contents(networks, arguments, Geometry("pad", 32), options, said), "nowhere")
    return folder, {"pretrained": both, "tuned": tuned, "mae": mae}


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setattr(parity, "find_spec", lambda name: None)


@pytest.mark.parametrize("layout", ["dinov2", "chexfound"])
def test_both_networks_go_out_and_in_without_torch(runs, tmp_path, no_torch, monkeypatch, layout):
    monkeypatch.setitem(sys.modules, "torch", None)
    report = entry.convert(runs[0] / "pretrained", tmp_path / "out", format=layout, network="both", block_chunks=3)
    assert report["tensors"]["ours"] == 2 * (22 + 16) and report["files"] == {
        "model.safetensors": report["tensors"]["theirs"]
    }
    entry.convert(tmp_path / "out", tmp_path / "run", format="cxr_jax")
    for item, network in (("targets", "teacher"), ("params", "student")):
        assert_same(checkpoint.read_item(tmp_path / "run", item), runs[1]["pretrained"][network])
    meta = checkpoint.read_meta(tmp_path / "run")
    assert meta["step"] == 7 and meta["objective"] == "self_distillation"


def test_the_backbone_alone_has_the_names_of_published_weights(runs, tmp_path, no_torch):
    report = entry.convert(runs[0] / "pretrained", tmp_path / "out", format="dinov2", parts="backbone")
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert {"cls_token", "blocks.2.mlp.w12.weight", "norm.bias"} <= set(names)
    assert not any(name.startswith(("backbone.", "dino_head.")) for name in names) and report["beside"] == []


@pytest.mark.parametrize("layout", ["hf", "timm", "chexfound"])
def test_a_fine_tuned_run_goes_out_and_in(runs, tmp_path, no_torch, layout):
    rate = None if layout == "chexfound" else 1e-3
    report = entry.convert(runs[0] / "tuned", tmp_path / "out", format=layout, learning_rate=rate)
    lines = entry.describe(report, tmp_path / "out")
    said = r"beside: heads\.safetensors, \d+ tensors \((backbone/mask_token, )?head\): this layout has no place"
    if layout == "chexfound":
        said = r"classifiers: classifiers\.safetensors, \d+ tensors, a file of their own as CheXFound has it"
    assert re.search(said, lines) and ("no place" in lines) == (layout != "chexfound"), lines
    entry.convert(tmp_path / "out", tmp_path / "run", format="cxr_jax")
    meta = checkpoint.read_meta(tmp_path / "run")
    assert meta["targets"] == list("abcde") and meta["objective"] == "supervised"
    assert meta["learning_rates"] == (RATES if layout == "chexfound" else [1e-3])
    kept = slice(None) if layout == "chexfound" else slice(1, 2)
    queries = checkpoint.read_item(tmp_path / "run", "params")["head"]["queries"]
    np.testing.assert_array_equal(queries, runs[1]["tuned"]["head"]["queries"][kept])


def test_classifiers_of_chexfound_join_a_backbone_from_elsewhere(runs, tmp_path, no_torch):
    entry.convert(runs[0] / "tuned", tmp_path / "out", format="chexfound")
    for name in ("model", "classifiers"):
        (tmp_path / "out" / f"{name}.safetensors").rename(tmp_path / f"{name}_of_others.safetensors")
    hints = Hints("chexfound", num_heads=2, mean=(0.5,) * 3, std=(0.25,) * 3)
    files = tmp_path / "model_of_others.safetensors", tmp_path / "run"
    entry.convert(*files, format="cxr_jax", hints=hints, classifiers=tmp_path / "classifiers_of_others.safetensors")
    meta = checkpoint.read_meta(tmp_path / "run")
    assert meta["head"]["name"] == "glori" and meta["learning_rates"] == RATES
    assert meta["targets"] == list("abcde")  # as the file's own metadata says
    assert_same(checkpoint.read_item(tmp_path / "run", "params")["head"], runs[1]["tuned"]["head"])
    with pytest.raises(DataError, match=r"--classifiers=.*is no classifier of CheXFound"):
        entry.convert(files[0], tmp_path / "x", format="cxr_jax", hints=hints, classifiers=files[0])


@pytest.mark.parametrize(("layout", "kind"), [("hf", "ViTMAEForPreTraining"), ("mae", "facebookresearch/mae")])
def test_a_masked_autoencoder_keeps_its_decoder(runs, tmp_path, no_torch, layout, kind):
    report = entry.convert(runs[0] / "mae", tmp_path / "out", format=layout)
    assert report["architecture"] == kind and report["beside"] == ["backbone/mask_token"]
    entry.convert(tmp_path / "out", tmp_path / "run", format="cxr_jax")
    assert_same(checkpoint.read_item(tmp_path / "run", "params"), runs[1]["mae"])


def test_the_report_says_where_another_resize_differs(runs, tmp_path, no_torch):
    same = entry.convert(runs[0] / "pretrained", tmp_path / "a", format="chexfound", image_size=48)["positions"]
    assert same["their_rule"] == "offset" and same["rms_difference_at_other_px"] > 1e-3  # 48 -> 96 is not 32 -> 96
    trained = entry.convert(runs[0] / "pretrained", tmp_path / "b", format="chexfound")["positions"]
    assert trained["rms_difference_at_other_px"] == 0
    other = entry.convert(runs[0] / "pretrained", tmp_path / "c", format="timm")
    assert other["positions"]["rms_difference_at_other_px"] > 1e-3
    assert "timm's own resize (antialias) differs" in entry.describe(other, tmp_path)


def test_refusals(runs, tmp_path, no_torch):
    runs = runs[0]
    (tmp_path / "x.safetensors").write_bytes(b"x")
    for error, words, source, options in (
        (ConfigError, "choose one by --learning_rate", runs / "tuned", {"format": "hf"}),
        (ConfigError, "--learning_rate=5: legal are 0.0001, 0.001, 0.01", runs / "tuned", {"learning_rate": 5.0}),
        (ConfigError, "is no fine-tuned run", runs / "mae", {"learning_rate": 5.0}),
        (ConfigError, "--network=both: legal with", runs / "pretrained", {"network": "both"}),
        (ConfigError, "cannot be written as --format=mae", runs / "pretrained", {"format": "mae"}),
        (ConfigError, "is no weights to import", runs / "mae", {"format": "cxr_jax"}),
        (ConfigError, "--block_chunks=9", runs / "pretrained", {"format": "dinov2", "block_chunks": 9}),
        (ConfigError, "is for 3 channels", runs / "mae", {"normalisation": "imagenet", "num_channels": 1}),
        (DataError, "not a readable safetensors file", tmp_path / "x.safetensors", {"format": "cxr_jax"}),
        (ConfigError, "y.pth: no such file or folder", tmp_path / "y.pth", {"format": "cxr_jax"}),
        (ConfigError, "/y: no such file or folder", tmp_path / "y", {"format": "hf"}),
        (ConfigError, "--num_heads: ", runs / "mae", {"hints": Hints(num_heads=2)}),
        (ConfigError, "--allow=backbone/no: no tensor", runs / "mae", {"allow": ("backbone/no",)}),
        (ConfigError, "--image_size=8200: legal are at most 8192 px", runs / "mae", {"image_size": 8200}),
    ):
        with pytest.raises(error) as caught:
            entry.convert(source, tmp_path / "out", **options)
        (line,) = str(caught.value).splitlines()
        assert words in line, line
        assert sorted(p.name for p in tmp_path.iterdir()) == ["x.safetensors"]


@pytest.mark.parametrize("layout", ["hf", "dinov2", "timm"])
def test_the_card_s_code_names_probabilities(runs, tmp_path, monkeypatch, capsys, layout):
    """Run as it stands in README.md, in the folder, with what is in it."""
    pytest.importorskip("torch")
    if layout == "hf":
        pytest.importorskip("transformers")
    out = tmp_path / "out"
    picture = np.random.default_rng(0).integers(0, 256, (40, 33), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.png")
    report = entry.convert(runs[0] / "tuned", out, format=layout, learning_rate=1e-3, image=tmp_path / "x.png")
    assert report["parity"]["image"]["teacher"]["logits"]["max"] < 1e-4
    assert json.loads((out / "conversion.json").read_text()) == report
    code = next(
        c for c in re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S) if "cxr_torch" in c
    )
    (out / "example.py").write_text(code)
    Image.fromarray(picture).save(out / "chest_xray.png")
    monkeypatch.chdir(out)
    monkeypatch.syspath_prepend(out)
    monkeypatch.delitem(sys.modules, "cxr_torch", raising=False)
    runpy.run_path("example.py")
    found = re.findall(r"^([a-e]): (\d\.\d{3})$", capsys.readouterr().out, re.M)
    assert [name for name, _ in found] == list("abcde")
