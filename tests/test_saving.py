"""Checkpoints on storage that fails, and what is kept: real Orbax on real folders, a tiny state.

The full disk is a tmpfs of a few MiB where this process may mount one, else a limit on the size of files.
"""

import dataclasses
import json
import resource
import shutil
import subprocess
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax import checkpoint, saving
from cxr_jax.config import ConfigError
from cxr_jax.data.records import DataError
from cxr_jax.saving import Checkpoints, StorageError
from cxr_jax.sharding import make_mesh, replicated
from cxr_jax.state import TrainState

META = {"config": {"batch_size": 4}}
MIB = 2**20


@pytest.fixture(scope="module")
def everywhere():
    return replicated(make_mesh(devices=jax.devices()[:1]))


def make_state(step, floats=64, seed=0):
    rng = np.random.default_rng([seed, step])
    backbone = lambda: {"backbone": {"w": jnp.asarray(rng.normal(size=floats), jnp.float32)}}
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=backbone(),
        targets=backbone(),
        opt_state={"mu": jnp.zeros(3)},
        health={"skipped_updates": jnp.zeros((), jnp.int32)},
    )


def abstract(state, everywhere):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state)


def same(state, other):
    jax.tree.map(np.testing.assert_array_equal, state, other)


def run_of(path, steps, **options):
    """Saves `steps`, `(step, scores)` or a step alone."""
    checkpoints = Checkpoints(path, **options)
    for entry in steps:
        step, scores = entry if isinstance(entry, tuple) else (entry, {})
        checkpoints.save_and_wait(make_state(step), META, scores)
    checkpoints.close()
    return checkpoint.steps_of(path)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep": 2}, [40, 50]),
        ({"keep": 1, "keep_every_steps": 20}, [10, 20, 40, 50]),  # 10 is the nearest to 0
        ({"keep": 1, "keep_steps": (10,)}, [10, 50]),
        ({"keep": 1, "best_metric": "auroc"}, [30, 50]),
        ({"keep": 1, "best_metric": "auroc", "best_mode": "min", "keep_best": 2}, [10, 40, 50]),
    ],
)
def test_what_is_kept(options, kept, tmp_path):
    scores = {10: 0.5, 20: 0.7, 30: 0.9, 40: 0.1}
    steps = [(step, {"auroc": scores[step]} if step in scores else {}) for step in range(10, 60, 10)]
    assert run_of(tmp_path, steps, **options) == kept


def test_teachers_are_kept_alone_and_read_where_the_checkpoint_is_gone(tmp_path):
    assert run_of(tmp_path, [10, 20, 30, 40], keep=1, teacher_every_steps=20) == [40]
    assert checkpoint.steps_of(tmp_path, checkpoint.TEACHERS) == [20, 40]
    meta = checkpoint.read_meta(tmp_path, 20)
    assert meta["items"] == ["targets"] and meta["config"] == META["config"]
    found = checkpoint.read_item(tmp_path, "targets", 20)
    same(found, {"backbone": jax.device_get(make_state(20).targets["backbone"])})
    assert checkpoint.read_meta(tmp_path, 40)["items"] == ["opt_state", "params", "targets"]
    with pytest.raises(ConfigError, match="no checkpoint of step 10; it has 20, 40"):
        checkpoint.read_meta(tmp_path, 10)


def test_a_save_goes_on_while_another_is_under_way(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=9)
    for step in range(1, 6):
        checkpoints.save(make_state(step, MIB // 4), META)
    checkpoints.close()
    assert checkpoint.steps_of(tmp_path) == [1, 2, 3, 4, 5]


@pytest.fixture
def small_disk(tmp_path):
    """A folder that holds a few MiB and not more."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode == 0:
        yield folder
        subprocess.run(["umount", "-l", folder], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, hard))
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_last_checkpoint_and_is_survived(small_disk, everywhere, capfd):
    """Too large a save fails and is told in a line; what was there restores; a save that fits succeeds."""
    checkpoints, first = Checkpoints(small_disk, keep=9), make_state(1)
    checkpoints.save_and_wait(first, META)
    checkpoints.save(make_state(2, MIB), META)
    while not checkpoints.failed():
        pass
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("warning: ") and "a save failed (" in line and "the newest is of step 1" in line
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["1"], "nothing half-written is left"
    restored, _ = checkpoints.restore(abstract(first, everywhere))
    same(restored, first)
    checkpoints.save_and_wait(make_state(3), META)
    assert not checkpoints.failed()
    checkpoints.close()
    assert checkpoint.steps_of(small_disk) == [1, 3]


def test_the_last_save_gives_up_after_its_attempts(small_disk):
    checkpoints = Checkpoints(small_disk, backoff_secs=0.01)
    checkpoints.save_and_wait(make_state(1), META)
    with pytest.raises(StorageError, match=r"step 2 could not be saved in 4 attempts \(.*\); complete are 1; mend"):
        checkpoints.save_and_wait(make_state(2, MIB), META)
    checkpoints.close()


def test_saves_that_keep_failing_end_the_run(small_disk):
    checkpoints = Checkpoints(small_disk)
    with pytest.raises(StorageError, match=r"5 saves in a row failed \(.*\); there is none yet; mend the storage"):
        for step in range(1, 9):
            checkpoints.save(make_state(step, MIB), META)
    checkpoints.close()


def test_storage_that_fails_twice_and_then_works(tmp_path, monkeypatch, capsys):
    """Two writes are refused as a remote would; the third attempt is the one that counts."""
    checkpoints = Checkpoints(tmp_path, backoff_secs=0.01)
    real, calls = checkpoints._manager.save, []

    def flaky(*arguments, **named):
        calls.append(arguments[0])
        if len(calls) <= 2:
            raise ConnectionResetError(104, "reset by peer")
        return real(*arguments, **named)

    monkeypatch.setattr(checkpoints._manager, "save", flaky)
    checkpoints.save_and_wait(make_state(7), META)
    checkpoints.close()
    assert calls == [7, 7, 7] and checkpoint.steps_of(tmp_path) == [7]
    assert capsys.readouterr().err.count("a save failed (Connection reset by peer)") == 2


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "checkpoints").write_text("a file stands here")
    with pytest.raises(StorageError, match=r"checkpoints: cannot be written"):
        Checkpoints(tmp_path)


def test_half_written_steps_are_never_picked_up_and_are_cleaned(tmp_path):
    run_of(tmp_path, [1, 2])
    shutil.copytree(tmp_path / "checkpoints" / "2", tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp")
    assert checkpoint.read_meta(tmp_path)["step"] == 2
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() == 2
    checkpoints.close()
    assert not (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp").exists()


def edit_meta(run, step, **changes):
    path = run / "checkpoints" / str(step) / "meta" / "metadata"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | changes))
    return SimpleNamespace(**meta)


def test_arrays_that_are_not_what_was_saved_are_refused(tmp_path, everywhere):
    """One digest changed is one byte changed: the run, an evaluation, and both name the array and the way out."""
    run_of(tmp_path, [1, 2])
    digests = edit_meta(tmp_path, 2).digests
    digests["params"]["backbone/w"] ^= 1
    edit_meta(tmp_path, 2, digests=digests)
    wanted = r"checkpoint 2 is damaged \(.*params/backbone/w is not what was saved.*remove checkpoints/2 to use step 1"
    with pytest.raises(DataError, match=wanted):
        checkpoint.read_item(tmp_path, "params")
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(DataError, match=wanted):
        checkpoints.restore(abstract(make_state(2), everywhere))
    checkpoints.close()


def test_newer_formats_and_foreign_items_are_refused(tmp_path):
    run_of(tmp_path, [1])
    edit_meta(tmp_path, 1, format=99)
    with pytest.raises(ConfigError, match=r"step 1: was written by a newer version \(format 99; this one reads up to"):
        checkpoint.read_meta(tmp_path)
    edit_meta(tmp_path, 1, format=saving.FORMAT, items=["params", "../../elsewhere"])
    with pytest.raises(ConfigError, match=r"holds an item '../../elsewhere'; legal are params, targets, opt_state"):
        checkpoint.read_meta(tmp_path)


def test_uncompressed_holds_the_same(tmp_path, everywhere):
    checkpoints, state = Checkpoints(tmp_path, compress=False), make_state(5, 1000)
    checkpoints.save_and_wait(state, META)
    restored, meta = checkpoints.restore(abstract(state, everywhere))
    checkpoints.close()
    same(restored, state)
    assert meta["format"] == saving.FORMAT and meta["step"] == 5


@pytest.mark.parametrize(
    ("options", "named"),
    [({"best_mode": "most"}, "best_mode='most'"), ({"keep_every_steps": -1}, "keep_every_steps=-1")],
)
def test_bad_options(options, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        Checkpoints(tmp_path, **options)


def test_a_teacher_that_cannot_be_saved_does_not_take_the_checkpoint_with_it(tmp_path, monkeypatch, capsys):
    checkpoints = Checkpoints(tmp_path, keep=5, teacher_every_steps=10)
    monkeypatch.setattr(checkpoints._teachers, "save", lambda *_, **__: (_ for _ in ()).throw(ValueError("teacher")))
    checkpoints.save(make_state(10), META)
    checkpoints.close()
    assert checkpoint.steps_of(tmp_path) == [10]
    assert "a save failed (teacher)" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["restored", "rolled back"])
def test_teachers_of_a_branch_that_was_left_are_forgotten(how, tmp_path, everywhere):
    run_of(tmp_path, [10, 20, 30], keep=5, teacher_every_steps=10)
    if how == "restored":
        shutil.rmtree(tmp_path / "checkpoints/30")
    checkpoints = Checkpoints(tmp_path, keep=5, teacher_every_steps=10)
    if how == "restored":
        checkpoints.restore(abstract(make_state(20), everywhere))
    else:
        checkpoints.delete_from(30)
    assert checkpoint.steps_of(tmp_path, "teachers") == [10, 20]
    checkpoints.save_and_wait(make_state(30, seed=1), META)
    checkpoints.close()
    left = checkpoint.read_item(tmp_path, "targets", 30)["backbone"]["w"]
    np.testing.assert_array_equal(left, make_state(30, seed=1).targets["backbone"]["w"])
    assert checkpoint.steps_of(tmp_path, "teachers") == [10, 20, 30]


def test_another_optimiser_is_no_damage(tmp_path, everywhere):
    """To obey `is damaged, remove it` would cost every good checkpoint in turn."""
    run_of(tmp_path, [10])
    wanted = dataclasses.replace(make_state(10), opt_state={"mu": jnp.zeros(3), "nu": jnp.zeros(3)})
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ConfigError, match=r"of another architecture \(opt_state of step 10\): optimizer/nu is absent"):
        checkpoints.restore(abstract(wanted, everywhere))
    checkpoints.close()


@pytest.mark.parametrize(
    "spoilt", ['{"step": 10, "items": ["params"]}', '{"config": [], "step": 10, "items": []}', "5"]
)
def test_meta_without_its_fields_is_damage(spoilt, tmp_path):
    run_of(tmp_path, [10])
    (tmp_path / "checkpoints/10/meta/metadata").write_text(spoilt)
    with pytest.raises(DataError, match=r"checkpoint 10 is damaged \(meta: meta has no config"):
        checkpoint.read_meta(tmp_path)


def test_a_stray_file_is_no_checkpoint(tmp_path):
    run_of(tmp_path, [1, 2])
    (tmp_path / checkpoint.FOLDER / "300").write_text("not a checkpoint")
    assert checkpoint.steps_of(tmp_path) == [1, 2] and checkpoint.find_step(tmp_path).name == "2"
