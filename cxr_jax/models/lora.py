"""LoRA: low-rank changes of a backbone's attention kernels (Hu et al., arXiv 2106.09685).

In: a backbone's parameters and factors. Out: parameters of the same shapes, the factors multiplied in:

    W = W0 + (alpha / rank) A B,      A [d_in, rank] uniform in +-1/sqrt(d_in), B [rank, d_out] 0 at the start

The factors are multiplied in before the network runs, in training as in evaluation, which then costs nothing more than
the backbone alone; so there is no dropout on the input of A. Query, key and value are one kernel here, as in
CheXFound's adapters, and share an A.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cxr_jax.models.layers import uniform_fan_in

KERNELS = {"qkv": 1, "proj": 2}  # of an attention: how many axes of each kernel are inputs


def check_lora(rank: int, kernels: Sequence[str], width: int) -> None:
    """Raise ValueError for factors that there cannot be."""
    if not 1 <= rank <= width:
        raise ValueError(f"lora.rank={rank}: legal are 1 to {width}, the width of the backbone")
    if not kernels or any(name not in KERNELS for name in kernels):
        raise ValueError(f"lora.kernels={tuple(kernels)}: legal are one or more of {', '.join(KERNELS)}")


def init_factors(key: Array, backbone: Any, *, rank: int, kernels: Sequence[str]) -> dict[str, dict[str, Array]]:
    """`{"qkv": {"a": [depth, d, rank], "b": [depth, rank, 3, h, d/h]}, ...}`; `backbone` may hold shapes."""
    factors = {}
    for i, name in enumerate(kernels):
        kernel, axes = backbone["blocks"]["attn"][name]["kernel"], 1 + KERNELS[name]
        inputs, outputs = kernel.shape[1:axes], kernel.shape[axes:]
        shape = (kernel.shape[0], *inputs, rank)
        draw = uniform_fan_in(jax.random.fold_in(key, i), shape, kernel.dtype, math.prod(inputs))
        factors[name] = {"a": draw, "b": jnp.zeros((kernel.shape[0], rank, *outputs), kernel.dtype)}
    return factors


def merge_lora(backbone: Any, factors: dict[str, dict[str, Any]], *, rank: int, alpha: float) -> Any:
    """The backbone's parameters with the factors multiplied in; other leaves are those of `backbone`."""
    attention = dict(backbone["blocks"]["attn"])
    for name, pair in factors.items():
        kernel = attention[name]["kernel"]
        depth, rows = kernel.shape[0], math.prod(pair["a"].shape[1:-1])
        a, b = pair["a"].reshape(depth, rows, rank), pair["b"].reshape(depth, rank, -1)
        change = jnp.matmul(a, b, precision="highest").reshape(kernel.shape)
        attention[name] = {**attention[name], "kernel": kernel + (alpha / rank) * change}
    return {**backbone, "blocks": {**backbone["blocks"], "attn": attention}}
