"""Database procedures, written once and run on a sync or an async connection.

A procedure is a generator that yields statements and gets their rows back; :func:`run` and
:func:`arun` are the only code that sends them. One run is one transaction.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg import errors, sql
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format, TransactionStatus
from psycopg.rows import tuple_row

from nimbed.errors import ConfigurationError

__all__ = [
    "AsyncConnectionSource",
    "Call",
    "ConnectionSource",
    "Copy",
    "Procedure",
    "Query",
    "Rows",
    "Runner",
    "ServerProcess",
    "Statement",
    "Transaction",
    "Wire",
    "arun",
    "binary_copy",
    "require_idle",
    "require_primary",
    "run",
    "run_again",
    "trusted",
]

T = TypeVar("T")
Rows = list[tuple[Any, ...]]
Statement = sql.SQL | sql.Composed

_ATTEMPTS = 5


class Wire(bytes):
    """A parameter already in the server's binary form; the statement casts it to its type."""


@dataclass(frozen=True, slots=True)
class Query:
    """A statement with bound parameters.

    Attributes:
        statement: The statement.
        parameters: Values for its places.
        planned_with: A statement that makes settings for the planner, to the end of the
            transaction; left out inside a transaction of the caller, who would keep them.
        silent: Whether it gives no rows although it is a transaction of its own.
    """

    statement: Statement
    parameters: Sequence[Any] = ()
    planned_with: Statement | None = None
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Copy:
    """A COPY FROM STDIN and what to send."""

    statement: Statement
    blocks: Iterable[bytes]


@dataclass(frozen=True, slots=True)
class Call:
    """A function to be called between statements, while their locks are held; it gives rows."""

    function: Callable[[], Rows]


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """Asks which of the server's processes the connection began with; gives a row, its number."""


Procedure = Generator[Query | Copy | Call | ServerProcess, Rows, T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """A procedure to run in one transaction.

    Attributes:
        procedure: What to run.
        commits: Refuse a connection inside a transaction, since nothing would be committed.
        each_alone: As for :func:`run`.
        on_progress: Told how far the index is that the procedure builds.
    """

    procedure: Procedure[Any]
    commits: bool = False
    each_alone: bool = False
    on_progress: Callable[[int, int], None] | None = None

    def statements(self) -> Procedure[Any]:
        """Return the procedure; one that commits is free of a limit that stops long statements."""
        if self.commits and not self.each_alone:
            yield Query(sql.SQL("SELECT set_config('statement_timeout', '0', true)"))
        return (yield from self.procedure)


def binary_copy(rows: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what a binary COPY is sent: rows, each as bytes of its fields, between their frame."""
    yield b"PGCOPY\n\xff\r\n\0" + bytes(8)
    yield from rows
    yield b"\xff\xff"


def trusted(text: str) -> sql.SQL:
    """Return text as SQL: types and operators of our own tables, or the caller's own condition.

    The only door by which text that is not written in this package becomes SQL.
    """
    return sql.SQL(text)  # pyright: ignore[reportArgumentType]


class Runner(Protocol):
    """Runs a procedure in one transaction of some connection."""

    def __call__(self, procedure: Procedure[T], /) -> T:
        """Return what the procedure returns."""
        ...


class ConnectionSource(Protocol):
    """A pool of connections, such as ``psycopg_pool.ConnectionPool``."""

    def connection(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """Lend a connection."""
        ...


class AsyncConnectionSource(Protocol):
    """A pool of connections, such as ``psycopg_pool.AsyncConnectionPool``."""

    def connection(self) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]:
        """Lend a connection."""
        ...


class _WireDumper(Dumper):
    format = Format.BINARY
    oid = 0  # unknown: the server takes the type of the cast, and so its binary input

    def dump(self, obj: Wire) -> Buffer:
        return obj


def run(
    connection: psycopg.Connection[Any], procedure: Procedure[T], *, each_alone: bool = False
) -> T:
    """Run a procedure; commit at its end, or leave nothing.

    Args:
        connection: Where to.
        procedure: What to run.
        each_alone: Let each statement, all of which give rows, be a transaction of its own, if
            the caller has none open: one trip to the server instead of three. An error is raised in
            the procedure then, which may go on.
    """
    idle = _is_idle(connection)
    alone = each_alone and idle and connection.autocommit
    with (
        nullcontext() if alone else connection.transaction(),
        # The caller's connection may make other cursors or rows than the procedures expect.
        psycopg.Cursor(connection, row_factory=tuple_row) as cursor,
    ):
        cursor.adapters.register_dumper(Wire, _WireDumper)
        rows: Any = None  # starts the generator
        failed: psycopg.Error | None = None
        while True:
            try:
                asked = procedure.send(rows) if failed is None else procedure.throw(failed)
            except StopIteration as end:
                result: T = end.value
                return result
            rows, failed = [], None
            if isinstance(asked, Call):
                rows = asked.function()
                continue
            if isinstance(asked, ServerProcess):
                rows = [(connection.info.backend_pid,)]
                continue
            if isinstance(asked, Copy):
                with cursor.copy(asked.statement) as copy:
                    for block in asked.blocks:
                        copy.write(block)
                continue
            prelude = asked.planned_with if idle else None
            try:
                with nullcontext() if prelude is None or not alone else _joined(connection):
                    if prelude is not None:
                        cursor.execute(prelude)
                    cursor.execute(asked.statement, asked.parameters or None, binary=True)
            except psycopg.Error as error:
                if not alone:
                    raise
                failed = error
                continue
            # A pipeline of the caller's gives no description yet.
            if (each_alone and not asked.silent) or cursor.description:
                rows = cursor.fetchall()


def run_again(
    run: Runner,
    make: Callable[[], Procedure[T]],
    *,
    conflicts: tuple[type[psycopg.Error], ...] = (),
) -> T:
    """Run a procedure in one transaction, and again where another one was in its way.

    Args:
        run: Runs a procedure in a transaction.
        make: Makes the procedure, anew for each attempt.
        conflicts: Errors that mean this too, besides a deadlock and a failure to serialize.
    """
    conflicts += (errors.DeadlockDetected, errors.SerializationFailure)
    for attempt in range(_ATTEMPTS - 1):
        try:
            return run(make())
        except conflicts:
            time.sleep(0.05 * 2**attempt)
    return run(make())


async def arun(
    connection: psycopg.AsyncConnection[Any], procedure: Procedure[T], *, each_alone: bool = False
) -> T:
    """Do what :func:`run` does on an async connection."""
    idle = _is_idle(connection)
    alone = each_alone and idle and connection.autocommit
    async with (
        nullcontext() if alone else connection.transaction(),
        psycopg.AsyncCursor(connection, row_factory=tuple_row) as cursor,
    ):
        cursor.adapters.register_dumper(Wire, _WireDumper)
        rows: Any = None  # starts the generator
        failed: psycopg.Error | None = None
        while True:
            try:
                asked = procedure.send(rows) if failed is None else procedure.throw(failed)
            except StopIteration as end:
                result: T = end.value
                return result
            rows, failed = [], None
            if isinstance(asked, Call):
                rows = await asyncio.to_thread(asked.function)
                continue
            if isinstance(asked, ServerProcess):
                rows = [(connection.info.backend_pid,)]
                continue
            if isinstance(asked, Copy):
                async with cursor.copy(asked.statement) as copy:
                    blocks = iter(asked.blocks)  # they may be made as they are asked for
                    while block := await asyncio.to_thread(next, blocks, b""):
                        await copy.write(block)
                continue
            prelude = asked.planned_with if idle else None
            try:
                async with nullcontext() if prelude is None or not alone else _ajoined(connection):
                    if prelude is not None:
                        await cursor.execute(prelude)
                    await cursor.execute(asked.statement, asked.parameters or None, binary=True)
            except psycopg.Error as error:
                if not alone:
                    raise
                failed = error
                continue
            if (each_alone and not asked.silent) or cursor.description:
                rows = await cursor.fetchall()


def _joined(connection: psycopg.Connection[Any]) -> AbstractContextManager[Any]:
    """Return what makes one transaction of statements, and one trip where libpq can."""
    can = psycopg.Pipeline.is_supported()
    return connection.pipeline() if can else connection.transaction()


def _ajoined(connection: psycopg.AsyncConnection[Any]) -> AbstractAsyncContextManager[Any]:
    can = psycopg.AsyncPipeline.is_supported()
    return connection.pipeline() if can else connection.transaction()


def _is_idle(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    return connection.info.transaction_status == TransactionStatus.IDLE


def require_idle(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Refuse a connection inside a transaction: nothing could be committed on the way.

    Raises:
        ConfigurationError: If a transaction is open.
    """
    if not _is_idle(connection):
        raise ConfigurationError(
            "loading and indexing commit as they go, but the connection is inside a transaction; "
            "commit it first, or connect with autocommit=True"
        )


def require_primary(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Refuse a read replica, where it says that it is one (PostgreSQL 14, not through a pool).

    Raises:
        ConfigurationError: If nothing can be written there.
    """
    if connection.info.parameter_status("in_hot_standby") == "on":
        raise ConfigurationError(
            "this server is a read replica (a hot standby), which can be searched and audited, but "
            "not changed; connect to its primary"
        )
