"""What the device does, for whoever wants to look: a trace of some steps, and the step as it was compiled.

In: a jitted step. Out: the same, which leaves behind `RUN/compiled/` (the text of the compiled program, and what it
needs of memory) and, if asked for, `RUN/profile/` (for TensorBoard's profile plugin, XProf or Perfetto).
"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

MEMORY = ("argument", "output", "alias", "temp", "generated_code")


class ObservedStep:
    """`train_step`, called for step `start_step` first and then for each that follows.

    At its first call it writes the compiled program to `folder/compiled`; JAX keeps what is compiled for that, so
    nothing is compiled twice. `num_steps` steps from `first_step` on are traced into `folder/profile`, by every process
    its own devices; 0 traces nothing.
    """

    def __init__(
        self,
        train_step: Callable,
        folder: Path,
        *,
        start_step: int,
        writes: bool,
        first_step: int,
        num_steps: int,
    ):
        if first_step < 0 or num_steps < 0:
            raise ValueError(f"first_step={first_step} and num_steps={num_steps} must be at least 0")
        self._train_step, self._folder, self._writes = train_step, folder, writes
        self._step, self._start = start_step, start_step
        self._traced, self._tracing = range(first_step, first_step + num_steps), False

    def __call__(self, state: Any, *args) -> Any:
        if self._writes and self._step == self._start:
            save_compiled(self._train_step.lower(state, *args).compile(), self._folder / "compiled")
        if self._tracing != (self._step in self._traced):
            # Whole steps are traced, and steps before them are none of the trace's business.
            jax.block_until_ready(state)
            self._switch()
        self._step += 1
        return self._train_step(state, *args)

    def _switch(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
        else:
            jax.profiler.start_trace(str(self._folder / "profile"))
        self._tracing = not self._tracing

    def close(self) -> None:
        """End a trace that is running."""
        if self._tracing:
            self._switch()


def save_compiled(compiled: jax.stages.Compiled, folder: Path) -> None:
    """The program's text as `step.hlo.gz`, its memory per device in bytes as `memory.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "step.hlo.gz", "wt") as file:
        file.write(compiled.as_text())
    stats = compiled.memory_analysis()
    sizes = {name: getattr(stats, f"{name}_size_in_bytes") for name in MEMORY}
    (folder / "memory.json").write_text(json.dumps(sizes, indent=1) + "\n")
