"""Ids in, those that came before out, in little memory. Knows nothing about passages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nimbed.files.load_report import Reject

__all__ = ["SeenIds", "came_before"]


class SeenIds:
    """Remembers which ids came before, in eight bytes each.

    The ``recent`` last ones in a set, the others as sorted stretches of hashes, merged as they
    grow. Two different ids share a hash once in 10^12 loads of ten thousand rows, once in 10^5
    loads of ten million; the later row is then rejected aloud.
    """

    def __init__(self, *, recent: int = 2**15) -> None:
        self._recent = recent
        self._last: set[int] = set()
        self._stretches: list[NDArray[np.int64]] = []

    def repeated(self, ids: Sequence[str]) -> set[int]:
        """Return the places of the ids that came before, here or in an earlier call."""
        hashes = list(map(hash, ids))
        before = set[int]()
        for stretch in self._stretches:
            wanted = np.array(hashes, np.int64)
            places = np.searchsorted(stretch, wanted)
            places[places == len(stretch)] = 0
            before.update(np.flatnonzero(stretch[places] == wanted).tolist())
        here = set(hashes)
        if len(here) < len(hashes) or not self._last.isdisjoint(here):
            seen = self._last.copy()
            for place, value in enumerate(hashes):
                if value in seen:
                    before.add(place)
                seen.add(value)
        self._last |= here
        if len(self._last) >= self._recent:
            self._stretches.append(np.sort(np.fromiter(self._last, np.int64, len(self._last))))
            self._last = set()
        while len(self._stretches) > 1 and (
            len(self._stretches[-2]) <= 2 * len(self._stretches[-1])
        ):
            merged = np.concatenate([self._stretches.pop(), self._stretches.pop()])
            merged.sort(kind="stable")
            self._stretches.append(merged)
        return before


def came_before(number: int, name: str) -> Reject:
    """Return a row whose id an earlier row of the input has."""
    return Reject(number, name, f"the id {name!r} came before in this input")
