"""One undisturbed run that all others are compared with, and one cache of compiled programs for all of them."""

from pathlib import Path

import pytest

from tests.resume.runs import STEPS, Runner, rows


@pytest.fixture(scope="session")
def runner(phantom_dataset, tmp_path_factory) -> Runner:
    return Runner(phantom_dataset, tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session")
def uninterrupted(runner, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    runner.finish(workdir)
    assert [row["step"] for row in rows(workdir)] == list(range(STEPS))
    return workdir
