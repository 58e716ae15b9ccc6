"""Rows of many requests in, batches that are fair to all of them out.

Start-time fair queueing: a row's turn comes when a request alone on the device would have been
given as many tokens, so a query is not stuck behind a book. Where lengths matter to the device, a
batch is not simply what comes next: out of the next few batches it takes rows of one length.
Knows nothing about threads or models.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

__all__ = ["FairQueue", "Item"]

R = TypeVar("R")

# Rows looked at beyond the budget, for one that fits where another does not.
_SPARE = 8
# Batches that may take younger rows before it; then a row must ride.
_PATIENCE = 3


@dataclass(slots=True, eq=False)
class Item(Generic[R]):
    """One row of a request.

    Attributes:
        request: Whose it is.
        place: Its place in the request.
        tokens: What it costs.
        row: What a replica understands.
        passed: Batches that could have taken it and did not.
    """

    request: R
    place: int
    tokens: int
    row: Any
    passed: int = 0


_Entry: TypeAlias = tuple[float, int, Item[R]]  # its turn, its number, and the row


class FairQueue(Generic[R]):
    """A queue of items; the caller holds the lock."""

    def __init__(self) -> None:
        self._heap: list[_Entry[R]] = []
        self._tickets = itertools.count()
        self._waiting: Counter[R] = Counter()  # rows a request
        self._clock = 0.0  # tokens that a request which was always here has been given
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._heap)

    def requests(self) -> list[R]:
        """Return every request that waits."""
        return list(self._waiting)

    def push(self, items: Iterable[Item[R]]) -> None:
        """Queue the rows of one request."""
        turn = self._clock
        for item in items:
            heapq.heappush(self._heap, (turn, next(self._tickets), item))
            turn += item.tokens
            self.tokens += item.tokens
            self._waiting[item.request] += 1

    def take(self, budget: int, *, look_ahead: int, wanted: Callable[[R], bool]) -> list[Item[R]]:
        """Take the rows of the next batch, and drop those that nobody waits for any more.

        Args:
            budget: Tokens of a batch; a single row may exceed it.
            look_ahead: Budgets of waiting rows among which to look for similar lengths; 1 for
                whatever comes next.
            wanted: Whether anybody still waits for a request.

        Returns:
            The rows, longest first.
        """
        window = self._window(look_ahead * budget)
        if not window:
            return []
        self._clock = max(self._clock, window[0][0])
        sharing = len(self._waiting)
        batch: list[Item[R]] = []
        room = budget
        for entry in self._ranked(window, budget, look_ahead):
            item = entry[2]
            if batch and item.tokens > room:
                item.passed += 1
                heapq.heappush(self._heap, entry)
                continue
            self._leave(item)
            if wanted(item.request):
                batch.append(item)
                room -= item.tokens
        self._clock += sum([item.tokens for item in batch]) / sharing
        batch.sort(key=lambda item: -item.tokens)
        return batch

    def _window(self, budget: int) -> list[_Entry[R]]:
        """Take out the rows whose turn is next, a few more than the budget holds."""
        window: list[_Entry[R]] = []
        spare = _SPARE
        while self._heap and spare:
            entry = heapq.heappop(self._heap)
            window.append(entry)
            budget -= entry[2].tokens
            if budget <= 0:
                spare -= 1
        return window

    def _ranked(self, window: list[_Entry[R]], budget: int, look_ahead: int) -> list[_Entry[R]]:
        """Put first what must ride, then what is about as long as the first of all."""
        if look_ahead == 1:
            return window
        due = [entry for entry in window if entry[0] <= self._clock]
        # A query that came after a book is due alone. Of a thousand that are due, most can wait.
        few = sum([item.tokens for _, _, item in due]) <= budget
        length = window[0][2].tokens

        def rank(entry: _Entry[R]) -> int:
            turn, _, item = entry
            if item.passed >= _PATIENCE or (few and turn <= self._clock):
                return -1
            return abs(item.tokens - length)

        return sorted(window, key=rank)

    def _leave(self, item: Item[R]) -> None:
        self.tokens -= item.tokens
        self._waiting[item.request] -= 1
        if not self._waiting[item.request]:
            del self._waiting[item.request]
