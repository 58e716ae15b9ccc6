"""Rows of many requests in, batches that are fair to all of them out.

Start-time fair queueing: a row's turn comes when a request alone on the device would have been
given as many tokens, so a query is not stuck behind a book. Knows nothing about threads or models.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["FairQueue", "Item"]

R = TypeVar("R")

# Rows that do not fit a batch and are passed over for smaller ones; they go into the next batch.
_LOOK_AHEAD = 8


@dataclass(slots=True, eq=False)
class Item(Generic[R]):
    """One row of a request.

    Attributes:
        request: Whose it is.
        place: Its place in the request.
        tokens: What it costs.
        row: What a replica understands.
    """

    request: R
    place: int
    tokens: int
    row: Any


class FairQueue(Generic[R]):
    """A queue of items; the caller holds the lock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Item[R]]] = []
        self._tickets = itertools.count()
        self._clock = 0.0  # tokens that a request alone would have been given so far
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._heap)

    def requests(self) -> list[R]:
        """Return the request of every item that waits."""
        return [item.request for _, _, item in self._heap]

    def push(self, items: Iterable[Item[R]]) -> None:
        """Queue the rows of one request."""
        turn = self._clock
        for item in items:
            heapq.heappush(self._heap, (turn, next(self._tickets), item))
            turn += item.tokens
            self.tokens += item.tokens

    def take(self, budget: int, *, wanted: Callable[[R], bool]) -> list[Item[R]]:
        """Take the rows whose turn it is, and drop those that nobody waits for any more.

        Args:
            budget: Tokens of a batch; a single row may exceed it.
            wanted: Whether anybody still waits for a request.

        Returns:
            The rows, longest first: neighbours of similar length are what attention likes.
        """
        batch: list[Item[R]] = []
        passed: list[tuple[float, int, Item[R]]] = []
        room = budget
        while self._heap and room > 0 and len(passed) < _LOOK_AHEAD:
            entry = heapq.heappop(self._heap)
            turn, _, item = entry
            if item.tokens > room and batch:
                passed.append(entry)
                continue
            self.tokens -= item.tokens
            if wanted(item.request):
                self._clock = max(self._clock, turn)
                batch.append(item)
                room -= item.tokens
        for entry in passed:
            heapq.heappush(self._heap, entry)
        batch.sort(key=lambda item: -item.tokens)
        return batch
