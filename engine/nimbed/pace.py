"""How fast batches go, and for how long a small one may be held back for company.

Callers who are answered together come back together, a moment after their answer. A device that
then starts with whoever waits already serves two halves in turn for ever. Waiting for those who
were just answered is anticipatory scheduling (Iyer and Druschel, SOSP 2001), for batches.
"""

from __future__ import annotations

import time

__all__ = ["Pace"]

# Share of what was learnt that is forgotten with every batch: devices heat up, loads change.
_FORGOTTEN = 0.01
# Share of the largest batch up to which one is small. Of what a larger one takes the fixed part is
# lost in its noise: on a busy machine, a flood of full ones would teach waits of any length.
_SMALL = 0.25
# Seconds that an answer and its caller's next request take a server on a busy machine. A device
# that is the host's own processor loses more by working meanwhile: each of its products waits for
# the slowest thread (2 cores, 128 connections: 6 to 20 % of the throughput).
_ANSWER = 200e-6
# A wait in vain is followed by so many times its length without any: callers who do not come back
# cost the others at most a twentieth of the time.
_PAUSE = 20


class Pace:
    """What the batches of one queue have shown so far; the caller holds the lock.

    Args:
        max_wait: Seconds for which a batch may be held back at most.

    Attributes:
        rate: Tokens a second of one device, a moving average; 0 before the first batch.
    """

    def __init__(self, max_wait: float) -> None:
        self._max_wait = max_wait
        self._best = 0.0  # tokens a second
        self._largest = 0.0  # tokens
        self._overhead = 0.0  # seconds of a small batch that a large one does not take
        self._pause_ends = 0.0  # a moment of time.monotonic
        self.rate = 0.0

    def ran(self, tokens: int, seconds: float) -> None:
        """Learn from a batch."""
        rate = tokens / max(seconds, 1e-9)
        self.rate = 0.8 * self.rate + 0.2 * rate if self.rate else rate
        self._best = max(rate, (1 - _FORGOTTEN) * self._best)
        self._largest = max(tokens, (1 - _FORGOTTEN) * self._largest)
        if tokens > _SMALL * self._largest:
            return
        lost = seconds - tokens / self._best
        # Slowly up, so that one batch that was disturbed teaches little.
        if lost > self._overhead:
            self._overhead += 0.2 * (lost - self._overhead)
        else:
            self._overhead *= 1 - _FORGOTTEN

    def grace(self, *, answers: int = 0) -> float:
        """Return the seconds for which the next batch may be held back.

        At most what a batch costs whatever its size, since two that become one win back so much,
        and what the host needs for itself.

        Args:
            answers: Answers under way on the cores that the device computes on.
        """
        if time.monotonic() < self._pause_ends:
            return 0.0
        return min(self._max_wait, self._overhead + answers * _ANSWER)

    def waited(self, seconds: float, *, in_vain: bool) -> None:
        """Learn whether a fair share of those who were waited for came in time."""
        if in_vain:
            self._pause_ends = time.monotonic() + _PAUSE * seconds
