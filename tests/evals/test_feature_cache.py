"""Cached features: the same as computed ones, once a backbone, and never stale or damaged ones."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_chosen_rows import task_of

from cxr_jax.evals import feature_cache
from cxr_jax.evals.feature_cache import as_features, features_of
from cxr_jax.evals.features import Geometry, random_backbone
from cxr_jax.heads.linear import LinearHead
from cxr_jax.models.vit import Features, ViT

MODEL = {"image_size": 16, "patch_size": 8, "width": 8, "depth": 3, "num_heads": 1, "num_registers": 2}
GEOMETRY = Geometry("pad", 16)


def counting(task):
    """The task, and a list that gets an entry whenever a split goes through a network."""
    runs = []

    def runner(function, geometry, mirrored=False):
        inner = task.runner(function, geometry, mirrored=mirrored)

        def run(split, params):
            runs.append(split.name)
            return inner(split, params)

        return run

    return dataclasses.replace(task, runner=runner), runs


@pytest.fixture(scope="module")
def setting(phantom_dataset, compiled_once):
    task, runs = counting(task_of(phantom_dataset))
    return task, task.splits["select"], random_backbone(MODEL, seed=0), runs


def get(setting, folder="", **changes):
    task, split, backbone, _ = setting
    options = {"model": MODEL, "geometry": GEOMETRY, "blocks": 2, "tokens": ("registers", "patches"), "max_gb": 1.0}
    options |= changes
    backbone = options.pop("backbone", backbone)
    split = options.pop("split", split)
    return features_of(task, split, backbone, folder=str(folder), **options)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_cached_tokens_are_those_of_the_network(setting):
    """Against the module itself, run on the images at once."""
    task, split, backbone, _ = setting
    found = as_features(get(setting))
    images = task.runner(lambda _, x: {"x": x}, GEOMETRY)(split, {})["x"]
    graphdef, _ = nnx.split(ViT(**MODEL, rngs=nnx.Rngs(0)))
    wanted = jax.jit(lambda p, x: nnx.merge(graphdef, p).features(x, blocks=2))(backbone, images)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_linear_head_reads_the_same_from_the_mean_patch_alone(setting):
    found = (as_features(get(setting, tokens=(tokens,))) for tokens in ("patches", "mean_patch"))
    whole, mean = (Features(*map(jnp.asarray, features)) for features in found)
    assert mean.patches.shape[2] == 1 and mean.registers.shape[2] == 0 and whole.patches.shape[2] == 4
    head = LinearHead(width=8, num_classes=2, blocks=2, mean_patch=True, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(head(mean), head(whole), rtol=1e-5, atol=1e-6)


def test_features_on_disk_are_read_instead_of_computed(setting, tmp_path):
    computed, runs = get(setting, tmp_path), setting[-1]
    count = len(runs)
    same(get(setting, tmp_path), computed)
    assert len(runs) == count
    assert not list(tmp_path.glob(".writing-*"))
    (folder,) = tmp_path.iterdir()
    assert {file.suffix for file in folder.iterdir()} == {".npy", ".json"}


def test_whatever_they_depend_on_is_in_their_key(setting, tmp_path):
    """Other weights, geometry, blocks, tokens, rows, mirror pictures: each is computed for itself."""
    _, split, backbone, _ = setting
    get(setting, tmp_path)
    trained = jax.tree.map(lambda x: x, backbone)
    trained["cls_token"] = trained["cls_token"] + 1e-3
    fewer = dataclasses.replace(split, rows=np.asarray(split.rows)[1:])
    changes = [
        {"backbone": trained},
        {"geometry": Geometry("crop", 16)},
        {"split": fewer},
        {"mirrored": True},
        {"model": MODEL | {"pos_resize": "size"}},
    ]
    for number, change in enumerate(changes, start=2):
        get(setting, tmp_path, **change)
        assert len(list(tmp_path.iterdir())) == number, change
    keys = [
        feature_cache.cache_key(split, backbone, **({"model": MODEL, "geometry": GEOMETRY} | options), mirrored=False)
        for options in ({"blocks": 1, "tokens": ()}, {"blocks": 2, "tokens": ()}, {"blocks": 2, "tokens": ("patches",)})
    ]
    assert len({json.dumps(key) for key in keys}) == 3


@pytest.mark.parametrize("damage", ["cut", "bit", "byte_order", "other_key", "gone", "pickle", "not_json"])
def test_damaged_features_are_told_and_made_again(damage, setting, tmp_path, capsys):
    computed, runs = get(setting, tmp_path), setting[-1]
    (folder,) = tmp_path.iterdir()
    file = folder / "patches.npy"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    elif damage == "bit":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
    elif damage == "byte_order":
        file.write_bytes(file.read_bytes().replace(b"'<f4'", b"'>f4'"))
    elif damage == "gone":
        file.unlink()
    elif damage == "pickle":
        np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    else:
        about = json.loads((folder / "about.json").read_text())
        about["key"]["split"] = "train"
        (folder / "about.json").write_text(json.dumps(about) if damage == "other_key" else "{")
    count = len(runs)
    same(get(setting, tmp_path), computed)
    assert len(runs) == count + 1
    assert "cannot be used" in capsys.readouterr().out
    same(get(setting, tmp_path), computed)
    assert len(runs) == count + 1 and capsys.readouterr().out == ""


def test_a_save_that_is_cut_short_leaves_nothing(setting, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(feature_cache.np, "save", broken)
        with pytest.raises(ValueError, match=r"features.cache=.*No space"):
            get(setting, tmp_path)
    assert not list(tmp_path.iterdir())


def test_who_comes_second_keeps_what_the_first_has_written(setting, tmp_path):
    """Two evaluations computed the same: the second finds a whole folder where it would rename its own to."""
    computed = get(setting, tmp_path)
    (folder,) = tmp_path.iterdir()
    key, before = json.loads((folder / "about.json").read_text())["key"], (folder / "about.json").stat().st_ino
    feature_cache.save(folder, key, computed)
    assert (folder / "about.json").stat().st_ino == before and list(tmp_path.iterdir()) == [folder]
    (folder / "cls.npy").write_bytes(b"")
    feature_cache.save(folder, key, computed)
    same(feature_cache.load(folder, key), computed)
    assert list(tmp_path.iterdir()) == [folder]


def test_others_may_read_the_cache_and_old_drafts_are_removed(setting, tmp_path):
    old, young = tmp_path / ".writing-old", tmp_path / ".writing-young"
    for draft in (old, young):
        draft.mkdir()
    os.utime(old, (0, 0))
    before = os.umask(0o022)
    try:
        get(setting, tmp_path)
    finally:
        os.umask(before)
    assert not old.exists() and young.exists()
    (folder,) = (path for path in tmp_path.iterdir() if path != young)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"blocks": 4}, r"head.blocks=4: the backbone has 3 blocks"),
        ({"tokens": ("patches", "mean_patch")}, "one kind of patches"),
        ({"tokens": ("cls",)}, "features.tokens"),
        ({"max_gb": 1e-9}, "features.max_gb=1e-09: the tokens of . images take"),
        ({"folder": "/proc/nowhere"}, "features.cache=/proc/nowhere: cannot be written"),
    ],
)
def test_what_cannot_be_cached_is_refused(changes, words, setting):
    with pytest.raises(ValueError, match=words):
        get(setting, **changes)
