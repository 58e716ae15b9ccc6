"""How sequences lie in a packed batch.

Sequences stand end to end in one row of tokens, without padding between them; the tail is padded
to a size that the matrix products have seen before. Knows nothing about models.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from nimbed.local.plan import padded_total

__all__ = ["Group", "Layout", "Pooled"]


_Integers = np.ndarray[tuple[int], np.dtype[np.int64]]


class Group(NamedTuple):
    """Neighbouring sequences of one length: rows start … start + sequences * length."""

    start: int
    sequences: int
    length: int


class Pooled(NamedTuple):
    """The rows that are pooled, where not all are, and where each sequence's begin among them."""

    rows: torch.Tensor
    offsets: torch.Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each sequence of a packed batch begins and ends.

    Attributes:
        lengths: Tokens of each sequence.
        tokens: Sum of the lengths.
        rows: Rows of the packed tensors: tokens, then padding that nothing reads.
        groups: Runs of sequences of one length, in order; none where lengths are not fixed.
        positions: Position of each row within its sequence, int64 of shape (rows,).
        starts: First row of each sequence, int64 of shape (sequences,).
        offsets: starts with the end appended, int32, for variable-length attention kernels.
        pooled: The rows that are pooled, or None if every token is.
    """

    lengths: tuple[int, ...]
    tokens: int
    rows: int
    groups: tuple[Group, ...]
    positions: torch.Tensor
    starts: torch.Tensor
    offsets: torch.Tensor
    pooled: Pooled | None = None

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device, *, skip: Sequence[int] | None = None
    ) -> Layout:
        """Lay sequences of these lengths end to end on a device.

        Args:
            lengths: Tokens of each sequence.
            device: Where the tensors are needed.
            skip: How many of each sequence's first tokens are not pooled; fewer than it has.
        """
        counts = np.asarray(lengths, dtype=np.int64)
        ends = np.cumsum(counts)
        starts = ends - counts
        tokens = int(ends[-1])
        rows = padded_total(tokens)
        positions = np.zeros(rows, dtype=np.int64)
        positions[:tokens] = np.arange(tokens) - np.repeat(starts, counts)
        groups: list[Group] = []
        start = 0
        for length, run in itertools.groupby(lengths):
            count = sum(1 for _ in run)
            groups.append(Group(start, count, length))
            start += count * length
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        return cls(
            lengths=tuple(lengths),
            tokens=tokens,
            rows=rows,
            groups=tuple(groups),
            positions=_to(positions, device),
            starts=_to(starts, device),
            offsets=_to(offsets, device),
            pooled=_pooled(starts, counts, skip, device)
            if skip is not None and any(skip)
            else None,
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)


def _pooled(
    starts: _Integers, counts: _Integers, skip: Sequence[int], device: torch.device
) -> Pooled:
    skipped = np.asarray(skip, dtype=np.int64)
    kept = counts - skipped
    ends = np.cumsum(kept)
    rows = np.arange(ends[-1]) + np.repeat(starts + skipped - (ends - kept), kept)
    return Pooled(_to(rows, device), _to(np.concatenate([[0], ends]), device))


def _to(
    array: np.ndarray[tuple[int], np.dtype[np.int64 | np.int32]], device: torch.device
) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
