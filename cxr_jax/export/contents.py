"""What a conversion carries from one side to the other.

In: a run's checkpoint or a PyTorch file. Out: `Contents`: networks of ours, and what must be known to use them.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cxr_jax.export.channels import GREY_MEAN, GREY_STD
from cxr_jax.export.mapping import Flat, flatten

# Parts of a network that are modules of their own. `head` is that of a fine-tuning.
PROJECTION_HEADS = ("dino_head", "ibot_head")
NETWORKS = ("teacher", "student")


@dataclass(frozen=True)
class Geometry:
    """How a picture becomes an input: `fit`, side in px, and mean and standard deviation of 0..1 grey values."""

    fit: str
    image_size: int
    mean: float = GREY_MEAN
    std: float = GREY_STD


@dataclass(frozen=True)
class Contents:
    """Networks as nested dicts of arrays: `{"teacher": {"backbone": ..., "dino_head": ...}}`.

    `model` holds the arguments of `ViT`, `options` those of other modules by part (`decoder`, `head`), `facts` what a
    reader wants to know of their origin (`run`, `step`, `network`, `objective`, `fingerprint`, `config`).
    """

    networks: dict[str, dict[str, Any]]
    model: dict[str, Any]
    geometry: Geometry
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def flat(self, network: str) -> Flat:
        """One network as `{"backbone/cls_token": array}`, float32."""
        leaves = flatten(self.networks[network]).items()
        return {path: np.asarray(leaf).astype(np.float32, copy=False) for path, leaf in leaves}

    def of(self, network: str) -> "Contents":
        """The same with one network alone."""
        return replace(self, networks={network: self.networks[network]})

    def with_parts(self, parts: tuple[str, ...]) -> "Contents":
        """The same with some parts alone."""
        return replace(
            self,
            networks={
                name: {part: tree for part, tree in network.items() if part in parts}
                for name, network in self.networks.items()
            },
        )
