"""Numbers that only grow, kept plain; :mod:`nimbed_server.metrics` gives them to Prometheus.

prometheus-client's own counters check and lock at every step, which would cost a short request
more than its parsing does.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["Buckets", "LaneTally", "Tally"]

_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)
_ITEMS = tuple(2.0**power for power in range(13))
_TOKENS = tuple(2.0**power for power in range(3, 18))


class Buckets:
    """How many values were at most each of some bounds; a histogram.

    Attributes:
        bounds: Ascending.
        counts: Values that lie between a bound and the one before it; the last, beyond them all.
        total: Sum of the values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = _SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def note(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class LaneTally:
    """What was done with one model.

    Attributes:
        items: Inputs embedded, by role.
        tokens: Tokens read.
        truncated: Inputs cut.
        succeeded: Requests answered.
        failed: Requests refused or failed.
        request_seconds: Their time from first byte to answer, in sum.
        tokenize_seconds: Tokenizing a request.
        queue_seconds: Longest wait in a batch.
        infer_seconds: Running a batch.
        batch_items: Inputs of a batch.
        batch_tokens: Tokens of a batch.
        waited: Waits of all inputs, in sum; seconds.
    """

    def __init__(self) -> None:
        self.items = {"query": 0, "passage": 0}
        self.tokens = 0
        self.truncated = 0
        self.succeeded = 0
        self.failed = 0
        self.request_seconds = 0.0
        self.tokenize_seconds = Buckets()
        self.queue_seconds = Buckets()
        self.infer_seconds = Buckets()
        self.batch_items = Buckets(_ITEMS)
        self.batch_tokens = Buckets(_TOKENS)
        self.waited = 0.0
        # Requests are counted by the event loop alone; texts are tokenized in any thread, and
        # every device has its own.
        self._lock = threading.Lock()

    def tokenized(self, seconds: float) -> None:
        """Note how long the inputs of one request took to tokenize; from any thread."""
        with self._lock:
            self.tokenize_seconds.note(seconds)

    def ran(
        self, *, items: int, tokens: int, waited: float, longest: float, seconds: float
    ) -> None:
        """Note a batch, from any thread.

        Args:
            items: Its inputs.
            tokens: Its tokens.
            waited: Waits of its inputs, in sum.
            longest: The longest of them.
            seconds: How long it ran.
        """
        with self._lock:
            self.batch_items.note(items)
            self.batch_tokens.note(tokens)
            self.queue_seconds.note(longest)
            self.infer_seconds.note(seconds)
            self.waited += waited

    def embedded(self, role: str, *, items: int, tokens: int, truncated: int) -> None:
        """Count what one request had embedded in one role."""
        self.items[role] += items
        self.tokens += tokens
        self.truncated += truncated

    def finished(self, seconds: float, *, failed: bool) -> None:
        """Count a request for this model, from its first byte to its answer."""
        if failed:
            self.failed += 1
        else:
            self.succeeded += 1
        self.request_seconds += seconds


class Tally:
    """What one server did; counted by its event loop.

    Attributes:
        lanes: What was done with each model, by name.
        requests: Answers, by endpoint and status.
        request_seconds: From the first byte to the answer, by endpoint.
        failures: Requests refused or failed, by the type of error.
        serialize_seconds: Writing vectors into JSON.
    """

    def __init__(self) -> None:
        self.lanes: dict[str, LaneTally] = {}
        self.requests: dict[tuple[str, int], int] = {}
        self.request_seconds: dict[str, Buckets] = {}
        self.failures: dict[str, int] = {}
        self.serialize_seconds = Buckets()

    def lane(self, model: str) -> LaneTally:
        """Return the tally of one model, made when it is asked for first."""
        return self.lanes.setdefault(model, LaneTally())

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answer."""
        key = endpoint, status
        self.requests[key] = self.requests.get(key, 0) + 1
        buckets = self.request_seconds.get(endpoint)
        if buckets is None:
            buckets = self.request_seconds[endpoint] = Buckets()
        buckets.note(seconds)

    def refused(self, kind: str) -> None:
        """Count a refusal or a failure by its type."""
        self.failures[kind] = self.failures.get(kind, 0) + 1
