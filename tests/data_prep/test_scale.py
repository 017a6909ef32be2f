"""The short form of `tests/benchmarks/build_scale.py`: memory, shards and random access on a thousand records."""

import json
import subprocess
import sys

import pytest
from tiny_folder import REPOSITORY


def benchmark(output, count: int) -> dict:
    script = [sys.executable, "tests/benchmarks/build_scale.py", f"--output={output}", f"--num_images={count}"]
    done = subprocess.run(
        [*script, "--workers=0", "--shard_mb=1"], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_memory_is_columns_and_a_record_costs_the_same_to_reach(tmp_path):
    """Two builds: three times the records cost a few hundred bytes each, not their pictures or thumbnails."""
    small, large = benchmark(tmp_path / "small", 500), benchmark(tmp_path / "large", 1500)
    assert (small["kept"], large["kept"]) == (500, 1500)
    # 1000 more thumbnails alone are 4 MB; the allocator's noise is two.
    assert large["peak_mib_main"] - small["peak_mib_main"] < 4
    # 2.8 MiB in shards closed at one: val and test fit into one each, train needs two or three.
    assert 4 <= large["shards"] <= 5 and large["largest_shard_mib"] < 1.3
    assert large["random_record_ms"] < 5 * small["random_record_ms"] + 1
