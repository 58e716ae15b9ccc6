"""Loads a JSONL file slowly enough to be killed on the way. Runs in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg

from nimbed import EmbeddingBatch, FakeEmbedder
from nimbed.files import read_rows
from nimbed.rows import Row
from nimbed_pgvector import VectorTable, copy
from nimbed_pgvector.copy import Ready


class SlowEmbedder(FakeEmbedder):
    seconds = 0.004

    def embed(self, *arguments: Any, **options: Any) -> EmbeddingBatch:
        time.sleep(self.seconds)
        return super().embed(*arguments, **options)


def load_slowly(dsn: str, file: str, chunk: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = VectorTable(
            connection, "t", SlowEmbedder(), embedding_type="ubinary", also="halfvec"
        )
        table.load(read_rows(file, id_field="id"), source="rows", chunk_rows=chunk)


def load_ready_slowly(dsn: str, file: str, chunk: int) -> None:
    copy._TRANSACTION = 2**15  # some hundred rows, for as many moments to be killed at
    embedder = SlowEmbedder()

    def parts() -> Iterator[Ready]:
        rows = [row for row in read_rows(file, id_field="id") if isinstance(row, Row)]
        for start in range(0, len(rows), chunk):
            some = rows[start : start + chunk]
            yield some, embedder.embed([row.text for row in some], input_type="passage")

    with psycopg.connect(dsn, autocommit=True) as connection:
        table = VectorTable(connection, "t", embedding_type="ubinary", also="halfvec")
        table.load_embedded(parts(), embedder.spec(), source="rows")


def load_documents_slowly(dsn: str, rows: int, *, file: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        embedder = SlowEmbedder()
        embedder.seconds = 0.1  # so that a fast machine, too, is killed before it is through
        table = VectorTable(connection, "t", embedder)
        documents = read_rows(file, id_field="id")
        table.load(documents, source="rows", chunk_tokens=48, overlap=8, chunk_rows=rows)
