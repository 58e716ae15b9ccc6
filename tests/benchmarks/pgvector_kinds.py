"""Sparse vectors beside dense ones: what a load and a search cost, what the sparse index finds."""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psycopg
from measure import median_ratio
from pgvector_rows import PART, fresh, interleaved, made, parts

from nimbed import EmbeddingBatch, EmbeddingKinds, SparseBatch, SparseSpec, VectorSpec
from nimbed.spec import InputType
from nimbed_pgvector import VectorTable

# Weights of a passage and of a query as bge-m3 gives them, a distinct token each, and as SPLADE
# does, which adds tokens of its own.
MODELS = {"bge-m3": (250_002, 100, 10), "SPLADE": (30_522, 150, 30)}
QUERIES, K = 100, 10


def sparse(model: str, rows: int, role: InputType, seed: int) -> SparseBatch:
    """Return vectors whose tokens are as frequent as words are (Zipf's law)."""
    vocabulary, passage, query = MODELS[model]
    many = passage if role == "passage" else query
    rng = np.random.default_rng(seed)
    chance = 1 / np.arange(10, vocabulary + 10)
    drawn = rng.choice(vocabulary, (rows, many), p=chance / chance.sum()).astype(np.int32)
    drawn.sort(axis=1)
    new = np.ones(drawn.shape, bool)
    new[:, 1:] = np.diff(drawn, axis=1) > 0
    return SparseBatch(
        ids=drawn[new],
        weights=rng.gamma(2.0, 0.1, int(new.sum())).astype(np.float32) + 1e-3,
        offsets=np.concatenate([[0], np.cumsum(new.sum(axis=1))]),
        spec=SparseSpec(model=model, vocabulary="bench", dimensions=vocabulary, max_active=1_000),
        input_type=role,
        token_counts=np.ones(rows, np.int32),
    )


def query_of(spec: VectorSpec, rows: int) -> EmbeddingBatch:
    floats = np.random.default_rng(9).standard_normal((rows, spec.dimensions)).astype(np.float32)
    return EmbeddingBatch.from_floats(
        floats, spec=spec, input_type="query", token_counts=np.ones(rows, np.int32)
    )


def cpu(connection: psycopg.Connection) -> float:
    """Return the seconds that this process and the server's have computed; others share them."""
    words = Path(f"/proc/{connection.info.backend_pid}/stat").read_text().rsplit(")", 1)[1].split()
    return time.process_time() + (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def stored_bytes(connection: psycopg.Connection) -> list[bytes]:
    """Return the table as a binary COPY gives it, in blocks of about 256 KB."""
    blocks, left = [], bytearray()
    with connection.cursor().copy("COPY t TO STDOUT WITH (FORMAT BINARY)") as copy:
        for row in copy:
            left += row
            if len(left) > 2**18:
                blocks.append(bytes(left))
                left = bytearray()
    return [*blocks, bytes(left)]


def bare_copy(connection: psycopg.Connection, blocks: list[bytes], sparse: str | None) -> None:
    """Store the same bytes into the same table, with nothing to be done for them here."""
    if sparse is not None:
        connection.execute(f"ALTER TABLE t ADD COLUMN sparse {sparse} NOT NULL")
    with connection.transaction():
        connection.execute("SET LOCAL synchronous_commit = off")
        with connection.cursor().copy("COPY t FROM STDIN WITH (FORMAT BINARY)") as copy:
            for block in blocks:
                copy.write(block)


def kinds(dsn: str, options: argparse.Namespace) -> None:
    """Ready vectors of 1024 dimensions, with and without sparse ones; then searches."""
    rows, dense = made("vector", options.rows)
    plain = parts(rows, dense)
    for model in MODELS:
        weights = sparse(model, len(rows), "passage", 1)
        both = [
            (some, EmbeddingKinds(
                dense=batch, sparse=weights.select(slice(n * PART, n * PART + PART))
            ))
            for n, (some, batch) in enumerate(plain)
        ]  # fmt: skip
        print(f"\n## {model}: {len(weights.ids) / len(rows):.0f} weights a passage", flush=True)
        with psycopg.connect(dsn, autocommit=True) as connection:

            def alone() -> None:
                connection.execute("DROP TABLE t")  # made anew, as the other has to be
                VectorTable(connection, "t").load_embedded(plain, dense.spec)

            def beside() -> None:
                connection.execute("DROP TABLE t")
                table = VectorTable(connection, "t")
                table.load_embedded(both, dense.spec, sparse=weights.spec)  # noqa: B023

            jobs = {"dense": alone, "dense, sparse": beside}
            for name, job in list(jobs.items()):
                fresh(connection, dense.spec)
                job()
                kind = f"sparsevec({weights.spec.dimensions})" if job is beside else None
                args = (connection, stored_bytes(connection), kind)
                jobs[f"bare COPY: {name}"] = functools.partial(bare_copy, *args)
            spent: dict[str, list[float]] = {name: [] for name in jobs}

            def counted(name: str, job: Callable[[], None]) -> None:
                begin = cpu(connection)
                job()
                spent[name].append(cpu(connection) - begin)  # noqa: B023

            seconds = interleaved(
                {name: functools.partial(counted, name, job) for name, job in jobs.items()},
                options.rounds,
                before=lambda: fresh(connection, dense.spec),
            )
            for name, times in seconds.items():
                microseconds = 1e6 * statistics.median(spent[name]) / len(rows)
                rate = len(rows) / statistics.median(times)
                print(f"{name:25} {rate:9,.0f} rows/s, {microseconds:.1f} us of processors a row")
            for what, measured in (("clock", seconds), ("processors", spent)):
                for way in ("", "bare COPY: "):
                    pair = [measured[f"{way}{name}"] for name in ("dense", "dense, sparse")]
                    least = min(pair[0]) / min(pair[1])
                    print(
                        f"{way}ratio by {what} {median_ratio(*pair):.2f}, of the least {least:.2f}"
                    )
            beside()
            searches(connection, dense.spec, model)


def searches(connection: psycopg.Connection, spec: VectorSpec, model: str) -> None:
    table = VectorTable(connection, "t")
    table.index()
    asked = [
        (query_of(spec, QUERIES).select([n]), sparse(model, QUERIES, "query", 2).select([n]))
        for n in range(QUERIES)
    ]

    def timed(name: str, queries: list[EmbeddingBatch | SparseBatch | EmbeddingKinds]) -> list[set]:
        found: list[set] = []
        spent: list[float] = []
        for query in queries:
            begin = time.perf_counter()
            hits = table.nearest(query, K)
            spent.append(time.perf_counter() - begin)
            found.append({hit.id for hit in hits})
        print(f"{name:24} {1e3 * statistics.median(spent):7.2f} ms")
        return found

    timed("dense, index", [each for each, _ in asked])
    exact = timed("sparse, every row", [each for _, each in asked])
    timed("both, sparse every row", [EmbeddingKinds(dense=d, sparse=s) for d, s in asked])
    table.index(sparse=True)
    found = timed("sparse, index", [each for _, each in asked])
    timed("both, two indexes", [EmbeddingKinds(dense=d, sparse=s) for d, s in asked])
    recall = np.mean([len(a & b) / max(1, len(a)) for a, b in zip(exact, found, strict=True)])
    print(f"recall@{K} of the sparse index {recall:.2f}")
