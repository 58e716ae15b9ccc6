"""End to end with MiniLM: what loading adds to embedding."""

from __future__ import annotations

import argparse
import statistics

import psycopg
from english import passages
from measure import median_ratio
from pgvector_rows import interleaved

import nimbed
from nimbed_pgvector import VectorTable


def overlap(dsn: str, options: argparse.Namespace) -> None:
    """End to end with MiniLM: what loading adds to embedding."""
    count = min(2048, options.rows)
    embedder = nimbed.load()
    embedder.embed(passages(64, seed=7), input_type="passage", truncate="END")
    texts = [f"{n}. {text}" for n, text in enumerate(passages(count, seed=1))]
    chunk = 256
    with psycopg.connect(dsn, autocommit=True) as connection:

        def alone() -> None:
            for start in range(0, count, chunk):
                embedder.embed(
                    texts[start : start + chunk],
                    input_type="passage",
                    embedding_type="ubinary",
                    truncate="END",
                )

        def loading() -> None:
            table = VectorTable(connection, "t", embedder, embedding_type="ubinary")
            items = ((str(n), text) for n, text in enumerate(texts))
            report = table.load(items, truncate="END", chunk_rows=chunk)
            assert report.loaded == count

        def clean() -> None:
            connection.execute("DROP TABLE IF EXISTS t")

        seconds = interleaved(
            {"embed": alone, "embed + load": loading}, options.rounds, before=clean
        )
    print(f"\n## MiniLM, {count} passages (passages/s)")
    for name, times in seconds.items():
        print(f"{name:14} {count / statistics.median(times):9,.1f}")
    added = median_ratio(seconds["embed + load"], seconds["embed"]) - 1
    print(f"loading adds {added:+.1%} to embedding")
