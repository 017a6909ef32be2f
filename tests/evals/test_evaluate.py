"""What `cxr_jax.evaluate` calls its columns: no run may take the place of another."""

import numpy as np
import pytest

from cxr_jax.config import RunError
from cxr_jax.evals.columns import best_rate, column_name


def test_runs_on_equal_networks_keep_columns_of_their_own():
    teacher, random = ({"pretrained": {"network": n}, "head": {"name": "glori"}} for n in ("teacher", "random"))
    columns = [column_name("runs/a", teacher, ())]
    columns.append(column_name("runs/b", teacher, columns))
    columns.append(column_name("runs/c", random, columns))
    frozen = "GLoRI on teacher, frozen"
    assert columns == [frozen, f"{frozen}, runs/b", "GLoRI on random network, frozen"]
    for mode, words in (("full", "full fine-tuning"), ("lora", "LoRA")):
        assert column_name("runs/d", teacher | {"backbone": {"mode": mode}}, ()) == f"GLoRI on teacher, {words}"


def test_a_rate_that_diverged_is_passed_over():
    """Two of three rates rank; the one with a NaN is named, and with no other left the run is refused."""
    labels = np.array([[0], [1], [0], [1]])
    logits = np.stack([[[0.0], [1.0], [2.0], [3.0]], [[0.0], [np.nan], [0.0], [1.0]], [[0.0], [3.0], [1.0], [2.0]]], 1)
    best, grid, broken = best_rate("runs/a", (0.1, 1.0, 10.0), logits, labels)
    assert best == 2 and grid == [0.75, None, 1.0] and broken == [1.0]
    with pytest.raises(RunError, match="every learning rate are not finite"):
        best_rate("runs/a", (1.0,), logits[:, 1:2], labels)
