"""Tables and arguments for LangChain's and LlamaIndex's pgvector stores, with an index they use.

LangChain's and LlamaIndex's stores cannot index more than 2,000 dimensions as they come, and
LlamaIndex's half-precision default builds an index that its own queries never touch. Both search
floats by cosine alone; packed types belong in a :class:`nimbed_pgvector.VectorTable`.
"""

from __future__ import annotations

from typing import TypedDict

from psycopg import sql

from nimbed import VectorSpec
from nimbed.errors import ConfigurationError
from nimbed_pgvector.columns import Column
from nimbed_pgvector.schema import identifier
from nimbed_pgvector.statements import trusted

__all__ = ["LlamaIndexArguments", "langchain_table", "llama_index_arguments"]


class HnswArguments(TypedDict):
    """``hnsw_kwargs`` of LlamaIndex's PGVectorStore."""

    hnsw_m: int
    hnsw_ef_construction: int
    hnsw_ef_search: int
    hnsw_dist_method: str


class LlamaIndexArguments(TypedDict):
    """Arguments of LlamaIndex's PGVectorStore that depend on the vectors."""

    embed_dim: int
    use_halfvec: bool
    hnsw_kwargs: HnswArguments


def langchain_table(
    spec: VectorSpec, table: str, *, m: int = 16, ef_construction: int = 64
) -> tuple[sql.Composed, sql.Composed]:
    """Return the statements that make a table for langchain-postgres, and its index.

    Run the first before ``PGVectorStore.create``, the second after the load.

    Args:
        spec: The contract of the vectors; a float one.
        table: ``table`` or ``schema.table``.
        m: Links of a row in the graph.
        ef_construction: Candidates looked at for each row.

    Raises:
        ConfigurationError: If LangChain's store cannot rank such vectors.
    """
    column = _cosine(spec, "langchain-postgres")
    name = identifier(table)
    index = f"{table.rpartition('.')[2]}_embedding_hnsw"
    return (
        sql.SQL(
            "CREATE TABLE {} (langchain_id uuid PRIMARY KEY, content text NOT NULL,"
            " embedding {} NOT NULL, langchain_metadata json)"
        ).format(name, trusted(column.type)),
        sql.SQL(
            "CREATE INDEX {} ON {} USING hnsw (embedding {}) WITH (m = {}, ef_construction = {})"
        ).format(
            sql.Identifier(index.encode()[-63:].decode(errors="ignore")),
            name,
            trusted(column.operator_class),
            sql.Literal(m),
            sql.Literal(ef_construction),
        ),
    )


def llama_index_arguments(
    spec: VectorSpec, *, m: int = 16, ef_construction: int = 64, ef_search: int = 40
) -> LlamaIndexArguments:
    """Return what LlamaIndex's PGVectorStore needs to build an index that its queries use.

    Args:
        spec: The contract of the vectors; a float one.
        m: Links of a row in the graph.
        ef_construction: Candidates looked at for each row.
        ef_search: Candidates looked at for each query.

    Raises:
        ConfigurationError: If LlamaIndex's store cannot rank such vectors.
    """
    column = _cosine(spec, "LlamaIndex's PGVectorStore")
    return {
        "embed_dim": spec.dimensions,
        "use_halfvec": column.kind == "halfvec",
        "hnsw_kwargs": {
            "hnsw_m": m,
            "hnsw_ef_construction": ef_construction,
            "hnsw_ef_search": ef_search,
            "hnsw_dist_method": column.operator_class,
        },
    }


def _cosine(spec: VectorSpec, whose: str) -> Column:
    if spec.metric != "cosine":
        raise ConfigurationError(
            f"{whose} ranks by cosine, {spec.embedding_type} vectors are compared by "
            f"{spec.metric}; use nimbed_pgvector.VectorTable, or embedding_type='float'"
        )
    return Column.embedding(spec)
