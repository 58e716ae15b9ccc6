"""Searches with a condition against the same SQL by hand and exact numbers, at several shares."""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import psycopg
from measure import median_ratio
from pgvector_rows import DIMENSIONS, fresh, interleaved, made, parts
from pgvector_searching import Ready, ReadyDumper, questions

from nimbed.batch import normalize
from nimbed_pgvector import Layout, VectorTable

SHARES = (1.0, 0.1, 0.01, 0.001, 0.0001)
ASKED, LATENT = 30, 16
CONDITION = "(metadata->>'page')::int < %s"
BY_HAND = (
    "SELECT id, text, metadata, embedding <=> %b::vector(1024) AS distance FROM t"
    f" WHERE {CONDITION} ORDER BY distance LIMIT 10"
)


def filtering(dsn: str, options: argparse.Namespace) -> None:
    """Searches with a condition, against the same SQL with the same settings."""
    print(f"\n## Filtered search, {options.rows} rows of vector(1024), k 10")
    rows, batch = made("vector", options.rows)
    # Vectors of texts vary in few directions; in 1,024 at random no graph finds the nearest.
    random = np.random.default_rng(2)
    directions = random.standard_normal((LATENT, DIMENSIONS), np.float32)
    batch.vectors[:] = normalize(
        random.standard_normal((options.rows, LATENT), np.float32) @ directions
    )
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.adapters.register_dumper(Ready, ReadyDumper)
        fresh(connection, batch.spec)
        table = VectorTable(connection, "t")
        table.load_embedded(parts(rows, batch), batch.spec)
        table.index()
        queries = questions()[:ASKED]
        for query in queries:
            query.vectors[:] = normalize(
                random.standard_normal((1, LATENT), np.float32) @ directions
            )
        column = Layout.of(batch.spec).embedding
        ready = [Ready(column.parameter(query)) for query in queries]
        exact = np.concatenate([query.vectors for query in queries]) @ batch.vectors.T
        for share in SHARES:
            least = max(1, round(share * options.rows))
            found: list[set[str]] = []

            def ours(least: int = least, found: list[set[str]] = found) -> None:
                found[:] = [
                    {
                        hit.id
                        for hit in table.nearest(query, 10, filter=CONDITION, parameters=[least])
                    }
                    for query in queries
                ]

            def bare(least: int = least) -> None:
                connection.execute("SET hnsw.ef_search = 40")
                connection.execute("SET hnsw.iterative_scan = strict_order")
                for vector in ready:
                    connection.execute(BY_HAND, [vector, least], binary=True).fetchall()
                connection.execute("RESET ALL")

            for job in (ours, bare):
                job()
            seconds = interleaved({"bare": bare, "ours": ours}, 2 * options.rounds + 1)
            wanted = min(10, least)
            best = np.argsort(-exact[:, :least], axis=1)[:, :wanted]
            recall = np.mean(
                [
                    len(ids & {f"passage-{row}" for row in line}) / wanted
                    for ids, line in zip(found, best.tolist(), strict=True)
                ]
            )
            short = sum(len(ids) < wanted for ids in found)
            print(
                f"share {share:<7} {1000 * statistics.median(seconds['ours']) / ASKED:8.2f} ms a "
                f"question, ours / bare = {median_ratio(seconds['ours'], seconds['bare']):.2f}, "
                f"recall {recall:.3f}, fewer than asked: {short}"
            )
