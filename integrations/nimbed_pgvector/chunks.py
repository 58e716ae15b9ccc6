"""A chunk of passages and vectors in, one committed transaction with its ledger row out.

New rows are copied straight into the table; rows whose id is there go through a staging table
(staging everything measured half the speed). Knows nothing about models.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

from psycopg import sql

from nimbed_pgvector.passages import Passages
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
_JSONB_VERSION = b"\x01"
_length = struct.Struct(">i").pack
# The next chunk goes in while the disk writes this one. A crash of the server may take back the
# last moments' chunks, whole; a rerun brings them back, and make_durable waits for all of them.
# The encoding is that of our bytes, whatever PGCLIENTENCODING says.
_SETTINGS = Query(
    sql.SQL(
        "SELECT set_config('synchronous_commit', 'off', true),"
        " set_config('client_encoding', 'UTF8', true)"
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Passages that are stored together, encoded.

    Attributes:
        passages: The passages, no id twice.
        rows: The passages and their vectors, as :func:`encode` gives them.
    """

    passages: Passages
    rows: bytes


def encode(table: Table, passages: Passages, vectors: Sequence[bytes]) -> bytes:
    """Return passages and the fields of their vectors as rows of a binary COPY."""
    ids = list(map(str.encode, passages.ids))
    texts = list(map(str.encode, passages.texts))
    metadata = [_JSONB_VERSION + facts for facts in passages.metadata]
    digests = passages.digests
    # Column by column: a row in Python costs more than the server's work on it.
    fields = zip(
        repeat((4 + len(table.layout.columns)).to_bytes(2, "big")),
        map(_length, map(len, ids)), ids,
        map(_length, map(len, texts)), texts,
        map(_length, map(len, metadata)), metadata,
        map(_length, map(len, digests)), digests,
        vectors,
    )  # fmt: skip
    return b"".join(chain.from_iterable(fields))


def known_digests(table: Table, ids: Sequence[str]) -> Steps[dict[str, bytes]]:
    """Return the content digest of those ids that the table holds."""
    rows = yield Query(
        sql.SQL("SELECT id, content_hash FROM {} WHERE id = ANY(%s)").format(table.identifier),
        (list(ids),),
    )
    return {name: bytes(digest) for name, digest in rows}


def copy_new(table: Table, source: str, chunks: Iterable[Chunk]) -> Steps[int]:
    """Store chunks of passages whose ids the table does not hold, and return how many.

    The chunks are taken while the server works on those before them.

    Raises:
        psycopg.errors.UniqueViolation: If it holds one after all; nothing is stored then.
    """
    numbers: list[int] = []

    def blocks() -> Iterator[bytes]:
        yield _COPY_HEADER
        for chunk in chunks:
            numbers.extend(chunk.passages.numbers)
            yield chunk.rows
        yield _COPY_END

    yield _SETTINGS
    yield Copy(_copy_statement(table.identifier, table), blocks())
    if numbers:
        yield _ledger_row(table, source, numbers, stored=len(numbers))
    return len(numbers)


def merge(table: Table, source: str, chunk: Chunk) -> Steps[int]:
    """Store passages, replacing those with the same id and other content; return how many."""
    staging = sql.Identifier("nimbed_staging")
    yield _SETTINGS
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
        yield _ledger_row(table, source, chunk.passages.numbers, stored=stored)
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


def _ledger_row(table: Table, source: str, numbers: Sequence[int], *, stored: int) -> Query:
    return Query(
        sql.SQL(
            "INSERT INTO {} (relation, source, first_row, last_row, passages, fingerprint)"
            " VALUES (%s::regclass, %s, %s, %s, %s, %s)"
        ).format(beside(table.name, "nimbed_ledger")),
        (
            table.identifier.as_string(None),
            source,
            min(numbers),
            max(numbers),
            stored,
            table.layout.spec.fingerprint,
        ),
    )
