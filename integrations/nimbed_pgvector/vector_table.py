"""A table of passages in PostgreSQL: load it, index it, search it.

The face for scripts; every procedure is in the modules beside this one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol

import psycopg
from psycopg import errors

from nimbed import Embedder, EmbeddingBatch, VectorSpec
from nimbed.files.items import Item
from nimbed.files.load_report import LoadReport, Reject, ignore
from nimbed.spec import EmbeddingType, Int8Scale, Truncate
from nimbed_pgvector.columns import Also
from nimbed_pgvector.faults import sentences
from nimbed_pgvector.filling import load_ready
from nimbed_pgvector.indexing import analyze, build, plan_index
from nimbed_pgvector.loading import CHUNK_ROWS, load_stretches
from nimbed_pgvector.nearest import Filter
from nimbed_pgvector.progress import IndexProgress, watching
from nimbed_pgvector.ready import Ready, ready_stretches
from nimbed_pgvector.schema import Table, existing, find, identifier, prepare_table
from nimbed_pgvector.searching import Hit, search
from nimbed_pgvector.steps import require_idle, run
from nimbed_pgvector.stretches import stretches
from nimbed_pgvector.vectors import embed_question, embedding_with, fitting_embedder
from nimbed_pgvector.wanted import Wanted, check_load

__all__ = ["ConnectionSource", "VectorTable"]


class ConnectionSource(Protocol):
    """A pool of connections, such as ``psycopg_pool.ConnectionPool``."""

    def connection(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """Lend a connection."""
        ...


class VectorTable:
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
    """

    def __init__(
        self,
        source: psycopg.Connection[Any] | ConnectionSource,
        name: str,
        embedder: Embedder | None = None,
        *,
        embedding_type: EmbeddingType | None = None,
        dimensions: int | None = None,
        int8_scale: Int8Scale | None = None,
        also: Also | None = None,
    ) -> None:
        identifier(name)
        self._source = source
        self._name = name
        self._given = embedder
        self._fitting: Embedder | None = None  # the embedder, once it is known to fit
        self._table: Table | None = None
        self._wanted = Wanted(
            embedding_type=embedding_type, dimensions=dimensions, int8_scale=int8_scale, also=also
        )

    def __repr__(self) -> str:
        return f"VectorTable({self._name!r})"

    @property
    def spec(self) -> VectorSpec:
        """The contract of the table's vectors.

        Raises:
            ConfigurationError: If there is no such table.
        """
        with self._connection() as connection, sentences("reading the table's contract"):
            return self._existing(connection).layout.spec

    def find_spec(self) -> VectorSpec | None:
        """Return the contract of the table's vectors, or None if there is no table yet."""
        with self._connection() as connection, sentences("reading the table's contract"):
            found = run(connection, find(self._name))
            return None if found is None else found.layout.spec

    def load(
        self,
        passages: Iterable[Item],
        *,
        source: str = "script",
        metadata_fields: Sequence[str] | None = None,
        truncate: Truncate = "NONE",
        chunk_rows: int = CHUNK_ROWS,
        on_reject: Callable[[Reject], None] = ignore,
        on_progress: Callable[[LoadReport], None] = ignore,
    ) -> LoadReport:
        """Embed and store passages; those that are there with the same content are skipped.

        Each chunk is one transaction. Killed at any moment and run again, nothing is lost and
        nothing is there twice.

        Args:
            passages: (id, text), (id, text, metadata), or rows of :func:`nimbed.files.read_rows`.
            source: Names the input in the ledger, and rows that have no id.
            metadata_fields: Other fields to keep; None keeps all.
            truncate: What happens to a text that is too long: NONE rejects it.
            chunk_rows: Rows a transaction.
            on_reject: Told each row that cannot be stored, and why.
            on_progress: Told the report after each chunk.

        Raises:
            SpaceMismatchError: If the table holds vectors of another space.
            ConfigurationError: If the table or the connection does not fit.
            BackendError: If the server or the model failed; what was committed stays.
        """
        check_load(truncate, chunk_rows)
        with self._connection() as connection, sentences(f"loading the table {self._name}"):
            require_idle(connection)
            embedder = self._embedder_for(run(connection, find(self._name)))
            layout_of = self._wanted.from_embedder(embedder, name=self._name)
            table = run(connection, prepare_table(self._name, layout_of))
            self._table = table
            return load_stretches(
                partial(run, connection),
                table,
                stretches(
                    passages, rows=chunk_rows, source=source, metadata_fields=metadata_fields
                ),
                source=source,
                vectorise=embedding_with(embedder, table.layout, truncate=truncate),
                on_reject=on_reject,
                on_progress=on_progress,
            )

    def load_embedded(
        self,
        parts: Iterable[Ready],
        spec: VectorSpec,
        *,
        source: str = "script",
        metadata_fields: Sequence[str] | None = None,
        on_reject: Callable[[Reject], None] = ignore,
        on_progress: Callable[[LoadReport], None] = ignore,
    ) -> LoadReport:
        """Store passages whose vectors exist, such as ``nimbed.files.open_embedded`` gives them.

        Args:
            parts: Rows and their batch of vectors; a transaction takes 16 MiB of them.
            spec: The contract of the vectors that will come.
            source: Names the input in the ledger, and rows that have no id.
            metadata_fields: Other fields to keep; None keeps all.
            on_reject: Told each row that cannot be stored, and why.
            on_progress: Told the report after each transaction.

        Raises:
            SpaceMismatchError: If the table, or a part, holds vectors of another space.
            ConfigurationError: If the table or the connection does not fit.
            BackendError: If the server failed; what was committed stays.
        """
        with self._connection() as connection, sentences(f"loading the table {self._name}"):
            require_idle(connection)
            layout_of = self._wanted.from_vectors(spec, name=self._name)
            table = run(connection, prepare_table(self._name, layout_of))
            self._table = table
            given = ready_stretches(parts, table, source=source, metadata_fields=metadata_fields)
            return load_ready(
                partial(run, connection),
                table,
                given,
                source=source,
                on_reject=on_reject,
                on_progress=on_progress,
            )

    def index(
        self,
        *,
        m: int = 16,
        ef_construction: int = 64,
        memory: int | None = None,
        workers: int | None = None,
        on_progress: IndexProgress | None = None,
    ) -> bool:
        """Build the HNSW index if there is none, then refresh the statistics.

        Args:
            m: Links of a row in the graph.
            ef_construction: Candidates looked at for each row.
            memory: Bytes of maintenance_work_mem; None takes what the graph needs, to 2 GiB.
            workers: Parallel workers; None takes what the server allows, to 7.
            on_progress: Told (rows done, rows in all) while it is built.

        Returns:
            Whether an index was built.
        """
        with self._connection() as connection, sentences(f"indexing the table {self._name}"):
            require_idle(connection)
            table = self._existing(connection)
            plan = run(
                connection,
                plan_index(
                    table, m=m, ef_construction=ef_construction, memory=memory, workers=workers
                ),
            )
            built = False
            if not plan.exists:
                with watching(connection, on_progress):
                    try:
                        built = run(connection, build(table, plan))
                    except errors.DiskFull:
                        # A container's small /dev/shm cannot hold what parallel workers share.
                        serial = dataclasses.replace(plan, workers=0)
                        built = run(connection, build(table, serial))
            run(connection, analyze(table))
            return built

    def search(
        self,
        question: str,
        k: int = 10,
        *,
        filter: Filter | None = None,
        parameters: Sequence[Any] = (),
        candidates: int | None = None,
    ) -> list[Hit]:
        """Return the k passages nearest to a question, nearest first.

        Args:
            question: A text; it is embedded as a query, by the model that the table names.
            k: How many.
            filter: A condition in SQL over id, text and metadata, its values written as %s.
            parameters: The values.
            candidates: How many of a packed column's nearest are rescored; None means 8 k.

        Raises:
            SpaceMismatchError: If the embedder's vectors do not live in the table's space.
            ConfigurationError: If there is no such table, or the filter is no SQL.
        """
        with self._connection() as connection, sentences(f"searching the table {self._name}"):
            table = self._existing(connection)
        # A pool's connection is not held while a model is loaded or runs.
        query = embed_question(self._embedder_for(table), table.layout, question)
        return self.nearest(query, k, filter=filter, parameters=parameters, candidates=candidates)

    def nearest(
        self,
        query: EmbeddingBatch,
        k: int = 10,
        *,
        filter: Filter | None = None,
        parameters: Sequence[Any] = (),
        candidates: int | None = None,
    ) -> list[Hit]:
        """Do what :meth:`search` does with a question that is a vector already."""
        with self._connection() as connection, sentences(f"searching the table {self._name}"):
            steps = search(
                self._existing(connection),
                query,
                k=k,
                where=filter,
                parameters=parameters,
                candidates=candidates,
            )
            return run(connection, steps, each_alone=True)

    @contextmanager
    def _connection(self) -> Generator[psycopg.Connection[Any]]:
        if isinstance(self._source, psycopg.Connection):
            yield self._source
        else:
            with self._source.connection() as connection:
                yield connection

    def _existing(self, connection: psycopg.Connection[Any]) -> Table:
        if self._table is None:
            self._table = existing(run(connection, find(self._name)), self._name)
        return self._table

    def _embedder_for(self, table: Table | None) -> Embedder:
        if self._fitting is None:
            self._fitting = fitting_embedder(self._given, table, name=self._name)
        return self._fitting
