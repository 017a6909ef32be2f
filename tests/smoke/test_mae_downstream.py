"""A run of masked autoencoding, which has no teacher, through every entry that reads a pretraining run."""

import jax
import numpy as np
import pytest
from test_training_configs import check, evaluated, load, run, shrink

from cxr_jax import checkpoint, convert


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
