"""From the lengths of many texts to micro-batches of similar length.

The budget is tokens, not texts: packed sequences cost what they hold. Pure integers; knows
nothing about tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["micro_batches", "padded_total"]

# (up to this many tokens, round to a multiple of this)
_STEPS = ((128, 16), (512, 32), (1024, 64), (4096, 128))


def micro_batches(lengths: Sequence[int], *, budget: int) -> Iterator[NDArray[np.intp]]:
    """Yield row numbers in groups whose lengths add up to at most ``budget``.

    Longest first: a batch that does not fit the memory shows at once, and neighbours in a batch
    have similar lengths, which attention likes. A row longer than the budget rides alone.
    """
    counts = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-counts, kind="stable")
    ends = np.cumsum(counts[order])
    start = 0
    while start < len(order):
        spent = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, spent + budget, side="right"))
        stop = max(stop, start + 1)
        yield order[start:stop]
        start = stop


def padded_total(tokens: int) -> int:
    """Round a batch's token count up to one of few sizes.

    Matrix-product libraries prepare code for every new number of rows (about 1 ms a shape in
    oneDNN): few sizes cost a few percent of padding and save more.
    """
    step = next((step for limit, step in _STEPS if tokens <= limit), 256)
    return -(-tokens // step) * step
