"""Batches of packed sequences: where each lies in its batch, and what a network over them is.

Sequences stand end to end in one row of tokens, without padding between them; the tail is padded
to a size that the matrix products have seen before.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from nimbed.local.device import has_amx
from nimbed.local.transfer import Staging

if TYPE_CHECKING:
    from nimbed.local.attention import Attention

__all__ = [
    "Group",
    "LayeredModel",
    "Layout",
    "Model",
    "Shape",
    "on_device",
    "pack",
    "padded_total",
]

# (up to this many tokens, round to a multiple of this)
_STEPS = ((128, 16), (512, 32), (2048, 64), (4096, 128))
# Before them on a CPU that multiplies rows one by one: a lone question takes what its rows take.
_FINE_STEPS = ((32, 4), (64, 8))


def padded_total(tokens: int, device: torch.device | None = None) -> int:
    """Round a batch's token count up to one of few sizes.

    Matrix-product libraries prepare code for every new number of rows (about 1 ms a shape in
    oneDNN): few sizes cost a few percent of padding and save more.

    Args:
        tokens: Of the batch.
        device: Where it runs; None for sizes that suit all. Tensor cores and AMX multiply 16 rows
            at a time.
    """
    fine = device is not None and device.type == "cpu" and not has_amx()
    steps = (*_FINE_STEPS, *_STEPS) if fine else _STEPS
    step = next((step for limit, step in steps if tokens <= limit), 256)
    return -(-tokens // step) * step


class Group(NamedTuple):
    """Neighbouring sequences of one length: rows start … start + sequences * length."""

    start: int
    sequences: int
    length: int


class Shape(NamedTuple):
    """Room of a packed batch.

    Attributes:
        rows: For tokens, padding included.
        sequences: For sequences, of which at least one more than there are: the padding is one.
    """

    rows: int
    sequences: int

    @property
    def numbers(self) -> int:
        """How many numbers describe such a batch; see :func:`pack`."""
        return 2 * self.rows + 4 * self.sequences + 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each sequence of a packed batch begins and ends.

    Attributes:
        lengths: Tokens of each sequence; in a batch of a fixed shape, of the longest possible one.
        tokens: Sum of the lengths.
        rows: Rows of the packed tensors: tokens, then padding that nothing reads.
        groups: Runs of sequences of one length, in order; none where lengths are not fixed.
        positions: Position of each row within its sequence, int64 of shape (rows,).
        starts: First row of each sequence, int64 of shape (sequences,).
        firsts: First row of each that is pooled, likewise.
        ends: One past its last row, likewise.
        spans: starts with the ends appended, the padding as one more sequence: int32 of shape
            (sequences + 1 or more,), for kernels that attend by offsets.
        longest_span: Rows of the longest of them.
        skips: Whether some rows of a sequence may not be pooled.
        seen: How many of each sequence's rows, from its first on, are attended to; None for all.
    """

    lengths: tuple[int, ...]
    tokens: int
    rows: int
    groups: tuple[Group, ...]
    positions: torch.Tensor
    starts: torch.Tensor
    firsts: torch.Tensor
    ends: torch.Tensor
    spans: torch.Tensor
    longest_span: int
    skips: bool = False
    seen: tuple[int, ...] | None = None

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
        return on_device(np.zeros(sum(lengths), dtype=np.int64), lengths, device, skip=skip)[1]

    @classmethod
    def fixed(
        cls, packed: torch.Tensor, shape: Shape, *, longest: int, padding: int
    ) -> tuple[torch.Tensor, Layout]:
        """Return the ids and the layout that a packed batch of a shape holds, whatever it holds.

        Args:
            packed: Made by :func:`pack`, on any device; it may be overwritten by another.
            shape: The shape that it was made for.
            longest: Tokens of the longest sequence that it may hold.
            padding: Rows of padding that it may hold at most.
        """
        ids, layout = _unpacked(packed, shape, lengths=(longest,), skips=True)
        return ids, dataclasses.replace(layout, longest_span=max(longest, padding))

    @property
    def offsets(self) -> torch.Tensor:
        """Starts with the end of the last appended, int32 of shape (sequences + 1,)."""
        return self.spans[: len(self.starts) + 1]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)


def on_device(
    ids: NDArray[np.int64],
    lengths: Sequence[int],
    device: torch.device,
    *,
    skip: Sequence[int] | None = None,
    staging: Staging | None = None,
) -> tuple[torch.Tensor, Layout]:
    """Return a batch's packed ids and its layout, brought to a device in one copy.

    Args:
        ids: Token ids of the sequences, end to end.
        lengths: Tokens of each sequence.
        device: Where they are needed.
        skip: How many of each sequence's first tokens are not pooled; fewer than it has.
        staging: Brings them there without a wait, if the device is a GPU.
    """
    shape = Shape(padded_total(len(ids), device), len(lengths) + 1)
    write = functools.partial(pack, ids, lengths, shape, skip=skip)
    if staging is None:
        numbers = np.empty(shape.numbers, dtype=np.int64)
        write(numbers)
        packed = torch.from_numpy(numbers).to(device)
    else:
        packed = torch.empty(shape.numbers, dtype=torch.int64, device=device)
        staging.fill(packed, write)
    skips = skip is not None and any(skip)
    return _unpacked(packed, shape, lengths=tuple(lengths), skips=skips, tokens=len(ids))


def pack(
    ids: NDArray[np.int64],
    lengths: Sequence[int],
    shape: Shape,
    out: NDArray[np.int64],
    *,
    skip: Sequence[int] | None = None,
) -> None:
    """Write all that a forward pass needs to know of a batch into one array.

    Args:
        ids: Token ids of the sequences, end to end.
        lengths: Tokens of each sequence.
        shape: With room for them.
        out: int64 of shape (shape.numbers,): ids and positions (shape.rows each); starts, firsts
            and ends (shape.sequences each); spans (shape.sequences + 1).
        skip: How many of each sequence's first tokens are not pooled.
    """
    rows, places = shape
    count, tokens = len(lengths), len(ids)
    out.fill(0)
    counts = np.asarray(lengths, dtype=np.int64)
    ends = np.cumsum(counts)
    starts = ends - counts
    out[:tokens] = ids
    out[rows : rows + tokens] = np.arange(tokens) - np.repeat(starts, counts)
    own = out[2 * rows :]
    own[:count] = starts
    own[places : places + count] = starts if skip is None else starts + np.asarray(skip)
    own[2 * places : 2 * places + count] = ends
    # The padding is one sequence more, from the batch's end on; those after it are empty.
    spans = own[3 * places :]
    spans[:count] = starts
    spans[count] = tokens
    spans[count + 1 :] = rows


def _unpacked(
    packed: torch.Tensor,
    shape: Shape,
    *,
    lengths: tuple[int, ...],
    skips: bool,
    tokens: int | None = None,
) -> tuple[torch.Tensor, Layout]:
    """Cut what :func:`pack` made; without ``tokens`` every place counts, whatever it holds."""
    rows, places = shape
    count = places if tokens is None else len(lengths)
    ids, positions, starts, firsts, ends, spans = torch.split(
        packed, [rows, rows, places, places, places, places + 1]
    )
    padding = 0 if tokens is None else rows - tokens
    return ids, Layout(
        lengths=lengths,
        tokens=rows - padding,
        rows=rows,
        groups=() if tokens is None else _groups(lengths),
        positions=positions,
        starts=starts[:count],
        firsts=firsts[:count],
        ends=ends[:count],
        spans=(spans if tokens is None or padding else spans[:places]).int(),
        longest_span=max(*lengths, padding),
        skips=skips,
    )


def _groups(lengths: Sequence[int]) -> tuple[Group, ...]:
    groups: list[Group] = []
    start = 0
    for length, run in itertools.groupby(lengths):
        count = sum(1 for _ in run)
        groups.append(Group(start, count, length))
        start += count * length
    return tuple(groups)


class Model(Protocol):
    """A network over packed sequences."""

    @property
    def vocabulary(self) -> int:
        """How many token ids it knows."""
        ...

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """What its layers attend with."""
        ...

    def __call__(self, ids: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return states of shape (layout.rows, width) for packed ids of shape (layout.rows,)."""
        ...


class LayeredModel(ABC):
    """A network that gives the states of all its layers.

    Attributes:
        vocabulary: How many token ids it knows.
        attentions: What its layers attend with.
    """

    vocabulary: int
    attentions: tuple[Attention, ...]

    def __call__(self, ids: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return the states of the last layer.

        Args:
            ids: Packed token ids of shape (layout.rows,).
            layout: Where the sequences lie.

        Returns:
            Tensor of shape (layout.rows, width).

        Raises:
            ConfigurationError: If a sequence is longer than the positions that were learnt.
        """
        return deque(self.layers(ids, layout), maxlen=1).pop()

    @abstractmethod
    def layers(self, ids: torch.Tensor, layout: Layout) -> Iterator[torch.Tensor]:
        """Yield what the first layer begins with, and what each gives; the last as a call does.

        The next layer may overwrite them.
        """
