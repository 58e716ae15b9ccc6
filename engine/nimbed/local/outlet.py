"""Pooled vectors on their way from a device into an array.

A GPU works while its host prepares the next batch, so nothing is copied until the end: one copy
of all vectors, and until then only events that say how far the device has come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nimbed.errors import BackendError

__all__ = ["Outlet"]

# Batches that wait for the device. One would do to keep it busy; a plan that several devices share
# is divided the more evenly, the fewer each has taken in advance.
_AHEAD = 2


class Outlet:
    """Takes the vectors of one device; one thread at a time.

    Args:
        out: float32 of shape (rows, dimensions), filled in place.
        finished: Told how many rows the device has just done.
    """

    def __init__(
        self, out: NDArray[np.float32], finished: Callable[[int], None] = lambda rows: None
    ) -> None:
        self._out, self._finished = out, finished
        self._kept: list[tuple[NDArray[np.intp], torch.Tensor]] = []
        self._running: deque[tuple[Any, int]] = deque()  # torch.cuda.Event, whose stubs disagree

    def put(self, rows: NDArray[np.intp], vectors: torch.Tensor) -> None:
        """Take the vectors of rows; waits for the device if it is more than two batches behind.

        Args:
            rows: Their places in the array.
            vectors: float32 of shape (len(rows), dimensions), on any device.

        Raises:
            BackendError: If the device failed at what it was given before.
        """
        if vectors.device.type == "cpu":
            self._out[rows] = vectors.numpy()
            self._finished(len(rows))
            return
        event = torch.cuda.current_stream(vectors.device).record_event()
        self._kept.append((rows, vectors))
        self._running.append((event, len(rows)))
        if len(self._running) > _AHEAD:
            self._await_one()

    def flush(self) -> None:
        """Wait for the device and copy everything it was given to do.

        Raises:
            BackendError: If the device failed.
        """
        while self._running:
            self._await_one()
        if self._kept:
            rows = np.concatenate([rows for rows, _ in self._kept])
            with _failures():
                self._out[rows] = torch.cat([vectors for _, vectors in self._kept]).cpu().numpy()
            self._kept.clear()

    def _await_one(self) -> None:
        event, rows = self._running.popleft()
        with _failures():
            event.synchronize()
        self._finished(rows)


@contextmanager
def _failures() -> Generator[None]:
    """CUDA tells of a kernel's fault where somebody next waits for it."""
    try:
        yield
    except RuntimeError as error:
        raise BackendError(f"the device failed: {error}") from error
