"""What became of earlier requests, to how many may be in flight now.

Knows nothing about requests. Lives on one event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

__all__ = ["Limiter"]

_AGEING = 1.02
_QUEUED = 3.0


class Limiter:
    """A semaphore whose size follows the server.

    Until the server first sheds load, each success raises the limit by one, which doubles it a
    round trip; afterwards by one a round trip. An overload halves it. It stays where it is while
    the limit is not what holds the caller back: with few requests in flight, or when answers take
    so long that requests must be waiting for each other already.

    Args:
        first: Requests in flight at the start.
        most: Requests in flight at most.
    """

    def __init__(self, *, first: int, most: int) -> None:
        self._limit = float(min(first, most))
        self.most = most
        self._in_flight = 0
        self._era = 0
        self._fastest = math.inf
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._held_until = 0.0

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return int(self._limit)

    async def acquire(self) -> int:
        """Wait for a place; return the era in which it was taken."""
        loop = asyncio.get_running_loop()
        while True:
            held = self._held_until - loop.time()
            if held > 0:
                await asyncio.sleep(held)
            elif self._in_flight < self.limit:
                self._in_flight += 1
                return self._era
            else:
                place = loop.create_future()
                self._waiting.append(place)
                try:
                    await place
                except asyncio.CancelledError:
                    if not place.cancelled():  # woken and cancelled at once: pass the wake on
                        self._wake()
                    raise

    def release(self) -> None:
        """Give the place back."""
        self._in_flight -= 1
        self._wake()

    def grow(self, seconds: float) -> None:
        """Tell that an answer came after ``seconds``; said before its place is given back."""
        # The measure ages, or one short query would hold long requests back for ever.
        self._fastest = min(seconds, _AGEING * self._fastest)
        if self._in_flight < self.limit // 2 or seconds > _QUEUED * self._fastest:
            return
        self._limit = min(self.most, self._limit + (1 if self._era == 0 else 1 / self._limit))
        self._wake()

    def shed(self, era: int, *, hold: float = 0.0) -> None:
        """Tell that the server had no room for a request that started in ``era``.

        Requests that were in flight together fail together: they count once.

        Args:
            era: What :meth:`acquire` returned for it.
            hold: Seconds in which nothing more shall start.
        """
        if hold > 0:
            self._held_until = max(self._held_until, asyncio.get_running_loop().time() + hold)
        if era == self._era:
            self._era += 1
            self._limit = max(1.0, self._limit / 2)

    def _wake(self) -> None:
        room = self.limit - self._in_flight
        while self._waiting and room > 0:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                room -= 1
