"""Scheduling policy: which row is next, which request can be in time, how long a batch waits.

**Next** is by start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): a row's turn comes
when its request, alone on the device, would have been served as many tokens. A short query is
therefore not stuck behind a long document. Where the device gains from rows of similar length, a
batch is picked out of the next few batches rather than taken strictly in order.

**In time**: shared evenly, a device that has work for more time than its callers have finishes all
of them too late. In the order of their deadlines as many as possible are in time (Liu and Layland,
1973), and those that cannot be are told so while they can still go elsewhere.

**A batch waits** for callers who were just answered: they come back together, a moment after their
answer. A device that starts at once with whoever already waits then serves two half-full batches in
turn, for ever. Waiting briefly for those just answered is anticipatory scheduling (Iyer and
Druschel, SOSP 2001), applied to batches.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

__all__ = ["BatchDelay", "FairQueue", "PriorityQueue", "QueuedRow", "Timed", "in_order"]

R = TypeVar("R")

# Rows examined beyond the budget, to find one that still fits where the next in turn does not.
_EXTRA_ROWS = 8
# Batches that may pass a row over in favour of later ones; the next batch must take it.
_MAX_SKIPS = 3


@dataclass(slots=True, eq=False)
class QueuedRow(Generic[R]):
    """One row of a request.

    Attributes:
        request: The request it belongs to.
        index: Its position in the request.
        tokens: Its cost.
        data: What a replica embeds.
        skips: Batches that considered it and left it waiting.
    """

    request: R
    index: int
    tokens: int
    data: Any
    skips: int = 0


_Entry: TypeAlias = tuple[float, int, QueuedRow[R]]  # (turn, serial number, row)
_TOKENS = attrgetter("tokens")


class FairQueue(Generic[R]):
    """Rows of many requests, ordered by their turn. Not thread-safe: the caller holds a lock.

    Attributes:
        tokens: Tokens of all rows that wait.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._heap: list[_Entry[R]] = []
        # What batches considered and left waiting, in order: back in the heap, a row would be
        # sorted anew for every batch that considers it.
        self._considered: list[_Entry[R]] = []
        self._serials = itertools.count()
        self._waiting: dict[R, int] = {}  # rows of each request
        self._clock = 0.0  # tokens served to a request that has been here all along

    def __len__(self) -> int:
        return len(self._heap) + len(self._considered)

    def __bool__(self) -> bool:
        return bool(self._heap or self._considered)

    def requests(self) -> list[R]:
        """Return every request with rows that wait."""
        return list(self._waiting)

    def push(self, rows: Sequence[QueuedRow[R]]) -> None:
        """Add the rows of one request."""
        if not rows:
            return
        heap, serials, turn = self._heap, self._serials, self._clock
        tokens = 0
        for row in rows:
            heapq.heappush(heap, (turn + tokens, next(serials), row))
            tokens += row.tokens
        self.tokens += tokens
        request = rows[0].request
        self._waiting[request] = self._waiting.get(request, 0) + len(rows)

    def take(
        self, budget: int, *, look_ahead: int, is_alive: Callable[[R], bool]
    ) -> list[QueuedRow[R]]:
        """Remove and return the next batch, dropping rows whose caller has gone.

        Args:
            budget: Tokens of a batch; a single row may exceed it.
            look_ahead: Budgets of waiting rows among which to look for similar lengths; 1 takes
                the rows in turn.
            is_alive: Whether anyone still waits for a request.

        Returns:
            The rows, longest first.
        """
        candidates = self._pop_candidates(look_ahead * budget)
        if not candidates:
            return []
        self._clock = max(self._clock, candidates[0][0])
        sharing = len(self._waiting)
        alive: dict[R, bool] = {}
        batch: list[QueuedRow[R]] = []
        room = budget
        left: list[_Entry[R]] = []
        for entry in self._ranked(candidates, budget, look_ahead):
            row = entry[2]
            if batch and row.tokens > room:
                row.skips += 1
                left.append(entry)
                continue
            self._remove(row)
            request = row.request
            wanted = alive.get(request)
            if wanted is None:
                wanted = alive[request] = is_alive(request)
            if wanted:
                batch.append(row)
                room -= row.tokens
        if left:
            left.sort()
            self._considered[:0] = left  # all of which come before what was not considered
        self._clock += (budget - room) / sharing
        batch.sort(key=_TOKENS, reverse=True)
        return batch

    def pending(self) -> dict[R, int]:
        """Return the tokens that wait of each request; as slow as there are rows."""
        tokens: dict[R, int] = {}
        for _, _, row in itertools.chain(self._considered, self._heap):
            tokens[row.request] = tokens.get(row.request, 0) + row.tokens
        return tokens

    def take_in_order(
        self, budget: int, places: Mapping[R, int], *, is_alive: Callable[[R], bool]
    ) -> list[QueuedRow[R]]:
        """Remove and return a batch of the first requests, none of which shares with the others.

        Args:
            budget: Tokens of a batch; a single row may exceed it.
            places: The place of each request that waits.
            is_alive: Whether anyone still waits for a request; rows of one that is dead, or has no
                place, are dropped.

        Returns:
            The rows, longest first.
        """
        self._heap += self._considered
        self._considered.clear()
        self._heap.sort(key=lambda entry: (places.get(entry[2].request, -1), entry[1]))
        batch: list[QueuedRow[R]] = []
        taken, room = 0, budget
        for _, _, row in self._heap:
            alive = row.request in places and is_alive(row.request)
            if alive and batch and row.tokens > room:
                break
            taken += 1
            self._remove(row)
            if alive:
                batch.append(row)
                room -= row.tokens
        del self._heap[:taken]
        heapq.heapify(self._heap)
        batch.sort(key=_TOKENS, reverse=True)
        return batch

    def _pop_candidates(self, budget: int) -> list[_Entry[R]]:
        """Pop the rows next in turn: as many as the budget holds, and a few more."""
        candidates: list[_Entry[R]] = []
        heap, considered, extra = self._heap, self._considered, _EXTRA_ROWS
        known, used = len(considered), 0
        while extra and (used < known or heap):
            if used < known and not (heap and heap[0] < considered[used]):
                entry = considered[used]
                used += 1
            else:
                entry = heapq.heappop(heap)
            candidates.append(entry)
            budget -= entry[2].tokens
            if budget <= 0:
                extra -= 1
        del considered[:used]
        return candidates

    def _ranked(self, candidates: list[_Entry[R]], budget: int, look_ahead: int) -> list[_Entry[R]]:
        """Order candidates: those that must not wait, then by similarity to the first's length."""
        if look_ahead == 1:
            return candidates
        due = [entry for entry in candidates if entry[0] <= self._clock]
        # A query that arrives after a long document is due alone and goes first. When more is due
        # than one batch holds, being due decides nothing.
        few_due = sum([row.tokens for _, _, row in due]) <= budget
        length = candidates[0][2].tokens

        ranks = [
            -1
            if row.skips >= _MAX_SKIPS or (few_due and turn <= self._clock)
            else abs(row.tokens - length)
            for turn, _, row in candidates
        ]
        order = sorted(range(len(candidates)), key=ranks.__getitem__)
        return [candidates[place] for place in order]

    def _remove(self, row: QueuedRow[R]) -> None:
        self.tokens -= row.tokens
        left = self._waiting[row.request] - 1
        if left:
            self._waiting[row.request] = left
        else:
            del self._waiting[row.request]


class PriorityQueue(Generic[R]):
    """Two fair queues: urgent rows, which go first, and all others. Not thread-safe.

    While both wait they take turns, so that an urgent row waits for one batch of the others at
    most, and these never starve.
    """

    def __init__(self) -> None:
        self.urgent: FairQueue[R] = FairQueue()
        self.others: FairQueue[R] = FairQueue()
        self._urgent_was_last = False

    def __len__(self) -> int:
        return len(self.urgent) + len(self.others)

    def __bool__(self) -> bool:
        return bool(self.urgent or self.others)

    @property
    def tokens(self) -> int:
        """Tokens of all rows that wait."""
        return self.urgent.tokens + self.others.tokens

    def requests(self) -> list[R]:
        """Return every request with rows that wait."""
        return self.urgent.requests() + self.others.requests()

    def next(self) -> FairQueue[R]:
        """Return the queue whose turn it is."""
        first = bool(self.urgent) and not (self._urgent_was_last and self.others)
        self._urgent_was_last = first
        return self.urgent if first else self.others


# By how much an estimate may be off before anybody is refused for it.
_TOLERANCE = 1.1


class Timed(Protocol):
    """A request that has a time.

    Attributes:
        deadline: Moment after which it is worthless, or None.
        since: Moment at which it began to wait.
    """

    deadline: float | None
    since: float


TimedT = TypeVar("TimedT", bound=Timed)


def in_order(
    pending: Mapping[TimedT, int], *, rate: float, now: float
) -> tuple[list[TimedT], dict[TimedT, float]]:
    """Return requests in the order of their deadlines, as far as these can be kept.

    Args:
        pending: Tokens that wait of each request.
        rate: Tokens a second.
        now: The moment, on the clock of the deadlines.

    Returns:
        Those that can be finished, and those that cannot, with the seconds that each lacks.
    """
    kept: list[TimedT] = []
    late: dict[TimedT, float] = {}
    ahead = 0
    for request in sorted(pending, key=lambda each: (_deadline(each), each.since)):
        needed, left = (ahead + pending[request]) / rate, _deadline(request) - now
        if needed > _TOLERANCE * left:
            late[request] = needed - left
        else:
            kept.append(request)
            ahead += pending[request]
    return kept, late


def _deadline(request: Timed) -> float:
    return float("inf") if request.deadline is None else request.deadline


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
