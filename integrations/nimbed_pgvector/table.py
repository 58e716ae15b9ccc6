"""A table of passages in PostgreSQL: load it, index it, search it, sync or async.

Every operation is written once, as a generator of steps that needs no connection.
:mod:`nimbed_pgvector.operations` runs the steps.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import errors

from nimbed import Embedder, SparseSpec, VectorSpec
from nimbed.bulk import (
    InputIds,
    JobReport,
    embedding_passages,
    ignore,
    load_batches,
    read_batches,
)
from nimbed.chunks import CHUNK_FIELDS, CONTEXT_FIELD, ChunkMode, split_rows
from nimbed.errors import ConfigurationError
from nimbed.load import chunk_splitter
from nimbed.rows import Item, Reject
from nimbed.spec import Truncate, check_literal
from nimbed_pgvector.columns import AnyColumn, Layout
from nimbed_pgvector.copy import (
    BATCH_ROWS,
    Batch,
    Ready,
    TableSink,
    fill,
    first_good,
    prepare,
    ready_batches,
)
from nimbed_pgvector.documents import DocumentSink, prune_rows
from nimbed_pgvector.hybrid import index_words
from nimbed_pgvector.index import IndexPlan, IndexProgress, analyze, build, find_index, plan_index
from nimbed_pgvector.operations import (
    AsyncRunner,
    Job,
    Operation,
    async_method,
    sync_method,
)
from nimbed_pgvector.schema import Table, find, prepare_table
from nimbed_pgvector.search_operations import SearchOperations, SyncSpec
from nimbed_pgvector.sparse import embedding_kinds, sparse_column
from nimbed_pgvector.statements import (
    AsyncConnectionSource,
    ConnectionSource,
    Runner,
    Transaction,
)

__all__ = ["AsyncConnectionSource", "AsyncVectorTable", "ConnectionSource", "VectorTable"]

S = TypeVar("S")


_KINDS: dict[ChunkMode | None, tuple[str, str]] = {
    None: ("whole passages", "leave out --chunk (chunk_tokens=)"),
    "plain": ("chunks of documents", "load with --chunk TOKENS (chunk_tokens=) alone"),
    "late": ("late chunks", "load with --chunk TOKENS --chunk-mode late (chunk_mode=)"),
}


def _check_kind(table: Table, mode: ChunkMode | None) -> None:
    """Refuse to mix chunks with whole passages, or with chunks that were embedded otherwise.

    Raises:
        ConfigurationError: If a table that is not empty holds another kind.
    """
    if not table.empty and table.chunks != mode:
        holds, mend = _KINDS[table.chunks]
        raise ConfigurationError(
            f"the table {table.name} holds {holds}; {mend}, or load into another table"
        )


class _Operations(SearchOperations[S]):
    """What can be done with a table; the result of each step is sent back to the generator."""

    def _find_index(self) -> Operation[str | None]:
        """Return the name of the index that searches use, as SQL; None if there is none."""
        found: Table | None = yield Transaction(procedure=find(self._name))
        if found is None:
            return None
        name: str | None = yield Transaction(procedure=find_index(found))
        return name

    def _load(
        self,
        passages: Iterable[Item],
        *,
        source: str = "script",
        metadata_fields: Sequence[str] | None = None,
        truncate: Truncate = "NONE",
        chunk_rows: int = BATCH_ROWS,
        chunk_tokens: int | None = None,
        overlap: int = 0,
        chunk_mode: ChunkMode = "plain",
        prune: bool = False,
        on_reject: Callable[[Reject], None] = ignore,
        on_progress: Callable[[JobReport], None] = ignore,
    ) -> Operation[JobReport]:
        """Embed and store passages; those that are there with the same content are skipped.

        The first good row makes the table. Each batch is one transaction. Killed at any moment and
        run again, nothing is lost and nothing is there twice.

        Args:
            passages: (id, text), (id, text, metadata), or rows of :func:`nimbed.files.read_rows`.
            source: Names the input in the ledger, and rows that have no id.
            metadata_fields: Other fields to keep; None keeps all.
            truncate: What happens to a text that is too long: NONE rejects it.
            chunk_rows: Rows a transaction.
            chunk_tokens: Split each passage, a document now, into chunks of so many tokens at most;
                a chunk's id is the document's with ``#`` and its number, and its metadata say where
                it lies. A document that changed replaces its chunks, and leaves none behind.
            overlap: Tokens of a chunk's end that the next one begins with, at most.
            chunk_mode: ``late`` embeds a chunk with the text around it, where the model can.
            prune: Delete the table's rows whose ids are not among the passages.
            on_reject: Told each row that cannot be stored, and why.
            on_progress: Told the report after each batch.

        Raises:
            SpaceMismatchError: If the table holds vectors of another space.
            ConfigurationError: If the table or the connection does not fit.
            InputError: If nothing can be pruned, since a row's id could not be read.
            BackendError: If the server or the model failed; what was committed stays.
        """
        check_literal("truncate", truncate, Truncate)
        if chunk_tokens is None and (overlap or chunk_mode != "plain"):
            raise ConfigurationError("an overlap and a mode are of chunks; give chunk_tokens too")
        if chunk_rows < 1:
            raise ConfigurationError(f"chunk_rows must be at least 1; got {chunk_rows}")
        found: Table | None = yield Transaction(procedure=find(self._name), commits=True)
        embedder: Embedder = yield lambda: self._embedder_for(found)
        layout_of = self._options.from_embedder(embedder, name=self._name)
        ended: deque[tuple[str, int]] = deque()
        if chunk_tokens is not None:
            splitter = yield lambda: chunk_splitter(
                embedder, tokens=chunk_tokens, overlap=overlap, mode=chunk_mode
            )
            passages = split_rows(
                passages, splitter, source=source, ended=lambda *each: ended.append(each)
            )
            metadata_fields = metadata_fields and [*metadata_fields, *CHUNK_FIELDS, CONTEXT_FIELD]
        kept = InputIds() if prune else None
        if kept is not None:
            on_reject = kept.noting(on_reject)
        check = functools.partial(prepare, source=source, metadata_fields=metadata_fields)
        seen = None if kept is None else kept.seen
        batches = read_batches(passages, check, rows=chunk_rows, seen=seen)
        report = JobReport()
        if found is None:
            # A wrong field or a damaged file makes no table: its first good row does.
            first: Batch | None = yield lambda: first_good(batches, report, on_reject)
            if first is None:
                return report
            batches = itertools.chain([first], batches)
        table = yield from self._prepared(layout_of)
        _check_kind(table, None if chunk_tokens is None else chunk_mode)
        # The floats, where they stand beside a compact type.
        spec = table.layout.columns[-1].spec if table.layout.columns else None
        embed: Any
        if table.layout.sparse is not None:
            embed = embedding_kinds(embedder, spec, table.layout.sparse.spec, truncate=truncate)
        else:
            embed = embedding_passages(embedder, table.layout.columns[-1].spec, truncate=truncate)

        def work(run: Runner, batches: Iterator[Any]) -> JobReport:
            sink = TableSink(run, table, source)
            if chunk_tokens is not None:
                sink = DocumentSink(run, table, source, ended=ended, report=report)
            load_batches(
                batches, sink, embed, on_reject=on_reject, on_progress=on_progress, report=report
            )
            if isinstance(sink, DocumentSink):
                sink.trim()
            return report

        done: JobReport = yield Job(work, batches)
        if kept is not None:
            done.removed += yield Transaction(procedure=prune_rows(table, kept), commits=True)
        return done

    def _load_embedded(
        self,
        parts: Iterable[Ready],
        spec: VectorSpec | SparseSpec,
        *,
        sparse: SparseSpec | None = None,
        source: str = "script",
        metadata_fields: Sequence[str] | None = None,
        on_reject: Callable[[Reject], None] = ignore,
        on_progress: Callable[[JobReport], None] = ignore,
    ) -> Operation[JobReport]:
        """Store passages whose vectors exist, such as ``nimbed.files.open_embedded`` gives them.

        Args:
            parts: Rows and their batch of vectors; a transaction takes 16 MiB of them. With
                sparse vectors beside dense ones the batches are of :class:`nimbed.EmbeddingKinds`.
            spec: The contract of the dense vectors that will come, or of sparse ones alone.
            sparse: The contract of the sparse ones beside them, if there will be any.
            source: Names the input in the ledger, and rows that have no id.
            metadata_fields: Other fields to keep; None keeps all.
            on_reject: Told each row that cannot be stored, and why.
            on_progress: Told the report after each transaction.

        Raises:
            SpaceMismatchError: If the table, or a part, holds vectors of another space.
            ConfigurationError: If the table or the connection does not fit.
            BackendError: If the server failed; what was committed stays.
        """
        table = yield from self._prepared(self._options.from_vectors(spec, sparse, name=self._name))

        def work(run: Runner, batches: Iterator[Any]) -> JobReport:
            sink = TableSink(run, table, source)
            return fill(sink, batches, on_reject=on_reject, on_progress=on_progress)

        batches = ready_batches(parts, table, source=source, metadata_fields=metadata_fields)
        report: JobReport = yield Job(work, batches)
        return report

    def _prepared(self, layout_of: Callable[[Table | None], Layout]) -> Operation[Table]:
        procedure = prepare_table(self._name, layout_of)
        table: Table = yield Transaction(procedure=procedure, commits=True)
        self._table = table
        return table

    def _index(
        self,
        *,
        m: int = 16,
        ef_construction: int = 64,
        memory: int | None = None,
        workers: int | None = None,
        words: str | None = None,
        sparse: bool = False,
        on_progress: IndexProgress | None = None,
    ) -> Operation[bool]:
        """Build the HNSW index if there is none, then refresh the statistics.

        Args:
            m: Links of a row in the graph.
            ef_construction: Candidates looked at for each row.
            memory: Bytes of maintenance_work_mem; None takes what the graph needs, to 2 GiB.
            workers: Parallel workers; None takes what the server allows, to 7.
            words: A text search configuration, such as ``english``: index the words too, for
                hybrid searches.
            sparse: Index the sparse vectors too. Without, every row is compared, which is exact.
            on_progress: Told (rows done, rows in all) while it is built.

        Returns:
            Whether the first of these indexes was built.
        """
        table = yield from self._existing()
        columns: list[AnyColumn] = [column for column in (table.layout.dense,) if column]
        if sparse:
            columns.append(sparse_column(table.layout.sparse, self._name))
        plans: list[IndexPlan] = []
        for column in columns:
            planning = plan_index(
                table,
                m=m,
                ef_construction=ef_construction,
                memory=memory,
                workers=workers,
                column=column,
            )
            plans.append((yield Transaction(procedure=planning, commits=True)))
        built: list[bool] = []
        for plan in plans:
            built.append((yield from self._built(table, plan, on_progress)))
        if words is not None:
            yield Transaction(procedure=index_words(table, words), commits=True)
        yield Transaction(procedure=analyze(table), commits=True)
        return built[:1] == [True]

    def _built(
        self, table: Table, plan: IndexPlan, on_progress: IndexProgress | None
    ) -> Operation[bool]:
        built = False
        step = functools.partial(Transaction, commits=True, on_progress=on_progress)
        if not plan.exists:
            try:
                built = yield step(procedure=build(table, plan))
            except errors.DiskFull:
                # A container's small /dev/shm cannot hold what parallel workers share.
                alone = dataclasses.replace(plan, workers=0)
                built = yield step(procedure=build(table, alone))
        return built


class VectorTable(_Operations[psycopg.Connection[Any] | ConnectionSource], SyncSpec):
    """A table that holds passages, their vectors, and the contract of the vectors.

    Args:
        source: A psycopg connection outside a transaction, or a pool of them. With autocommit a
            search is one trip to the server, else three.
        name: ``table`` or ``schema.table``.
        embedder: Embeds passages and questions; None loads the one that the table names, or for
            a new table the embedded default.
        embedding_type: For a new table, how a dimension is stored; None means float.
        dimensions: For a new table; None means the model's full size.
        int8_scale: For a new table of int8 or uint8.
        also: For a new table, ``float`` or ``halfvec``: store floats too, to rescore candidates.
        kinds: For a new table, ``("dense", "sparse")`` to store sparse vectors beside the dense
            ones, ``("sparse",)`` to store no others; None means dense alone.
        max_active: For a new table with sparse vectors, the most weights of one that are kept, the
            largest; None means 1,000, as many as an index takes.
    """

    load = sync_method("loading", _Operations._load)
    load_embedded = sync_method("loading", _Operations._load_embedded)
    index = sync_method("indexing", _Operations._index)
    search = sync_method("searching", _Operations._search)
    sql = sync_method("searching", _Operations._sql)
    nearest = sync_method("searching", _Operations._nearest)
    audit = sync_method("auditing", _Operations._audit)
    migrate = sync_method("migrating", _Operations._migrate)
    rollback = sync_method("rolling back", _Operations._rollback)
    finish = sync_method("finishing the migration of", _Operations._finish)
    relabel = sync_method("changing the contract of", _Operations._relabel)
    find_spec = sync_method("reading the contract of", _Operations._find_spec)
    find_index = sync_method("looking at", _Operations._find_index)


class AsyncVectorTable(
    _Operations[psycopg.AsyncConnection[Any] | AsyncConnectionSource], AsyncRunner
):
    """Does what :class:`nimbed_pgvector.VectorTable` does without blocking the event loop.

    Reading the input and embedding happen in a worker thread, where the callbacks are called too;
    the database is spoken to in the loop.
    """

    load = async_method("loading", _Operations._load)
    load_embedded = async_method("loading", _Operations._load_embedded)
    index = async_method("indexing", _Operations._index)
    search = async_method("searching", _Operations._search)
    sql = async_method("searching", _Operations._sql)
    nearest = async_method("searching", _Operations._nearest)
    audit = async_method("auditing", _Operations._audit)
    migrate = async_method("migrating", _Operations._migrate)
    rollback = async_method("rolling back", _Operations._rollback)
    finish = async_method("finishing the migration of", _Operations._finish)
    relabel = async_method("changing the contract of", _Operations._relabel)
    find_spec = async_method("reading the contract of", _Operations._find_spec)
    find_index = async_method("looking at", _Operations._find_index)
    spec = async_method("reading the contract of", _Operations._spec)
