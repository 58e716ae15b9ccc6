"""Limits on how much may be under way at once, and on how long anything may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from nimbed_server.wire.errors import HttpError

__all__ = ["CapacityLimit", "TimeLimit", "Timed"]


class CapacityLimit:
    """A bounded count, checked before anything is spent; used from the event loop alone.

    Args:
        most: How much may be under way.
        noun: What is counted, for messages.
        drain_rate: How many are finished a second, for ``Retry-After``; 0 where it is unknown.

    Attributes:
        used: How much is under way.
    """

    def __init__(
        self, most: int, *, noun: str = "inputs", drain_rate: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.most = most
        self.used = 0
        self._noun = noun
        self._drain_rate = drain_rate

    def acquire(self, count: int, *, kept_free: int = 0) -> None:
        """Admit ``count`` more; a request that is alone is admitted whatever its size.

        Args:
            count: How many.
            kept_free: How much of the limit is not for these.

        Raises:
            HttpError: With status 503, and the seconds after which there will be room.
        """
        if self.used and self.used + count > self.most - kept_free:
            rate = self._drain_rate()
            surplus = self.used + count - self.most + kept_free
            raise HttpError(
                503,
                f"the queue is full: {self.used} {self._noun} are under way, {self.most} may be; "
                f"try again later",
                code="queue_full",
                retry_after=min(60.0, max(0.05, surplus / rate)) if rate else 1.0,
            )
        self.used += count

    def release(self, count: int) -> None:
        """Give back what :meth:`acquire` took."""
        self.used -= count


class Timed(Protocol):
    """Something that has a limited time."""

    def timed_out(self) -> None:
        """React to the end of that time."""
        ...


class TimeLimit:
    """Tells whatever lasts longer than a fixed time; used from one event loop at a time.

    One timer serves all, since a timer for each request would cost as much as validating it. Their
    time is the same, so they end in the order in which they started, and only the oldest need be
    looked at.

    Args:
        seconds: How long anything may last.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends: dict[Timed, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, timed: Timed) -> None:
        """Start the time of something; where it has started before, that moment counts."""
        loop = asyncio.get_running_loop()
        self._ends.setdefault(timed, loop.time() + self._seconds)
        if self._timer is None or loop is not self._loop:
            self._loop = loop
            self._timer = loop.call_later(self._seconds, self._check)

    def stop(self, timed: Timed) -> None:
        """Say that something has ended in time, or that its time never started."""
        self._ends.pop(timed, None)

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        while self._ends:
            oldest, end = next(iter(self._ends.items()))
            if end > now:
                self._timer = loop.call_at(end, self._check)
                return
            del self._ends[oldest]
            oldest.timed_out()
