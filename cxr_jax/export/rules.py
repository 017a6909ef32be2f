"""Array rules: a reshape and a transpose written in letters, and its inverse.

In: one layer's array of ours, or their arrays for it. Out: the other. `"d t h e -> t: (h e) d"` takes [d, 3,
h, e] apart along `t` and makes each part a [h*e, d] matrix. Letters in brackets share one axis, the first
letter the slowest; `1` is an axis of length one; a letter before the colon is taken apart into several
arrays. Nothing is computed, so going there and back changes no bit.
"""

import re
from collections.abc import Mapping

import numpy as np


class LayoutError(ValueError):
    """A tensor that a layout does not hold, misses, or holds in another shape. The message names every such
    tensor."""


class Rule:
    """A parsed rule `left -> [axis:] right`; `sizes` holds the letters known beforehand."""

    def __init__(self, rule: str, sizes: Mapping[str, int]):
        left, right = rule.split("->")
        self.split = None
        if ":" in right:
            axis, right = right.split(":")
            self.split = axis.strip()
        self.text, self.sizes = rule, sizes
        self.left, self.right = _axes(left), _axes(right)

    def forward(self, array: np.ndarray, path: str) -> list[np.ndarray]:
        """One layer of our array -> their arrays, one per name."""
        count = 1 if self.split is None else array.shape[self.left.index([self.split])]
        return [self.part(array, index, path) for index in range(count)]

    def part(self, array: np.ndarray, index: int, path: str) -> np.ndarray:
        """One of the arrays of `forward`, without making the others."""
        letters, expanded = self._expand(array, self.left, path)
        order = [letter for axis in self.right for letter in axis if letter != "1"]
        if self.split:
            order = [self.split, *order]
        moved = expanded.transpose([letters.index(letter) for letter in order])
        return (moved[index] if self.split else moved).reshape(self.right_shape(array.shape, path))

    def backward(self, parts: list[np.ndarray], names: list[str]) -> np.ndarray:
        """Their arrays, one per name -> one layer of our array."""
        expanded = []
        for part, name in zip(parts, names, strict=True):
            letters, array = self._expand(part, self.right, name)
            if expanded and array.shape != expanded[0].shape:
                raise LayoutError(f"{name}: found shape {part.shape}, but {names[0]} has shape {parts[0].shape}")
            expanded.append(array)
        if self.split:
            letters, whole = [self.split, *letters], np.stack(expanded)
        else:
            whole = expanded[0]
        size = dict(zip(letters, whole.shape, strict=True))
        order = [letter for axis in self.left for letter in axis]
        shape = [int(np.prod([size[x] for x in axis])) for axis in self.left]
        return whole.transpose([letters.index(letter) for letter in order]).reshape(shape)

    def right_sizes(self) -> list[int]:
        """Shape of one of their arrays, for rules whose letters are all known."""
        return [int(np.prod([1 if x == "1" else self.sizes[x] for x in axis])) for axis in self.right]

    def right_shape(self, shape: tuple[int, ...], path: str) -> tuple[int, ...]:
        """Shape of one of their arrays for one layer of ours of `shape`."""
        size = dict(zip(*self._sizes(shape, self.left, path), strict=True))
        size.pop(self.split, None)
        return tuple(int(np.prod([size.get(x, 1) for x in axis])) for axis in self.right)

    def _expand(self, array: np.ndarray, axes: list[list[str]], name: str) -> tuple[list[str], np.ndarray]:
        """Give every letter of `axes` its own array axis; returns the letters in order and the reshaped
        array."""
        letters, shape = self._sizes(array.shape, axes, name)
        return letters, array.reshape(shape)

    def _sizes(self, found: tuple[int, ...], axes: list[list[str]], name: str) -> tuple[list[str], list[int]]:
        """The letters of `axes` in order and their sizes in an array of shape `found`."""
        wrong = LayoutError(f"{name}: found shape {found}, which does not fit '{self.text}' with {self.sizes}")
        if len(found) != len(axes):
            raise wrong
        letters, shape = [], []
        for length, axis in zip(found, axes, strict=True):
            if axis == ["1"]:
                if length != 1:
                    raise wrong
                continue
            known = {x: self.sizes[x] for x in axis if x in self.sizes}
            free = [x for x in axis if x not in self.sizes]
            rest, left_over = divmod(length, int(np.prod(list(known.values()), dtype=int)))
            if left_over or (rest != 1 and not free) or (rest == 0 and length):
                raise wrong
            letters += axis
            shape += [known.get(x, rest) for x in axis]
        return letters, shape


def _axes(side: str) -> list[list[str]]:
    """ "(h e) d" -> [["h", "e"], ["d"]]."""
    return [token.strip("()").split() for token in re.findall(r"\([^)]*\)|\S+", side)]
