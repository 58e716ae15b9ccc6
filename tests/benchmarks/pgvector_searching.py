"""A question that is a vector already, against the same SQL by hand."""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import psycopg
from measure import median_ratio
from pgvector_rows import DIMENSIONS, fresh, interleaved, made, parts

from nimbed import EmbeddingBatch, VectorSpec
from nimbed.quantize import normalize
from nimbed_pgvector import VectorTable


def search(dsn: str, options: argparse.Namespace) -> None:
    """A question that is a vector already, against the same SQL by hand."""
    rows, batch = made("bit", options.rows)
    random = np.random.default_rng(1)
    spec = VectorSpec.of(model="bench", dimensions=DIMENSIONS)
    queries = [
        EmbeddingBatch(
            vectors=normalize(random.standard_normal((1, DIMENSIONS), np.float32)),
            spec=spec,
            input_type="query",
            token_counts=np.ones(1, np.int32),
        )
        for _ in range(200)
    ]
    with psycopg.connect(dsn, autocommit=True) as connection:
        fresh(connection, batch.spec)
        table = VectorTable(connection, "t")
        table.load_embedded(parts(rows, batch), batch.spec)
        begin = time.perf_counter()
        table.index()
        print(f"\n## Search, {len(rows)} rows of bit(1024), k 10, 80 candidates")
        print(f"index and ANALYZE: {time.perf_counter() - begin:.1f} s")
        bits = ["".join(map(str, (q.vectors[0] > 0).astype(int))) for q in queries]

        def ours() -> None:
            for query in queries:
                table.nearest(query, 10)

        def bare() -> None:
            connection.execute("SET hnsw.ef_search = 80")
            connection.execute("SET hnsw.iterative_scan = relaxed_order")
            for text in bits:
                connection.execute(
                    "SELECT id, text, metadata, embedding FROM t"
                    " ORDER BY embedding <~> %s::bit(1024) LIMIT 80",
                    (text,),
                    binary=True,
                ).fetchall()

        seconds = interleaved({"bare SQL": bare, "nimbed": ours}, options.rounds)
    for name, times in seconds.items():
        print(f"{name:10} {1000 * statistics.median(times) / len(queries):6.2f} ms a question")
    print(f"nimbed / bare = {median_ratio(seconds['nimbed'], seconds['bare SQL']):.2f}")
