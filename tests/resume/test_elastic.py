"""One run on eight devices, then four, then two processes of four, then one: the same batches, the same curve.

Float64 where equality is judged: there the number of devices is rounding of 1e-16 and nothing else.
"""

import pytest

from tests.resume.runs import STEPS, rows

FLOAT64 = {f"dtypes__{name}": "float64" for name in ("param", "compute", "reduce")} | {"log__record_ids": True}


def test_devices_and_processes_come_and_go(runner, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    runner.finish(whole, devices=8, **FLOAT64)
    for step, devices, processes in ((2, 8, 1), (5, 4, 1), (8, 4, 2)):
        runner.until(cut, step, devices=devices, processes=processes, **FLOAT64)
    runner.finish(cut, **FLOAT64)
    assert [row["step"] for row in rows(cut)] == list(range(STEPS))
    assert (cut / "record_ids.jsonl").read_text() == (whole / "record_ids.jsonl").read_text()
    for found, wanted in zip(rows(cut), rows(whole), strict=True):
        for name in ("loss", "grad_norm", "koleo_loss"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-8), (found["step"], name)
