"""Other libraries' stores on the tables that nimbed makes for them: their queries use the index."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import psycopg
import pytest

from nimbed import VectorSpec
from nimbed.errors import ConfigurationError
from nimbed_pgvector.frameworks import langchain_table, llama_index_arguments

pytestmark = pytest.mark.postgres
WIDE = 2048
SPEC = VectorSpec.of(model="m", dimensions=WIDE)


def vectors(count: int) -> list[list[float]]:
    made = np.random.default_rng(0).standard_normal((count, WIDE), np.float32)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).tolist()


def plan(connection: psycopg.Connection, table: str, kind: str) -> str:
    text = "[" + ",".join(map(str, vectors(1)[0])) + "]"
    connection.execute("SET enable_seqscan = off")
    (row,) = connection.execute(
        f"EXPLAIN (FORMAT JSON) SELECT 1 FROM {table} ORDER BY embedding <=> %s::{kind} LIMIT 5",
        (text,),
    ).fetchall()
    return json.dumps(row[0])


def test_what_they_cannot_rank_is_refused() -> None:
    bits = VectorSpec.of(model="m", dimensions=64, embedding_type="ubinary")
    for make in (lambda: langchain_table(bits, "t"), lambda: llama_index_arguments(bits)):
        with pytest.raises(ConfigurationError, match="compared by hamming; use nimbed_pgvector"):
            make()


def test_the_table_for_langchain_can_be_made_and_indexed(connection: psycopg.Connection) -> None:
    connection.execute("CREATE EXTENSION vector")
    table, index = langchain_table(SPEC, "lc")
    connection.execute(table)
    connection.execute(index)
    assert "lc_embedding_hnsw" in plan(connection, "lc", f"halfvec({WIDE})")


def test_langchains_store_takes_the_table(dsn: str, connection: psycopg.Connection) -> None:
    lc = pytest.importorskip("langchain_postgres")
    from langchain_core.embeddings import Embeddings

    made = vectors(30)

    class Fixed(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [made[int(text)] for text in texts]

        def embed_query(self, text: str) -> list[float]:
            return made[int(text)]

    connection.execute("CREATE EXTENSION vector")
    table, index = langchain_table(SPEC, "lc")
    connection.execute(table)
    engine = lc.PGEngine.from_connection_string(dsn.replace("://", "+psycopg://"))
    try:
        store = lc.PGVectorStore.create_sync(engine, Fixed(), "lc")
        store.add_texts([str(n) for n in range(30)])
        connection.execute(index)
        assert [hit.page_content for hit in store.similarity_search("7", k=1)] == ["7"]
    finally:
        asyncio.run(engine.close())  # else its pool's connections wait for a collection


def test_llama_indexes_store_makes_an_index_that_it_uses(
    dsn: str, connection: psycopg.Connection
) -> None:
    li = pytest.importorskip("llama_index.vector_stores.postgres")
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores import VectorStoreQuery

    arguments: Any = llama_index_arguments(SPEC)
    host, name = dsn.partition("host=")[2], dsn.partition("@/")[2].partition("?")[0]
    store = li.PGVectorStore(
        connection_string=f"postgresql+psycopg2://postgres@/{name}?host={host}",
        async_connection_string=f"postgresql+asyncpg://postgres@/{name}?host={host}",
        table_name="li",
        schema_name="public",
        **arguments,
    )
    made = vectors(30)
    nodes = [TextNode(text=str(n), embedding=made[n], id_=str(n)) for n in range(30)]
    store.add(nodes)
    found = store.query(VectorStoreQuery(query_embedding=made[7], similarity_top_k=1))
    assert found.ids == ["7"]
    assert "Index Scan" in plan(connection, "data_li", f"halfvec({WIDE})")
