"""Fixtures shared by all rooms' tests, and the fake devices they run on.

Eight fake CPU devices need more threads than two cores bring: with few (NPROC), XLA's CPU collectives can deadlock, and
XLA ends a process whose devices have waited for one another too long, as they may on a busy machine. For the same
reason one program runs at a time: no asynchronous dispatch. Tests compile much and compute little, so they compile
quickly (`tiny_run`). The variables are read when jax is imported, so they are set before anything else.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_run import QUICK_COMPILE

os.environ.setdefault("NPROC", "64")
_PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=300"
for _flag in ("--xla_force_host_platform_device_count=8", _PATIENCE, *QUICK_COMPILE):
    if _flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared real test data (CXR_TEST_DATA, by default ../shared/data beside the repository)."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CXR_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no shared test data at {folder}; set CXR_TEST_DATA to the folder that holds cxr_small")
    return folder


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs that a module makes several times, in several runs, are compiled once."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="session")
def phantom_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder made by data_prep: 48 phantoms of 80 px (38 train, 6 val, 4 test), a fifth of the labels unknown."""
    from data_prep import build

    folder = tmp_path_factory.mktemp("phantom") / "dataset"
    flags = ["--reader=phantom", "--num_images=48", "--image_px=80", "--unknown_prob=0.2", "--seed=0", "--workers=0"]
    code = build.main([*flags, f"--output={folder}"])
    assert code == 0, f"data_prep.build exited with {code}"
    return folder
