"""Worker processes: the same batches in the same order as threads, and a clear end when one of them ends."""

import hashlib
import os
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from cxr_jax.data.pipeline import train_batches
from cxr_jax.data.records import DataError, WorkerError
from cxr_jax.data.source import open_split
from cxr_jax.sharding import batch_sharding, make_mesh

FAR = 10_000
pytestmark = pytest.mark.slow  # every worker process imports what decoding needs: seconds


@pytest.fixture(scope="module")
def split(phantom_dataset):
    return open_split(str(phantom_dataset), "train")


def batches(split, **options):
    options = {"batch_size": 8, "seed": 4, "total_steps": 10**6, "targets": ("Effusion",)} | options
    return train_batches(split, sharding=batch_sharding(make_mesh(devices=jax.devices()[:1])), **options)


def digest(batch):
    sha = hashlib.sha256()
    for name in sorted(batch):
        value = np.asarray(batch[name])
        sha.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return sha.hexdigest()


def workers_of_this_process():
    # -ww: the whole command line, also where COLUMNS cuts ps's lines.
    out = subprocess.run(
        ["ps", "-ww", "--ppid", str(os.getpid()), "-o", "pid=,args="], capture_output=True, text=True, check=True
    )
    return [int(line.split()[0]) for line in out.stdout.splitlines() if "spawn_main" in line]


@pytest.fixture(scope="module")
def by_threads(split):
    """SHA-256 of batches 0 to 20 and 10,000, decoded by one thread."""
    near = [digest(batch) for batch in batches(split, total_steps=21, threads=1, prefetch=1, prefetch_to_device=0)]
    return near, digest(next(batches(split, start_step=FAR, threads=1)))


@pytest.mark.parametrize("threads", [2, 7])
def test_threads_change_nothing(split, by_threads, threads):
    near, far = by_threads
    assert [digest(batch) for batch in batches(split, total_steps=21, threads=threads, prefetch=5)] == near
    assert digest(next(batches(split, start_step=FAR, threads=threads))) == far


@pytest.mark.parametrize(("workers", "options"), [(1, {"cache_decoded_mb": 1}), (4, {"threads": 1, "prefetch": 6})])
def test_workers_change_nothing(split, by_threads, workers, options):
    """Also names of records come through; from step 0, and with one worker from step 10,000."""
    near, far = by_threads
    told = []
    stream = batches(split, total_steps=21, workers=workers, **options, on_records=lambda *line: told.append(line))
    assert [digest(batch) for batch in stream] == near
    assert [step for step, _ in told] == list(range(21))
    assert told[3][1]["image_id"] == [split.text(i, "image_id") for i in told[3][1]["index"]]
    assert not workers_of_this_process(), "they end with the stream"
    if workers == 1:
        far_stream = batches(split, start_step=FAR, workers=1)
        assert digest(next(far_stream)) == far
        far_stream.close()


def test_a_killed_worker_is_one_clear_error_within_seconds(split):
    stream = batches(split, workers=2, threads=1, prefetch=2)
    next(stream)
    started = time.monotonic()
    while not (workers := workers_of_this_process()):
        assert time.monotonic() - started < 30, "no worker to kill"
    os.kill(workers[0], signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"exit code -9 .*config\.data\.workers=0"):
        for _ in stream:
            pass
    # Grain looks once a second; the rest is a machine with more to do.
    assert time.monotonic() - started < 30
    assert not workers_of_this_process()


def test_an_error_in_a_worker_is_the_error_itself(phantom_dataset, tmp_path):
    """A record that cannot be read there is told as it would be here."""
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(phantom_dataset, broken)
    (shard,) = broken.glob("*-train.*")
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2] + bytes(5000) + content[len(content) // 2 + 5000 :])
    with pytest.raises(DataError, match="cannot be read, its shard is damaged"):
        for _ in batches(open_split(str(broken), "train"), targets=(), workers=1):
            pass
