"""Rows of a table or query of PostgreSQL as an input, read by a server-side cursor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from nimbed.errors import ConfigurationError
from nimbed.rows import BadRow, RecordReader, Row, TextFields
from nimbed_pgvector.errors import connect, translate_errors
from nimbed_pgvector.schema import identifier
from nimbed_pgvector.statements import Statement, trusted

__all__ = ["query_rows"]

_FETCHED = 1024  # rows that are in memory at a time


def query_rows(
    dsn: str,
    *,
    table: str | None = None,
    query: str | None = None,
    text_field: str | Sequence[str] = "text",
    id_field: str | None = None,
    template: str | None = None,
    vector_field: str | None = None,
) -> Iterator[Row | BadRow]:
    """Yield the rows of a table or a query, as of one moment, on a connection of their own.

    Ids may be of any type; what is no string and no integer is written as text. Columns of bytes,
    and of types that psycopg does not know (vectors, search vectors), are left out.

    Args:
        dsn: A libpq connection string or URL; the connection changes nothing.
        table: ``table`` or ``schema.table``; or
        query: a SELECT.
        text_field: Column of the text, or several that are joined by an empty line.
        id_field: Column of the id.
        template: How text columns are joined.
        vector_field: A column of vectors that is kept, as text.

    Raises:
        ConfigurationError: If it is no query, or lacks a column.
        BackendError: If the server failed.
    """
    if (table is None) == (query is None):
        raise ConfigurationError("give either a table or a query to read from")
    records = RecordReader(TextFields.of(text_field, template), id_field, carry=True)
    if id_field in records.text.names:
        raise ConfigurationError(f"{id_field!r} cannot be both the text and the id")
    if query is None:
        statement: Statement = sql.SQL("SELECT * FROM {}").format(identifier(table or ""))
    else:
        # The caller's own SQL, on a connection that can change nothing; a trailing semicolon would
        # end the cursor's declaration.
        statement = trusted(query.strip().rstrip(";"))
    what = table or "the query"
    with (
        translate_errors(f"reading {what}"),
        connect(dsn, read_only=True) as connection,
        connection.transaction(),
        psycopg.ServerCursor(connection, "nimbed_rows", row_factory=tuple_row) as cursor,
    ):
        # For this transaction alone: behind a pool the session is somebody else's afterwards.
        connection.execute("SELECT set_config('statement_timeout', '0', true)")
        cursor.itersize = _FETCHED
        cursor.execute(statement)  # without parameters a % is what it says
        names = [column.name for column in cursor.description or ()]
        missing = records.missing(names)
        if missing is not None:
            raise ConfigurationError(f"{what} has no column {missing!r}; it has {', '.join(names)}")
        kept = [
            place
            for place, column in enumerate(cursor.description or ())
            if column.name in (*records.text.names, id_field, vector_field)
            or _is_plain(connection, column.type_code)
        ]
        for number, values in enumerate(cursor, 1):
            record = {names[place]: values[place] for place in kept}
            if id_field is not None and not isinstance(record[id_field], (str, int)):
                found = record[id_field]
                record[id_field] = None if found is None else str(found)
            yield records.row(number, record)


def _is_plain(connection: psycopg.Connection[Any], oid: int) -> bool:
    """Return whether a column's values have a place in JSON."""
    known = connection.adapters.types.get(oid)
    return known is not None and known.name not in ("bytea", "tsvector", "bit", "varbit")
