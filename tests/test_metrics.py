"""Effective rank against the singular values of the embeddings themselves, and the lines of metrics.jsonl."""

import json

import numpy as np
import pytest

from cxr_jax.data.records import DataError
from cxr_jax.metrics import Clock, Metrics, cut_back, effective_rank

ROWS, WIDTH = 64, 24


def rank_of_embeddings(z):
    """RankMe as its paper writes it, from the singular values of `z`."""
    sigma = np.linalg.svd(z, compute_uv=False)
    p = sigma / np.abs(sigma).sum() + 1e-7
    return np.exp(-np.sum(p * np.log(p)))


@pytest.mark.parametrize("rank", [1, 2, 5, WIDTH])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_effective_rank_is_rankme_of_the_embeddings(rank, decay):
    rng = np.random.default_rng(rank)
    z = (rng.normal(size=(ROWS, rank)) * np.exp(-decay * np.arange(rank))) @ rng.normal(size=(rank, WIDTH))
    found = effective_rank(z.T @ z / ROWS)
    assert found == pytest.approx(rank_of_embeddings(z), rel=1e-5)
    assert found <= rank + 1e-3


def test_equal_directions_count_fully():
    assert effective_rank(np.eye(WIDTH)) == pytest.approx(WIDTH, rel=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_rounding_in_float32_is_no_direction(rank):
    """1024 wide: without a floor, a thousand eigenvalues of rounding would make a rank of ten out of one."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(1024, rank)))
    z = (rng.choice([-1.0, 1.0], size=(256, rank)) @ basis.T).astype(np.float32)
    moment = z.T @ z / np.float32(256)
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(moment.astype(np.float64)), 0))
    naive = rank_of_embeddings(np.diag(values))
    assert effective_rank(moment) == pytest.approx(rank_of_embeddings(z.astype(np.float64)), rel=0.01)
    assert naive > 1.02 * effective_rank(moment), "the case no longer shows why the floor is there"


def test_effective_rank_of_nothing_and_of_broken_numbers():
    assert effective_rank(np.zeros((3, 3), np.float32)) == 0
    assert np.isnan(effective_rank(np.array([[np.nan, 0], [0, 1]])))


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_with_evaluations_only_and_kinds_of_collapse(tmp_path, capsys):
    metrics = Metrics(tmp_path, start_step=0, total_steps=4, tensorboard=False)
    metrics.write(0, {"loss": 1.0, "images_per_sec": 2.0, "bad": float("nan")}, ["images alike"])
    metrics.write(1, {"probe_auroc_x": 0.7})
    metrics.warn("step 1: something")
    metrics.close()
    assert lines(tmp_path) == [
        {
            "step": 0,
            "loss": 1.0,
            "images_per_sec": 2.0,
            "bad": None,
            "nonfinite": ["bad"],
            "collapse": ["images alike"],
        },
        {"step": 1, "probe_auroc_x": 0.7},
    ]
    said = capsys.readouterr()
    assert said.err == "step 1: something\n" and "step 1" not in said.out
    cut_back(tmp_path / "metrics.jsonl", 1)
    assert [row["step"] for row in lines(tmp_path)] == [0]


def test_processes_that_do_not_write_are_silent(tmp_path, capsys):
    metrics = Metrics(tmp_path, start_step=0, total_steps=4, tensorboard=False, writes=False)
    metrics.write(0, {"probe_auroc_x": 0.7})
    metrics.warn("step 0: something")
    metrics.close()
    assert capsys.readouterr().err == "" and not list(tmp_path.iterdir())


def test_the_clock_leaves_out_what_is_no_training(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("cxr_jax.metrics.time.perf_counter", lambda: now[0])
    clock = Clock()
    now[0] = 10.0
    clock.leave_out(8.0)
    clock.waited(1.0, 6)
    assert clock.read() == {"images_per_sec": 3.0, "data_wait_frac": 0.5}


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', "", "5", '{"loss": 1}', "\x80"])
def test_a_torn_last_line_is_cut(torn, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + torn.encode("latin1"))
    cut_back(path, 2)
    assert path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', "5", '{"loss": 1}', "\x80"])
def test_damage_before_the_last_line_is_told(torn, tmp_path):
    """Rows behind it would be lost without a word."""
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 1}\n' + torn.encode("latin1") + b'\n{"step": 2}\n'
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 2 is damaged"):
        cut_back(path, 2)
    assert path.read_bytes() == whole
