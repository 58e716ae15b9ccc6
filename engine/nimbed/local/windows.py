"""Packed sequences as few rectangles of few shapes.

Sequences of nearly one length share a rectangle of windows, each as long as the longest rounded
up. oneDNN prepares code for every shape of a product (about 1 ms each), so shapes must be few.
Knows nothing about attention.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["Window", "windows"]

_Rows = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of ``count`` windows of ``length`` rows each.

    Attributes:
        count: Windows, repetitions that only fill up the shape included.
        length: Rows a window.
        source: Packed row of every window row, int64 of shape (count * length,). Beyond a
            sequence's end it repeats that sequence's last row.
        kept: Window rows that stand for the packed rows start … stop, int64, in their order.
        start: The first packed row of the rectangle's sequences.
        stop: One past their last.
        inside: 1 where a window row belongs to its sequence and 0 beyond its end, float32 of
            shape (count, 1, length); None if every row does.
    """

    count: int
    length: int
    source: torch.Tensor
    kept: torch.Tensor
    start: int
    stop: int
    inside: torch.Tensor | None


def windows(lengths: Sequence[int]) -> list[Window]:
    """Cut packed sequences, laid end to end in this order, into rectangles.

    Args:
        lengths: Rows of each sequence; neighbours of similar length share a rectangle.
    """
    counts = np.asarray(lengths, dtype=np.int64)
    starts = np.cumsum(counts) - counts
    found: list[Window] = []
    first = 0
    for length, run in itertools.groupby(map(_rounded, lengths)):
        last = first + sum(1 for _ in run)
        found.append(_window(length, starts[first:last], counts[first:last]))
        first = last
    return found


def _window(length: int, starts: _Rows, counts: _Rows) -> Window:
    real = len(starts)
    filled = _few(real)
    if filled > real:
        starts = np.concatenate([starts, np.repeat(starts[:1], filled - real)])
        counts = np.concatenate([counts, np.repeat(counts[:1], filled - real)])
    place = np.arange(length)
    source = starts[:, None] + np.minimum(place, counts[:, None] - 1)
    inside = place < counts[:, None]
    return Window(
        count=filled,
        length=length,
        source=torch.from_numpy(source.reshape(-1)),
        kept=torch.from_numpy(np.flatnonzero(inside[:real])),
        start=int(starts[0]),
        stop=int(starts[real - 1] + counts[real - 1]),
        inside=None if inside.all() else torch.from_numpy(inside.astype(np.float32)[:, None, :]),
    )


def _rounded(length: int) -> int:
    step = 4 if length <= 32 else 16
    return -(-length // step) * step


def _few(count: int) -> int:
    """Round up to 1, 2, 3, 4, 6, 8, 12, 16, 24, …: at most a third more."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 and power >= 4 else power
