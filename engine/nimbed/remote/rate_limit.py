"""Limits that a server sets: the rate of requests, and their number in flight."""

from __future__ import annotations

import asyncio
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Mapping

__all__ = ["RATES", "Limiter", "RequestRate", "shared_rate"]

_AGEING = 1.02
# In flight where a limit may be that nobody knows, and the share of the last minute's requests.
_FIRST_LANES, _SHARE = 4, 8
_QUEUED = 3.0
_LONGEST_CHECK = 15.0  # seconds; a request that hangs must not keep the others back
_MINUTE = 60.0  # the period over which nearly every provider counts
_POLL = 0.02  # seconds between looks at whether the request that went ahead is back
_PARTS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|[dhms])")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class RequestRate:
    """When the next request to one server may start, learnt from what the server says.

    After a refusal (429) nothing starts until the wait that the server asked for is over, or else
    for a time that doubles; then one request goes ahead, and the others follow when it has been
    answered. If that took a second or more, the limit is one on requests in a time, which is
    then known: those that were accepted, by the time from their first to the end of the wait.
    From then on requests are spaced by it. As many again without a refusal, at least twenty, raise
    it by 5 %: a limit that is exceeded costs two or three requests.

    One object serves every thread and event loop of the process. Times are of the event loops'
    clock, ``time.monotonic``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held_until = 0.0
        self._next = 0.0
        self._interval = 0.0
        self._careful = False
        self._left: int | None = None  # requests, as an answer said that came at that moment
        self._left_at = 0.0
        self._raised_after, self._unrefused = 20, 0
        self._checked_from = math.inf
        self._under_way = 0
        self._ahead: float | None = None  # when the one that goes ahead started
        self._unchecked: int | None = None  # requests until one goes ahead; -1: it has
        self._blocked_since: float | None = None
        self._refusals = 0
        self._recent: deque[float] = deque(maxlen=4096)  # when what was accepted began

    @property
    def concurrency(self) -> float:
        """Requests that may be in flight together, lest they be refused together.

        As many as the server says that are left; where it says nothing and may have a limit, an
        eighth of what it has accepted in the last minute: that is what a limit may cost to learn.
        """
        if self._left is not None:
            return max(1, self._left)
        if not self._careful or self._interval:
            return math.inf
        return max(_FIRST_LANES, len(self._recent) // _SHARE)

    def expect(self, requests: int) -> None:
        """Take note of the limit a minute that servers of this kind are known to have; 0 for any.

        Where it may be reached, one request goes ahead alone, once: of the 32 in flight without
        that, all would be refused together. A server that allows more loses two round trips.
        """
        with self._lock:
            if not requests:
                self._careful = True
            elif self._unchecked is None:
                self._unchecked = requests

    def delay(self, now: float) -> float:
        """Return the seconds until it is worth asking again; 0 means that a request has started."""
        with self._lock:
            ready = max(self._held_until, self._next)
            if now < ready:
                return ready - now
            if self._under_way >= self.concurrency:  # those of other embedders are among them
                return _POLL
            check = self._unchecked == 0
            if check:
                self._checked_from = min(self._checked_from, now)
                if now - self._checked_from > _LONGEST_CHECK:
                    self._unchecked, check = -1, False
            if check or self._blocked_since is not None:
                # To be sure of the number, what is under way must have arrived.
                if self._ahead is not None or (check and self._under_way):
                    return _POLL
                self._ahead = now
            elif self._unchecked is not None and self._unchecked > 0:
                self._unchecked -= 1
            self._under_way += 1
            self._next = now + self._interval
            return 0.0

    def blocked(self, now: float) -> float:
        """Return the seconds since the server began to refuse everything; 0 while it does not."""
        since = self._blocked_since
        return 0.0 if since is None else max(0.0, now - since)

    def accepted(self, began: float, now: float) -> None:
        """Take note that a request which began at a time was answered with vectors."""
        with self._lock:
            recent = self._recent
            if self._ahead is not None and began >= self._ahead:
                self._unchecked, self._ahead = -1, None
            since = self._blocked_since
            if since is not None and began >= since:
                if now - since >= 1.0 and recent:
                    self._interval = (began - recent[0]) / len(recent)
                    self._next = max(self._next, began + self._interval)
                    self._raised_after = max(20, len(recent))
                self._blocked_since, self._refusals, self._unrefused = None, 0, 0
                recent.clear()
            elif since is None and self._interval:
                self._unrefused += 1
                if self._unrefused == self._raised_after:
                    self._interval /= 1.05
                    self._unrefused = 0
            recent.append(began)
            while recent[0] < began - _MINUTE:
                recent.popleft()

    def refused(
        self, began: float, now: float, *, told: float | None, shortest: float, longest: float
    ) -> float:
        """Take note that a request was refused for the rate, and return the seconds to wait.

        Args:
            began: When the request began.
            now: When it was refused.
            told: Seconds that the server asked to wait, if it did.
            shortest: Half the seconds to wait after the first refusal where it did not: many a
                limit is one a second.
            longest: A quarter of the seconds that doubling may lead to. After the second refusal
                the end of the minute is waited for, which is over when most limits are.
        """
        with self._lock:
            self._unchecked = -1
            if self._ahead is not None and began >= self._ahead:
                self._ahead = None
            late = self._blocked_since is not None and began < self._blocked_since
            if self._blocked_since is None:
                self._blocked_since, self._refusals = now, 0
            if told is not None and told > 0:
                self._held_until = max(self._held_until, now + told)
            elif not late:
                wait = shortest * 2.0 ** (1 + self._refusals)
                minute = self._recent[0] + 1.01 * _MINUTE - now if self._recent else 0.0
                wait = minute if 2.0 <= wait < minute else min(wait, 4 * longest)
                self._held_until = max(self._held_until, now + wait)
            self._refusals += 0 if late else 1
            return max(0.0, self._held_until - now)

    def ended(self, began: float) -> None:
        """Take note that a request is over, however it ended: another may go ahead now."""
        with self._lock:
            self._under_way -= 1
            if self._ahead is not None and began >= self._ahead:
                self._ahead = None

    def hold(self, until: float) -> None:
        """Let nothing start before a time."""
        with self._lock:
            self._held_until = max(self._held_until, until)

    def observe(
        self, headers: Mapping[str, str], began: float, now: float, *, most: float
    ) -> float:
        """Read what an answer says is left, and return the seconds to wait if nothing is.

        OpenAI's ``x-ratelimit-remaining-requests`` and ``x-ratelimit-reset-requests``, those for
        tokens, ``x-ratelimit-remaining`` and ``x-ratelimit-reset``, and IETF's ``ratelimit-*``.
        A wait of more than ``most`` seconds is not believed.
        """
        longest, fewest = 0.0, math.inf
        for what in ("-requests", "-tokens", ""):
            for family in ("x-ratelimit", "ratelimit"):
                left = headers.get(f"{family}-remaining{what}", "").strip()
                if what != "-tokens" and left.isdecimal():
                    fewest = min(fewest, int(left[:9]))
                if left in ("0", "0.0"):
                    wait = _duration(headers.get(f"{family}-reset{what}", ""))
                    if wait is not None and wait <= most:
                        longest = max(longest, wait)
        with self._lock:
            # Answers overtake each other: more are left only if it was asked after that was said.
            if fewest < (self._left or 0) or began >= self._left_at:
                self._left = int(fewest) if fewest < math.inf else None
                self._left_at = now
        if longest:
            self.hold(now + longest)
        return longest


#: What is known of the rates of servers, by address and key: all embedders of the process share it.
RATES: dict[tuple[str, str], RequestRate] = {}
if hasattr(os, "register_at_fork"):  # nothing of the parent's is under way in a child
    os.register_at_fork(after_in_child=RATES.clear)


def shared_rate(server: str, key: str) -> RequestRate:
    """Return the rate that all requests with one key to one server share."""
    return RATES.setdefault((server, key), RequestRate())


def _duration(text: str) -> float | None:
    """Return the seconds of ``12``, ``1.5s``, ``350ms``, ``1m30s`` or a time of the epoch."""
    text = text.strip().lower()
    parts = _PARTS.findall(text[:40])
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        seconds = float(text)
    except ValueError:
        return None
    if seconds > 1e11:  # milliseconds of the epoch
        seconds /= 1000
    if seconds > 1e9:
        seconds -= time.time()
    return seconds if math.isfinite(seconds) and 0 <= seconds < 86_400 else None


class Limiter:
    """A semaphore whose size follows the server; lives on one event loop.

    Until the server first sheds load, each success raises the limit by one, which doubles it a
    round trip; afterwards by one a round trip. An overload halves it. It stays where it is while
    the limit is not what holds the caller back: with few requests in flight, or when answers take
    so long that requests must be waiting for each other already.

    Args:
        first: Requests in flight at the start.
        most: Requests in flight at most.
        rate: When the next may start; None for a rate of its own.
    """

    def __init__(self, *, first: int, most: int, rate: RequestRate | None = None) -> None:
        self._limit = float(min(first, most))
        self.most = most
        self._in_flight = 0
        self._epoch = 0
        self._fastest = math.inf
        self._waiting: asyncio.Future[None] | None = None
        self._turn = asyncio.Lock()
        self.rate = rate or RequestRate()

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return int(min(self._limit, self.rate.concurrency))

    async def acquire(self) -> int:
        """Wait for a place; return the epoch in which it was taken, for :meth:`shed`."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            while True:
                if self._in_flight >= self.limit:
                    self._waiting = loop.create_future()
                    await self._waiting
                elif (wait := self.rate.delay(loop.time())) > 0:
                    await asyncio.sleep(wait)
                else:
                    self._in_flight += 1
                    return self._epoch

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
            self.rate.hold(asyncio.get_running_loop().time() + hold)
        if epoch == self._epoch:
            self._epoch += 1
            self._limit = max(1.0, self._limit / 2)

    def _wake(self) -> None:
        waiting = self._waiting
        if waiting is not None and not waiting.done() and self._in_flight < self.limit:
            waiting.set_result(None)
