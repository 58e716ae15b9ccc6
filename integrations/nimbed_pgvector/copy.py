"""COPY of passages into a table: rows are checked, encoded, and stored batch by batch.

One batch is one committed transaction with its row in the ledger. New rows are copied straight
into the table; rows whose id is there go through a staging table (staging everything measured half
the speed). :class:`TableSink` is the store of :func:`nimbed.bulk.load_batches`; :func:`fill` is
the quicker way for ready vectors and an empty table.
"""

from __future__ import annotations

import hashlib
import struct
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

from psycopg import errors, sql
from xxhash import xxh3_128_digest

from nimbed import EmbeddingBatch, EmbeddingKinds, SparseBatch
from nimbed.bulk import (
    JobReport,
    PassageBatch,
    SeenIds,
    StoreResult,
    drop_repeated,
    load_batches,
)
from nimbed.errors import ConfigurationError
from nimbed.inputs import ContextText
from nimbed.rows import Reject, Row, id_fault, row_id, text_fault
from nimbed_pgvector.columns import TEXT_BYTES, encode_json, json_fault
from nimbed_pgvector.schema import Table, beside
from nimbed_pgvector.statements import Copy, Procedure, Query, Runner, binary_copy, run_again

__all__ = [
    "BATCH_ROWS",
    "SETTINGS",
    "Batch",
    "Batches",
    "Passages",
    "Ready",
    "TableSink",
    "fill",
    "first_good",
    "prepare",
    "ready_batches",
]

#: Passages with their metadata as JSON in UTF-8, their vectors as fields of a binary COPY.
Passages = PassageBatch[bytes, bytes]
#: A batch of the input, and its rows that cannot be stored.
Batch = tuple[Passages, list[Reject]]
Batches = Iterator[Batch]
#: Rows and their vectors, as many of the one as of the other.
Ready = tuple[Sequence[Row], EmbeddingBatch | SparseBatch | EmbeddingKinds]

#: Rows a transaction: one commit costs as much as a few hundred rows.
BATCH_ROWS = 1024
# A B-tree entry holds at most 2,704 bytes.
_LONGEST_ID = 2_000
# Bytes of ready vectors a transaction: a commit costs as much as some hundred kilobytes, a kill
# loses this much.
_TRANSACTION = 16 * 2**20
# Into an empty table, a batch of ready vectors is what a socket takes at once, so that the server
# works on it while Python prepares the next; else it is looked up and stored in one transaction.
_SOCKET_BYTES = 2**18
_MOST_ROWS = 2048

_JSONB_VERSION = b"\x01"
_length = struct.Struct(">i").pack
# Stands between the rows that are encoded together; random, so no row can hold it.
_MARK = uuid.uuid4().hex
# The next batch goes in while the disk writes this one. A crash of the server may take back the
# last moments' batches, whole; a rerun brings them back, and _make_durable waits for all of them.
# The encoding is that of our bytes, whatever PGCLIENTENCODING says. A limit for a web page's
# statements would stop a batch, each time anew.
SETTINGS = Query(
    sql.SQL(
        "SELECT set_config('synchronous_commit', 'off', true),"
        " set_config('client_encoding', 'UTF8', true),"
        " set_config('statement_timeout', '0', true)"
    )
)


class TableSink:
    """A table as the store of a bulk job.

    Args:
        run: Runs a procedure in one transaction.
        table: The table.
        source: Names the input in the ledger.
    """

    def __init__(self, run: Runner, table: Table, source: str) -> None:
        self.run = run
        self.table = table
        self.source = source
        self._copies = True  # straight into the table

    def encode(self, batch: EmbeddingBatch | EmbeddingKinds) -> list[bytes]:
        """Return the fields of each row's vectors."""
        return self.table.layout.encoder(batch)(slice(None))

    def look_up(self, passages: Passages) -> Mapping[str, bytes]:
        """Return the digests of those passages whose ids the table holds."""
        # Into a table that was empty, copying first and looking up on a conflict is faster.
        if self.table.empty or not passages:
            return {}
        return self.run(_known_digests(self.table, passages.ids))

    def storing(self, passages: Passages, *, replace: bool) -> Callable[[], StoreResult]:
        """Return a function that stores passages, by the slower way if their ids may be there."""
        rows = _encode_rows(self.table, passages)

        def store() -> StoreResult:
            stored = self._stored(passages.numbers, rows, replace=replace)
            return StoreResult(stored=stored, unchanged=len(passages) - stored)

        return store

    def finish(self) -> None:
        """Wait until what was committed is on the server's disk."""
        self.run(_make_durable())

    def _stored(self, numbers: Sequence[int], rows: bytes, *, replace: bool) -> int:
        if not replace and self._copies:
            try:
                return self.run(_copy_new(self.table, self.source, [(numbers, rows)]))
            except errors.FeatureNotSupported:
                self._copies = False  # a policy for rows holds for INSERT, and forbids COPY
            except (errors.UniqueViolation, errors.DeadlockDetected):
                pass  # another loader, or an earlier run, was faster with one of these ids
        return run_again(self.run, lambda: _merge(self.table, self.source, numbers, rows))


def first_good(
    batches: Batches, report: JobReport, on_reject: Callable[[Reject], None]
) -> Batch | None:
    """Return the first batch with a passage; the rejects of those before it are reported."""
    for passages, rejects in batches:
        if passages:
            return passages, rejects
        report.reject(rejects, on_reject)
    return None


def ready_batches(
    parts: Iterable[Ready],
    table: Table,
    *,
    source: str,
    metadata_fields: Sequence[str] | None = None,
) -> Batches:
    """Yield parts of an input that has its vectors as batches that bring them.

    Raises:
        ConfigurationError: If a part has not as many rows as vectors, or holds queries.
    """
    seen, most, layout = SeenIds(), _MOST_ROWS, table.layout
    if table.empty:
        stored = sum(column.stored_bytes for column in layout.stored)
        most = max(1, min(most, _SOCKET_BYTES // (TEXT_BYTES + stored)))
    for rows, given in parts:
        for batch in given.batches if isinstance(given, EmbeddingKinds) else (given,):
            if len(rows) != len(batch):
                raise ConfigurationError(f"{len(rows)} rows came with {len(batch)} vectors")
            if batch.input_type != "passage":
                raise ConfigurationError(
                    "these vectors were embedded as queries; a table holds passages, so embed the "
                    "texts again with input_type='passage'"
                )
        fields = layout.encoder(given)
        for start in range(0, len(rows), most):
            few = slice(start, start + most)
            passages, rejects = prepare(
                rows[few],
                source=source,
                metadata_fields=metadata_fields,
                vectors=fields(few),
            )
            yield drop_repeated(seen, passages, rejects)


def fill(
    sink: TableSink,
    batches: Batches,
    *,
    on_reject: Callable[[Reject], None],
    on_progress: Callable[[JobReport], None],
) -> JobReport:
    """Store passages that bring their vectors.

    While nobody else writes to a table that was empty, there is nothing to look up. Passages are
    prepared while the server takes those before them, in one thread: beside another that prepares
    them, a thread that sends them waits for Python's lock at each buffer, up to 5 ms.

    Args:
        sink: Where to.
        batches: The input.
        on_reject: Told each row that cannot be stored.
        on_progress: Told the report after each transaction.
    """
    report, left = JobReport(), iter(batches)
    start = time.perf_counter()
    alone = sink.table.empty

    def transaction(taken: list[Passages]) -> Iterator[tuple[list[int], bytes]]:
        size = 0
        for passages, rejects in left:
            report.reject(rejects, on_reject)
            if passages:
                taken.append(passages)
                rows = _encode_rows(sink.table, passages)
                size += len(rows)
                yield passages.numbers, rows
            if size >= _TRANSACTION:
                return

    while alone:
        taken: list[Passages] = []
        try:
            stored = sink.run(_copy_new(sink.table, sink.source, transaction(taken)))
        except (errors.UniqueViolation, errors.DeadlockDetected, errors.FeatureNotSupported):
            alone = False  # another loader is at work here, or a policy for rows forbids COPY
            stored = sum(sink.storing(passages, replace=True)().stored for passages in taken)
        report.loaded += stored
        report.unchanged += sum(map(len, taken)) - stored
        report.seconds = time.perf_counter() - start
        on_progress(report)
        if alone and not taken:
            if report.loaded:
                sink.finish()
            return report
    return load_batches(
        left, sink, None, on_reject=on_reject, on_progress=on_progress, report=report
    )


def prepare(
    rows: Sequence[Row],
    *,
    source: str,
    metadata_fields: Sequence[str] | None = None,
    vectors: list[bytes] | None = None,
) -> tuple[Passages, list[Reject]]:
    """Return the rows that can be stored, and the others.

    Args:
        rows: The rows.
        source: Names the input; a row without an id is called ``source:number``.
        metadata_fields: Columns to keep, where a row has them; None keeps all.
        vectors: The rows' ready vectors as they are stored: another one is another content.
    """
    if rows:
        sound = _all_sound(rows, source, metadata_fields, vectors)
        if sound is not None:
            return sound, []
    made: Passages = PassageBatch(vectors=None if vectors is None else [])
    rejects: list[Reject] = []
    for place, row in enumerate(rows):
        vector = None if vectors is None else vectors[place]
        reject = _add(made, row, source, metadata_fields, vector)
        if reject is not None:
            rejects.append(reject)
    return made, rejects


def _add(
    made: Passages, row: Row, source: str, fields: Sequence[str] | None, vector: bytes | None
) -> Reject | None:
    """Add a row to the passages, or return why it cannot be one."""
    key = row_id(row, source)
    fault = id_fault(key)
    if fault:
        return Reject(row.number, None, fault)
    name = str(key)
    kept = _kept(row.columns, fields)
    try:
        metadata = encode_json(kept).encode()
    except (ValueError, TypeError, RecursionError) as error:
        return Reject(row.number, name, f"the metadata is not JSON: {json_fault(kept, error)}")
    fault = text_fault(row.text)
    if fault:
        return Reject(row.number, name, fault)
    text = row.text.encode()
    fault = _storage_fault(name.encode(), text, metadata)
    if fault:
        return Reject(row.number, name, fault)
    made.numbers.append(row.number)
    made.ids.append(name)
    made.texts.append(row.text)
    made.metadata.append(metadata)
    made.digests.append(_digest(text, metadata, vector or b""))
    if made.vectors is not None and vector is not None:
        made.vectors.append(vector)
    return None


def _all_sound(
    rows: Sequence[Row],
    source: str,
    fields: Sequence[str] | None,
    vectors: list[bytes] | None,
) -> Passages | None:
    """Return the rows together, in half the time; None if one of them may be a reject."""
    keys = [f"{source}:{row.number}" if row.id is None else row.id for row in rows]
    texts = [row.text for row in rows]
    kinds = set(map(type, keys))
    if not (kinds <= {str, int} and set(map(type, texts)) <= {str, ContextText}):
        return None
    ids = list(map(str, keys))
    # Four bytes a character at most; eighteen digits fit 64 bits.
    most = 18 if int in kinds else _LONGEST_ID // 4
    if max(map(len, ids)) > most or any(map(str.isspace, texts)) or not all(ids + texts):
        return None
    try:
        raw = list(map(str.encode, texts))
        marked: list[object] = [_MARK] * (2 * len(rows) - 1)
        columns = [row.columns for row in rows]
        plain = fields is None and set(map(type, columns)) == {dict}
        marked[::2] = columns if plain else [_kept(each, fields) for each in columns]
        metadata = encode_json(marked)[1:-1].encode().split(f', "{_MARK}", '.encode())
        everything = b"".join((*map(str.encode, ids), *raw, *metadata))
    except (ValueError, TypeError, RecursionError):
        return None
    if b"\0" in everything or b"\\u0000" in everything:
        return None
    numbers = [row.number for row in rows]
    digests = map(_digest, raw, metadata, repeat(b"") if vectors is None else vectors)
    return PassageBatch(numbers, ids, texts, metadata, list(digests), vectors)


def _digest(text: bytes, metadata: bytes, vector: bytes) -> bytes:
    # The length in front keeps (text, metadata) and a shifted border apart. Processors have
    # instructions for SHA-256: it takes two thirds of BLAKE2b's time. A vector's 4 kB are named by
    # XXH3 first, in 0.1 us instead of 2.3: who could forge them could as well store others.
    content = b"".join((_length(len(text)), text, metadata, xxh3_128_digest(vector)))
    return hashlib.sha256(content).digest()[:16]


def _kept(columns: Mapping[str, Any], fields: Sequence[str] | None) -> dict[str, Any]:
    if fields is None:
        return columns if isinstance(columns, dict) else dict(columns)
    return {k: columns[k] for k in fields if k in columns}


def _storage_fault(key: bytes, text: bytes, metadata: bytes) -> str | None:
    if len(key) > _LONGEST_ID:
        return f"the id is {len(key)} bytes long; an index holds {_LONGEST_ID}"
    # json writes the character as this escape, and a backslash as two.
    escaped = b"\\u0000" in metadata and b"\\u0000" in metadata.replace(b"\\\\", b"")
    if b"\0" in key or b"\0" in text or escaped:
        where = "id" if b"\0" in key else "text" if b"\0" in text else "metadata"
        return f"the {where} holds a NUL character, which PostgreSQL cannot store"
    return None


def _encode_rows(table: Table, passages: Passages) -> bytes:
    """Return passages with their vectors as rows of a binary COPY.

    Raises:
        ConfigurationError: If they have no vectors.
    """
    if passages.vectors is None:
        raise ConfigurationError(f"{len(passages)} passages came without their vectors")
    ids = list(map(str.encode, passages.ids))
    texts = list(map(str.encode, passages.texts))
    metadata = [_JSONB_VERSION + facts for facts in passages.metadata]
    digests = passages.digests
    # Column by column: a row in Python costs more than the server's work on it.
    fields = zip(
        repeat((4 + len(table.layout.stored)).to_bytes(2, "big")),
        map(_length, map(len, ids)), ids,
        map(_length, map(len, texts)), texts,
        map(_length, map(len, metadata)), metadata,
        map(_length, map(len, digests)), digests,
        passages.vectors,
    )  # fmt: skip
    return b"".join(chain.from_iterable(fields))


def _known_digests(table: Table, ids: Sequence[str]) -> Procedure[dict[str, bytes]]:
    """Return the content digest of those ids that the table holds."""
    rows = yield Query(
        sql.SQL("SELECT id, content_hash FROM {} WHERE id = ANY(%s)").format(table.identifier),
        (list(ids),),
    )
    return {name: bytes(digest) for name, digest in rows}


def _copy_new(
    table: Table, source: str, batches: Iterable[tuple[Sequence[int], bytes]]
) -> Procedure[int]:
    """Store passages whose ids the table does not hold, and return how many.

    Args:
        table: Where to.
        source: Names the input in the ledger.
        batches: Numbers of rows of the input, and these rows as :func:`_encode_rows` gives them;
            taken while the server works on those before them.

    Raises:
        psycopg.errors.UniqueViolation: If it holds one after all; nothing is stored then.
    """
    numbers: list[int] = []

    def blocks() -> Iterator[bytes]:
        for some, rows in batches:
            numbers.extend(some)
            yield rows

    yield SETTINGS
    yield Copy(_copy_statement(table.identifier, table), binary_copy(blocks()))
    if numbers:
        yield _ledger_row(table, source, numbers, stored=len(numbers))
    return len(numbers)


def _merge(table: Table, source: str, numbers: Sequence[int], rows: bytes) -> Procedure[int]:
    """Store passages, replacing those with the same id and other content; return how many."""
    staging = sql.Identifier("nimbed_staging")
    yield SETTINGS
    names = _column_names(table)
    yield Query(
        # Our own columns: what else the table has is filled by its defaults.
        sql.SQL(
            "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA"
        ).format(staging, sql.SQL(", ").join(map(sql.Identifier, names)), table.identifier)
    )
    yield Copy(_copy_statement(staging, table), binary_copy([rows]))
    merged = yield Query(
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
    stored = int(merged[0][0])
    if stored:
        yield _ledger_row(table, source, numbers, stored=stored)
    return stored


def _make_durable() -> Procedure[None]:
    """Wait until every batch committed so far is on the server's disk.

    The log is written in order, so it is enough to wait for one more record.
    """
    yield Query(sql.SQL("SELECT set_config('synchronous_commit', 'on', true)"))
    yield Query(sql.SQL("SELECT pg_logical_emit_message(true, 'nimbed', 'loaded')"))


def _column_names(table: Table) -> list[str]:
    vectors = (column.name for column in table.layout.stored)
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
            table.layout.contract.fingerprint,
        ),
    )
