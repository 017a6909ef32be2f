"""Fixtures shared by all rooms' tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared real test data (CXR_TEST_DATA, by default ../shared/data beside the repository)."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CXR_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no shared test data at {folder}; set CXR_TEST_DATA to the folder that holds cxr_small")
    return folder
