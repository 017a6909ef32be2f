"""Batches that are not finite, in a whole training: by policy it stops, or goes back and leaves them out.

The batches at some positions of the order are poisoned; everything else is the training entry as it is.
"""

import json
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from configs import smoke
from cxr_jax import checkpoint, train
from cxr_jax.loop import NumericError
from cxr_jax.objectives.self_distillation import SelfDistillation
from tests.smoke.test_training_configs import run, shrink

STEPS, SAVE_EVERY = 12, 4


@pytest.fixture
def training(phantom_dataset, monkeypatch, compiled_once):
    """`training(workdir, poisoned)` runs the smoke config with the batches at `poisoned` positions not finite."""
    real_batches, real_loss = train.train_batches, SelfDistillation.loss

    def loss(self, params, targets, batch, *rest, **named):
        value, aux = real_loss(self, params, targets, {k: v for k, v in batch.items() if k != "poison"}, *rest, **named)
        return value + batch["poison"].mean(), aux

    def batches(poisoned, split, *, batch_size, start_step, data_skip, **named):
        stream = real_batches(split, batch_size=batch_size, start_step=start_step, data_skip=data_skip, **named)
        for position, batch in enumerate(stream, start_step + data_skip):
            yield batch | {"poison": jnp.full(batch_size, np.nan if position in poisoned else 0.0, jnp.float32)}

    def train_with(workdir, poisoned=(), **numerics):
        config = shrink(smoke.get_config(), phantom_dataset)
        with config.unlocked():
            config.total_steps = STEPS
            config.checkpoint.every_steps = SAVE_EVERY
            config.numerics.update(numerics)
        monkeypatch.setattr(SelfDistillation, "loss", loss)
        # A lock is its process's until that ends, and here one process runs twice.
        monkeypatch.setattr(train.door, "lock_workdir", lambda workdir: workdir.mkdir(exist_ok=True))
        monkeypatch.setattr(train, "train_batches", partial(batches, poisoned))
        return run(config, workdir, monkeypatch)

    return train_with


def skipped(workdir):
    return [json.loads(line) for line in (workdir / "nonfinite.jsonl").read_text().splitlines()]


def test_going_back_and_past_the_bad_batches(training, tmp_path, capsys):
    """Positions 5, 6, 7 are bad: from step 7 back to the save at 4, which then sees position 8."""
    lines = training(tmp_path, (5, 6, 7), on_nonfinite="rollback")
    assert [line["step"] for line in lines] == list(range(STEPS)) and lines[-1]["skipped_updates"] == 0
    assert checkpoint.steps_of(tmp_path)[-1] == STEPS
    meta = checkpoint.read_meta(tmp_path)
    assert meta["data_skip"] == 4 and meta["rollbacks"] == [{"failed_step": 7, "to_step": 4, "data_skip": 4}]
    assert "going back to step 4, past these batches" in capsys.readouterr().err
    rows = skipped(tmp_path)
    assert [row["step"] for row in rows] == [5, 6, 7]
    assert all(len(row["image_ids"]) == 16 for row in rows)


def test_a_kill_after_a_rollback_goes_the_same_way(training, tmp_path):
    """What is lost is found again: the run from the checkpoint at 4 meets the bad batches anew."""
    whole = training(tmp_path / "whole", (5, 6, 7), on_nonfinite="rollback")
    with pytest.raises(NumericError):
        training(tmp_path / "cut", (5, 6, 7))
    assert checkpoint.steps_of(tmp_path / "cut") == [4]
    again = training(tmp_path / "cut", (5, 6, 7), on_nonfinite="rollback")
    assert [line["loss"] for line in again] == [line["loss"] for line in whole]


def test_it_ends_when_going_back_does_not_help(training, tmp_path):
    with pytest.raises(NumericError, match=r"step \d+: loss not finite, 3 updates skipped"):
        training(tmp_path, range(5, 99), on_nonfinite="rollback", max_rollbacks=2)
    assert checkpoint.steps_of(tmp_path) == [4]


def test_single_bad_batches_are_skipped_and_named(training, tmp_path):
    lines = training(tmp_path, (2, 9))
    assert lines[-1]["skipped_updates"] == 2
    assert [row["step"] for row in skipped(tmp_path)] == [2, 9]
