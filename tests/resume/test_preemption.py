"""Told to go: SIGTERM on a real training saves, exits with code 4, and the run goes on as if nothing had been."""

from cxr_jax import checkpoint
from tests.resume.runs import STEPS, lines, rows


def test_sigterm_saves_and_the_run_goes_on(runner, uninterrupted, tmp_path):
    """Between two saves. What was saved is the state that had been reached, and no step is done twice."""
    workdir = tmp_path / "run"
    runner.until(workdir, 3)
    (step,) = checkpoint.steps_of(workdir)
    assert 3 <= step < STEPS and len(lines(workdir)) == step
    assert f"step {step} of {STEPS}" in runner.finish(workdir)
    assert rows(workdir) == rows(uninterrupted)
