"""The benchmark's short form runs: few small pictures, no peer, no timing asserted."""

import json
import sys

import input as benchmark
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc and keeps threads on cores")


def test_short_form(shared_data, tmp_path, capsys):
    short = [f"--data={shared_data / 'cxr_small'}", f"--scratch={tmp_path}", "--augment"]
    short += ["--images=6", "--image_px=128", "--batch_size=4", "--rounds=2", "--per_round=8", "--processes=0"]
    output = tmp_path / "measured.json"
    found = benchmark.main([*short, f"--output={output}"])
    assert set(found) == {"pipeline / decode", "2 threads / 1", "2 threads / 1, per core"}
    measured = json.loads(output.read_text())
    assert set(measured["spent"]) == {"decode", "pipeline, 1 thread", "pipeline, 2 threads"}
    assert all(run["images"] == 8 and run["wall_secs"] > 0 for runs in measured["spent"].values() for run in runs)
    assert "pipeline / decode" in capsys.readouterr().out


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no \.jpg"):
        benchmark.main([f"--data={tmp_path}", f"--scratch={tmp_path}"])
