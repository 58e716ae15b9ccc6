"""What the kinds of a model's vectors find, alone and fused, by judged queries.

Each is searched exactly: dense by its metric, sparse by dot product, multi-vectors by MaxSim.
Rankings of several are fused by reciprocal rank and by the weighted sum of normalised scores, from
the best 50 of each, as `nimbed search` does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.fusion import Fusion, fuse, with_shared_tokens
from nimbed.kinds import EmbeddingKinds, MultiVectorBatch, SparseBatch
from nimbed.muvera import Muvera
from nimbed.search import Batch, Neighbours, nearest, rescore
from nimbed.spec import Kind, TokenType
from nimbed_tradeoff.measurement import Gains, Quality, take_turns
from nimbed_tradeoff.ways import TOP

__all__ = ["FUSED", "MeasuredKind", "best_kind", "measure_kinds", "select_kinds"]

#: Passages of each ranking that are fused, and candidates that MaxSim ranks again.
FUSED = 50
# A text's heaviest tokens, where it has more.
_HEAVIEST = 64
# How multi-vectors are stored smaller: type, and tokens of a passage a vector.
_COMPRESSED: tuple[tuple[TokenType, int], ...] = (
    ("half", 1),
    ("int8", 1),
    ("ubinary", 1),
    ("float", 2),
    ("ubinary", 2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredKind:
    """What one kind of vector, or several fused, find and cost.

    Attributes:
        label: What is stored and how it is searched, in words.
        kinds: The kinds.
        fused_by: How their rankings are fused; None of one kind.
        bytes_per_passage: What an index holds of a passage, in the mean.
        quality: Recall, nDCG and time.
    """

    label: str
    kinds: tuple[Kind, ...]
    fused_by: Fusion | None
    bytes_per_passage: float
    quality: Quality


@dataclass(frozen=True, slots=True)
class _Index:
    """One kind of vector of all queries and passages, as it is stored and searched."""

    label: str
    kind: Kind
    queries: Any
    passages: Any
    #: What ranks the best of them again: queries, passages.
    finer: tuple[Batch, Batch] | None = None

    def search(self, block: NDArray[np.intp], k: int) -> Callable[[], Neighbours]:
        queries = self.queries.select(block)
        if self.finer is not None:
            exact, fine = self.finer[0].select(block), self.finer[1]
            return lambda: rescore(exact, fine, nearest(queries, self.passages, FUSED).rows, k)
        if self.kind == "sparse":
            return lambda: with_shared_tokens(nearest(queries, self.passages, k))
        return lambda: nearest(queries, self.passages, k)


def measure_kinds(
    queries: EmbeddingKinds,
    passages: EmbeddingKinds,
    gains: Gains,
    weights: Mapping[Kind, float] | None = None,
) -> tuple[MeasuredKind, ...]:
    """Search for the ten best passages of every query by each kind, smaller, and fused.

    Args:
        queries: Full vectors of the kinds to compare, at least one query.
        passages: The same of the passages.
        gains: What is relevant to each query.
        weights: What each kind counts for when it is fused; None for 1 each.
    """
    plain = _plain(queries, passages)
    single = [*plain, *_smaller(plain)]
    mixed = [
        (chosen, by)
        for count in range(2, len(plain) + 1)
        for chosen in itertools.combinations(plain, count)
        for by in get_args(Fusion)
    ]

    def alone(index: _Index) -> Callable[[NDArray[np.intp]], Callable[[], NDArray[np.intp]]]:
        def prepared(block: NDArray[np.intp]) -> Callable[[], NDArray[np.intp]]:
            search = index.search(block, TOP)
            return lambda: _rows(search())

        return prepared

    def fused(
        chosen: Sequence[_Index], by: Fusion
    ) -> Callable[[NDArray[np.intp]], Callable[[], NDArray[np.intp]]]:
        counted = None if weights is None else [weights[index.kind] for index in chosen]

        def prepared(block: NDArray[np.intp]) -> Callable[[], NDArray[np.intp]]:
            searches = [index.search(block, FUSED) for index in chosen]
            return lambda: _rows(
                fuse([search() for search in searches], by=by, weights=counted, k=TOP)
            )

        return prepared

    searches = [*map(alone, single), *(fused(chosen, by) for chosen, by in mixed)]
    qualities = take_turns(searches, len(gains), gains)
    found = [
        MeasuredKind(
            label=index.label,
            kinds=(index.kind,),
            fused_by=None,
            bytes_per_passage=_bytes(index.passages),
            quality=quality,
        )
        for index, quality in zip(single, qualities, strict=False)
    ]
    found += [
        MeasuredKind(
            label=" + ".join(index.kind for index in chosen),
            kinds=tuple(index.kind for index in chosen),
            fused_by=by,
            bytes_per_passage=sum(_bytes(index.passages) for index in chosen),
            quality=quality,
        )
        for (chosen, by), quality in zip(mixed, qualities[len(single) :], strict=True)
    ]
    return tuple(found)


def select_kinds(found: EmbeddingKinds, rows: Sequence[int]) -> EmbeddingKinds:
    """Return the vectors of some texts, of every kind."""
    return EmbeddingKinds(
        dense=None if found.dense is None else found.dense.select(rows),
        sparse=None if found.sparse is None else found.sparse.select(rows),
        multi=None if found.multi is None else found.multi.select(rows),
    )


def best_kind(measured: Sequence[MeasuredKind]) -> MeasuredKind:
    """Return what ranks best by nDCG, of equals the smallest."""
    return max(measured, key=lambda each: (each.quality.ndcg, -each.bytes_per_passage))


def _plain(queries: EmbeddingKinds, passages: EmbeddingKinds) -> list[_Index]:
    """Return each kind as the model gives it, in the order of their names."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    return [
        _Index(kind, kind, asked, getattr(passages, kind))
        for kind in kinds
        if (asked := getattr(queries, kind)) is not None
    ]


def _smaller(plain: Sequence[_Index]) -> list[_Index]:
    """Return the ways to store sparse vectors and multi-vectors in less."""
    found: list[_Index] = []
    for index in plain:
        asked, stored = index.queries, index.passages
        if isinstance(stored, SparseBatch) and np.diff(stored.offsets).max() > _HEAVIEST:
            label = f"sparse, {_HEAVIEST} heaviest"
            found.append(
                replace(index, label=label, queries=_heaviest(asked), passages=_heaviest(stored))
            )
        if isinstance(stored, MultiVectorBatch):
            for token_type, pooled in _COMPRESSED:
                packs = token_type != "ubinary" or stored.spec.dimensions % 8 == 0
                if not packs or (pooled > 1 and find_spec("scipy") is None):
                    continue
                label = f"multi, {token_type}" + (f", {pooled} pooled" if pooled > 1 else "")
                small = stored.compressed(token_type, pool_factor=pooled)
                found.append(replace(index, label=label, passages=small))
            found += _encoded(index)
    return found


def _encoded(index: _Index) -> list[_Index]:
    """Return multi-vectors as one dense vector each, alone and ranked again by MaxSim."""
    encoder = Muvera(dprojections=min(16, index.passages.spec.dimensions))
    one = replace(
        index,
        label="multi, as MUVERA",
        queries=encoder.encode(index.queries),
        passages=encoder.encode(index.passages),
    )
    again = replace(
        one, label=f"  rescored {FUSED} by MaxSim", finer=(index.queries, index.passages)
    )
    return [one, again]


def _heaviest(batch: SparseBatch) -> SparseBatch:
    return SparseBatch.from_rows(
        list(batch.rows()),
        spec=replace(batch.spec, max_active=_HEAVIEST),
        input_type=batch.input_type,
        token_counts=batch.token_counts,
        truncated=batch.truncated,
    )


def _bytes(batch: Batch) -> float:
    """Return the bytes of a passage in the mean: a sparse weight has an id of four bytes too."""
    if isinstance(batch, EmbeddingBatch):
        return float(batch.spec.bytes_per_vector)
    if isinstance(batch, SparseBatch):
        return 8.0 * len(batch.ids) / len(batch)
    return batch.spec.bytes_per_token * len(batch.vectors) / len(batch)


def _rows(found: Neighbours) -> NDArray[np.intp]:
    """Return the rows, -1 where fewer than ten were found."""
    rows: NDArray[np.intp] = np.where(np.isfinite(found.distances), found.rows, -1)
    return rows
