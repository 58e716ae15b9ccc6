"""The HNSW index of a table: planned, built after the load, and watched while it is built.

Row by row, during the load, building it takes many times longer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg import errors, sql

from nimbed.errors import ConfigurationError
from nimbed_pgvector.columns import AnyColumn
from nimbed_pgvector.schema import Table, beside
from nimbed_pgvector.sparse import MOST_INDEXED
from nimbed_pgvector.statements import (
    Call,
    Procedure,
    Query,
    Rows,
    ServerProcess,
    run,
    trusted,
)

__all__ = [
    "IndexPlan",
    "IndexProgress",
    "analyze",
    "build",
    "build_beside",
    "create_index",
    "drop_indexes",
    "plan_index",
    "watching",
]

T = TypeVar("T")

#: Told (rows in the index, rows in all).
IndexProgress = Callable[[int, int], None]

# What HNSW keeps for a row besides its vector: 2 m neighbours of 16 bytes and the headers, for
# m = 16; measured on pgvector 0.8.5.
_BYTES_PER_LINK = 32
_BYTES_PER_ROW = 256
_LEAST_MEMORY, _MOST_MEMORY = 64 * 2**20, 2 * 2**30
_MOST_WORKERS = 7
_PAUSE = 0.2  # seconds between two questions about the progress
_TRIES = 10
_UNLIMITED = {"statement_timeout": "0"}
# Whether an index is valid, and whether somebody is at work on its table: one that is not valid is
# being built then, else it was left half done.
_STATE = sql.SQL(
    "SELECT indisvalid, EXISTS (SELECT FROM pg_locks WHERE relation = indrelid AND granted"
    " AND mode = 'ShareUpdateExclusiveLock' AND pid <> pg_backend_pid() AND database ="
    " (SELECT oid FROM pg_database WHERE datname = current_database()))"
    " FROM pg_index WHERE indexrelid = to_regclass(%s)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPlan:
    """How an index will be built.

    Attributes:
        rows: Rows of the table, as far as the server knows.
        m: Links of a row in the graph.
        ef_construction: Candidates looked at for each row.
        memory: Bytes of maintenance_work_mem; beyond it the build becomes many times slower.
        workers: Parallel workers besides the leader.
        exists: Whether there is such an index already.
        column: What is indexed.
    """

    rows: int
    m: int
    ef_construction: int
    memory: int
    workers: int
    exists: bool
    column: AnyColumn


def plan_index(
    table: Table,
    *,
    m: int = 16,
    ef_construction: int = 64,
    memory: int | None = None,
    workers: int | None = None,
    column: AnyColumn | None = None,
) -> Procedure[IndexPlan]:
    """Return how the index of a table will be built; None means: as the rows and the server ask.

    Raises:
        ConfigurationError: If a number is out of pgvector's range, or the column has no index.
    """
    column = column or table.layout.stored[0]
    if not column.operator_class:
        raise ConfigurationError(
            f"the vectors of the column {column.name} may have more weights than an index takes, "
            f"{MOST_INDEXED}; load into a new table with max_active={MOST_INDEXED}"
        )
    if not 2 <= m <= 100:
        raise ConfigurationError(f"m must lie between 2 and 100; got {m}")
    if not max(4, 2 * m) <= ef_construction <= 1000:
        raise ConfigurationError(
            f"ef_construction must lie between 2 m = {2 * m} and 1000; got {ef_construction}"
        )
    exists = yield from _exists(table, column)
    counted = yield Query(sql.SQL("SELECT count(*) FROM {}").format(table.identifier))
    server = yield Query(
        sql.SQL(
            "SELECT current_setting('max_parallel_workers')::int,"
            " pg_size_bytes(current_setting('maintenance_work_mem'))"
        )
    )
    rows, (most_workers, given_memory) = int(counted[0][0]), server[0]
    needed = rows * (column.stored_bytes + m * _BYTES_PER_LINK + _BYTES_PER_ROW)
    chosen = max(min(max(needed, _LEAST_MEMORY), _MOST_MEMORY), given_memory)
    return IndexPlan(
        rows=rows,
        m=m,
        ef_construction=ef_construction,
        memory=chosen if memory is None else memory,
        workers=max(0, min(_MOST_WORKERS, most_workers - 1)) if workers is None else workers,
        exists=exists,
        column=column,
    )


def build(table: Table, plan: IndexPlan) -> Procedure[bool]:
    """Build the index in this transaction, unless somebody just did; return whether it was built.

    Killed on the way, it leaves nothing. The server names the index: a name of ours may belong to
    a table that was renamed since.
    """
    # Of two loaders that finish together one builds, the other finds it built.
    yield Query(
        sql.SQL(
            "SELECT pg_advisory_xact_lock(hashtext('nimbed index'), to_regclass(%s)::oid::int)"
        ),
        (table.identifier.as_string(None),),
    )
    if (yield from _exists(table, plan.column)):
        return False
    yield Query(
        sql.SQL(
            "SELECT set_config('maintenance_work_mem', %s, true),"
            " set_config('max_parallel_maintenance_workers', %s, true)"
        ),
        (f"{plan.memory // 1024}kB", str(plan.workers)),
    )
    yield Query(sql.SQL("CREATE INDEX {}").format(_definition(table, plan)))
    return True


def build_beside(table: Table, plan: IndexPlan, name: str) -> Procedure[bool]:
    """Build the index of a column while others write to the table; return whether it was built.

    Each statement is a transaction of its own.
    """
    if (yield from _exists(table, plan.column)):
        return False
    settings = {
        "maintenance_work_mem": f"{plan.memory // 1024}kB",
        "max_parallel_maintenance_workers": str(plan.workers),
        **_UNLIMITED,
    }
    building = _created(table, name, _definition(table, plan), concurrently=True)
    return (yield from _in_session(settings, building))


def create_index(
    table: Table, name: str, definition: sql.Composed, *, concurrently: bool
) -> Procedure[bool]:
    """Create an index unless it is there; one that a killed run left half done is dropped first.

    Args:
        table: The table.
        name: The name of the index.
        definition: What follows it.
        concurrently: Let others write meanwhile; each statement must then be a transaction of its
            own.
    """
    creating = _created(table, name, definition, concurrently=concurrently)
    if concurrently:
        return (yield from _in_session(_UNLIMITED, creating))
    keys = sql.SQL("(hashtext('nimbed index'), {}::oid::int)").format(sql.Literal(table.oid))
    yield Query(sql.SQL("SELECT pg_advisory_xact_lock{}").format(keys))
    return (yield from creating)


def _created(
    table: Table, name: str, definition: sql.Composed, *, concurrently: bool
) -> Procedure[bool]:
    there, way = beside(table.name, name), sql.SQL("CONCURRENTLY" if concurrently else "")
    looking = Query(_STATE, (there.as_string(None),))
    built, tries = False, 0
    while not (found := (yield looking)) or not found[0][0]:
        if found and found[0][1] and concurrently:
            # To wait for a lock would be to have a snapshot, which the builder waits for.
            yield Call(_pause)
            continue
        if found:
            yield Query(sql.SQL("DROP INDEX {} IF EXISTS {}").format(way, there), silent=True)
        creating = sql.SQL("CREATE INDEX {} {} {}").format(way, sql.Identifier(name), definition)
        try:
            yield Query(creating, silent=True)
        except (errors.DeadlockDetected, errors.DuplicateTable, errors.UniqueViolation):
            tries += 1  # somebody has come in the same moment
            if tries == _TRIES:
                raise
        else:
            built = True
    return built


def _in_session(settings: Mapping[str, str], steps: Procedure[T]) -> Procedure[T]:
    """Do steps that are transactions of their own under settings, which are put back at the end.

    Through a pool of servers (PgBouncer) there is no session, and what was set would be somebody
    else's: the server's own settings have to do then.
    """
    ((began_with,),) = yield ServerProcess()
    answers, *before = (
        yield Query(
            sql.SQL("SELECT pg_backend_pid(), {}").format(
                sql.SQL(", ").join(
                    sql.SQL("current_setting({})").format(sql.Literal(name)) for name in settings
                )
            )
        )
    )[0]
    if answers != began_with:
        return (yield from steps)
    back = _set(dict(zip(settings, before, strict=True)))
    yield _set(settings)
    try:
        done = yield from steps
    except psycopg.Error:
        with suppress(psycopg.Error):  # the connection may be gone
            yield back
        raise
    yield back
    return done


def _pause() -> Rows:
    time.sleep(_PAUSE)
    return []


def _set(settings: Mapping[str, str]) -> Query:
    setting = sql.SQL("set_config({}, {}, false)")
    return Query(
        sql.SQL("SELECT {}").format(
            sql.SQL(", ").join(setting.format(*map(sql.Literal, each)) for each in settings.items())
        )
    )


def _definition(table: Table, plan: IndexPlan) -> sql.Composed:
    column = plan.column
    within = f"{table.extension}." if table.extension else ""
    return sql.SQL("ON {} USING hnsw ({} {}) WITH (m = {}, ef_construction = {})").format(
        table.identifier,
        sql.Identifier(column.name),
        trusted(within + column.operator_class),
        sql.Literal(plan.m),
        sql.Literal(plan.ef_construction),
    )


def drop_indexes(table: Table, *, concurrently: bool) -> Procedure[None]:
    """Drop the indexes of the column that is searched.

    Args:
        table: The table.
        concurrently: Let others read and write meanwhile; each statement must then be a
            transaction of its own.
    """
    way = sql.SQL("CONCURRENTLY" if concurrently else "")

    def dropping() -> Procedure[None]:
        for (name,) in (yield from _indexes(table, table.layout.embedding)):
            statement = sql.SQL("DROP INDEX {} IF EXISTS {}").format(way, trusted(name))
            yield Query(statement, silent=True)

    if concurrently:
        yield from _in_session(_UNLIMITED, dropping())
    else:
        yield from dropping()


def _exists(table: Table, column: AnyColumn) -> Procedure[bool]:
    """Return whether there is a valid index that searches by the column's own operator."""
    return bool((yield from _indexes(table, column)))


def find_index(table: Table) -> Procedure[str | None]:
    """Return the quoted name of an index that searches use, or None if there is none."""
    rows = yield from _indexes(table, table.layout.stored[0])
    return str(rows[0][0]) if rows else None


def _indexes(table: Table, column: AnyColumn) -> Procedure[Rows]:
    """Return the valid indexes that search by the column's own operator, by their quoted names."""
    return (
        yield Query(
            sql.SQL(
                "SELECT i.oid::regclass::text FROM pg_index x"
                " JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am am ON am.oid = i.relam"
                " JOIN pg_opclass o ON o.oid = x.indclass[0]"
                " JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[0]"
                " WHERE x.indrelid = to_regclass(%s) AND a.attname = %s AND x.indisvalid"
                " AND x.indpred IS NULL AND am.amname IN ('hnsw', 'ivfflat') AND o.opcname = %s"
            ),
            (table.identifier.as_string(None), column.name, column.operator_class),
        )
    )


def analyze(table: Table) -> Procedure[None]:
    """Refresh the planner's statistics, without which it may scan the whole table."""
    yield Query(sql.SQL("ANALYZE {}").format(table.identifier))


@contextmanager
def watching(
    builder: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], tell: IndexProgress
) -> Generator[None]:
    """Tell how far the index is that the connection builds inside the block.

    A connection of its own asks, since the builder's is busy until the end.
    """
    info = builder.info
    dsn, password, pid = info.dsn, info.password, info.backend_pid
    over = threading.Event()

    def ask() -> None:
        try:
            with psycopg.connect(
                dsn, password=password or None, autocommit=True, prepare_threshold=None
            ) as connection:
                while not over.wait(_PAUSE):
                    progress = run(connection, _progress(pid))
                    if progress is not None and progress[1]:
                        tell(*progress)
        except psycopg.Error:
            return  # no free connection: the index is built all the same, only unseen

    thread = threading.Thread(target=ask, name="nimbed-index-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _progress(pid: int) -> Procedure[tuple[int, int] | None]:
    """Return (rows done, rows in all) of the index that a backend is building, if it is."""
    rows = yield Query(
        sql.SQL(
            "SELECT tuples_done, tuples_total, blocks_done, blocks_total"
            " FROM pg_stat_progress_create_index WHERE pid = %s"
        ),
        (pid,),
    )
    if not rows:
        return None
    tuples, all_tuples, blocks, all_blocks = (int(value or 0) for value in rows[0])
    return (tuples, all_tuples) if all_tuples else (blocks, all_blocks)
