"""Backfill of a column of vectors: rows that lack one are read, embedded and updated in batches.

A batch is one transaction, and nothing but the column tells what is done: killed at any moment and
run again, it goes on. A row whose text was changed meanwhile keeps waiting for its new text.

An update writes the row anew. Where its page has room for that (HOT), no index is told, least of
all the old vectors' HNSW, which takes milliseconds a row. The room is that of an earlier batch's
rows: those of one batch come from as many pages as can be. No index may be on the new column yet.
"""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from psycopg import sql

from nimbed import EmbeddingBatch
from nimbed.bulk import JobReport, embed_accepted, ignore
from nimbed.errors import InputError
from nimbed.rows import Reject, text_fault
from nimbed_pgvector.columns import Layout
from nimbed_pgvector.schema import Table, see_extension
from nimbed_pgvector.statements import (
    Copy,
    Procedure,
    Query,
    Rows,
    Runner,
    binary_copy,
    run_again,
    trusted,
)

__all__ = ["Embed", "Pending", "backfill", "embedded", "pending", "staged", "store"]

Embed = Callable[[Sequence[str]], EmbeddingBatch]

# Batches that the ids are dealt out to: as many as there are rows of a usual length in a page, but
# of no fewer rows than this.
_DEALT, _FEWEST = 32, 64
_STAGING = sql.Identifier("nimbed_staging")
_length = struct.Struct(">i").pack


class Pending(NamedTuple):
    """A row that waits: its key, its text, and the server's digest of the text."""

    id: str
    text: str
    digest: str


def pending(table: Table, layout: Layout, *, after: str, rows: int) -> Procedure[list[Pending]]:
    """Return rows without a vector in a layout's columns, in the order of their ids.

    Args:
        table: The table.
        layout: Columns of it.
        after: The id after which to begin; empty for the first.
        rows: How many.
    """
    yield Query(sql.SQL("SELECT set_config('statement_timeout', '0', true)"))
    found = yield Query(
        sql.SQL(
            "SELECT id, text, md5(text) FROM {} WHERE {} IS NULL AND id > %s ORDER BY id LIMIT {}"
        ).format(table.identifier, sql.Identifier(layout.embedding.name), sql.Literal(rows)),
        (after,),
    )
    return [Pending(*row) for row in found]


def _waiting(table: Table, layout: Layout, *, after: str, rows: int) -> Procedure[list[str]]:
    """Return the ids of rows without a vector; as :func:`pending`, but without an index on them."""
    # Nothing is known of a new column: a planner that expects few such rows reads the whole table.
    yield Query(
        sql.SQL(
            "SELECT set_config('statement_timeout', '0', true),"
            " set_config('enable_seqscan', 'off', true),"
            " set_config('enable_bitmapscan', 'off', true)"
        )
    )
    found = yield Query(
        sql.SQL("SELECT id FROM {} WHERE {} IS NULL AND id > %s ORDER BY id LIMIT {}").format(
            table.identifier, sql.Identifier(layout.embedding.name), sql.Literal(rows)
        ),
        (after,),
    )
    return [name for (name,) in found]


def _read(table: Table, layout: Layout, ids: Sequence[str]) -> Procedure[list[Pending]]:
    """Return those of the rows that are there and still without a vector, by their ids."""
    yield Query(
        sql.SQL(
            "SELECT set_config('statement_timeout', '0', true),"
            " set_config('enable_seqscan', 'off', true)"
        )
    )
    found = yield Query(
        sql.SQL(
            "SELECT id, text, md5(text) FROM {} WHERE id = ANY (%s) AND {} IS NULL ORDER BY id"
        ).format(table.identifier, sql.Identifier(layout.embedding.name)),
        (list(ids),),
    )
    return [Pending(*row) for row in found]


def embedded(
    rows: Sequence[Pending], layout: Layout, embed: Embed, refuse: Callable[[Pending, str], None]
) -> Rows:
    """Return (id, digest, fields of a COPY) of the rows that can be embedded.

    Args:
        rows: The rows.
        layout: The columns that the vectors are for.
        embed: Makes the vectors.
        refuse: Told each row that cannot be embedded, and why.
    """
    sound: list[Pending] = []
    for row in rows:
        fault = text_fault(row.text)
        if fault:
            refuse(row, fault)
        else:
            sound.append(row)

    def refused(places: list[int], error: InputError) -> None:
        for place, at in enumerate(places):
            refuse(sound[at], error.about(place))

    if not sound:
        return []
    places, batch = embed_accepted([row.text for row in sound], embed, refused)
    if not places:
        return []
    fields = layout.fields(layout.batches(batch))
    return [
        (sound[place].id, sound[place].digest, data)
        for place, data in zip(places, fields, strict=True)
    ]


def store(table: Table, layout: Layout, rows: Rows) -> Procedure[int]:
    """Store vectors in a layout's columns where the texts are still the same; return how many."""
    if not rows:
        return 0
    staging = yield from staged(table.extension, layout, rows)
    # An update that comes between looks at the row again, and finds another text. The rows are
    # staged, and so locked, in the order of ids, as by loaders.
    updated = yield Query(
        sql.SQL(
            "WITH updated AS (UPDATE {table} t SET {new} FROM {staging} s"
            " WHERE t.id = s.id AND md5(t.text) = s.digest RETURNING 1)"
            " SELECT count(*) FROM updated"
        ).format(
            table=table.identifier,
            staging=staging,
            new=sql.SQL(", ").join(
                sql.SQL("{0} = s.{0}").format(sql.Identifier(column.name))
                for column in layout.columns
            ),
        )
    )
    yield Query(sql.SQL("DROP TABLE {}").format(staging))
    return int(updated[0][0])


def staged(extension: str, layout: Layout, rows: Rows) -> Procedure[sql.Identifier]:
    """Copy (id, digest, fields of a COPY) into a temporary table, and return its name."""
    yield from see_extension(extension)
    # The planner knows nothing of the staged rows, and may read the whole table for each batch.
    yield Query(
        sql.SQL(
            "SELECT set_config('synchronous_commit', 'off', true),"
            " set_config('client_encoding', 'UTF8', true),"
            " set_config('statement_timeout', '0', true),"
            " set_config('enable_hashjoin', 'off', true),"
            " set_config('enable_mergejoin', 'off', true)"
        )
    )
    yield Query(
        sql.SQL("CREATE TEMPORARY TABLE {} (id text, digest text, {}) ON COMMIT DROP").format(
            _STAGING,
            sql.SQL(", ").join(
                sql.SQL("{} {}").format(sql.Identifier(column.name), trusted(column.type))
                for column in layout.columns
            ),
        )
    )
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in layout.columns)
    fields = (
        (2 + len(layout.columns)).to_bytes(2, "big")
        + _field(name.encode())
        + _field(digest.encode())
        + bytes(data)
        for name, digest, data in rows
    )
    yield Copy(
        sql.SQL("COPY {} (id, digest, {}) FROM STDIN WITH (FORMAT BINARY)").format(_STAGING, names),
        binary_copy([b"".join(fields)]),
    )
    return _STAGING


def backfill(
    run: Runner,
    ticks: Iterator[object],
    table: Table,
    layout: Layout,
    embed: Embed,
    *,
    batch_rows: int,
    report: JobReport,
    on_reject: Callable[[Reject], None] = ignore,
    on_progress: Callable[[JobReport], None] = ignore,
) -> JobReport:
    """Fill a layout's columns wherever they are empty, in one pass through the table.

    One thread reads and stores, this one embeds meanwhile.

    Args:
        run: Runs a procedure in a transaction.
        ticks: One a batch; it ends early if the caller gives up.
        table: The table.
        layout: Columns of it.
        embed: Makes the vectors.
        batch_rows: Rows a transaction.
        report: Carried on: stored and rejected rows are counted.
        on_reject: Told each row that cannot be embedded.
        on_progress: Told the report after each batch.
    """
    start = time.perf_counter() - report.seconds

    def refuse(row: Pending, why: str) -> None:
        report.reject([Reject(report.rejected + 1, row.id, why)], on_reject)

    def counting(batch: Sequence[str]) -> EmbeddingBatch:
        made = embed(batch)
        report.count_embedded(made)
        return made

    def settle(storing: Future[int] | None) -> None:
        report.loaded += 0 if storing is None else storing.result()
        report.seconds = time.perf_counter() - start
        on_progress(report)

    with ThreadPoolExecutor(1, "nimbed-store") as server:

        def dealt() -> Iterator[Future[list[Pending]]]:
            after, most = "", _DEALT * batch_rows
            while True:
                finding = server.submit(run, _waiting(table, layout, after=after, rows=most))
                ids = finding.result()
                if not ids:
                    return
                hands = max(-(-len(ids) // batch_rows), min(_DEALT, len(ids) // _FEWEST))
                for hand in range(hands):
                    yield server.submit(run, _read(table, layout, ids[hand::hands]))
                after = ids[-1]

        storing: Future[int] | None = None
        reading = dealt()
        following = next(reading, None)
        for _ in ticks:
            if following is None:
                break
            page, following = following.result(), next(reading, None)
            ready = embedded(page, layout, counting, refuse)
            settle(storing)
            storing = server.submit(run_again, run, functools.partial(store, table, layout, ready))
        settle(storing)
    return report


def _field(data: bytes) -> bytes:
    return _length(len(data)) + data
