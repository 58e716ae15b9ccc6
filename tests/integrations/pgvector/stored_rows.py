"""Four hundred passages, and what a table holds of them, read back without nimbed."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg

TEXTS = [f"passage number {number}" for number in range(400)]
ITEMS = [(f"p{number}", text) for number, text in enumerate(TEXTS)]
Row_ = tuple[Any, ...]


def stored(connection: psycopg.Connection, table: str, column: str = "embedding") -> list[Row_]:
    send = {"bit": "bit_send", "vector": "vector_send", "halfvec": "halfvec_send"}
    kind = connection.execute(
        "SELECT trim(format_type(atttypid, -1), chr(34)) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attname = %s",
        (table, column),
    ).fetchall()[0][0]
    return connection.execute(
        f"SELECT id, text, metadata, {send[kind]}({column}) FROM {table}"
        " ORDER BY substr(id, 2)::int"
    ).fetchall()


def decoded(raw: bytes, kind: str) -> np.ndarray:
    if kind == "bit":
        return np.frombuffer(raw, np.uint8)[4:]
    return np.frombuffer(raw, ">f4" if kind == "vector" else ">f2", offset=4).astype(np.float32)
