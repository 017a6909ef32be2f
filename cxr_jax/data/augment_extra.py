"""Augmentations beyond the published recipe, one function each, off unless a config gives them a strength.

In: a key, one crop `[S, S]` in 0..1 after the resize and flip, and a strength of 0 or more. Out: the crop, in 0..1.

    gamma         x^g,  log g uniform in +-log(1 + strength)
    rotate_deg    x turned about its centre by an angle uniform in +-strength degrees, bilinear, zero beyond the border

`EXTRA` is the table of them; `crops.extra = {"gamma": 0.2}` of a config switches on. They are applied in the table's
order, each with a key folded from its place, so that a new one at the end leaves the draws of the others alone. A
strength of 0 adds nothing to the program.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

Crop = Float[Array, "S S"]


def gamma(key: Array, x: Crop, strength: float) -> Crop:
    """Exposure: `x^g` with g log-uniform between 1/(1 + strength) and 1 + strength."""
    limit = math.log1p(strength)
    return x ** jnp.exp(jax.random.uniform(key, (), jnp.float32, -limit, limit).astype(x.dtype))


def rotate_deg(key: Array, x: Crop, strength: float) -> Crop:
    """Position: a turn by up to `strength` degrees either way; pixels beyond the border count as 0."""
    angle = jnp.deg2rad(jax.random.uniform(key, (), jnp.float32, -strength, strength).astype(x.dtype))
    offset = jnp.arange(x.shape[0], dtype=x.dtype) - (x.shape[0] - 1) / 2
    down, right = offset[:, None], offset[None, :]
    rows = jnp.cos(angle) * down - jnp.sin(angle) * right - offset[0]
    columns = jnp.sin(angle) * down + jnp.cos(angle) * right - offset[0]
    return map_coordinates(x, [rows, columns], order=1, mode="constant", cval=0.0)


EXTRA: dict[str, Callable[[Array, Crop, float], Crop]] = {"gamma": gamma, "rotate_deg": rotate_deg}


# Those that move pixels: a mask takes them too.
GEOMETRIC = ("rotate_deg",)


def apply_extra(key: Array, x: Crop, strengths: Mapping[str, float]) -> Crop:
    """The extras that have a strength, in the table's order."""
    for place, (name, function) in enumerate(EXTRA.items()):
        if strengths.get(name):
            x = function(jax.random.fold_in(key, place), x, strengths[name])
    return x


def check_extra(strengths: Mapping[str, Any]) -> None:
    """Raises ValueError for a name that is not in the table, and for a strength that is no number of at least 0."""
    for name, strength in strengths.items():
        if name not in EXTRA:
            near = difflib.get_close_matches(name, EXTRA, n=1, cutoff=0.5)
            hint = f"; did you mean extra.{near[0]}?" if near else ""
            raise ValueError(f"extra.{name} is no augmentation; legal are {', '.join(EXTRA)}{hint}")
        if not isinstance(strength, (int, float)) or not 0 <= strength < math.inf:
            raise ValueError(f"extra.{name}={strength!r}: a strength must be at least 0 (0: off)")
