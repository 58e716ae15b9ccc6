"""Loads a JSONL file slowly enough to be killed on the way. Runs in a process of its own."""

from __future__ import annotations

import time
from typing import Any

import psycopg

from nimbed import EmbeddingBatch, FakeEmbedder
from nimbed.files import read_rows
from nimbed_pgvector import VectorTable


class SlowEmbedder(FakeEmbedder):
    def embed(self, *arguments: Any, **options: Any) -> EmbeddingBatch:
        time.sleep(0.004)
        return super().embed(*arguments, **options)


def load_slowly(dsn: str, file: str, chunk: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = VectorTable(
            connection, "t", SlowEmbedder(), embedding_type="ubinary", also="halfvec"
        )
        table.load(read_rows(file, id_field="id"), source="rows", chunk_rows=chunk)
