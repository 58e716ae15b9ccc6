"""Small batches on CUDA as recorded graphs: one launch in place of hundreds.

A query of ten tokens keeps a GPU busy for less time than its host needs to launch the kernels. A
recorded graph repeats fixed launches over fixed memory, so a batch is filled up to one of few
shapes: the spare rows are a sequence of their own, which nobody reads, and the spare sequences
are empty. Knows nothing about models; attention must not launch by the sequences' lengths.
"""

from __future__ import annotations

import functools
import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from nimbed.local.layout import Layout

__all__ = ["Graphs", "Recorder", "record"]

_log = logging.getLogger("nimbed")

# Tokens and sequences of a shape. Beyond 512 tokens even a small model keeps the device busy for
# longer than its launches take.
_ROWS = (16, 32, 64, 128, 256, 512)
_SEQUENCES = (2, 8, 32, 128)

Work: TypeAlias = Callable[[], torch.Tensor]
Forward: TypeAlias = Callable[[torch.Tensor, Layout], torch.Tensor]
Recorder: TypeAlias = Callable[[Work], Work]


def record(work: Work, *, device: torch.device, pool: Any) -> Work:
    """Record what a function launches on a CUDA device.

    Args:
        work: Launches the same kernels over the same memory at every call.
        device: Where it launches them.
        pool: A ``torch.cuda.graph_pool_handle()``: memory shared with other recordings, of which
            one runs at a time.

    Returns:
        A function that repeats the launches; its result lies in the same memory each time.

    Raises:
        RuntimeError: If something in it cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        # Libraries make their workspaces at the first call, which must not be recorded.
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        # thread_local: another replica's thread may allocate meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = work()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


class _Shape(NamedTuple):
    rows: int
    sequences: int


@dataclass(frozen=True, slots=True)
class _Recorded:
    """One shape's fixed memory and its launches.

    Attributes:
        feed: int64 of shape (2 * rows + 2 * sequences + 1,): ids, positions, starts and offsets.
        replay: Runs the model on what the feed holds.
    """

    feed: torch.Tensor
    replay: Work


class Graphs:
    """Runs small batches of one model on one device; one thread at a time.

    Args:
        forward: Packed ids and their layout in, one pooled vector a sequence out.
        device: Where it runs.
        recorder: Records launches; :func:`record` if None.
    """

    def __init__(
        self, forward: Forward, device: torch.device, *, recorder: Recorder | None = None
    ) -> None:
        self._forward, self._device = forward, device
        self._recorder = recorder or functools.partial(
            record, device=device, pool=torch.cuda.graph_pool_handle()
        )
        self._known: dict[_Shape, _Recorded | None] = {}

    def __call__(self, ids: NDArray[np.int64], lengths: Sequence[int]) -> torch.Tensor | None:
        """Run one batch.

        Args:
            ids: Token ids of the sequences, end to end.
            lengths: Tokens of each sequence.

        Returns:
            float32 of shape (sequences, width), or None if the batch is too large or its shape
            cannot be recorded: then it has to be launched kernel by kernel.
        """
        shape = _shape(len(ids), len(lengths))
        if shape is None:
            return None
        if shape not in self._known:
            self._known[shape] = self._recorded(shape)
        recorded = self._known[shape]
        if recorded is None:
            return None
        feed = torch.from_numpy(_feed(ids, lengths, shape))
        if self._device.type == "cuda":
            feed = feed.pin_memory()
        recorded.feed.copy_(feed, non_blocking=True)
        # Copied on the device: the next batch overwrites the result.
        return recorded.replay()[: len(lengths)].clone()

    def _recorded(self, shape: _Shape) -> _Recorded | None:
        # What is recorded must be valid to run: one sequence that takes every row.
        whole = np.zeros(shape.rows, dtype=np.int64)
        feed = torch.from_numpy(_feed(whole, [shape.rows], shape)).to(self._device)
        ids, positions, starts, offsets = torch.split(
            feed, [shape.rows, shape.rows, shape.sequences, shape.sequences + 1]
        )

        def work() -> torch.Tensor:
            layout = Layout(
                lengths=(shape.rows,),  # none is longer
                tokens=shape.rows,
                rows=shape.rows,
                groups=(),
                positions=positions,
                starts=starts,
                offsets=offsets.int(),
            )
            return self._forward(ids, layout)

        try:
            return _Recorded(feed, self._recorder(work))
        except Exception as error:  # the batch can always be launched as any other
            _log.warning(
                "batches of %d tokens are not recorded as a CUDA graph: %s", shape.rows, error
            )
            return None


def _shape(tokens: int, sequences: int) -> _Shape | None:
    """Return the smallest shape with room for a batch and a sequence of spare rows."""
    row, sequence = bisect_left(_ROWS, tokens), bisect_left(_SEQUENCES, sequences + 1)
    if row == len(_ROWS) or sequence == len(_SEQUENCES):
        return None
    return _Shape(_ROWS[row], _SEQUENCES[sequence])


def _feed(ids: NDArray[np.int64], lengths: Sequence[int], shape: _Shape) -> NDArray[np.int64]:
    """Lay a batch out as a recorded shape's memory holds it."""
    counts = np.asarray(lengths, dtype=np.int64)
    starts = np.cumsum(counts) - counts
    feed = np.zeros(2 * shape.rows + 2 * shape.sequences + 1, dtype=np.int64)
    feed[: len(ids)] = ids
    positions = feed[shape.rows :]
    positions[: len(ids)] = np.arange(len(ids)) - np.repeat(starts, counts)
    firsts = feed[2 * shape.rows :]
    firsts[: len(counts)] = starts
    # The spare rows are one sequence more, from the batch's end on; those after it are empty.
    offsets = firsts[shape.sequences :]
    offsets[: len(counts)] = starts
    offsets[len(counts)] = len(ids)
    offsets[len(counts) + 1 :] = shape.rows
    return feed
