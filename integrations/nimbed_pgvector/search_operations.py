"""Searches of a table: by a question or its vectors, of one kind or several, in pages or groups."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from psycopg import errors

from nimbed import EmbeddingBatch, EmbeddingKinds, SparseBatch, VectorSpec
from nimbed.errors import ConfigurationError
from nimbed.fusion import Fusion
from nimbed.options import KindOptions
from nimbed.spec import Kind, check_literal
from nimbed_pgvector.documents import best_of_each
from nimbed_pgvector.hybrid import Question, embed_question_kinds, hybrid_search, written_hybrid
from nimbed_pgvector.migrate import MigrationOperations
from nimbed_pgvector.operations import Operation, SyncRunner
from nimbed_pgvector.schema import Table
from nimbed_pgvector.search import Filter, Hit, Page, embed_question, search, written
from nimbed_pgvector.statements import Transaction

__all__ = ["SearchOperations", "SyncSpec"]

S = TypeVar("S")

# Chunks that are looked for to find a document, at first.
_CHUNKS_A_DOCUMENT = 4


class SearchOperations(MigrationOperations[S]):
    """What finds passages of a table."""

    def _spec(self) -> Operation[VectorSpec]:
        """Return the contract of the table's vectors.

        Raises:
            ConfigurationError: If there is no such table.
        """
        return (yield from self._existing()).layout.spec

    def _search(
        self,
        question: str,
        k: int = 10,
        *,
        filter: Filter | None = None,
        parameters: Sequence[Any] = (),
        candidates: int | None = None,
        group: bool = False,
        after: Page | None = None,
        hybrid: str | None = None,
        kinds: Sequence[Kind] | None = None,
        fusion: Fusion = "rrf",
        weights: Sequence[float] | None = None,
    ) -> Operation[list[Hit]]:
        """Return the k passages nearest to a question, nearest first.

        Args:
            question: A text; it is embedded as a query, by the model that the table names.
            k: How many.
            filter: A condition in SQL over id, text and metadata, its values written as %s.
            parameters: The values.
            candidates: How many of a packed column's nearest are rescored; None means 8 k.
            group: Return k documents, each by its nearest chunk.
            after: Where the last page ended, as (distance, id) of its last hit; for the first
                :data:`nimbed_pgvector.FIRST_PAGE`. Pages neither repeat nor leave out a passage.
            hybrid: A text search configuration of PostgreSQL, such as ``english``: rank by the
                question's words too. ``index(words=)`` makes that quick.
            kinds: By which vectors: ``dense``, ``sparse``, or both, from one forward pass and in
                one statement; None for all that the table has.
            fusion: How several rankings become one: ``rrf`` by places, ``sum`` by scores, which are
                normalised; see :func:`nimbed.fusion.fuse`.
            weights: What each ranking counts for, those of ``kinds`` in their order and then the
                words; None for 1 each.

        Raises:
            SpaceMismatchError: If the embedder's vectors do not live in the table's space.
            ConfigurationError: If there is no such table or column, the model gives no such
                vectors, or the filter is no SQL.
        """
        asked = functools.partial(
            self._asked,
            k=k,
            where=filter,
            parameters=parameters,
            candidates=candidates,
            group=group,
            after=after,
            by=fusion,
            weights=weights,
        )
        table = yield from self._existing()
        # A pool's connection is not held while a model is loaded or runs.
        query: Question = yield lambda: self._question(table, question, kinds, hybrid)
        try:
            return (yield from asked(table, query))
        except errors.UndefinedColumn as error:
            now = yield from self._changed(table, error)
        query = yield lambda: self._question(now, question, kinds, hybrid)
        return (yield from asked(now, query))

    def _sql(
        self,
        question: str,
        k: int = 10,
        *,
        filter: Filter | None = None,
        candidates: int | None = None,
        hybrid: str | None = None,
        kinds: Sequence[Kind] | None = None,
        fusion: Fusion = "rrf",
        weights: Sequence[float] | None = None,
    ) -> Operation[str]:
        """Return a search as SQL to paste: its settings, and the question's vectors as literals.

        The distances of a packed column alone are Hamming distances: what ranks its candidates by
        the float question is no SQL. A condition's places for parameters (%s) stay as they are.
        """
        table = yield from self._existing()
        query: Question = yield lambda: self._question(table, question, kinds, hybrid)
        _check_fusion(query, fusion, weights)
        if query.rankings == ("dense",) and query.dense is not None:
            return written(table, query.dense, k=k, where=filter, candidates=candidates)
        _refuse_candidates(table, candidates)
        return written_hybrid(table, query, k=k, by=fusion, weights=weights, where=filter)

    def _nearest(
        self,
        query: EmbeddingBatch | SparseBatch | EmbeddingKinds,
        k: int = 10,
        *,
        filter: Filter | None = None,
        parameters: Sequence[Any] = (),
        candidates: int | None = None,
        group: bool = False,
        after: Page | None = None,
        fusion: Fusion = "rrf",
        weights: Sequence[float] | None = None,
    ) -> Operation[list[Hit]]:
        """Do what :meth:`search` does with a question that is vectors already, of these kinds."""
        given = query.batches if isinstance(query, EmbeddingKinds) else (query,)
        dense = next((each for each in given if isinstance(each, EmbeddingBatch)), None)
        sparse = next((each for each in given if isinstance(each, SparseBatch)), None)
        kinds = tuple(each.spec.kind for each in given)
        _refuse_multi(kinds)
        asked = functools.partial(
            self._asked,
            query=Question(dense=dense, sparse=sparse, rankings=kinds),
            k=k,
            where=filter,
            parameters=parameters,
            candidates=candidates,
            group=group,
            after=after,
            by=fusion,
            weights=weights,
        )
        table = yield from self._existing()
        try:
            return (yield from asked(table))
        except errors.UndefinedColumn as error:
            now = yield from self._changed(table, error)
        return (yield from asked(now))

    def _asked(
        self,
        table: Table,
        query: Question,
        *,
        k: int,
        group: bool,
        after: Page | None,
        candidates: int | None,
        by: Fusion,
        weights: Sequence[float] | None,
        **options: Any,
    ) -> Operation[list[Hit]]:
        _check_fusion(query, by, weights)
        dense = query.dense if query.rankings == ("dense",) else None
        if dense is None:
            _refuse_candidates(table, candidates)
            if after is not None:
                raise ConfigurationError(
                    "pages need distances that are final, which several rankings have not, nor "
                    "sparse vectors; search by dense ones alone, or ask for more hits, by k"
                )
        if group and after is not None:
            raise ConfigurationError("documents have no pages; ask for more of them, by k")
        reach = _CHUNKS_A_DOCUMENT * k if group else k
        while True:
            if dense is not None:
                found = search(table, dense, k=reach, after=after, candidates=candidates, **options)
            else:
                found = hybrid_search(table, query, k=reach, by=by, weights=weights, **options)
            hits: list[Hit] = yield Transaction(procedure=found, each_alone=True)
            if not group:
                return hits
            best = list(best_of_each(hits))
            if len(best) >= k or len(hits) < reach:
                return best[:k]
            reach *= _CHUNKS_A_DOCUMENT  # a few documents have all of the nearest chunks

    def _changed(self, before: Table, error: errors.UndefinedColumn) -> Operation[Table]:
        """Return the table as a migration left it; raise the error if there was none."""
        self._forget()
        table = yield from self._existing()
        if table.layout == before.layout:
            raise error
        return table

    def _question(
        self, table: Table, text: str, kinds: Sequence[Kind] | None, language: str | None
    ) -> Question:
        """Embed a question by the kinds that were asked for, or that the table has."""
        chosen = tuple(KindOptions(kinds=kinds).kinds or table.layout.kinds)
        _refuse_multi(chosen)
        embedder = self._embedder_for(table)
        words = None if language is None else (text, language)
        rankings = (*chosen, *(() if words is None else ("words",)))
        if chosen == ("dense",):
            dense = embed_question(embedder, table.layout, text)
            return Question(dense=dense, words=words, rankings=rankings)
        found = embed_question_kinds(embedder, table, text, chosen)
        return Question(dense=found.dense, sparse=found.sparse, words=words, rankings=rankings)


def _refuse_multi(kinds: Sequence[str]) -> None:
    if "multi" in kinds:
        raise ConfigurationError("a table holds no multi-vectors; ask by dense or sparse ones")


def _check_fusion(query: Question, by: Fusion, weights: Sequence[float] | None) -> None:
    """Refuse to fuse one ranking."""
    check_literal("fusion", by, Fusion)
    if len(query.rankings) == 1 and (by != "rrf" or weights is not None):
        raise ConfigurationError(
            f"fusion and weights are for several rankings, and this search has one, by "
            f"{query.rankings[0]} vectors; add kinds or words (hybrid), or leave them out"
        )


def _refuse_candidates(table: Table, candidates: int | None) -> None:
    if candidates is not None:
        raise ConfigurationError(
            f"candidates applies to a search by dense vectors alone; leave it out, or search the "
            f"table {table.name} by kind dense"
        )


class SyncSpec(SyncRunner):
    """The contract of a table as an attribute."""

    _spec: Callable[[], Operation[VectorSpec]]

    @property
    def spec(self) -> VectorSpec:
        """The contract of the table's dense vectors.

        Raises:
            ConfigurationError: If there is no such table.
        """
        return self.steps("reading the contract of", self._spec())
