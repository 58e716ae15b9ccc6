"""What people use instead: langchain-postgres and LlamaIndex's PGVectorStore.

On a twentieth of the rows: their rate does not depend on the number.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
from measure import median_ratio
from pgvector_rows import DIMENSIONS, fresh, interleaved, made, parts

from nimbed_pgvector import VectorTable


def rivals(dsn: str, options: argparse.Namespace) -> None:
    rows, batch = made("vector", options.rows // 20)
    vectors = batch.vectors.tolist()
    texts = [row.text for row in rows]
    metadata = [dict(row.columns) for row in rows]
    ready = parts(rows, batch)
    with psycopg.connect(dsn, autocommit=True) as connection:

        def ours() -> None:
            VectorTable(connection, "t").load_embedded(ready, batch.spec)

        jobs: dict[str, Callable[[], None]] = {"nimbed": ours}
        if importlib.util.find_spec("langchain_postgres"):
            jobs["langchain-postgres"] = langchain(dsn, texts, vectors, metadata)
        if importlib.util.find_spec("llama_index.vector_stores.postgres"):
            jobs["llama-index"] = llama_index(dsn, texts, vectors, metadata)

        def clean() -> None:
            connection.execute("TRUNCATE lc") if "langchain-postgres" in jobs else None
            connection.execute("DROP TABLE IF EXISTS data_li")
            fresh(connection, batch.spec)

        seconds = interleaved(jobs, options.rounds, before=clean)
    print(f"\n## Against what people use, {len(rows)} rows of vector({DIMENSIONS}) (rows/s)")
    for name in seconds:
        rate = len(rows) / statistics.median(seconds[name])
        ratio = median_ratio(seconds[name], seconds["nimbed"])
        print(f"{name:20} {rate:9,.0f}  nimbed is {ratio:5.1f} x")


def langchain(
    dsn: str,
    texts: list[str],
    vectors: list[list[float]],
    metadata: Sequence[Mapping[str, Any]],
) -> Callable[[], None]:
    from langchain_core.embeddings import DeterministicFakeEmbedding
    from langchain_postgres import PGEngine, PGVectorStore

    engine = PGEngine.from_connection_string(dsn.replace("://", "+psycopg://"))
    engine.init_vectorstore_table("lc", DIMENSIONS, overwrite_existing=True)
    store = PGVectorStore.create_sync(engine, DeterministicFakeEmbedding(size=DIMENSIONS), "lc")

    def add() -> None:
        ids = [str(uuid.uuid4()) for _ in texts]
        store.add_embeddings(texts, vectors, [dict(facts) for facts in metadata], ids=ids)

    return add


def llama_index(
    dsn: str,
    texts: list[str],
    vectors: list[list[float]],
    metadata: Sequence[Mapping[str, Any]],
) -> Callable[[], None]:
    from llama_index.core.schema import TextNode
    from llama_index.vector_stores.postgres import PGVectorStore

    host = dsn.partition("host=")[2]

    def add() -> None:
        nodes = [
            TextNode(text=text, embedding=vector, metadata=dict(facts), id_=str(place))
            for place, (text, vector, facts) in enumerate(
                zip(texts, vectors, metadata, strict=True)
            )
        ]
        store = PGVectorStore(
            connection_string=f"postgresql+psycopg2://postgres@/postgres?host={host}",
            async_connection_string=f"postgresql+asyncpg://postgres@/postgres?host={host}",
            table_name="li",
            schema_name="public",
            embed_dim=DIMENSIONS,
        )
        store.add(nodes)

    return add
