"""Public weights as a run directory, so that everything that reads a run reads them.

In: networks that `export` read from a PyTorch file. Out: `checkpoints/<step>/` with `params` (and `targets`, where the
file held a teacher and a student), and `meta` that says where they came from. There is no optimiser: such a run is
evaluated, fine-tuned, converted, or started from, and not continued.
"""

from pathlib import Path
from typing import Any

import numpy as np

from cxr_jax.export.contents import Contents
from cxr_jax.saving import Checkpoints
from cxr_jax.state import TrainState

WHERE = ("source", "view", "sex")


def write_run(output: Path, contents: Contents, source: str) -> None:
    """Write `contents` as the only checkpoint of a new run in `output`. Raises StorageError when it cannot."""
    networks, facts = dict(contents.networks), contents.facts
    step = int(facts.get("step") or 0)
    head = networks.get("teacher", {}).get("head")
    if head is not None:
        params = {"head": head}
        targets = {"backbone": networks["teacher"]["backbone"]}
    elif len(networks) > 1:
        params, targets = networks["student"], networks["teacher"]
    else:
        ((_, params),), targets = networks.items(), {}
    meta: dict[str, Any] = {
        "model": contents.model,
        "objective": "supervised" if head is not None else facts.get("objective") or "imported",
        "geometry": {
            "fit": contents.geometry.fit,
            "image_size": contents.model["image_size"],
            "mean": contents.geometry.mean,
            "std": contents.geometry.std,
        },
        "fingerprint": facts.get("fingerprint"),
        "data_skip": 0,
        "vocabulary": [],
        "init": {"source": source},
        "config": {"data": {"path": "", "where": dict.fromkeys(WHERE, "")}},
    }
    if "decoder" in contents.options:
        meta["config"]["decoder"] = contents.options["decoder"]
    if head is not None:
        classes = contents.options["head"]["num_classes"]
        rates = facts.get("learning_rates") or [0.0]
        meta["head"] = contents.options["head"]
        meta["targets"] = facts.get("targets") or [f"class_{i}" for i in range(classes)]
        meta["learning_rates"] = rates
        meta["pretrained"] = {"run": source, "step": None, "network": "teacher", "fingerprint": None}
    state = TrainState(step=np.asarray(step), params=params, targets=targets, opt_state={}, health={})
    checkpoints = Checkpoints(output)
    try:
        checkpoints.save_and_wait(state, meta)
    finally:
        checkpoints.close()
