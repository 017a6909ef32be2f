"""Pictures of the first batch, again and again: what a run trains on, and what it makes of it.

In: an objective, the batch of step 0, its key. Out: `examples/first_batch.png`, and by choice one
`examples/first_batch_step_<n>.png` every so many steps, always of the same images, crops and masks.
"""

from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from cxr_jax.metrics import write_contact_sheet
from cxr_jax.objectives.base import Batch, Objective
from cxr_jax.sharding import replicated
from cxr_jax.state import TrainState


class Examples:
    """As an evaluation of the loop it writes a sheet and scores nothing.

    `load()` gives the batch; it is called when the first sheet is due. Every process takes part in the computation,
    only the one that `writes` keeps the result.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_steps: int,
        objective: Objective,
        load: Callable[[], Batch],
        key: jax.Array,
        mesh: Mesh,
        writes: bool,
    ):
        self.every_steps = every_steps
        self._folder, self._load, self._key, self._writes = folder, load, key, writes
        self._batch = None
        self._pictures = jax.jit(objective.pictures, out_shardings=replicated(mesh))

    def write(self, state: TrainState, name: str) -> None:
        """The sheet of this state, as `name` in the folder."""
        self._batch = self._load() if self._batch is None else self._batch
        rows = jax.device_get(self._pictures(state.params, state.targets, self._batch, self._key))
        if self._writes:
            write_contact_sheet(self._folder / name, rows)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """The sheet of this state under the name of its step."""
        self.write(state, f"first_batch_step_{int(state.step)}.png")
        return {}
