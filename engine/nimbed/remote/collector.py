"""Answers, in any order, to one batch in the caller's order.

Knows nothing about requests. Each answer is sliced, normalised and quantised as it comes, so that
memory holds the finished vectors and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.errors import ConfigurationError
from nimbed.quantize import quantize, slice_normalize
from nimbed.remote.decode import Answer
from nimbed.remote.planner import Chunk, TokenMeter, apportion
from nimbed.remote.tally import Tally
from nimbed.spec import InputType, VectorSpec

__all__ = ["Collector"]


class Collector:
    """Gathers the vectors of one call.

    Token counts: a server reports them per request. A request of one text gives the exact count;
    those of several share theirs by their length in bytes. A text counts as truncated if it was
    cut here, or if its share reaches the longest input of the model.

    Args:
        rows: Inputs of the call.
        spec_of: Gives the contract once the model's width is known.
        meter: Estimates tokens, and learns from what is reported.
        tally: Where tokens are added up.
        longest: Longest input of the model in tokens, if known and if it may truncate.
    """

    def __init__(
        self,
        rows: int,
        *,
        spec_of: Callable[[int], VectorSpec],
        meter: TokenMeter,
        tally: Tally,
        longest: int | None,
    ) -> None:
        self.spec: VectorSpec | None = None
        self.placed = 0
        self._rows = rows
        self._spec_of = spec_of
        self._meter = meter
        self._tally = tally
        self._longest = longest
        self._vectors: NDArray[Any] = np.empty((0, 0), np.float32)
        self._counts = np.zeros(rows, np.int32)
        self._cut: set[int] = set()
        self._skipped: set[int] = set()

    def promise(self, width: int) -> VectorSpec:
        """Fix the contract, given the width of the model's vectors."""
        if self.spec is None:
            self.spec = self._spec_of(width)
            # Zeros cost nothing until they are written to, and stand for what is skipped.
            self._vectors = np.zeros((self._rows, self.spec.width), self.spec.dtype)
        return self.spec

    def place(self, chunk: Chunk, answer: Answer) -> None:
        """Take in the vectors of a chunk."""
        spec = self.promise(answer.vectors.shape[1])
        rows: slice | list[int] = list(chunk.rows)
        if chunk.rows[-1] - chunk.rows[0] == len(chunk) - 1:  # ascending, so without a gap
            rows = slice(chunk.rows[0], chunk.rows[-1] + 1)
        self._vectors[rows] = _stored(answer.vectors, spec)
        self._counts[rows] = self._count(chunk, answer.tokens)
        self.placed += len(chunk)

    def skip(self, rows: Iterable[int]) -> None:
        """Leave rows without a vector: zeros stand there."""
        self._skipped.update(rows)

    def batch(self, input_type: InputType) -> EmbeddingBatch:
        """Return everything that was collected."""
        if self.spec is None:
            raise ConfigurationError("a batch needs the width of its vectors")
        return EmbeddingBatch(
            vectors=self._vectors,
            spec=self.spec,
            input_type=input_type,
            token_counts=self._counts,
            truncated=tuple(sorted(self._cut)),
            report=self._tally.report(skipped=self._skipped),
        )

    def _count(self, chunk: Chunk, tokens: int | None) -> NDArray[np.int32]:
        self._tally.read(tokens)
        if chunk.cut:
            self._cut.update(chunk.rows)
        estimates = [self._meter.estimate(size) for size in chunk.sizes]
        too_long = self._longest is not None and max(estimates) > self._longest
        if tokens is None:
            tokens = round(sum(estimates))
        elif not too_long:  # of a text that was cut the server counts a part only
            self._meter.observe(tokens=tokens, size=sum(chunk.sizes))
        counts = apportion(tokens, estimates, most=self._longest)
        if self._longest is not None:
            # Shares are estimates: of a text that looks too long, nearly the limit is enough.
            nearly = (counts > 0.95 * self._longest) & (np.array(estimates) > self._longest)
            full = np.flatnonzero(nearly | (counts >= self._longest))
            self._cut.update(chunk.rows[position] for position in full.tolist())
        return counts


def _stored(vectors: NDArray[Any], spec: VectorSpec) -> NDArray[Any]:
    if vectors.dtype == np.uint8:  # packed by the server; a slice's bits are a slice of the bits
        bits = vectors[:, : spec.width]
        return bits if spec.embedding_type == "ubinary" else (bits ^ 0x80).view(np.int8)
    return quantize(slice_normalize(vectors, spec.dimensions), spec)
