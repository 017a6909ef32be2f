"""FLOPs of matrix products, read from a jaxpr; and the loops in it.

In: a traced function. Out: every `dot_general` that a call really executes, with its shapes and how often it runs.
The compiler's own count (`cost_analysis`) sees the body of a loop once; here a scan counts its length. A multiplication
and an addition are two FLOPs. Nothing is compiled or allocated, so a full-size model can be counted on a laptop.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from math import prod
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

AGAIN = ("remat", "remat2", "checkpoint")  # what stands in there is computed anew, by the programmer's wish


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
            yield _dot(eqn, times)


def _dot(eqn, times: int) -> Dot:
    left, right = (var.aval.shape for var in eqn.invars)
    contracted = prod(left[axis] for axis in eqn.params["dimension_numbers"][0][0])
    return Dot(left, right, 2 * contracted * prod(eqn.outvars[0].aval.shape), times)


def flops(jaxpr, touching: set[int] | None = None) -> int:
    """FLOPs of all matrix products, or of those that touch one of the sizes `touching`."""
    return sum(dot.flops for dot in dots(jaxpr) if touching is None or dot.touches(touching))


def distinct_flops(jaxpr) -> int:
    """FLOPs of all matrix products, those that a straight piece of program asks for twice counted once.

    The compiler merges equal products of equal operands, but for what `jax.checkpoint` computes anew and across
    iterations of a loop. Equal are values that come from equal values by the same operation.
    """
    return _Distinct().walk(jaxpr, None, 1)


class _Distinct:
    """Numbers values so that equal ones have equal numbers, and adds up the products among them."""

    def __init__(self):
        self._fresh, self._known = count(), {}

    def walk(self, jaxpr, inputs: list[Any] | None, times: int) -> int:
        """FLOPs of a jaxpr; with `inputs` None all of its arguments are new."""
        total, _ = self._run(jaxpr, inputs, times)
        return total

    def _run(self, jaxpr, inputs, times) -> tuple[int, list[Any]]:
        numbers = {var: next(self._fresh) for var in (*jaxpr.constvars, *jaxpr.invars)}
        if inputs is not None and len(inputs) == len(jaxpr.invars):
            numbers |= dict(zip(jaxpr.invars, inputs, strict=True))

        def number(var):
            if isinstance(var, Literal):
                return ("literal", str(var.val), str(var.aval))
            return numbers[var]

        total = 0
        for eqn in jaxpr.eqns:
            name, given = eqn.primitive.name, [number(var) for var in eqn.invars]
            inner = list(sub_jaxprs(eqn))
            if name == "while" and any(True for _, body in inner for _ in dots(body)):
                raise ValueError("a matrix product inside a while loop: its number of executions is not in the jaxpr")
            if len(inner) == 1 and name not in ("scan", *AGAIN):
                # A function call: its result is as equal as its arguments are.
                more, out = self._run(inner[0][1], given, times)
                total += more
                if len(out) == len(eqn.outvars):
                    numbers |= dict(zip(eqn.outvars, out, strict=True))
                    continue
            elif inner:
                length = eqn.params["length"] if name == "scan" else 1
                total += sum(self.walk(body, None, times * length) for _, body in inner)
            key = None
            if not inner:
                facts = tuple(sorted((k, str(v)) for k, v in eqn.params.items()))
                key = (name, facts, tuple(given))
                if name == "dot_general" and key not in self._known:
                    total += _dot(eqn, times).flops
            first = self._known.setdefault(key, next(self._fresh)) if key else next(self._fresh)
            numbers |= {var: (first, i) for i, var in enumerate(eqn.outvars)}
        return total, [number(var) for var in jaxpr.outvars]


def scans(jaxpr, length: int) -> list[JaxprEqn]:
    """The scans of `length` iterations, at any depth."""
    return [eqn for eqn, _ in equations(jaxpr) if eqn.primitive.name == "scan" and eqn.params["length"] == length]


def kept_bytes(jaxpr, but: set[tuple[int, ...]]) -> int:
    """Bytes that scans stack up, layer by layer, other than arrays of the shapes `but`.

    In a gradient that is what the forward pass keeps for the backward pass; gradients of stacked parameters, which are
    stacked up too, are named by their shapes.
    """
    total = 0
    for eqn, times in equations(jaxpr):
        if eqn.primitive.name == "scan":
            ((_, body),) = sub_jaxprs(eqn)
            # What an iteration puts out is stacked on a new axis; what it carries keeps its shape.
            outs = zip(eqn.outvars, body.outvars, strict=True)
            arrays = [out.aval for out, inner in outs if out.aval.ndim > inner.aval.ndim and out.aval.shape not in but]
            total += times * sum(prod(aval.shape) * aval.dtype.itemsize for aval in arrays)
    return total
