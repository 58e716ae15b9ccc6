"""Migrates a table slowly enough to be killed on the way. Runs in a process of its own."""

from __future__ import annotations

import dataclasses

import psycopg
from tests.integrations.pgvector.crash_loader import SlowEmbedder

from nimbed.fake import FAKE_CARD
from nimbed_pgvector import VectorTable

OTHER = dataclasses.replace(FAKE_CARD, id="other/model", passage_prompt="doc: ")


def migrate_slowly(dsn: str, batch: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = VectorTable(connection, "t", SlowEmbedder())
        if table.spec.model != OTHER.id:
            table.migrate(SlowEmbedder(OTHER), batch_rows=batch)


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
