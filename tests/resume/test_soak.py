"""The short form of the soak: six kills, on one topology and on several."""

import pytest

from tests.resume.soak import soak


@pytest.mark.slow
@pytest.mark.parametrize(("elastic", "kills"), [(False, 4), (True, 2)], ids=["one topology", "several"])
def test_a_run_that_is_killed_again_and_again(elastic, kills, phantom_dataset, tmp_path):
    assert sum(soak(kills, elastic=elastic, seed=1, folder=tmp_path, dataset=phantom_dataset).values()) == kills
