"""Operations on a table, written once as generators of steps, and run sync or async.

An operation needs no connection: it yields what is to be done, and gets the results back. A method
of :class:`nimbed_pgvector.VectorTable` or of its async twin is an operation with a runner.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import psycopg
from psycopg import errors

import nimbed
from nimbed import Embedder, SparseSpec, VectorSpec
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.options import KindOptions
from nimbed.spec import EmbeddingType, Int8Scale, Kind, require_same_space
from nimbed.stores.kinds import MULTI_VECTORS
from nimbed_pgvector.columns import Also, Layout, float_twin
from nimbed_pgvector.errors import translate_errors
from nimbed_pgvector.index import IndexProgress, watching
from nimbed_pgvector.schema import Table, check_embedder, existing, find, identifier, least_rights
from nimbed_pgvector.sparse import MOST_INDEXED, sparse_spec_of
from nimbed_pgvector.statements import (
    AsyncConnectionSource,
    ConnectionSource,
    Procedure,
    Runner,
    Transaction,
    arun,
    require_idle,
    require_primary,
    run,
)

__all__ = [
    "AsyncRunner",
    "Job",
    "Operation",
    "SyncRunner",
    "TableOperations",
    "TableOptions",
    "async_method",
    "sync_method",
    "while_others_write",
]

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """A step of many transactions, between which other work is done, such as embedding.

    Attributes:
        work: Called with what runs a procedure in a transaction of its own, and the batches.
        batches: What the work is divided into; they end early if an async caller gives up.
    """

    work: Callable[[Runner, Iterator[Any]], Any]
    batches: Iterator[Any]


# A function is called: it may take long, such as one that loads a model.
Step = Transaction | Job | Callable[[], Any]
Operation = Generator[Step, Any, T]


def while_others_write(
    make: Callable[[bool], Procedure[Any]], on_progress: IndexProgress | None = None
) -> Operation[Any]:
    """Change an index while others write, or where that is impossible in one transaction.

    Args:
        make: Called with whether others write meanwhile, for what is to be done.
        on_progress: Told how far the index is.
    """
    try:
        return (
            yield Transaction(
                procedure=make(True), commits=True, each_alone=True, on_progress=on_progress
            )
        )
    except (errors.ActiveSqlTransaction, errors.FeatureNotSupported):
        # A connection without autocommit, or a partitioned table.
        return (yield Transaction(procedure=make(False), commits=True, on_progress=on_progress))


@dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions:
    """What a caller asks of a table's vectors; None means: as the table has it, or the default.

    Attributes:
        embedding_type: How a dimension is stored; a new table gets ``float``.
        dimensions: Float dimensions; a new table gets the model's full size.
        int8_scale: Scale of int8 and uint8.
        also: Type of a second column of floats, by which candidates are rescored.
        kinds: ``dense``, ``sparse``, or both; a new table gets ``dense``.
        max_active: The most weights that a sparse vector keeps, those of the largest; a new table
            gets 1,000, as many as an index takes.
    """

    embedding_type: EmbeddingType | None = None
    dimensions: int | None = None
    int8_scale: Int8Scale | None = None
    also: Also | None = None
    kinds: Sequence[Kind] | None = None
    max_active: int | None = None

    def from_embedder(self, embedder: Embedder, *, name: str) -> Callable[[Table | None], Layout]:
        """Return a function from the table, or None, to its layout, for an embedder's vectors."""

        def layout_of(table: Table | None) -> Layout:
            if self._wanted(table, name) == ("sparse",):
                return self._beside(None, table, sparse(table))
            stored = None if table is None else table.layout.spec
            asked = (self.embedding_type, self.dimensions, self.int8_scale)
            if stored is not None and asked == (None, None, None):
                check_embedder(embedder, stored, name=name)
                return self._beside(stored, table, sparse(table))
            spec = embedder.spec(
                embedding_type=self.embedding_type
                or (stored.embedding_type if stored else "float"),
                dimensions=self.dimensions or (stored.dimensions if stored else None),
                int8_scale=self.int8_scale,
            )
            return self._beside(spec, table, sparse(table))

        def sparse(table: Table | None) -> SparseSpec | None:
            return self._sparse(
                table, lambda most: sparse_spec_of(embedder, max_active=most), name=name
            )

        return layout_of

    def from_vectors(
        self, given: VectorSpec | SparseSpec, sparse: SparseSpec | None = None, *, name: str
    ) -> Callable[[Table | None], Layout]:
        """Return a function from the table, or None, to its layout, for vectors that exist.

        Floats can still become any compact type; anything else stays what it is.
        """
        beside: tuple[Kind, ...] = () if sparse is None else ("sparse",)
        brought: tuple[Kind, ...] = (given.kind, *beside)
        alone = given if isinstance(given, SparseSpec) else None
        asked = replace(self, kinds=self.kinds or brought)

        def layout_of(table: Table | None) -> Layout:
            holds = tuple(asked.kinds or ()) if table is None else table.layout.kinds
            if isinstance(given, SparseSpec) or "dense" not in holds:
                if holds != brought:
                    raise ConfigurationError(
                        f"the table {name} holds {' and '.join(holds)} vectors; these rows bring "
                        f"{' and '.join(brought)} ones: embed the texts again"
                    )
                return self._beside(None, table, asked._sparse(table, lambda _: alone, name=name))
            stored = None if table is None else table.layout.spec
            if stored is not None and self.embedding_type in (None, stored.embedding_type):
                spec = stored
            elif self.embedding_type in (None, given.embedding_type):
                spec = given
            else:
                spec = VectorSpec.of(
                    model=given.model,
                    dimensions=given.dimensions,
                    embedding_type=self.embedding_type,
                    revision=given.revision,
                    int8_scale=self.int8_scale,
                    query_prompt=given.query_prompt,
                    passage_prompt=given.passage_prompt,
                )
            source = float_twin(spec) if given.embedding_type == "float" else spec
            require_same_space(source, given, doing=f"load into the table {name}")
            keeping = self if sparse is None else asked
            layout = self._beside(spec, table, keeping._sparse(table, lambda _: sparse, name=name))
            if layout.rescoring is not None and given.embedding_type != "float":
                raise SpaceMismatchError(
                    f"the column for rescoring needs floats, but these vectors are "
                    f"{given.embedding_type}; embed the texts again with embedding type float"
                )
            return layout

        return layout_of

    def _beside(
        self, spec: VectorSpec | None, table: Table | None, sparse: SparseSpec | None
    ) -> Layout:
        if spec is None:
            return Layout.of(None, sparse=sparse)
        also = self.also
        if also is None and table is not None and spec.embedding_type != "float":
            also = table.layout.also
        return Layout.of(spec, also=also, sparse=sparse)

    def _wanted(self, table: Table | None, name: str) -> tuple[Kind, ...]:
        """Return the kinds that are asked for, or that the table has.

        Raises:
            ConfigurationError: If there are none such, a table cannot have them, it has others, or
                an option is for a kind that is not among them.
        """
        asked = KindOptions(kinds=self.kinds, max_active=self.max_active).kinds
        if asked is not None and "multi" in asked:
            instead = MULTI_VECTORS["pgvector"]
            raise ConfigurationError(f"pgvector stores no multi-vectors: {instead}")
        has: tuple[Kind, ...] | None = None if table is None else table.layout.kinds
        wanted: tuple[Kind, ...] = has or ("dense",)
        if asked is not None:
            known: tuple[Kind, ...] = ("dense", "sparse")
            wanted = tuple(kind for kind in known if kind in asked)
        if has is not None and wanted != has:
            some = "no" if "sparse" not in has else "a"
            alone = "" if "dense" in has else " alone"
            raise ConfigurationError(
                f"the table {name} has {some} column of sparse vectors{alone}; leave kinds out to "
                f"keep what it has, or load into a new table"
            )
        of_dense = (self.embedding_type, self.dimensions, self.int8_scale, self.also)
        if wanted == ("sparse",) and of_dense != (None,) * 4:
            raise ConfigurationError(
                "embedding_type, dimensions, int8_scale and also are for dense vectors, and "
                "the table gets sparse ones alone; leave them out, or add dense to the kinds"
            )
        return wanted

    def _sparse(
        self,
        table: Table | None,
        spec_of: Callable[[int | None], SparseSpec | None],
        *,
        name: str,
    ) -> SparseSpec | None:
        """Return the contract of the sparse column that is asked for, or that the table has.

        Raises:
            ConfigurationError: If the table has other kinds of vectors than are asked for.
        """
        wanted = "sparse" in self._wanted(table, name)
        stored = None if table is None else table.layout.sparse
        if wanted:
            default = MOST_INDEXED if stored is None else stored.spec.max_active
            found = spec_of(default if self.max_active is None else self.max_active)
            if found is None:
                raise ConfigurationError(
                    f"the table {name} holds dense and sparse vectors; these rows bring dense ones "
                    f"alone: embed the texts again"
                )
            return found
        if self.max_active is not None:
            raise ConfigurationError(
                "max_active is for sparse vectors; ask for them with kinds=('dense', 'sparse')"
            )
        return None


class TableOperations(Generic[S]):
    """What every operation starts from: the table, and the embedder that fits it."""

    def __init__(
        self,
        source: S,
        name: str,
        embedder: Embedder | None = None,
        *,
        embedding_type: EmbeddingType | None = None,
        dimensions: int | None = None,
        int8_scale: Int8Scale | None = None,
        also: Also | None = None,
        kinds: Sequence[Kind] | None = None,
        max_active: int | None = None,
    ) -> None:
        identifier(name)
        self._source = source
        self._name = name
        self._given = embedder
        self._fitting: Embedder | None = None  # the embedder, once it is known to fit
        self._table: Table | None = None
        self._options = TableOptions(
            embedding_type=embedding_type,
            dimensions=dimensions,
            int8_scale=int8_scale,
            also=also,
            kinds=kinds,
            max_active=max_active,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"

    def _existing(self) -> Operation[Table]:
        if self._table is None:
            found = yield Transaction(procedure=find(self._name))
            self._table = existing(found, self._name)
        return self._table

    def _find_spec(self) -> Operation[VectorSpec | SparseSpec | None]:
        """Return the contract of the table's dense vectors, or of its sparse ones alone.

        None if there is no table yet.
        """
        found: Table | None = yield Transaction(procedure=find(self._name))
        return None if found is None else found.layout.contract

    def _forget(self) -> None:
        """Look at the table again at the next step: it was changed, as by a migration."""
        self._table = self._fitting = None

    def _embedder_for(self, table: Table | None) -> Embedder:
        """Return the embedder given, or the one that the table names, or the default.

        Raises:
            SpaceMismatchError: If it does not fit the table.
        """
        if self._fitting is None:
            spec = None if table is None else table.layout.contract
            embedder = self._given
            if embedder is None:
                named = (None, None) if spec is None else (spec.model, spec.revision)
                embedder = nimbed.load(named[0], revision=named[1])
            if spec is not None:
                check_embedder(embedder, spec, name=self._name)
            self._fitting = embedder
        return self._fitting


class _Runner:
    """Names the table in the errors of what is done to it."""

    _name: str

    def _telling(self, doing: str) -> AbstractContextManager[None]:
        """Return what turns an operation's faults into errors that say what it did, and needs."""
        rights = None
        if isinstance(self, TableOperations):
            rights = functools.partial(least_rights, self._name)
        return translate_errors(f"{doing} the table {self._name}", rights=rights)


class SyncRunner(_Runner):
    """Performs steps on a connection, or on one lent by a pool."""

    _source: psycopg.Connection[Any] | ConnectionSource

    def perform(self, step: Step) -> Any:
        """Do one step, and return its result."""
        if callable(step):
            return step()
        source = self._source
        lent = (
            nullcontext(source) if isinstance(source, psycopg.Connection) else source.connection()
        )
        with lent as connection:
            if isinstance(step, Job):
                require_primary(connection)
                return step.work(functools.partial(run, connection), step.batches)
            if step.commits:
                require_primary(connection)
                require_idle(connection)
            if step.on_progress is None:
                return run(connection, step.statements(), each_alone=step.each_alone)
            with watching(connection, step.on_progress):
                return run(connection, step.statements(), each_alone=step.each_alone)

    def steps(self, doing: str, steps: Operation[T]) -> T:
        """Perform the steps of an operation, and return what it returns."""
        done: Any = None
        failed: psycopg.Error | None = None
        with self._telling(doing):
            while True:
                try:
                    step = steps.send(done) if failed is None else steps.throw(failed)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]
                failed = None
                try:
                    done = self.perform(step)
                except psycopg.Error as error:
                    failed = error


class AsyncRunner(_Runner):
    """Performs steps on an async connection, and everything but its statements in a thread."""

    _source: psycopg.AsyncConnection[Any] | AsyncConnectionSource

    async def perform(self, step: Step) -> Any:
        """Do one step, and return its result."""
        if callable(step):
            return await asyncio.to_thread(step)
        source = self._source
        lent = (
            nullcontext(source)
            if isinstance(source, psycopg.AsyncConnection)
            else source.connection()
        )
        async with lent as connection:
            if isinstance(step, Job):
                require_primary(connection)
                return await _work_in_thread(connection, step)
            if step.commits:
                require_primary(connection)
                require_idle(connection)
            if step.on_progress is None:
                return await arun(connection, step.statements(), each_alone=step.each_alone)
            with watching(connection, step.on_progress):
                return await arun(connection, step.statements(), each_alone=step.each_alone)

    async def steps(self, doing: str, steps: Operation[T]) -> T:
        """Perform the steps of an operation, and return what it returns."""
        done: Any = None
        failed: psycopg.Error | None = None
        with self._telling(doing):
            while True:
                try:
                    step = steps.send(done) if failed is None else steps.throw(failed)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]
                failed = None
                try:
                    done = await self.perform(step)
                except psycopg.Error as error:
                    failed = error


def sync_method(
    doing: str, operation: Callable[Concatenate[Any, P], Operation[T]]
) -> Callable[Concatenate[Any, P], T]:
    """Return an operation as a method of a :class:`SyncRunner`; ``doing`` is for its errors."""

    @functools.wraps(operation)
    def method(self: Any, /, *args: P.args, **options: P.kwargs) -> T:
        runner: SyncRunner = self
        return runner.steps(doing, operation(self, *args, **options))

    method.__name__ = operation.__name__.lstrip("_")
    return method


def async_method(
    doing: str, operation: Callable[Concatenate[Any, P], Operation[T]]
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Return an operation as a method of an :class:`AsyncRunner`."""

    @functools.wraps(operation)
    async def method(self: Any, /, *args: P.args, **options: P.kwargs) -> T:
        runner: AsyncRunner = self
        return await runner.steps(doing, operation(self, *args, **options))

    method.__name__ = operation.__name__.lstrip("_")
    return method


async def _work_in_thread(connection: psycopg.AsyncConnection[Any], job: Job) -> Any:
    """Do a job in a thread and its database procedures in this loop."""
    loop = asyncio.get_running_loop()
    over = threading.Event()

    def in_loop(procedure: Procedure[T]) -> T:
        return asyncio.run_coroutine_threadsafe(arun(connection, procedure), loop).result()

    def until_over() -> Iterator[Any]:
        for batch in job.batches:
            if over.is_set():
                return
            yield batch

    # A thread of its own: it waits for the loop, which itself borrows threads of asyncio's pool.
    with ThreadPoolExecutor(1, "nimbed-load") as thread:
        work = loop.run_in_executor(thread, job.work, in_loop, until_over())
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The connection goes back to its owner only when the thread has let go of it.
            over.set()
            await asyncio.wait([work])
            raise
