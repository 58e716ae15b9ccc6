"""How long a batch may be delayed so that callers who were just answered can join it.

Callers answered together come back together, a moment after their answer. A device that starts at
once with whoever already waits then serves two half-full batches in turn, for ever. Waiting
briefly for those just answered is anticipatory scheduling (Iyer and Druschel, SOSP 2001), applied
to batches.
"""

from __future__ import annotations

import time

__all__ = ["BatchDelay"]

# Share of what was learnt that is forgotten with every batch: devices heat up and loads change.
_FORGET = 0.01
# A batch of up to this share of the largest counts as small. The fixed cost of a larger one drowns
# in its noise: on a busy machine, a flood of full batches would justify delays of any length.
_SMALL = 0.25
# Seconds in which a busy machine answers a caller and receives the next request. A device that is
# the host's own processor loses more by working meanwhile, since each of its products waits for
# the slowest thread (2 cores, 128 connections: 6 to 20 % of the throughput).
_ANSWER_SECONDS = 200e-6
# A delay in vain is followed by this many times its length without any: callers who do not come
# back cost the others a twentieth of the time at most.
_PAUSE_FACTOR = 20


class BatchDelay:
    """What the batches of one queue have shown so far. Not thread-safe: the caller holds a lock.

    Args:
        max_wait: Seconds for which a batch may be delayed at most.

    Attributes:
        tokens_per_second: Throughput of one device, a moving average; 0 before the first batch.
        full_rate: The same of batches that fill the device; 0 before the first. Small ones say
            nothing about how long a queue will take: their fixed cost is most of them.
    """

    def __init__(self, max_wait: float) -> None:
        self.tokens_per_second = self.full_rate = 0.0
        self._max_wait = max_wait
        self._best_rate = 0.0  # tokens a second
        self._largest = 0.0  # tokens
        self._overhead = 0.0  # seconds that a small batch costs whatever its size
        self._pause_ends = 0.0  # a moment of time.monotonic

    def record_batch(self, tokens: int, seconds: float, *, full: bool = False) -> None:
        """Learn from a batch that has run, and may have filled the device."""
        rate = tokens / max(seconds, 1e-9)
        self.tokens_per_second = _moved(self.tokens_per_second, rate)
        if full:
            self.full_rate = _moved(self.full_rate, rate)
        self._best_rate = max(rate, (1 - _FORGET) * self._best_rate)
        self._largest = max(tokens, (1 - _FORGET) * self._largest)
        if tokens > _SMALL * self._largest:
            return
        overhead = seconds - tokens / self._best_rate
        # Rises slowly, so that one disturbed batch changes little.
        if overhead > self._overhead:
            self._overhead += 0.2 * (overhead - self._overhead)
        else:
            self._overhead *= 1 - _FORGET

    def record_delay(self, seconds: float, *, in_vain: bool) -> None:
        """Learn whether a delay was worth it: whether enough of the expected callers came."""
        if in_vain:
            self._pause_ends = time.monotonic() + _PAUSE_FACTOR * seconds

    def allowed(self, *, answers: int = 0) -> float:
        """Return the seconds for which the next batch may be delayed.

        At most the fixed cost of a batch, which is what merging two batches saves, and the time
        that the host needs for the answers under way.

        Args:
            answers: Answers being sent by the same cores that the device computes on.
        """
        if time.monotonic() < self._pause_ends:
            return 0.0
        return min(self._max_wait, self._overhead + answers * _ANSWER_SECONDS)


def _moved(average: float, rate: float) -> float:
    return 0.8 * average + 0.2 * rate if average else rate
