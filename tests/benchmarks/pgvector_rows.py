"""Rows with random vectors, the table they go to, and timing that prepares it untimed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import psycopg

from nimbed import EmbeddingBatch, VectorSpec
from nimbed.batch import normalize, quantize
from nimbed.rows import Row
from nimbed_pgvector import create_statements
from nimbed_pgvector.columns import Also, Layout

DIMENSIONS = 1024
PART = 4096
KINDS = {"bit": ("ubinary", 1024), "halfvec": ("float", 2048), "vector": ("float", 1024)}


def made(kind: str, rows: int) -> tuple[list[Row], EmbeddingBatch]:
    """Return rows of about 200 characters and random vectors for them."""
    embedding_type, dimensions = KINDS[kind]
    spec = VectorSpec.of(model="bench", dimensions=dimensions, embedding_type=embedding_type)
    random = np.random.default_rng(0)
    vectors = np.empty((rows, spec.width), spec.dtype)
    for start in range(0, rows, PART):
        size = min(PART, rows - start)
        floats = normalize(random.standard_normal((size, dimensions), np.float32))
        vectors[start : start + size] = quantize(floats, spec)
    batch = EmbeddingBatch(
        vectors=vectors, spec=spec, input_type="passage", token_counts=np.ones(rows, np.int32)
    )
    text = "the quick brown fox jumps over the lazy dog and runs on. " * 3
    return [Row(n, f"{text} {n}", f"passage-{n}", {"page": n}) for n in range(rows)], batch


def parts(rows: list[Row], batch: EmbeddingBatch) -> list[tuple[list[Row], EmbeddingBatch]]:
    """Return rows and vectors as a file gives them: to be made outside of what is timed."""
    return [
        (
            rows[start : start + PART],
            EmbeddingBatch(
                vectors=batch.vectors[start : start + PART],
                spec=batch.spec,
                input_type=batch.input_type,
                token_counts=batch.token_counts[start : start + PART],
            ),
        )
        for start in range(0, len(rows), PART)
    ]


def fresh(connection: psycopg.Connection, spec: VectorSpec, *, also: Also | None = None) -> None:
    """Make the table ``t`` anew, with nothing left to write for the server."""
    connection.execute("DROP TABLE IF EXISTS t")
    connection.execute("DROP TABLE IF EXISTS nimbed_spec, nimbed_ledger")
    connection.execute("CHECKPOINT")
    for statement in create_statements("t", Layout.of(spec, also=also)):
        connection.execute(statement)


def interleaved(
    jobs: Mapping[str, Callable[[], None]],
    rounds: int,
    *,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Return seconds a round for each job, every other round in the opposite order."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(rounds):
        order = list(jobs) if round_ % 2 == 0 else list(reversed(jobs))
        for name in order:
            before()
            begin = time.perf_counter()
            jobs[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds
