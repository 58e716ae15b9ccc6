"""An embedder whose two halves are timed for the metrics as they run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nimbed.inputs import Input, Modality
from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate, VectorSpec
from nimbed.stages import Prepared, Replica, Staged
from nimbed_server.tallies import LaneTally

__all__ = ["Observed"]


class _Waiting(NamedTuple):
    row: Any
    tokens: int
    since: float


class Observed:
    """Stands between a scheduler and an embedder; see :class:`nimbed.stages.Staged`."""

    def __init__(self, staged: Staged, tally: LaneTally) -> None:
        self._staged = staged
        self._tally = tally
        self._specs: dict[tuple[EmbeddingType, int | None, Int8Scale | None], VectorSpec] = {}

    def spec(
        self,
        *,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        int8_scale: Int8Scale | None = None,
    ) -> VectorSpec:
        """Return the contract of the vectors; a server is asked for the same few again."""
        wanted = (embedding_type, dimensions, int8_scale)
        spec = self._specs.get(wanted)
        if spec is None:
            spec = self._specs[wanted] = self._staged.spec(
                embedding_type=embedding_type, dimensions=dimensions, int8_scale=int8_scale
            )
        return spec

    def prepare(
        self,
        inputs: Sequence[Input],
        *,
        input_type: InputType,
        truncate: Truncate = "NONE",
        modality: Modality | None = None,
    ) -> Prepared:
        """Tokenize, and stamp every row with the moment from which it waits."""
        begin = time.perf_counter()
        prepared = self._staged.prepare(
            inputs, input_type=input_type, truncate=truncate, modality=modality
        )
        now = time.perf_counter()
        self._tally.tokenized(now - begin)
        rows = [
            _Waiting(row, tokens, now)
            for row, tokens in zip(prepared.rows, prepared.counts, strict=True)
        ]
        return Prepared(rows=rows, counts=prepared.counts, truncated=prepared.truncated)

    def replicas(self) -> Sequence[Replica]:
        """Return the copies of the model, weights loaded."""
        return [_Observed(replica, self._tally) for replica in self._staged.replicas()]


class _Observed:
    def __init__(self, replica: Replica, tally: LaneTally) -> None:
        self._replica = replica
        self._tally = tally

    @property
    def budget(self) -> int:
        """Tokens that fill the device at once."""
        return self._replica.budget

    def embed_rows(self, rows: Sequence[_Waiting]) -> NDArray[np.float32]:
        """Run a batch; see :meth:`nimbed.stages.Replica.embed_rows`."""
        begin = time.perf_counter()
        vectors = self._replica.embed_rows([row.row for row in rows])
        self._tally.ran(
            items=len(rows),
            tokens=sum([row.tokens for row in rows]),
            waited=begin * len(rows) - sum([row.since for row in rows]),
            longest=begin - min([row.since for row in rows]),
            seconds=time.perf_counter() - begin,
        )
        return vectors
