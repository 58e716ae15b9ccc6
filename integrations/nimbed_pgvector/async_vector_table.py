"""The async face of :mod:`nimbed_pgvector.vector_table`, on psycopg's async connections."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

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
from nimbed_pgvector.steps import Steps, arun, require_idle
from nimbed_pgvector.stretches import Stretch, stretches
from nimbed_pgvector.vectors import (
    embed_question,
    embedding_with,
    fitting_embedder,
)
from nimbed_pgvector.wanted import Wanted, check_load

__all__ = ["AsyncConnectionSource", "AsyncVectorTable"]

T = TypeVar("T")


class AsyncConnectionSource(Protocol):
    """A pool of connections, such as ``psycopg_pool.AsyncConnectionPool``."""

    def connection(self) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]:
        """Lend a connection."""
        ...


class AsyncVectorTable:
    """Does what :class:`nimbed_pgvector.VectorTable` does without blocking the event loop.

    Reading the input and embedding happen in a worker thread, the database in the loop.
    """

    def __init__(
        self,
        source: psycopg.AsyncConnection[Any] | AsyncConnectionSource,
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
        return f"AsyncVectorTable({self._name!r})"

    async def spec(self) -> VectorSpec:
        """Return the contract of the table's vectors; see :attr:`VectorTable.spec`."""
        async with self._connection() as connection:
            with sentences("reading the table's contract"):
                return (await self._existing(connection)).layout.spec

    async def load(
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
        """Embed and store passages; see :meth:`VectorTable.load`.

        The callbacks are called in a worker thread.
        """
        check_load(truncate, chunk_rows)
        async with self._connection() as connection:
            with sentences(f"loading the table {self._name}"):
                require_idle(connection)
                embedder = await self._embedder_for(await arun(connection, find(self._name)))
                layout_of = self._wanted.from_embedder(embedder, name=self._name)
                self._table = table = await arun(connection, prepare_table(self._name, layout_of))
                given = stretches(
                    passages, rows=chunk_rows, source=source, metadata_fields=metadata_fields
                )
                job = partial(
                    load_stretches,
                    table=table,
                    source=source,
                    vectorise=embedding_with(embedder, table.layout, truncate=truncate),
                    on_reject=on_reject,
                    on_progress=on_progress,
                )
                return await _load(connection, given, job)

    async def load_embedded(
        self,
        parts: Iterable[Ready],
        spec: VectorSpec,
        *,
        source: str = "script",
        metadata_fields: Sequence[str] | None = None,
        on_reject: Callable[[Reject], None] = ignore,
        on_progress: Callable[[LoadReport], None] = ignore,
    ) -> LoadReport:
        """Store passages whose vectors exist; see :meth:`VectorTable.load_embedded`."""
        async with self._connection() as connection:
            with sentences(f"loading the table {self._name}"):
                require_idle(connection)
                layout_of = self._wanted.from_vectors(spec, name=self._name)
                self._table = table = await arun(connection, prepare_table(self._name, layout_of))
                given = ready_stretches(
                    parts, table, source=source, metadata_fields=metadata_fields
                )
                job = partial(
                    load_ready,
                    table=table,
                    source=source,
                    on_reject=on_reject,
                    on_progress=on_progress,
                )
                return await _load(connection, given, job)

    async def index(
        self,
        *,
        m: int = 16,
        ef_construction: int = 64,
        memory: int | None = None,
        workers: int | None = None,
        on_progress: IndexProgress | None = None,
    ) -> bool:
        """Build the HNSW index if there is none; see :meth:`VectorTable.index`."""
        async with self._connection() as connection:
            with sentences(f"indexing the table {self._name}"):
                require_idle(connection)
                table = await self._existing(connection)
                plan = await arun(
                    connection,
                    plan_index(
                        table, m=m, ef_construction=ef_construction, memory=memory, workers=workers
                    ),
                )
                built = False
                if not plan.exists:
                    with watching(connection, on_progress):
                        try:
                            built = await arun(connection, build(table, plan))
                        except errors.DiskFull:  # see VectorTable.index
                            serial = dataclasses.replace(plan, workers=0)
                            built = await arun(connection, build(table, serial))
                await arun(connection, analyze(table))
                return built

    async def search(
        self,
        question: str,
        k: int = 10,
        *,
        filter: Filter | None = None,
        parameters: Sequence[Any] = (),
        candidates: int | None = None,
    ) -> list[Hit]:
        """Return the k passages nearest to a question; see :meth:`VectorTable.search`."""
        async with self._connection() as connection:
            with sentences(f"searching the table {self._name}"):
                table = await self._existing(connection)
        embedder = await self._embedder_for(table)
        query = await asyncio.to_thread(embed_question, embedder, table.layout, question)
        return await self.nearest(
            query, k, filter=filter, parameters=parameters, candidates=candidates
        )

    async def nearest(
        self,
        query: EmbeddingBatch,
        k: int = 10,
        *,
        filter: Filter | None = None,
        parameters: Sequence[Any] = (),
        candidates: int | None = None,
    ) -> list[Hit]:
        """Do what :meth:`search` does with a question that is a vector already."""
        async with self._connection() as connection:
            with sentences(f"searching the table {self._name}"):
                steps = search(
                    await self._existing(connection),
                    query,
                    k=k,
                    where=filter,
                    parameters=parameters,
                    candidates=candidates,
                )
                return await arun(connection, steps, each_alone=True)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
        if isinstance(self._source, psycopg.AsyncConnection):
            yield self._source
        else:
            async with self._source.connection() as connection:
                yield connection

    async def _existing(self, connection: psycopg.AsyncConnection[Any]) -> Table:
        if self._table is None:
            self._table = existing(await arun(connection, find(self._name)), self._name)
        return self._table

    async def _embedder_for(self, table: Table | None) -> Embedder:
        if self._fitting is None:
            self._fitting = await asyncio.to_thread(
                fitting_embedder, self._given, table, name=self._name
            )
        return self._fitting


async def _load(
    connection: psycopg.AsyncConnection[Any],
    given: Iterable[Stretch],
    job: Callable[..., LoadReport],
) -> LoadReport:
    """Run a loader in a thread and its database procedures in this loop."""
    loop = asyncio.get_running_loop()
    over = threading.Event()

    def in_loop(steps: Steps[T]) -> T:
        return asyncio.run_coroutine_threadsafe(arun(connection, steps), loop).result()

    def until_over() -> Iterator[Stretch]:
        for stretch in given:
            if over.is_set():
                return
            yield stretch

    # A thread of its own: it waits for the loop, which itself borrows threads of asyncio's pool.
    with ThreadPoolExecutor(1, "nimbed-load") as thread:
        work = loop.run_in_executor(thread, partial(job, in_loop, given=until_over()))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The connection goes back to its owner only when the thread has let go of it.
            over.set()
            await asyncio.wait([work])
            raise
