"""Small batches on CUDA as recorded graphs: one launch in place of hundreds.

A query of ten tokens keeps a GPU busy for less time than its host needs to launch the kernels. A
recorded graph repeats fixed launches over fixed memory, so a batch is filled up to one of few
shapes. Attention must not launch by the sequences' lengths.
"""

from __future__ import annotations

import functools
import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from nimbed.local.batching import Layout, Shape, pack
from nimbed.local.transfer import Staging

__all__ = ["CudaRecorder", "Graphs", "Recorder"]

_log = logging.getLogger("nimbed")

# Tokens and sequences of a shape. A small model keeps the device busy for longer than its launches
# take only from some 4,096 tokens on.
_ROWS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_SEQUENCES = (2, 8, 32, 128)

# Recordings of one shape that may fail before it is launched kernel by kernel for good. The first
# may fail for a reason that passes, such as memory that another process holds.
_MOST_FAILURES = 3

Work: TypeAlias = Callable[[], torch.Tensor]
Writer: TypeAlias = Callable[[NDArray[np.int64]], None]
Forward: TypeAlias = Callable[[torch.Tensor, Layout], torch.Tensor]


class Recorder(Protocol):
    """Records what a function launches."""

    def __call__(self, work: Work) -> Work:
        """Return a function that repeats the launches; its result lies in the same memory.

        Raises:
            RuntimeError: If something in it cannot be recorded.
        """
        ...


# A recording begins by waiting for its whole device, which is forbidden while another is recorded:
# one at a time in a process, whatever the model and the device.
_RECORDING = threading.Lock()


class CudaRecorder:
    """Records launches on one CUDA device.

    Args:
        device: Where they go.
        stream: Which of its streams. torch's own default is one stream for the process, on
            whatever device recorded first.
    """

    def __init__(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._device, self._stream = device, stream
        # Memory shared by all recordings of a model, of which one runs at a time.
        self._pool: Any = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        """Record; see :class:`Recorder`."""
        graph = torch.cuda.CUDAGraph()
        with _RECORDING, torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            # Libraries make their workspaces at the first call, which must not be recorded.
            for _ in range(2):
                work()
            torch.cuda.synchronize(self._device)
            # thread_local: another replica's thread may allocate meanwhile.
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                result = work()
            finally:
                graph.capture_end()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay


@dataclass(frozen=True, slots=True)
class _Recorded:
    """One shape's fixed memory and its launches.

    Attributes:
        packed: What :func:`nimbed.local.batching.pack` writes, on the device.
        replay: Runs the model on what lies there.
    """

    packed: torch.Tensor
    replay: Work


class Graphs:
    """Runs small batches of one model on one device; one thread at a time.

    Args:
        forward: Gives the pooled vector of each sequence, from packed ids and their layout.
        device: Where it runs.
        recorder: Records launches.
        staging: Brings batches to the device, if it is a GPU.
        longest: Tokens of the longest text.
        most_rows: Tokens of the largest shape; larger batches are not recorded.
    """

    def __init__(
        self,
        forward: Forward,
        device: torch.device,
        recorder: Recorder,
        *,
        staging: Staging | None = None,
        longest: int = _ROWS[-1],
        most_rows: int = 512,
    ) -> None:
        self._forward, self._device, self._recorder = forward, device, recorder
        self._staging = staging
        self._longest, self._most_rows = longest, most_rows
        self._known: dict[Shape, _Recorded] = {}
        self._failures: dict[Shape, int] = {}

    def __call__(
        self,
        ids: NDArray[np.int64],
        lengths: Sequence[int],
        *,
        skip: Sequence[int] | None = None,
    ) -> torch.Tensor | None:
        """Run one batch.

        Args:
            ids: Token ids of the sequences, end to end.
            lengths: Tokens of each sequence.
            skip: How many of each sequence's first tokens are not pooled.

        Returns:
            float32 of shape (sequences, width), or None if the batch is too large or its shape
            cannot be recorded: then it has to be launched kernel by kernel.
        """
        shape = _shape(len(ids), len(lengths), self._most_rows)
        if shape is None:
            return None
        write = functools.partial(pack, ids, lengths, shape, skip=skip)
        recorded = self._known.get(shape)
        if recorded is None:
            recorded = self._record(shape, write)
            if recorded is None:
                return None
        self._fill(recorded.packed, write)
        # Copied on the device: the next batch overwrites the result.
        return recorded.replay()[: len(lengths)].clone()

    def record_all(self) -> None:
        """Record what single texts and small batches take, before a caller has to wait for it."""
        for shape in _shapes(self._longest, self._most_rows):
            if shape not in self._known:
                longest = min(shape.rows, self._longest)
                ids = np.zeros(longest, dtype=np.int64)
                self._record(shape, functools.partial(pack, ids, [longest], shape))

    def _fill(self, packed: torch.Tensor, write: Writer) -> None:
        if self._staging is not None:
            self._staging.fill(packed, write)
            return
        numbers = np.empty(len(packed), dtype=np.int64)
        write(numbers)
        packed.copy_(torch.from_numpy(numbers))

    def _record(self, shape: Shape, write: Writer) -> _Recorded | None:
        """Record a shape, and keep it if it gives for an example what launches one by one give."""
        if self._failures.get(shape, 0) >= _MOST_FAILURES:
            return None
        packed = torch.empty(shape.numbers, dtype=torch.int64, device=self._device)
        self._fill(packed, write)
        forward = self._forward
        longest, padding = min(shape.rows, self._longest), _padding(shape.rows)

        def work() -> torch.Tensor:
            # The layout is cut and converted within, since the batch is exchanged beneath it.
            return forward(*Layout.fixed(packed, shape, longest=longest, padding=padding))

        try:
            recorded = _Recorded(packed, self._recorder(work))
            if not _agree(recorded.replay().clone(), work()):
                raise RuntimeError("its replay gives other vectors than its launches")
        except Exception as error:  # the batch can always be launched as any other
            self._failures[shape] = self._failures.get(shape, 0) + 1
            if self._failures[shape] == _MOST_FAILURES:
                _log.warning(
                    "batches of %d tokens are not recorded as a CUDA graph: %s", shape.rows, error
                )
            return None
        self._known[shape] = recorded
        return recorded


def _shapes(longest: int, most_rows: int) -> list[Shape]:
    return [
        Shape(rows, sequences)
        for rows in _ROWS
        for sequences in _SEQUENCES
        # Texts of four tokens and more fill the shape, and none is too long for it.
        if rows <= most_rows
        and 4 * sequences <= max(rows, 4 * _SEQUENCES[0])
        and (sequences - 1) * longest > rows - _padding(rows)
    ]


def _padding(rows: int) -> int:
    """Return how much padding a batch in the smallest shape with room for it may have."""
    place = _ROWS.index(rows)
    return rows - (_ROWS[place - 1] if place else 0) - 1


def _shape(tokens: int, sequences: int, most_rows: int) -> Shape | None:
    """Return the smallest shape with room for a batch and a sequence of spare rows."""
    rows = bisect_left(_ROWS, tokens)
    places = bisect_left(_SEQUENCES, sequences + 1)
    if rows == len(_ROWS) or _ROWS[rows] > most_rows or places == len(_SEQUENCES):
        return None
    return Shape(_ROWS[rows], _SEQUENCES[places])


def _agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two batches of vectors point the same way, row by row (empty rows are zeros)."""
    product = (one * other).sum(1)
    lengths = one.norm(dim=1) * other.norm(dim=1)
    return bool((product >= 0.999 * lengths - 1e-6).all())
