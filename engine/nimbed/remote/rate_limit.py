"""Limits that a server sets: requests in flight, and what one request may hold."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass

__all__ = ["Limiter", "RequestLimits", "TokenEstimator"]

_AGEING = 1.02
_QUEUED = 3.0


class Limiter:
    """A semaphore whose size follows the server; lives on one event loop.

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
        self._epoch = 0
        self._fastest = math.inf
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._held_until = 0.0

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return int(self._limit)

    async def acquire(self) -> int:
        """Wait for a place; return the epoch in which it was taken, for :meth:`shed`."""
        loop = asyncio.get_running_loop()
        while True:
            held = self._held_until - loop.time()
            if held > 0:
                await asyncio.sleep(held)
            elif self._in_flight < self.limit:
                self._in_flight += 1
                return self._epoch
            else:
                place = loop.create_future()
                self._waiting.append(place)
                try:
                    await place
                except asyncio.CancelledError:
                    if not place.cancelled():  # woken and cancelled at once: wake the next
                        self._wake()
                    raise

    def release(self) -> None:
        """Give the place back."""
        self._in_flight -= 1
        self._wake()

    def grow(self, seconds: float) -> None:
        """Take note of an answer that took ``seconds``; call it before :meth:`release`."""
        # The measure ages, or one short query would hold long requests back for ever.
        self._fastest = min(seconds, _AGEING * self._fastest)
        if self._in_flight < self.limit // 2 or seconds > _QUEUED * self._fastest:
            return
        self._limit = min(self.most, self._limit + (1 if self._epoch == 0 else 1 / self._limit))
        self._wake()

    def shed(self, epoch: int, *, hold: float = 0.0) -> None:
        """Take note that the server had no room for a request.

        Requests that were in flight together fail together: they count once.

        Args:
            epoch: What :meth:`acquire` returned for the request.
            hold: Seconds in which nothing more shall start.
        """
        if hold > 0:
            self._held_until = max(self._held_until, asyncio.get_running_loop().time() + hold)
        if epoch == self._epoch:
            self._epoch += 1
            self._limit = max(1.0, self._limit / 2)

    def _wake(self) -> None:
        room = self.limit - self._in_flight
        while self._waiting and room > 0:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                room -= 1


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may hold: texts, their estimated tokens, and their bytes in UTF-8."""

    items: int
    tokens: int
    bytes: int


class TokenEstimator:
    """Estimates tokens from bytes, corrected by what servers report.

    English has about one token in four bytes, code and other scripts up to one in two: the first
    guess is on the safe side.
    """

    def __init__(self) -> None:
        self.per_byte = 1 / 3

    def observe(self, *, tokens: int, size: int) -> None:
        """Take note that ``size`` bytes were ``tokens`` tokens."""
        if tokens > 0 and size > 0:
            self.per_byte += 0.3 * (min(tokens / size, 1.0) - self.per_byte)

    def estimate(self, size: int) -> float:
        """Return the tokens of ``size`` bytes."""
        return size * self.per_byte + 2  # special tokens
