"""Batches on their way to a GPU and vectors on their way back, while the device goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nimbed.errors import BackendError

__all__ = ["Staging", "Transfer"]

# Batches that wait for the device. One would do to keep it busy; a plan that several devices share
# is divided the more evenly, the fewer each has taken in advance.
_AHEAD = 2


class Staging:
    """Pinned memory that batches are written to before they go to one device; one thread at a time.

    Each is written in place: pinning a tensor takes an allocation and a copy by many threads, and
    gives up the interpreter's lock, which another thread then holds for milliseconds.

    Args:
        device: Where they go.
        buffers: How many may be on their way.
    """

    def __init__(self, device: torch.device, *, buffers: int = 4) -> None:
        self._device = device
        self._buffers: deque[_Buffer] = deque(_Buffer() for _ in range(buffers))

    def fill(self, target: torch.Tensor, write: Callable[[NDArray[np.int64]], None]) -> None:
        """Queue on the current stream that a tensor is filled.

        Args:
            target: int64, on the device.
            write: Fills an array of its size, whose content is arbitrary before.
        """
        buffer = self._buffers[0]
        self._buffers.rotate(-1)
        if buffer.sent is not None:
            buffer.sent.synchronize()
        if buffer.pinned.numel() < target.numel():
            buffer.pinned = torch.empty(2 * target.numel(), dtype=torch.int64, pin_memory=True)
        part = buffer.pinned[: target.numel()]
        write(part.numpy())
        target.copy_(part, non_blocking=True)
        buffer.sent = torch.cuda.current_stream(self._device).record_event()


class _Buffer:
    __slots__ = ("pinned", "sent")

    def __init__(self) -> None:
        self.pinned = torch.empty(0, dtype=torch.int64)
        self.sent: Any = None  # torch.cuda.Event, whose stubs disagree


class _Copy(NamedTuple):
    rows: NDArray[np.intp]
    vectors: torch.Tensor  # in pinned memory; complete once the event has passed
    done: Any  # torch.cuda.Event, whose stubs disagree


class Transfer:
    """Takes the vectors of one device for one call; one thread at a time.

    Each batch's copy is queued on the stream that computed it, so that it waits for that batch and
    not for those of other threads behind it.

    Args:
        out: float32 of shape (rows, dimensions), filled in place.
        finished: Told how many rows the device has just done.
    """

    def __init__(
        self, out: NDArray[np.float32], finished: Callable[[int], None] = lambda rows: None
    ) -> None:
        self._out, self._finished = out, finished
        self._running: deque[_Copy] = deque()

    def put(self, rows: NDArray[np.intp], vectors: torch.Tensor) -> None:
        """Take the vectors of rows; waits for nothing.

        On CUDA the caller has made the stream that computes them the current one.

        Args:
            rows: Their places in the array.
            vectors: float32 of shape (len(rows), dimensions), on a GPU.
        """
        pinned = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        pinned.copy_(vectors, non_blocking=True)
        done = torch.cuda.current_stream(vectors.device).record_event()
        self._running.append(_Copy(rows, pinned, done))

    def throttle(self) -> None:
        """Wait until the device is no more than two batches behind.

        Raises:
            BackendError: If it failed.
        """
        while len(self._running) > _AHEAD:
            self._finish_one()

    def flush(self) -> None:
        """Wait for everything that the device was given to do.

        Raises:
            BackendError: If the device failed.
        """
        while self._running:
            self._finish_one()

    def _finish_one(self) -> None:
        copy = self._running.popleft()
        with _failures():
            copy.done.synchronize()
        self._out[copy.rows] = copy.vectors.numpy()
        self._finished(len(copy.rows))


@contextmanager
def _failures() -> Generator[None]:
    """CUDA tells of a kernel's fault where somebody next waits for it."""
    try:
        yield
    except RuntimeError as error:
        raise BackendError(f"the device failed: {error}") from error
