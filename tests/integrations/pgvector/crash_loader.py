"""Loads a JSONL file slowly enough to be killed on the way. Run by test_crash.py."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from nimbed import FakeEmbedder
from nimbed.files import read_rows
from nimbed_pgvector import VectorTable


def slowly(items: Iterator[Any], every: int) -> Iterator[Any]:
    for place, item in enumerate(items):
        if place % every == 0:
            time.sleep(0.004)
        yield item


def main() -> None:
    dsn, file, chunk = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = VectorTable(
            connection, "t", FakeEmbedder(), embedding_type="ubinary", also="halfvec"
        )
        rows = slowly(read_rows(file, id_field="id"), chunk)
        table.load(rows, source="rows", chunk_rows=chunk)


if __name__ == "__main__":
    main()
