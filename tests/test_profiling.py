"""A step that is watched does what it did, is compiled once, and leaves its program and a trace behind."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from cxr_jax.planning.hlo import parse
from cxr_jax.profiling import ObservedStep

OPTIONS = {"start_step": 3, "writes": True, "first_step": 5, "num_steps": 2}


@pytest.fixture
def compilations():
    """How many programs were compiled."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, secs, **_: events.append(name))
    return lambda: sum("backend_compile" in name for name in events)


def test_the_program_and_a_trace_are_left_behind(tmp_path, compilations):
    step = jax.jit(lambda state, x: (state + x @ x, x.sum()), donate_argnums=0)
    state, x = jnp.zeros((8, 8)), jnp.ones((8, 8))
    observed, before = ObservedStep(step, tmp_path, **OPTIONS), compilations()
    for at in range(3, 9):
        state, total = observed(state, x)
        # The trace is on disk when its last step is over.
        assert bool(list(tmp_path.glob("profile/**/*.xplane.pb"))) == (at >= 7)
    observed.close()
    assert compilations() - before == 1
    assert float(state[0, 0]) == 6 * 8 and float(total) == 64
    program = parse(gzip.decompress((tmp_path / "compiled" / "step.hlo.gz").read_bytes()).decode())
    assert any(i.opcode in ("dot", "fusion", "custom-call", "call") for i, *_ in program.runs(into_fusions=True))
    assert json.loads((tmp_path / "compiled" / "memory.json").read_text())["argument"] == 2 * 8 * 8 * 4


def test_other_processes_and_untraced_runs_leave_nothing(tmp_path):
    observed = ObservedStep(jax.jit(lambda s: s + 1), tmp_path, **OPTIONS | {"writes": False, "num_steps": 0})
    assert int(observed(jnp.asarray(1))) == 2
    observed.close()
    assert not any(tmp_path.iterdir())


def test_a_trace_that_a_run_leaves_open_is_closed(tmp_path):
    observed = ObservedStep(jax.jit(lambda s: s + 1), tmp_path, **OPTIONS | {"writes": False, "first_step": 3})
    observed(jnp.asarray(1))
    observed.close()
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))


@pytest.mark.parametrize("change", [{"first_step": -1}, {"num_steps": -2}])
def test_numbers_that_count_nothing_are_refused(tmp_path, change):
    with pytest.raises(ValueError, match="at least 0"):
        ObservedStep(lambda s: s, tmp_path, **OPTIONS | change)
