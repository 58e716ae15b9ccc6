"""What lasts too long is noticed by one timer for all: one a request costs as much as its rules."""

from __future__ import annotations

import asyncio
from typing import Protocol

__all__ = ["Impatient", "Patience"]


class Impatient(Protocol):
    """Something that must end in time."""

    def late(self) -> None:
        """Be told that the time is up."""
        ...


class Patience:
    """Tells whatever lasts longer than a fixed time; used from one event loop at a time.

    One time for all keeps them in order, so only the eldest need be looked at.

    Args:
        seconds: How long anything may last.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[Impatient, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, one: Impatient) -> None:
        """Wait for the end of something, from now on or from when it began before."""
        loop = asyncio.get_running_loop()
        self._due.setdefault(one, loop.time() + self._seconds)
        if self._timer is None or loop is not self._loop:
            self._loop = loop
            self._timer = loop.call_later(self._seconds, self._look)

    def end(self, one: Impatient) -> None:
        """Say that it has ended; nothing is told of it any more."""
        self._due.pop(one, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        while self._due:
            eldest, due = next(iter(self._due.items()))
            if due > now:
                self._timer = loop.call_at(due, self._look)
                return
            del self._due[eldest]
            eldest.late()
