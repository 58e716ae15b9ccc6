"""A worker that embeds slowly, to be killed on the way. Runs in a process of its own."""

from __future__ import annotations

import psycopg
from tests.integrations.pgvector.crash_loader import SlowEmbedder

from nimbed_pgvector import SyncedTable


def work_slowly(dsn: str, column: str | None) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = SyncedTable(
            connection, "articles", SlowEmbedder(), text_fields=["title", "body"], column=column,
            truncate="NONE",
        )  # fmt: skip
        table.prepare()
        table.run(stop=lambda: False, batch_rows=20)
