"""Migrates a table slowly enough to be killed on the way. Runs in a process of its own."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import psycopg
from tests.integrations.pgvector.crash_loader import SlowEmbedder

from nimbed.batch import EmbeddingBatch
from nimbed.errors import NimbedError, SpaceMismatchError
from nimbed.fake import FAKE_CARD, FakeEmbedder
from nimbed_pgvector import VectorTable

OTHER = dataclasses.replace(FAKE_CARD, id="other/model", passage_prompt="doc: ")

#: Rows that are loaded beside a migration: every second one of a thousand changed, some new.
MEANWHILE = [(f"p{n}", f"loaded meanwhile {n}") for n in [*range(0, 1000, 2), *range(1000, 1300)]]


class TardyEmbedder(FakeEmbedder):
    """So slow that a fast machine, too, is killed before it is through."""

    def embed(self, *arguments: Any, **options: Any) -> EmbeddingBatch:
        time.sleep(0.1)
        return super().embed(*arguments, **options)


def migrate_slowly(dsn: str, batch: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = VectorTable(connection, "t", SlowEmbedder())
        if table.spec.model != OTHER.id:
            table.migrate(TardyEmbedder(OTHER), batch_rows=batch)


def load_meanwhile(dsn: str, batch: int) -> None:
    """Load changed and new rows by the table's own model, again where a switch came between."""
    while True:
        with psycopg.connect(dsn, autocommit=True) as connection:
            named = VectorTable(connection, "t").spec.model
            model = TardyEmbedder(OTHER if named == OTHER.id else FAKE_CARD)
            try:
                VectorTable(connection, "t", model).load(MEANWHILE, chunk_rows=batch)
            except NimbedError as error:
                if "run it again" not in str(error) and not isinstance(error, SpaceMismatchError):
                    raise
            else:
                return


def roll_back_slowly(dsn: str, batch: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = VectorTable(connection, "t", SlowEmbedder(OTHER))
        if table.spec.model == OTHER.id:
            table.rollback(SlowEmbedder())


def roll_forth_slowly(dsn: str, batch: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = VectorTable(connection, "t", SlowEmbedder())
        if table.spec.model != OTHER.id:
            table.rollback(SlowEmbedder(OTHER))


def migrate_synced_slowly(dsn: str, batch: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = VectorTable(connection, "articles_embedding")
        if table.spec.model != OTHER.id:
            table.migrate(TardyEmbedder(OTHER), batch_rows=batch)
