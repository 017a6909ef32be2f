"""FLOPs of matrix products, read from a jaxpr; and the loops in it.

In: a traced function. Out: every `dot_general` that a call really executes, with its shapes and how often it runs.
The compiler's own count (`cost_analysis`) sees the body of a loop once; here a scan counts its length. A multiplication
and an addition are two FLOPs. Nothing is compiled or allocated, so a full-size model can be counted on a laptop.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import jax
from jax.extend.core import Jaxpr, JaxprEqn


@dataclass(frozen=True)
class Dot:
    """One matrix product: shapes of both operands, FLOPs of one execution, number of executions."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    once: int
    times: int

    @property
    def flops(self) -> int:
        return self.once * self.times

    def touches(self, sizes: set[int]) -> bool:
        """Whether an operand has an axis of one of `sizes`."""
        return bool(sizes & {*self.left, *self.right})


def trace(function: Callable, *args) -> Jaxpr:
    """The jaxpr of `function` on arrays or shapes."""
    return jax.make_jaxpr(function)(*args).jaxpr


def sub_jaxprs(eqn) -> Iterator[tuple[str, Jaxpr]]:
    """The jaxprs that an equation runs, by the name of the parameter that holds them."""
    for name, value in eqn.params.items():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield name, inner


def equations(jaxpr, times: int = 1) -> Iterator[tuple[JaxprEqn, int]]:
    """Every equation at any depth with how often it runs. Of a `cond` all branches are counted.

    Raises ValueError at a `while` that holds a matrix product: how often it runs cannot be read.
    """
    for eqn in jaxpr.eqns:
        yield eqn, times
        inner_times = times * eqn.params["length"] if eqn.primitive.name == "scan" else times
        for _, inner in sub_jaxprs(eqn):
            if eqn.primitive.name == "while" and any(True for _ in dots(inner)):
                raise ValueError("a matrix product inside a while loop: its number of executions is not in the jaxpr")
            yield from equations(inner, inner_times)


def dots(jaxpr) -> Iterator[Dot]:
    """Every matrix product. Raises ValueError at a convolution, which would go uncounted."""
    for eqn, times in equations(jaxpr):
        if eqn.primitive.name == "conv_general_dilated":
            raise ValueError("a convolution: count it as a matrix product, or teach this module")
        if eqn.primitive.name == "dot_general":
            left, right = (var.aval.shape for var in eqn.invars)
            contracted = prod(left[axis] for axis in eqn.params["dimension_numbers"][0][0])
            yield Dot(left, right, 2 * contracted * prod(eqn.outvars[0].aval.shape), times)


def flops(jaxpr, touching: set[int] | None = None) -> int:
    """FLOPs of all matrix products, or of those that touch one of the sizes `touching`."""
    return sum(dot.flops for dot in dots(jaxpr) if touching is None or dot.touches(touching))


def scans(jaxpr, length: int) -> list[JaxprEqn]:
    """The scans of `length` iterations, at any depth."""
    return [eqn for eqn, _ in equations(jaxpr) if eqn.primitive.name == "scan" and eqn.params["length"] == length]
