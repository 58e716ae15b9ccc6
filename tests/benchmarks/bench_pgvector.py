"""The pgvector loader against raw COPY, other libraries, embedding alone and bare SQL.

Run: python tests/benchmarks/bench_pgvector.py [load] [rivals] [overlap] [search] [memory]
     [--rows 100000] [--rounds 3] [--dsn DSN]

Without --dsn an embedded PostgreSQL is started; without parts, every part runs for which the
packages are installed. Jobs take turns within a round; the tables show medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from nimbed import EmbeddingBatch, VectorSpec
from nimbed.files.rows import Row
from nimbed.quantize import normalize, quantize
from nimbed_pgvector import VectorTable, create_statements
from nimbed_pgvector.columns import Layout
from nimbed_pgvector.embedded import embedded_server

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


def parts(rows: list[Row], batch: EmbeddingBatch) -> Iterator[tuple[list[Row], EmbeddingBatch]]:
    for start in range(0, len(rows), PART):
        stretch = slice(start, start + PART)
        yield rows[stretch], batch.select(stretch)


def fresh(connection: psycopg.Connection, spec: VectorSpec, kind: str) -> None:
    connection.execute("DROP TABLE IF EXISTS t")
    connection.execute("DROP TABLE IF EXISTS nimbed_spec, nimbed_ledger")
    connection.execute("CHECKPOINT")
    for statement in create_statements("t", Layout.of(spec)):
        connection.execute(statement)
    assert (
        kind
        in connection.execute(
            "SELECT format_type(atttypid, -1) FROM pg_attribute WHERE attrelid = 't'::regclass"
            " AND attname = 'embedding'"
        ).fetchall()[0][0]
    )


def raw_copy(connection: psycopg.Connection, rows: list[Row], batch: EmbeddingBatch) -> None:
    """Copy by hand: one COPY, one transaction, no check, no hash, no ledger."""
    spec = batch.spec
    if spec.packed:
        head = struct.pack(">i", spec.dimensions)
        convert: Callable[[Any], bytes] = lambda row: row.tobytes()  # noqa: E731
    else:
        head = struct.pack(">HH", spec.dimensions, 0)
        form = ">f4" if spec.dimensions <= 2000 else ">f2"
        convert = lambda row: row.astype(form).tobytes()  # noqa: E731
    pack = struct.Struct(">i").pack
    digest = bytes(16)
    with connection.cursor().copy(
        "COPY t (id, text, metadata, content_hash, embedding) FROM STDIN WITH (FORMAT BINARY)"
    ) as copy:
        copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        for row, vector in zip(rows, batch.vectors, strict=True):
            key, text = str(row.id).encode(), row.text.encode()
            metadata = b"\x01" + json.dumps(row.columns).encode()
            data = head + convert(vector)
            copy.write(
                b"".join(
                    (
                        b"\0\5", pack(len(key)), key, pack(len(text)), text, pack(len(metadata)),
                        metadata, pack(16), digest, pack(len(data)), data,
                    )
                )
            )  # fmt: skip
        copy.write(b"\xff\xff")


def load(dsn: str, options: argparse.Namespace) -> None:
    """Ready vectors: the loader, all safety included, against a raw COPY of the same bytes."""
    print(f"\n## Ready vectors, {options.rows} rows (rows/s; 1024 dimensions, halfvec 2048)")
    for kind in KINDS:
        load_kind(dsn, kind, options)


def load_kind(dsn: str, kind: str, options: argparse.Namespace) -> None:
    rows, batch = made(kind, options.rows)
    with psycopg.connect(dsn, autocommit=True) as connection:

        def ours() -> None:
            table = VectorTable(connection, "t")
            report = table.load_embedded(parts(rows, batch), batch.spec)
            assert report.loaded == len(rows)

        seconds = interleaved(
            {"raw COPY": lambda: raw_copy(connection, rows, batch), "nimbed": ours},
            options.rounds,
            before=lambda: fresh(connection, batch.spec, kind),
        )
    rates = {name: len(rows) / statistics.median(times) for name, times in seconds.items()}
    print(f"{kind:8} " + "  ".join(f"{name} {rate:9,.0f}" for name, rate in rates.items()), end="")
    print(f"  nimbed / raw = {ratio_of(seconds, 'raw COPY', 'nimbed'):.2f}")


def rivals(dsn: str, options: argparse.Namespace) -> None:
    """What people use instead, on a tenth of the rows: their rate does not depend on it."""
    rows, batch = made("vector", options.rows // 20)
    vectors = batch.vectors.tolist()
    texts = [row.text for row in rows]
    metadata = [dict(row.columns) for row in rows]
    jobs: dict[str, Callable[[], None]] = {}
    with psycopg.connect(dsn, autocommit=True) as connection:

        def ours() -> None:
            fresh(connection, batch.spec, "vector")
            VectorTable(connection, "t").load_embedded(parts(rows, batch), batch.spec)

        jobs["nimbed"] = ours
        if importlib.util.find_spec("langchain_postgres"):
            from langchain_core.embeddings import DeterministicFakeEmbedding
            from langchain_postgres import PGEngine, PGVectorStore

            engine = PGEngine.from_connection_string(dsn.replace("://", "+psycopg://"))

            def langchain() -> None:
                import uuid

                engine.init_vectorstore_table("lc", DIMENSIONS, overwrite_existing=True)
                store = PGVectorStore.create_sync(
                    engine, DeterministicFakeEmbedding(size=DIMENSIONS), "lc"
                )
                store.add_embeddings(
                    texts, vectors, metadata, ids=[str(uuid.uuid4()) for _ in texts]
                )

            jobs["langchain-postgres"] = langchain
        if importlib.util.find_spec("llama_index.vector_stores.postgres"):
            from llama_index.core.schema import TextNode
            from llama_index.vector_stores.postgres import PGVectorStore as LlamaStore

            host = dsn.partition("host=")[2]

            def llama() -> None:
                connection.execute("DROP TABLE IF EXISTS data_li")
                nodes = [
                    TextNode(text=text, embedding=vector, metadata=facts, id_=str(n))
                    for n, (text, vector, facts) in enumerate(
                        zip(texts, vectors, metadata, strict=True)
                    )
                ]
                store = LlamaStore(
                    connection_string=f"postgresql+psycopg2://postgres@/postgres?host={host}",
                    async_connection_string=f"postgresql+asyncpg://postgres@/postgres?host={host}",
                    table_name="li",
                    schema_name="public",
                    embed_dim=DIMENSIONS,
                )
                store.add(nodes)

            jobs["llama-index"] = llama
        seconds = interleaved(jobs, options.rounds)
    print(f"\n## Against what people use, {len(rows)} rows of vector({DIMENSIONS}) (rows/s)")
    for name in seconds:
        rate = len(rows) / statistics.median(seconds[name])
        print(f"{name:20} {rate:9,.0f}  nimbed is {ratio_of(seconds, name, 'nimbed'):5.1f} x")


def overlap(dsn: str, options: argparse.Namespace) -> None:
    """End to end with MiniLM: what loading adds to embedding."""
    from english import passages

    import nimbed

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
    added = ratio_of(seconds, "embed + load", "embed") - 1
    print(f"loading adds {added:+.1%} to embedding")


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
        fresh(connection, batch.spec, "bit")
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
                ).fetchall()

        seconds = interleaved({"bare SQL": bare, "nimbed": ours}, options.rounds)
    for name, times in seconds.items():
        print(f"{name:10} {1000 * statistics.median(times) / len(queries):6.2f} ms a question")
    print(f"nimbed / bare = {ratio_of(seconds, 'nimbed', 'bare SQL'):.2f}")


def memory(dsn: str, options: argparse.Namespace) -> None:
    """Peak memory of a process that loads so many rows from a generator."""
    print("\n## Peak memory of the loading process (MB)")
    for rows in (options.rows // 4, options.rows, options.rows * 3):
        done = subprocess.run(
            [sys.executable, __file__, "--dsn", dsn, "--rows", str(rows), "one-load"],
            check=True,
            capture_output=True,
            text=True,
        )
        print(f"{rows:9} rows {done.stdout.strip():>8}")


def one_load(dsn: str, options: argparse.Namespace) -> None:
    rows, batch = made("bit", PART)

    def stream() -> Iterator[tuple[list[Row], EmbeddingBatch]]:
        for start in range(0, options.rows, PART):
            yield (
                [
                    Row(start + n, row.text, f"{start}-{n}", row.columns)
                    for n, row in enumerate(rows)
                ],
                batch,
            )

    with psycopg.connect(dsn, autocommit=True) as connection:
        fresh(connection, batch.spec, "bit")
        VectorTable(connection, "t").load_embedded(stream(), batch.spec)
    # Not getrusage: that counts what the parent held when it forked.
    (peak,) = (
        line.split()[1]
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    print(f"{int(peak) / 1024:.0f}")


def interleaved(
    jobs: Mapping[str, Callable[[], None]],
    rounds: int,
    *,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(rounds):
        order = list(jobs) if round_ % 2 == 0 else list(reversed(jobs))
        for name in order:
            before()
            begin = time.perf_counter()
            jobs[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio_of(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    pairs = zip(seconds[slow], seconds[fast], strict=True)
    return statistics.median(a / b for a, b in pairs)


PARTS: dict[str, Callable[[str, argparse.Namespace], None]] = {
    "load": load,
    "rivals": rivals,
    "overlap": overlap,
    "search": search,
    "memory": memory,
    "one-load": one_load,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=list(PARTS))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dsn")
    options = parser.parse_args()
    wanted = options.parts or ["load", "rivals", "search", "memory", "overlap"]
    with ExitStack() as stack:
        dsn = options.dsn
        if dsn is None:
            folder = Path(tempfile.mkdtemp(prefix="nimbed-bench-", dir="/tmp"))
            folder.chmod(0o755)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            dsn = stack.enter_context(embedded_server(folder / "data"))
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("CREATE EXTENSION vector")
        for part in wanted:
            PARTS[part](dsn, options)


if __name__ == "__main__":
    main()
