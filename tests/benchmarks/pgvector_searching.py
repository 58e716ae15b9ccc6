"""A question that is a vector already, against the same SQL by hand."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psycopg
from measure import median_ratio
from pgvector_rows import DIMENSIONS, fresh, interleaved, made, parts
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

from nimbed import EmbeddingBatch, VectorSpec
from nimbed.batch import normalize
from nimbed_pgvector import Layout, VectorTable
from nimbed_pgvector.columns import Also

QUESTIONS = 200
SELECT = "SELECT id, text, metadata"
# What one would write by hand: limits and settings for this k alone, vectors in binary, bound.
STAGES: dict[str, tuple[str, Also | None, str]] = {
    "vector, one stage": (
        "vector",
        None,
        f"{SELECT}, embedding <=> %b::vector(1024) AS distance FROM t ORDER BY distance LIMIT 10",
    ),
    "bit, candidates to the client": (
        "bit",
        None,
        f"{SELECT}, embedding FROM t ORDER BY embedding <~> %b::bit(1024) LIMIT 80",
    ),
    "bit, rescored by halfvec": (
        "bit",
        "halfvec",
        f"{SELECT}, rescoring <=> %b::halfvec(1024) AS distance FROM ({SELECT}, rescoring FROM t"
        " ORDER BY embedding <~> %b::bit(1024) LIMIT 80) AS c ORDER BY distance LIMIT 10",
    ),
}


class Ready(bytes):
    """A vector in the server's binary form."""


class ReadyDumper(Dumper):
    format = Format.BINARY
    oid = 0

    def dump(self, obj: Ready) -> Buffer:
        return obj


def search(dsn: str, options: argparse.Namespace) -> None:
    """A question that is a vector already, against the same SQL by hand."""
    print(f"\n## Search, {options.rows} rows, k 10, of packed columns 80 candidates")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.adapters.register_dumper(Ready, ReadyDumper)
        for name, (kind, also, statement) in STAGES.items():
            search_one(connection, name, kind, also, statement, options)


def search_one(
    connection: psycopg.Connection,
    name: str,
    kind: str,
    also: Also | None,
    statement: str,
    options: argparse.Namespace,
) -> None:
    rows, batch = made("vector" if also else kind, options.rows)
    embedding_type = "ubinary" if kind == "bit" else "float"
    spec = VectorSpec.of(model="bench", dimensions=DIMENSIONS, embedding_type=embedding_type)
    fresh(connection, spec, also=also)
    table = VectorTable(connection, "t")
    table.load_embedded(parts(rows, batch), batch.spec)
    begin = time.perf_counter()
    table.index()
    print(f"{name}: index and ANALYZE {time.perf_counter() - begin:.1f} s")
    queries = questions()
    ready = [sent(query, Layout.of(spec, also=also)) for query in queries]

    def ours() -> None:
        for query in queries:
            table.nearest(query, 10)

    def bare() -> None:
        connection.execute(f"SET hnsw.ef_search = {80 if kind == 'bit' else 40}")
        connection.execute("SET hnsw.iterative_scan = relaxed_order")
        # Else the planner scans a small table of wide vectors, in twenty times the time.
        connection.execute("SET enable_seqscan = off")
        for vectors in ready:
            connection.execute(statement, vectors, binary=True).fetchall()
        connection.execute("RESET ALL")

    for job in (ours, bare):  # each connection prepares a statement that it has seen five times
        job()
    seconds = interleaved({"bare SQL": bare, "nimbed": ours}, 2 * options.rounds + 1)
    for job_name, times in seconds.items():
        print(f"  {job_name:10} {1000 * statistics.median(times) / QUESTIONS:6.2f} ms a question")
    print(f"  nimbed / bare = {median_ratio(seconds['nimbed'], seconds['bare SQL']):.2f}")


def questions() -> list[EmbeddingBatch]:
    random = np.random.default_rng(1)
    spec = VectorSpec.of(model="bench", dimensions=DIMENSIONS)
    return [
        EmbeddingBatch(
            vectors=normalize(random.standard_normal((1, DIMENSIONS), np.float32)),
            spec=spec,
            input_type="query",
            token_counts=np.ones(1, np.int32),
        )
        for _ in range(QUESTIONS)
    ]


def sent(query: EmbeddingBatch, layout: Layout) -> Sequence[Any]:
    """Return a question's vectors as the statement by hand binds them, the finest first."""
    vectors = zip(layout.columns, layout.batches(query), strict=True)
    return [Ready(column.parameter(vector)) for column, vector in reversed(list(vectors))]
