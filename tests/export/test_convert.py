"""`python -m cxr_jax.convert`: a run's checkpoint to a folder, whole or not there, with the report beside it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cxr_jax import convert as entry
from cxr_jax.config import ConfigError
from cxr_jax.data.records import DataError
from cxr_jax.export import parity
from cxr_jax.saving import Checkpoints
from cxr_jax.state import TrainState
from tests.export.tiny import PROJECTION, assert_same, random_backbone, random_parts, read_hf, tiny_model

ROOT = Path(__file__).parents[2]
HEAD = random_parts({"dino_head": PROJECTION})["dino_head"]


def _save_run(folder, model, params, targets):
    """A run directory with one checkpoint, of step 7."""
    meta = {
        "config": {"seed": 0, "data": {"path": "/data/secret/set"}},
        "model": {**model, "drop_path": 0.4, "compute_dtype": "bfloat16"},
        "geometry": {"fit": "pad", "image_size": 32, "mean": 0.5, "std": 0.25},
        "fingerprint": "f00d",
        "objective": "self_distillation",
    }
    state = TrainState(
        step=jnp.asarray(7),
        params=params,
        targets=targets,
        opt_state={"count": jnp.zeros(())},
        health={"n": jnp.zeros(())},
    )
    checkpoints = Checkpoints(folder)
    checkpoints.save(state, meta)
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = tiny_model()
    student, teacher = ({"backbone": random_backbone(model, seed), "dino_head": HEAD} for seed in (1, 2))
    folder = _save_run(tmp_path_factory.mktemp("runs") / "first", model, student, teacher)
    return folder, model, student, teacher


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setattr(parity, "find_spec", lambda name: None)


@pytest.mark.parametrize("network", ["teacher", "student", None])
def test_writes_the_network_asked_for(run, tmp_path, no_torch, network):
    folder, model, student, teacher = run
    report = entry.convert(folder, tmp_path / "out", network=network)
    backbone, kwargs = read_hf(tmp_path / "out")
    assert_same(backbone, (student if network == "student" else teacher)["backbone"])
    assert kwargs == model
    assert report["network"] == (network or "teacher")
    assert json.loads((tmp_path / "out/conversion.json").read_text()) == report
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_report_counts_and_says_what_is_left_out(run, tmp_path, no_torch):
    folder, *_ = run
    report = entry.convert(folder, tmp_path / "out", image_size=48, num_channels=1)
    assert report["tensors"] == {"ours": 22 + 8, "theirs": 6 + 3 * 18 + 2 + 8}
    assert report["files"] == {"model.safetensors": 6 + 3 * 18 + 2, "heads.safetensors": 8}
    assert report["beside"] == ["dino_head"] and report["unmapped"] == {"ours": [], "theirs": []}
    lines = entry.describe(report, tmp_path / "out")
    assert "beside: heads.safetensors, 8 tensors (dino_head): this layout has no place for them" in lines
    assert "positions: trained for 32 px, written for 48 px; at 96 px" in lines
    assert "parity: not checked (torch is not installed; pip install -r requirements-test.txt)" in lines


def test_card_names_the_run_and_no_directory(run, tmp_path, no_torch):
    entry.convert(run[0], tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    for words in ("first, step 7, teacher", "f00d", "fit `pad`", "(x / 255 - 0.5) / 0.25", "self_distillation"):
        assert words in card
    assert "/data/secret" not in card and '"path": "set"' in card and str(tmp_path) not in card


def test_existing_output_is_kept_unless_it_is_a_conversion_and_overwrite(run, tmp_path, no_torch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(ConfigError, match="exists; choose another folder or pass --overwrite"):
        entry.convert(run[0], out)
    with pytest.raises(ConfigError, match="not an earlier conversion"):
        entry.convert(run[0], out, overwrite=True)
    assert (out / "precious").exists()
    entry.convert(run[0], tmp_path / "again")
    entry.convert(run[0], tmp_path / "again", overwrite=True, num_channels=1)
    assert json.loads((tmp_path / "again/config.json").read_text())["num_channels"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "out"]


def test_a_difference_leaves_nothing(run, tmp_path, monkeypatch):
    wrong = {"cls": {"max": 2e-4, "mean": 1e-5}}
    monkeypatch.setattr(parity, "unavailable", lambda format: None)
    monkeypatch.setattr(parity, "our_outputs", lambda *_: {})
    monkeypatch.setattr(parity, "their_outputs", lambda *_: {})
    monkeypatch.setattr(parity, "differences", lambda *_: wrong)
    with pytest.raises(entry.ParityError, match=r"differ by 2\.0e-04 .* at most 1e-04"):
        entry.convert(run[0], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nan_is_a_difference():
    assert parity.largest({"cls": {"max": 0.0}, "patches": {"max": float("nan")}}) == float("inf")


@pytest.mark.parametrize("targets", ["absent", "without_backbone"])
def test_run_without_teacher(tmp_path, no_torch, targets):
    model = tiny_model()
    params = {"backbone": random_backbone(model)}
    kept = {} if targets == "absent" else {"centre": np.zeros(2, np.float32)}
    folder = _save_run(tmp_path / "mae", model, params, kept)
    assert entry.convert(folder, tmp_path / "out")["network"] == "student"
    holds = "nothing" if targets == "absent" else "centre"
    with pytest.raises(ConfigError, match=rf"--network=teacher: .* no backbone there \(teacher holds {holds}\)"):
        entry.convert(folder, tmp_path / "other", network="teacher")


def test_fine_tuned_run_keeps_its_backbone_in_targets(tmp_path, no_torch):
    model = tiny_model()
    folder = _save_run(tmp_path / "glori", model, {"head": HEAD}, {"backbone": random_backbone(model)})
    assert entry.convert(folder, tmp_path / "out")["network"] == "teacher"
    with pytest.raises(ConfigError, match=r"student holds head"):
        entry.convert(folder, tmp_path / "other", network="student")


def test_a_parameter_without_a_place_is_bad_data(tmp_path, no_torch):
    model = tiny_model()
    backbone = {**random_backbone(model), "rope": {"periods": np.ones(3, np.float32)}}
    folder = _save_run(tmp_path / "rope", model, {"backbone": backbone}, {"backbone": backbone})
    with pytest.raises(DataError, match="1 unmapped: backbone/rope/periods"):
        entry.convert(folder, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rope"]


@pytest.mark.parametrize("size", [30, 0, -8])
def test_illegal_image_size(run, tmp_path, no_torch, size):
    with pytest.raises(ConfigError, match=f"--image_size={size}: must be a positive multiple of the patch, 8"):
        entry.convert(run[0], tmp_path / "out", image_size=size)


def test_pictures_must_have_eight_bits(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: found mode I;16"):
        entry.read_picture(tmp_path / "deep.png")
    (tmp_path / "no.png").write_bytes(b"text")
    with pytest.raises(DataError, match="not a readable picture"):
        entry.read_picture(tmp_path / "no.png")


def _command(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", "cxr_jax.convert", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_command_line(run, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 37), dtype=np.uint8)).save(tmp_path / "x.png")
    done = _command(f"--input={run[0]}", f"--output={tmp_path / 'out'}", "--format=hf", f"--image={tmp_path / 'x.png'}")
    assert done.returncode == 0, done.stderr
    assert "mapped: 30 tensors of ours to" in done.stdout and "unmapped: none of ours, none of theirs" in done.stdout
    assert "parity: fixed random input: cls max" in done.stdout or "parity: not checked" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format=gguf"], "format"),
        (["--input=nowhere"], "--input=nowhere: no such file or folder"),
        (["--typo=1"], "typo"),
    ],
)
def test_bad_flags_exit_with_two(tmp_path, arguments, message):
    done = _command("--input=nowhere", f"--output={tmp_path / 'out'}", *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
