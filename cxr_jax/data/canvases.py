"""Memory for decoded batches, used again as soon as nobody holds it.

In: how many canvases of what size. Out: uint8 memory, aligned as devices on the host want it, which then take it as it
is instead of copying it. Fresh memory is dear: the kernel finds, clears and maps every page of it, batch after batch.
"""

import weakref
from collections import deque

import numpy as np
from jaxtyping import UInt8

ALIGNMENT = 64  # bytes; XLA's
SPARE = 4  # blocks that are kept for those to come


class Canvases:
    """Hands out canvases; safe among threads."""

    def __init__(self):
        self._free: deque[UInt8[np.ndarray, " bytes"]] = deque(maxlen=SPARE)

    def take(self, count: int, canvas: tuple[int, int]) -> UInt8[np.ndarray, "n H W"]:
        """`count` canvases of height and width `canvas`, whatever they hold. Their memory comes back by itself when
        neither they nor any array or view made of them without a copy is left."""
        size = count * canvas[0] * canvas[1]
        try:
            block = self._free.pop()
        except IndexError:
            block = None
        if block is None or block.size != size + ALIGNMENT:
            block = np.empty(size + ALIGNMENT, np.uint8)
        # NumPy lets a view hold the array at the bottom alone. Through a memoryview that is this one, not the block: it
        # lives exactly as long as anything that shows the block's memory.
        owner = np.frombuffer(memoryview(block), np.uint8)
        weakref.finalize(owner, self._free.append, block).atexit = False
        first = -owner.ctypes.data % ALIGNMENT
        return owner[first : first + size].reshape(count, *canvas)
