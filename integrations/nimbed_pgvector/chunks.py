"""A chunk of passages and vectors in, one committed transaction with its ledger row out.

New rows are copied straight into the table; rows whose id is there go through a staging table
(staging everything measured half the speed). Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from psycopg import sql

from nimbed import EmbeddingBatch
from nimbed_pgvector.passages import Passage
from nimbed_pgvector.schema import Table, beside
from nimbed_pgvector.steps import Copy, Query, Steps

__all__ = [
    "Chunk",
    "copy_new",
    "encode",
    "known_digests",
    "make_durable",
    "merge",
]

_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"
# The next chunk goes in while the disk writes this one. A crash of the server may take back the
# last moments' chunks, whole; a rerun brings them back, and make_durable waits for all of them.
_DO_NOT_WAIT = Query(sql.SQL("SELECT set_config('synchronous_commit', 'off', true)"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Passages that are stored in one transaction, encoded.

    Attributes:
        source: Names the input they come from.
        passages: The passages, no id twice.
        rows: The passages and their vectors, as :func:`encode` gives them.
    """

    source: str
    passages: Sequence[Passage]
    rows: bytes


def encode(table: Table, passages: Sequence[Passage], batches: Sequence[EmbeddingBatch]) -> bytes:
    """Return passages and their vectors, one batch a vector column, as rows of a binary COPY."""
    columns = [
        column.wire(batch) for column, batch in zip(table.layout.columns, batches, strict=True)
    ]
    vectors = np.hstack(columns) if len(columns) > 1 else columns[0]
    width = vectors.shape[1]
    data = vectors.tobytes()
    begin = (4 + len(columns)).to_bytes(2, "big")
    pieces: list[bytes] = []
    for row, passage in enumerate(passages):
        pieces += (begin, passage.fields, data[row * width : (row + 1) * width])
    return b"".join(pieces)


def known_digests(table: Table, ids: Sequence[str]) -> Steps[dict[str, bytes]]:
    """Return the content digest of those ids that the table holds."""
    rows = yield Query(
        sql.SQL("SELECT id, content_hash FROM {} WHERE id = ANY(%s)").format(table.identifier),
        (list(ids),),
    )
    return {name: bytes(digest) for name, digest in rows}


def copy_new(table: Table, chunk: Chunk) -> Steps[int]:
    """Store passages whose ids the table does not hold, and return how many.

    Raises:
        psycopg.errors.UniqueViolation: If it holds one after all; nothing is stored then.
    """
    yield _DO_NOT_WAIT
    yield Copy(_copy_statement(table.identifier, table), (_COPY_HEADER, chunk.rows, _COPY_END))
    yield _ledger_row(table, chunk, len(chunk.passages))
    return len(chunk.passages)


def merge(table: Table, chunk: Chunk) -> Steps[int]:
    """Store passages, replacing those with the same id and other content; return how many."""
    staging = sql.Identifier("nimbed_staging")
    yield _DO_NOT_WAIT
    yield Query(
        sql.SQL("CREATE TEMPORARY TABLE {} (LIKE {}) ON COMMIT DROP").format(
            staging, table.identifier
        )
    )
    yield Copy(_copy_statement(staging, table), (_COPY_HEADER, chunk.rows, _COPY_END))
    names = _column_names(table)
    rows = yield Query(
        # Locks are taken in the order of ids, so two loaders cannot wait for each other.
        sql.SQL(
            "WITH merged AS (INSERT INTO {table} AS t ({columns}) SELECT {columns} FROM {staging}"
            " ORDER BY id ON CONFLICT (id) DO UPDATE SET ({columns}) = ({excluded})"
            " WHERE t.content_hash IS DISTINCT FROM EXCLUDED.content_hash RETURNING 1)"
            " SELECT count(*) FROM merged"
        ).format(
            table=table.identifier,
            staging=staging,
            columns=sql.SQL(", ").join(map(sql.Identifier, names)),
            excluded=sql.SQL(", ").join(sql.Identifier("excluded", name) for name in names),
        )
    )
    yield Query(sql.SQL("DROP TABLE {}").format(staging))
    stored = int(rows[0][0])
    if stored:
        yield _ledger_row(table, chunk, stored)
    return stored


def make_durable() -> Steps[None]:
    """Wait until every chunk committed so far is on the server's disk.

    The log is written in order, so it is enough to wait for one more record.
    """
    yield Query(sql.SQL("SELECT set_config('synchronous_commit', 'on', true)"))
    yield Query(sql.SQL("SELECT pg_logical_emit_message(true, 'nimbed', 'loaded')"))


def _column_names(table: Table) -> list[str]:
    vectors = (column.name for column in table.layout.columns)
    return ["id", "text", "metadata", "content_hash", *vectors]


def _copy_statement(into: sql.Identifier, table: Table) -> sql.Composed:
    names = sql.SQL(", ").join(map(sql.Identifier, _column_names(table)))
    return sql.SQL("COPY {} ({}) FROM STDIN WITH (FORMAT BINARY)").format(into, names)


def _ledger_row(table: Table, chunk: Chunk, stored: int) -> Query:
    numbers = [passage.number for passage in chunk.passages]
    return Query(
        sql.SQL(
            "INSERT INTO {} (relation, source, first_row, last_row, passages, fingerprint)"
            " VALUES (%s::regclass, %s, %s, %s, %s, %s)"
        ).format(beside(table.name, "nimbed_ledger")),
        (
            table.identifier.as_string(None),
            chunk.source,
            min(numbers),
            max(numbers),
            stored,
            table.layout.spec.fingerprint,
        ),
    )
