"""Texts to requests: as many as fit by items, estimated tokens and bytes.

Knows nothing about servers. It plans as it goes, so that what was learnt from the first answers
shapes the later requests.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Chunk", "Limits", "Planner", "TokenMeter", "apportion", "size_of"]


_LARGE = 50_000  # bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold."""

    items: int
    tokens: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Texts that travel together.

    Attributes:
        rows: The caller's row numbers.
        texts: The texts, without any prefix.
        sizes: Their bytes in UTF-8.
        cut: Whether they were shortened here.
    """

    rows: tuple[int, ...]
    texts: tuple[str, ...]
    sizes: tuple[int, ...]
    cut: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, stop: int) -> Chunk:
        """Return the chunk of some consecutive texts."""
        return replace(
            self,
            rows=self.rows[start:stop],
            texts=self.texts[start:stop],
            sizes=self.sizes[start:stop],
        )

    def split(self, suspect: int | None = None) -> tuple[Chunk, ...]:
        """Return the halves; given the position of a suspect, it alone and what surrounds it."""
        if suspect is not None and 0 <= suspect < len(self):
            cuts = [0, suspect, suspect + 1, len(self)]
        else:
            cuts = [0, len(self) // 2, len(self)]
        pairs = itertools.pairwise(cuts)
        return tuple(self.part(start, stop) for start, stop in pairs if start < stop)


class TokenMeter:
    """Tokens a byte, corrected by what servers report.

    English has about one token in four bytes, code and other scripts up to one in two: the first
    guess is on the safe side.
    """

    def __init__(self) -> None:
        self.per_byte = 1 / 3

    def observe(self, *, tokens: int, size: int) -> None:
        """Take in that ``size`` bytes were ``tokens`` tokens."""
        if tokens > 0 and size > 0:
            self.per_byte += 0.3 * (min(tokens / size, 1.0) - self.per_byte)

    def estimate(self, size: int) -> float:
        """Return the tokens of ``size`` bytes."""
        return size * self.per_byte + 2  # special tokens


class Planner:
    """Hands out the next request's texts.

    Args:
        texts: The caller's texts.
        rows: Their row numbers, ascending; those left out are not sent.
        meter: Estimates tokens.
    """

    def __init__(self, texts: Sequence[str], rows: Sequence[int], meter: TokenMeter) -> None:
        self._texts = texts
        self._rows = rows
        self._meter = meter
        self._next = 0
        self._returned: deque[Chunk] = deque()

    def put_back(self, chunk: Chunk) -> None:
        """Take texts back, to be handed out again under the limits of then."""
        self._returned.append(chunk)

    def take(self, limits: Limits) -> Chunk | None:
        """Return the next texts that fit into one request, at least one, or None at the end."""
        if self._returned:
            chunk = self._returned.popleft()
            fits = self._fitting(chunk.sizes, limits)
            if fits < len(chunk):
                self._returned.appendleft(chunk.part(fits, len(chunk)))
            return chunk.part(0, fits)
        if self._next == len(self._rows):
            return None
        texts: list[str] = []
        sizes: list[int] = []
        rows = self._rows[self._next : self._next + limits.items]
        for row in rows:
            texts.append(self._texts[row])
            sizes.append(size_of(texts[-1]))
            # Images are large and made when they are looked at: not one more than fits.
            if sizes[-1] > _LARGE and self._fitting(sizes, limits) < len(sizes):
                break
        fits = self._fitting(sizes, limits)
        self._next += fits
        return Chunk(tuple(rows[:fits]), tuple(texts[:fits]), tuple(sizes[:fits]))

    def _fitting(self, sizes: Sequence[int], limits: Limits) -> int:
        tokens, total = 0.0, 0
        for count, size in enumerate(sizes[: limits.items]):
            tokens += self._meter.estimate(size)
            total += size
            if count and (tokens > limits.tokens or total > limits.bytes):
                return count
        return min(len(sizes), limits.items)


def size_of(text: str) -> int:
    """Return the bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def apportion(
    total: int, weights: Sequence[float], *, most: int | None = None
) -> NDArray[np.int32]:
    """Split a request's token count over its texts: whole numbers that sum to it.

    A server counts tokens per request. One text gets the exact number; several share it by
    estimate, none more than the model reads.

    Args:
        total: Tokens of the request.
        weights: Estimated tokens of each text, positive.
        most: Longest input of the model, if known.

    Returns:
        Array of shape (n,).
    """
    cap = np.inf if most is None else float(most)
    shares = np.minimum(np.asarray(weights, np.float64), cap)
    for _ in range(4):  # what one text cannot have, the others get
        free = shares < cap
        spare = total - shares[~free].sum()
        if not free.any() or spare <= 0:
            break
        shares[free] = np.minimum(shares[free] * (spare / shares[free].sum()), cap)
    shares *= total / shares.sum()
    counts = np.floor(shares).astype(np.int32)
    left = total - int(counts.sum())
    counts[np.argsort(counts - shares, kind="stable")[:left]] += 1
    return counts
