"""Vectors of a table of the user's, kept in step with its rows by workers that share a queue.

A worker takes keys from the queue, reads their rows, embeds and stores, in one transaction: killed
at any moment, its keys are there again. Several may work at once; changes go before the backfill.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import psycopg
from psycopg import errors, sql

from nimbed import Embedder
from nimbed.bulk import JobReport, embedding_passages, ignore
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.rows import Reject
from nimbed.spec import EmbeddingType, Int8Scale, Truncate, check_literal
from nimbed_pgvector.backfill import Embed, Pending, embedded, staged
from nimbed_pgvector.columns import Column, Layout
from nimbed_pgvector.exchange import hnsw_name
from nimbed_pgvector.index import build, build_beside, plan_index
from nimbed_pgvector.operations import (
    AsyncRunner,
    Job,
    Operation,
    SyncRunner,
    async_method,
    sync_method,
    while_others_write,
)
from nimbed_pgvector.schema import Table, existing, find, identifier
from nimbed_pgvector.source_table import (
    NEXT_VIEW,
    QUEUE,
    REJECTS,
    SourceTable,
    grants,
    look_at,
    prepare_source,
)
from nimbed_pgvector.statements import (
    AsyncConnectionSource,
    Call,
    ConnectionSource,
    Procedure,
    Query,
    Rows,
    Runner,
    Transaction,
    run_again,
    trusted,
)

__all__ = [
    "AsyncSyncedTable",
    "BroughtUp",
    "SyncedTable",
    "bring_up",
    "enqueue_missing",
    "stored_table",
    "worker",
]

S = TypeVar("S")

_BATCH_ROWS = 256  # a transaction, which holds its keys while it embeds
_WAIT = 0.2  # seconds between two looks at an empty queue


class _SyncOperations(Generic[S]):
    """What can be done with a table whose texts are embedded."""

    def __init__(
        self,
        source: S,
        name: str,
        embedder: Embedder,
        *,
        text_fields: Sequence[str],
        key: str = "id",
        column: str | None = None,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        int8_scale: Int8Scale | None = None,
        truncate: Truncate = "NONE",
    ) -> None:
        check_literal("truncate", truncate, Truncate)
        for each in (name, key, *text_fields, *([] if column is None else [column])):
            identifier(each)
        if not text_fields or len(set(text_fields)) < len(text_fields):
            raise ConfigurationError(f"give each text field once; got {list(text_fields)}")
        self._source = source
        self._name = name
        self._embedder = embedder
        self._truncate: Truncate = truncate
        spec = embedder.spec(
            embedding_type=embedding_type, dimensions=dimensions, int8_scale=int8_scale
        )
        self._asked = SourceTable(name=name, key=key, fields=tuple(text_fields), column=column)
        self._column = Layout.of(spec).embedding

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"

    @property
    def view(self) -> str:
        """The view that shows rows and vectors, to be searched as a table of nimbed's."""
        return self._asked.view

    def _prepare(self, *, triggers: bool = True) -> Operation[bool]:
        """Make the column or the table beside, the view and the triggers, where they are not there.

        Rows that lack a vector, or whose text is another than was embedded, are put in the queue.

        Args:
            triggers: Whether changes shall be followed from now on.

        Returns:
            Whether anything was made.
        """
        source = yield from self._looked_at()
        column = source.column_of(self._column)
        made: bool = yield Transaction(
            procedure=prepare_source(source, column, triggers=triggers), commits=True
        )
        yield Transaction(procedure=enqueue_missing(source), commits=True)
        return made

    def _run(
        self,
        *,
        stop: Callable[[], bool] | None = None,
        batch_rows: int = _BATCH_ROWS,
        on_reject: Callable[[Reject], None] = ignore,
        on_progress: Callable[[JobReport], None] = ignore,
    ) -> Operation[JobReport]:
        """Do what waits in the queue, or go on for ever.

        Args:
            stop: Asked between batches whether to end; None ends where all is taken.
            batch_rows: Keys a transaction.
            on_reject: Told each row that cannot be embedded; it has no vector, and stands in
                ``nimbed_rejects`` until it can.
            on_progress: Told the counts after each batch.

        Returns:
            Counts: ``loaded`` rows, of which ``replaced`` had a vector; ``unchanged`` keys whose
            row is gone, or was embedded already.
        """
        source = yield from self._looked_at()
        spec = self._column.spec
        report: JobReport = yield worker(
            source,
            source.column_of(self._column),
            embedding_passages(self._embedder, spec, truncate=self._truncate),
            stop=stop,
            batch_rows=batch_rows,
            on_reject=on_reject,
            on_progress=on_progress,
        )
        return report

    def _index(self) -> Operation[bool]:
        """Build the index of the vectors, if there is none; where possible, while others write."""
        source = yield from self._looked_at()
        looking = stored_table(source, source.column_of(self._column))
        stored: Table = yield Transaction(procedure=looking)
        plan = yield Transaction(procedure=plan_index(stored), commits=True)
        name = hnsw_name(stored, stored.layout)
        built: bool = yield from while_others_write(
            lambda beside: build_beside(stored, plan, name) if beside else build(stored, plan)
        )
        return built

    def _grants(self, *, worker: str = "worker", reader: str = "reader") -> Operation[list[str]]:
        """Return the statements that give a worker and a reader the least rights they need."""
        source = yield from self._looked_at()
        return grants(source, worker=worker, reader=reader)

    def _looked_at(self) -> Operation[SourceTable]:
        looking = look_at(self._asked, self._column.spec)
        source: SourceTable = yield Transaction(procedure=looking)
        return source


class SyncedTable(_SyncOperations[psycopg.Connection[Any] | ConnectionSource], SyncRunner):
    """A table of your own whose texts are embedded, and whose vectors follow its changes.

    Args:
        source: A psycopg connection outside a transaction, or a pool of them.
        name: ``table`` or ``schema.table``.
        embedder: Embeds the texts, as passages.
        text_fields: Columns of text; several are joined by an empty line.
        key: A column with a unique index.
        column: The column of the table to hold the vectors, which is added; None for a table
            ``TABLE_embedding_store`` beside it, which leaves yours as it is.
        embedding_type: How a dimension is stored.
        dimensions: None means the model's full size.
        int8_scale: Scale of int8 and uint8.
        truncate: What happens to a text that is too long: NONE rejects it.
    """

    prepare = sync_method("preparing", _SyncOperations._prepare)
    run = sync_method("syncing", _SyncOperations._run)
    index = sync_method("indexing", _SyncOperations._index)
    grants = sync_method("reading", _SyncOperations._grants)


class AsyncSyncedTable(
    _SyncOperations[psycopg.AsyncConnection[Any] | AsyncConnectionSource], AsyncRunner
):
    """Does what :class:`nimbed_pgvector.SyncedTable` does without blocking the event loop."""

    prepare = async_method("preparing", _SyncOperations._prepare)
    run = async_method("syncing", _SyncOperations._run)
    index = async_method("indexing", _SyncOperations._index)
    grants = async_method("reading", _SyncOperations._grants)


def worker(
    source: SourceTable,
    column: Column,
    embed: Embed,
    *,
    stop: Callable[[], bool] | None = None,
    batch_rows: int = _BATCH_ROWS,
    on_reject: Callable[[Reject], None] = ignore,
    on_progress: Callable[[JobReport], None] = ignore,
) -> Job:
    """Return a job that does what waits, or goes on until it is stopped.

    Args:
        source: As :func:`look_at` gives it.
        column: The column of the vectors.
        embed: Makes them.
        stop: As the others, see :meth:`SyncedTable.run`.
        batch_rows: Keys a transaction.
        on_reject: Told each row that cannot be embedded.
        on_progress: Told the counts after each batch.
    """
    layout = Layout(dense=column)

    def work(run: Runner, ticks: Iterator[Any]) -> JobReport:
        report, start = JobReport(), time.perf_counter()
        for _ in ticks:
            done = run_again(
                run,
                lambda: bring_up(source, layout, embed, batch_rows),
                conflicts=(errors.ForeignKeyViolation,),  # a row was deleted meanwhile
            )
            done.tell(report, on_reject)
            report.seconds = time.perf_counter() - start
            if done.changes:
                on_progress(report)
            if stop is not None and stop():
                break
            if stop is None and done.changes < batch_rows:
                break  # all that waited; where rows change all the time, more waits by now
            if not done.changes:
                time.sleep(_WAIT)
        return report

    return Job(work, itertools.repeat(None))


def stored_table(source: SourceTable, column: Column) -> Procedure[Table]:
    """Return the table that the vectors lie in, as an index of them is built and dropped."""
    view = existing((yield from find(source.view)), source.view)
    return dataclasses.replace(view, name=source.stored_in, layout=Layout(dense=column))


def enqueue_missing(source: SourceTable) -> Procedure[None]:
    """Put the keys of rows that lack their vector in the queue, behind all changes.

    What is noted of rows that are gone is forgotten.
    """
    places = _places(source)
    yield Query(
        sql.SQL(
            "DELETE FROM {rejects} r WHERE r.target = {target} AND NOT EXISTS"
            " (SELECT 1 FROM {table} a WHERE a.{key} = r.id::{type})"
        ).format(**places)
    )
    if source.column:
        lacks = sql.SQL("a.{vector} IS NULL").format(**places)
    else:
        lacks = sql.SQL(
            "NOT EXISTS (SELECT 1 FROM {store} s WHERE s.{key} = a.{key}"
            " AND s.digest = md5({text}))"
        ).format(**places)
    yield Query(
        sql.SQL(
            "INSERT INTO {queue} (target, backfill, id) SELECT {target}, true, a.{key}::text"
            " FROM {table} a WHERE {lacks}"
            " AND NOT EXISTS (SELECT 1 FROM {queue} q WHERE q.target = {target}"
            " AND q.id = a.{key}::text)"
        ).format(**places, lacks=lacks)
    )


def _places(source: SourceTable) -> dict[str, sql.Composable]:
    return {
        **source.places,
        "queue": source.own(QUEUE),
        "rejects": source.own(REJECTS),
        "target": sql.Literal(source.target),
        "type": trusted(source.key_type),
    }


@dataclass(frozen=True, slots=True)
class BroughtUp:
    """What became of changes that were taken from the queue.

    Attributes:
        changes: How many were taken.
        rows: How many rows they were changes of.
        stored: Rows whose vector was stored.
        replaced: Those of them that had one.
        refused: Why rows cannot be embedded, by their keys.
    """

    changes: int = 0
    rows: int = 0
    stored: int = 0
    replaced: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)

    def tell(self, report: JobReport, on_reject: Callable[[Reject], None]) -> None:
        """Add these counts to a report; tell each row that cannot be embedded."""
        report.loaded += self.stored
        report.replaced += self.replaced
        report.unchanged += self.rows - self.stored - len(self.refused)
        numbered = enumerate(self.refused.items(), report.rejected + 1)
        report.reject([Reject(number, *row) for number, row in numbered], on_reject)


def bring_up(source: SourceTable, layout: Layout, embed: Embed, most: int) -> Procedure[BroughtUp]:
    """Take changes from the queue, at most so many, and bring the vectors of their rows up to date.

    Two workers may hold changes of one row. Whoever comes last, the vector (or the note that there
    is none) is that of the row's last text.

    Raises:
        SpaceMismatchError: If a migration has put others in the place of these vectors.
    """
    searched = dataclasses.replace(source, state="").view
    ((*_, noted),) = yield Query(
        sql.SQL(
            "SELECT set_config('statement_timeout', '0', true),"
            " set_config('idle_in_transaction_session_timeout', '0', true),"
            " ARRAY (SELECT obj_description(to_regclass(name), 'pg_class')"
            " FROM unnest(%s::text[]) AS name)"
        ),
        (
            [
                identifier(view).as_string(None)
                for view in (searched, searched + NEXT_VIEW, source.view)
            ],
        ),
    )
    if source.definition not in noted:
        raise SpaceMismatchError(
            f"{searched} shows vectors of another model than {layout.spec.model} by "
            f"now; sync with the model that it names"
        )
    places = _places(source) | {"most": sql.Literal(most)}
    taken = yield Query(
        sql.SQL(
            "DELETE FROM {queue} WHERE change IN (SELECT change FROM {queue}"
            " WHERE target = {target} ORDER BY backfill, change LIMIT {most}"
            " FOR UPDATE SKIP LOCKED) RETURNING id, change"
        ).format(**places)
    )
    if not taken:
        return BroughtUp()
    last = {name: change for name, change in sorted(taken, key=lambda row: row[1])}
    digest = "(SELECT s.digest FROM {store} s WHERE s.{key} = a.{key})"
    places["digest"] = trusted("NULL" if source.column else digest).format(**places)
    found = yield Query(
        sql.SQL(
            "SELECT a.{key}::text, {text}, md5({text}), {digest} FROM {table} a"
            " WHERE a.{key} = ANY (%s::text[]::{type}[])"
        ).format(**places),
        (list(last),),
    )
    rows = [Pending(*row) for *row, _ in found]
    changed = [
        row
        for row, (*_, before) in zip(rows, found, strict=True)
        if before is None or row.digest != before
    ]
    refused: dict[str, str] = {}

    def refuse(row: Pending, why: str) -> None:
        refused[row.id] = why

    ready = yield Call(lambda: embedded(changed, layout, embed, refuse))
    stored = replaced = 0
    if ready:
        stored, replaced = yield from _stored(source, layout, ready, last, places)
    yield from _settle(source, places, rows, last, refused)
    return BroughtUp(len(taken), len(last), stored, replaced, refused)


def _stored(
    source: SourceTable,
    layout: Layout,
    ready: Rows,
    changes: dict[str, int],
    places: dict[str, sql.Composable],
) -> Procedure[tuple[int, int]]:
    """Store vectors where the text is still the same; return how many, and how many had one."""
    staging = yield from staged(source.extension, layout, ready)
    if source.column:
        # An update that comes between looks at the row again, and finds another text.
        statement = sql.SQL(
            "WITH old AS MATERIALIZED (SELECT a.{key} AS key, a.{vector} IS NOT NULL AS had"
            " FROM {table} a JOIN {staging} s ON a.{key} = s.id::{type}),"
            " updated AS (UPDATE {table} a SET {vector} = s.{vector} FROM {staging} s"
            " WHERE a.{key} = s.id::{type} AND md5({text}) = s.digest RETURNING a.{key})"
            " SELECT count(*), count(*) FILTER (WHERE old.had)"
            " FROM updated JOIN old ON old.key = updated.{key}"
        )
        parameters: tuple[Any, ...] = ()
    else:
        # Of two workers that hold changes of one row, the later change wins whoever comes last.
        statement = sql.SQL(
            "WITH stored AS (INSERT INTO {store} AS t ({key}, digest, change, {vector})"
            " SELECT a.{key}, s.digest, c.change, s.{vector} FROM {staging} s"
            " JOIN unnest(%s::text[], %s::bigint[]) AS c (id, change) ON c.id = s.id"
            " JOIN {table} a ON a.{key} = s.id::{type} AND md5({text}) = s.digest"
            " ORDER BY a.{key} ON CONFLICT ({key}) DO UPDATE SET digest = EXCLUDED.digest,"
            " change = EXCLUDED.change, {vector} = EXCLUDED.{vector}"
            " WHERE t.change < EXCLUDED.change RETURNING xmax::text <> '0' AS had)"
            " SELECT count(*), count(*) FILTER (WHERE had) FROM stored"
        )
        parameters = (list(changes), list(changes.values()))
    rows = yield Query(statement.format(**places, staging=staging), parameters)
    yield Query(sql.SQL("DROP TABLE {}").format(staging))
    return int(rows[0][0]), int(rows[0][1])


def _settle(
    source: SourceTable,
    places: dict[str, sql.Composable],
    rows: Sequence[Pending],
    changes: dict[str, int],
    refused: dict[str, str],
) -> Procedure[None]:
    """Note the rows that cannot be embedded, without the vector of an earlier text.

    Where a row's text is another by now, whoever holds that change says what becomes of it.
    """
    same = sql.SQL("a.{key} = r.id::{type} AND md5({text}) IS NOT DISTINCT FROM r.digest")
    places["same"] = same.format(**places)
    places["read"] = sql.SQL(
        "unnest(%s::text[], %s::text[], %s::text[], %s::bigint[]) AS r (id, digest, reason, change)"
    )
    still = sql.SQL("(SELECT a.{key} AS found, r.* FROM {table} a JOIN {read} ON {same}) AS r")
    places["still"] = still.format(**places)

    def values(rows: Sequence[Pending]) -> tuple[list[Any], ...]:
        ids, _, digests = zip(*rows, strict=True) if rows else ((), (), ())
        reasons, last = [refused.get(name) for name in ids], [changes[name] for name in ids]
        return [*ids], [*digests], reasons, last

    yield Query(
        sql.SQL(
            "DELETE FROM {rejects} o USING {still} WHERE o.target = {target} AND o.id = r.id"
        ).format(**places),
        values(rows),
    )
    if not refused:
        return
    without = values([row for row in rows if row.id in refused])
    yield Query(
        sql.SQL(
            "INSERT INTO {rejects} (target, id, reason) SELECT {target}, r.id, r.reason"
            " FROM {still} ORDER BY r.id"
            " ON CONFLICT (target, id) DO UPDATE SET reason = EXCLUDED.reason, at = now()"
        ).format(**places),
        without,
    )
    cleared = (
        "UPDATE {table} a SET {vector} = NULL FROM {read} WHERE {same}"
        if source.column
        else "DELETE FROM {store} o USING {still} WHERE o.{key} = r.found AND o.change < r.change"
    )
    yield Query(trusted(cleared).format(**places), without)
