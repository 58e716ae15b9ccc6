"""Attention by plain batched products over rectangles, for CPUs whose fused kernel is slow.

Sequences of nearly one length share a rectangle, as wide as the longest of them rounded up: oneDNN
prepares code for every shape of a product (about 1 ms each), so shapes must be few.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from nimbed.local.batching import Layout

__all__ = ["ByRectangle", "Rectangle", "rectangles"]

_Rows = np.ndarray[tuple[int], np.dtype[np.int64]]

_LOG2_E = math.log2(math.e)  # e^x = 2^(x · log2 e)

# Softmax subtracts the row's maximum only so that exp neither overflows nor vanishes. Where every
# row's sum of exp lies between these, neither has happened to anything that counts, and values up
# to 30,000 do not overflow either. MiniLM's sums reach 5e33.
_LEAST_SUM, _MOST_SUM = 1e-30, 1e34

# Columns of ones beside the values, whose product with the weights is their sum. One would do, and
# is slower: oneDNN multiplies 16 columns at a time.
_ONES = 16

# Scores between the two products, in elements: 4 MiB of bfloat16 stay in the cache. A head of a
# page has as many; all 32 heads at once made it 1.9 times as slow.
_SCORES = 1 << 21


class ByRectangle:
    """Attend with two batched products a rectangle of similarly long sequences."""

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._rectangles: list[Rectangle] = []

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout
    ) -> torch.Tensor:
        """Attend within each sequence; see :class:`nimbed.local.attention.Attention`."""
        if self._layout is not layout:  # the same for every layer of a model
            self._layout, self._rectangles = layout, rectangles(layout.lengths, layout.seen)
        out = q.new_empty(q.shape)
        out[layout.tokens :] = 0
        for of in self._rectangles:
            attended = _within(of, *(x.index_select(0, of.source) for x in (q, k, v)))
            torch.index_select(attended, 0, of.kept, out=out[of.start : of.stop])
        return out.flatten(1)


def _within(of: Rectangle, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend in all sequences of a rectangle; tensors of shape (count * length, heads, width)."""
    count, length = of.count, of.length
    heads, key_heads, width = q.shape[1], k.shape[1], q.shape[2]
    share = heads // key_heads

    # The scale and the two masks ride on copies that have to be made anyway.
    query = q.new_empty(count, key_heads, share, length, width)
    by_head = q.view(count, length, key_heads, share, width).permute(0, 2, 3, 1, 4)
    torch.mul(by_head, width**-0.5 * _LOG2_E, out=query)
    key = k.view(count, length, key_heads, width).transpose(1, 2).flatten(0, 1)
    value = v.new_empty(count, key_heads, length, width + _ONES)
    by_head = v.view(count, length, key_heads, width).transpose(1, 2)
    if of.inside is None:
        value[..., :width], value[..., width:] = by_head, 1
    else:
        inside = of.inside.to(v.dtype).view(count, 1, length, 1)
        torch.mul(by_head, inside, out=value[..., :width])
        value[..., width:] = inside

    total = _attend(query.view(-1, share * length, width), key, value.flatten(0, 1))
    total = total.view(count, key_heads, share, length, -1).permute(0, 3, 1, 2, 4)
    out = q.new_empty(count, length, key_heads, share, width)
    torch.div(total[..., :width], total[..., width : width + 1], out=out)
    return out.view(count * length, heads, width)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return 2^(query·keyᵀ)·value, and beside it the sums that make a softmax of it.

    torch's bfloat16 softmax costs more than both products around it. Where the sums allow it, the
    powers are taken without the shift by the row's maximum, and the division waits until after the
    second product. Powers of two take a fifth less time than those of e.

    Args:
        query: Scaled for powers of two, of shape (batch, queries, width).
        key: Of shape (batch, keys, width).
        value: Of shape (batch, keys, width + _ONES), the last columns 1; a row of zeros for a key
            that does not count.

    Returns:
        Tensor of shape (batch, queries, width + _ONES), to be divided by its last column.
    """
    batch, queries, width = query.shape
    key = key.transpose(1, 2)
    total = query.new_empty(batch, queries, width + _ONES)
    parts = list(_parts(batch, queries, key.shape[2]))
    if len(parts) > batch:  # a head is cut, and each of its products would lay its keys out anew
        key = key.contiguous()
    for heads, rows in parts:
        weights = torch.bmm(query[heads, rows], key[heads]).exp2_()
        torch.bmm(weights, value[heads], out=total[heads, rows])
    sums = total[..., width : width + 1]
    lowest, highest = torch.aminmax(sums)
    if float(lowest) > _LEAST_SUM and float(highest) < _MOST_SUM:  # both false for NaN
        return total
    outside = value[..., None, :, -1] == 0
    weights = torch.bmm(query, key).mul_(1 / _LOG2_E)
    weights = weights.masked_fill_(outside, -math.inf).softmax(-1)
    # Each row by its own sum alone, so that it is the same in any company.
    sound = (sums > _LEAST_SUM) & (sums < _MOST_SUM)
    return torch.where(sound, total, torch.bmm(weights, value))


class _Part(NamedTuple):
    heads: slice
    rows: slice


def _parts(batch: int, queries: int, keys: int) -> Iterator[_Part]:
    """Cut (batch, queries, keys) scores into contiguous parts that stay in the cache."""
    heads = max(1, _SCORES // (queries * keys))
    # Within one head the rows are cut, in multiples of what a product takes at a time.
    rows = queries if heads > 1 else max(64, _SCORES // keys // 64 * 64)
    for head in range(0, batch, heads):
        for row in range(0, queries, rows):
            yield _Part(slice(head, head + heads), slice(row, row + rows))


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A rectangle of ``count`` sequences of ``length`` places each.

    Attributes:
        count: Sequences, repetitions that only fill up the shape included.
        length: Places a sequence.
        source: Packed row of every place, int64 of shape (count * length,). Beyond a
            sequence's end it repeats that sequence's last row.
        kept: Places that stand for the packed rows start … stop, int64, in their order.
        start: The first packed row of the rectangle's sequences.
        stop: One past their last.
        inside: 1 where a place is attended to and 0 beyond its sequence's end, float32 of
            shape (count, 1, length); None if every row does.
    """

    count: int
    length: int
    source: torch.Tensor
    kept: torch.Tensor
    start: int
    stop: int
    inside: torch.Tensor | None


def rectangles(lengths: Sequence[int], seen: Sequence[int] | None = None) -> list[Rectangle]:
    """Cut packed sequences, laid end to end in this order, into rectangles.

    Args:
        lengths: Rows of each sequence; neighbours of similar length share a rectangle.
        seen: How many of them are attended to; None for all.
    """
    counts = np.asarray(lengths, dtype=np.int64)
    starts = np.cumsum(counts) - counts
    attended = counts if seen is None else np.asarray(seen, dtype=np.int64)
    found: list[Rectangle] = []
    first = 0
    for length, run in itertools.groupby(map(_rounded, lengths)):
        last = first + sum(1 for _ in run)
        of = slice(first, last)
        found.append(_rectangle(length, starts[of], counts[of], attended[of]))
        first = last
    return found


def _rectangle(length: int, starts: _Rows, counts: _Rows, seen: _Rows) -> Rectangle:
    real = len(starts)
    filled = _few(real)
    if filled > real:
        starts = np.concatenate([starts, np.repeat(starts[:1], filled - real)])
        counts = np.concatenate([counts, np.repeat(counts[:1], filled - real)])
        seen = np.concatenate([seen, np.repeat(seen[:1], filled - real)])
    place = np.arange(length)
    source = starts[:, None] + np.minimum(place, counts[:, None] - 1)
    inside, attended = place < counts[:, None], place < seen[:, None]
    return Rectangle(
        count=filled,
        length=length,
        source=torch.from_numpy(source.reshape(-1)),
        kept=torch.from_numpy(np.flatnonzero(inside[:real])),
        start=int(starts[0]),
        stop=int(starts[real - 1] + counts[real - 1]),
        inside=None
        if attended.all()
        else torch.from_numpy(attended.astype(np.float32)[:, None, :]),
    )


def _rounded(length: int) -> int:
    step = 4 if length <= 32 else 16
    return -(-length // step) * step


def _few(count: int) -> int:
    """Round up to 1, 2, 3, 4, 6, 8, 12, 16, 24, …: at most a third more."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 and power >= 4 else power
