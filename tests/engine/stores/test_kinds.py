"""Sparse vectors and multi-vectors in the table of databases, and in real ones."""

from __future__ import annotations

import json
from typing import Any, get_args

import numpy as np
import pytest

from nimbed import FakeEmbedder, MultiVectorBatch, MultiVectorSpec, SparseBatch, SparseSpec, stores
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.search import distances, nearest
from nimbed.spec import InputType, TokenType

WORDS = [f"word{number}" for number in range(17)]
SPARSE = SparseSpec(model="m", vocabulary="v", dimensions=10, max_active=1_000)
WITH_SPARSE = {
    "elasticsearch", "milvus", "opensearch", "oracle", "pgvector", "qdrant", "vespa",
}  # fmt: skip
WITH_MULTI = {"elasticsearch", "lancedb", "milvus", "qdrant", "vespa", "weaviate"}
K = 10


def texts(rows: int, seed: int, longest: int = 9) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(rows)]


def sparse(seed: int, role: InputType, rows: int = 300) -> SparseBatch:
    """Weights without ties, as models give them."""
    rng = np.random.default_rng(seed)
    spec = SparseSpec(model="m", vocabulary="v", dimensions=30_522)
    each = []
    for _ in range(rows):
        ids = np.sort(rng.choice(200, rng.integers(1, 40), replace=False)).astype(np.int32)
        each.append((ids * 150, rng.random(len(ids)).astype(np.float32) + 0.01))
    counts = np.ones(rows, np.int32)
    return SparseBatch.from_rows(each, spec=spec, input_type=role, token_counts=counts)


def multi(rows: int, seed: int, role: InputType, kind: TokenType) -> MultiVectorBatch:
    return FakeEmbedder().embed_multi(texts(rows, seed), input_type=role, token_type=kind)


def two_rows(spec: SparseSpec) -> SparseBatch:
    rows = [
        (np.array([0, 4], np.int32), np.array([0.5, 2], np.float32)),
        (np.array([9], np.int32), np.array([1], np.float32)),
    ]
    counts = np.ones(2, np.int32)
    return SparseBatch.from_rows(rows, spec=spec, input_type="passage", token_counts=counts)


@pytest.mark.parametrize("store", stores.names())
def test_every_store_has_sparse_vectors_or_says_what_to_do(store: str) -> None:
    if store not in WITH_SPARSE:
        with pytest.raises(ConfigurationError, match=f"{store} stores no sparse vectors: .{{15}}"):
            stores.field(SPARSE, store)
        return
    field = stores.field(SPARSE, store)
    assert len(field.encode(two_rows(SPARSE))) == 2
    described = json.loads(json.dumps(field.to_dict()))
    assert described["fingerprint"] == SPARSE.fingerprint
    with pytest.raises(ConfigurationError, match="cosine does not rank sparse vectors; use dot"):
        stores.field(SPARSE, store, metric="cosine")
    with pytest.raises(SpaceMismatchError, match="vocabulary 'v' and 'w'"):
        field.encode(two_rows(SparseSpec(model="m", vocabulary="w", dimensions=10, max_active=9)))


@pytest.mark.parametrize("kind", get_args(TokenType))
@pytest.mark.parametrize("store", stores.names())
def test_every_store_has_multi_vectors_or_says_what_to_do(store: str, kind: TokenType) -> None:
    batch = multi(2, 0, "passage", kind)
    if store not in WITH_MULTI or (store, kind) == ("lancedb", "int8"):
        with pytest.raises(ConfigurationError, match=f"{store} stores no .*multi-vectors: .{{15}}"):
            stores.field(batch.spec, store)
        return
    field = stores.field(batch.spec, store, metric="maxsim")
    assert len(field.encode(batch)) == 2
    json.dumps(field.to_dict())
    with pytest.raises(SpaceMismatchError, match="sparse vectors with multi|multi vectors with sp"):
        field.encode(two_rows(SPARSE))


def test_the_payloads_are_those_of_the_clients() -> None:
    encoded = {name: stores.field(SPARSE, name).encode(two_rows(SPARSE)) for name in WITH_SPARSE}
    named = [{"0": 0.5, "4": 2.0}, {"9": 1.0}]
    triples = [(size, ids, list(values)) for size, ids, values in encoded.pop("oracle")]
    assert triples == [(10, [0, 4], [0.5, 2.0]), (10, [9], [1.0])]
    assert encoded == {
        "elasticsearch": named,
        "opensearch": named,
        "vespa": [{"cells": row} for row in named],
        "milvus": [{0: 0.5, 4: 2.0}, {9: 1.0}],
        "qdrant": [{"indices": [0, 4], "values": [0.5, 2.0]}, {"indices": [9], "values": [1.0]}],
        "pgvector": ["{1:0.5,5:2}/10", "{10:1}/10"],
    }
    assert stores.field(SPARSE, "vespa").type == "tensor<float>(token{})"
    spec = MultiVectorSpec.of(model="m", dimensions=8, token_type="ubinary")
    signs = [np.array([[1, -1, -1, -1, -1, -1, -1, 1], [-1, 1, 1, -1, -1, -1, 1, 1.0]])]
    bits = MultiVectorBatch.from_floats(
        signs, spec=spec, input_type="passage", token_counts=np.ones(1, np.int32)
    )
    assert stores.field(spec, "elasticsearch").encode(bits) == [["81", "63"]]
    assert stores.field(spec, "vespa").encode(bits) == [{"blocks": {"0": [-127], "1": [99]}}]
    assert stores.field(spec, "vespa").type == "tensor<int8>(token{}, x[1])"


def test_limits_of_sparse_vectors_are_said_before_any_exists() -> None:
    def limited(most: int | None, dimensions: int = 250_002) -> SparseSpec:
        return SparseSpec(model="m", vocabulary="v", dimensions=dimensions, max_active=most)

    field = stores.field(limited(1_000), "pgvector")
    assert (field.type, field.operator) == ("sparsevec(250002)", "<#>")
    assert field.options == {"index": "hnsw", "operator_class": "sparsevec_ip_ops"}
    for most in (1_001, None):
        field = stores.field(limited(most), "pgvector")
        assert field.options == {}
        assert "max_active=1000" in field.note
    assert stores.field(limited(None, 900), "pgvector").options  # it can have no more
    with pytest.raises(ConfigurationError, match="at most 16000 weights a vector; got max_active"):
        stores.field(limited(16_001), "pgvector")
    with pytest.raises(ConfigurationError, match=r"at most 65535 dimensions.*has 250002"):
        stores.field(limited(100), "oracle")
    long = (np.arange(16_001, dtype=np.int32), np.ones(16_001, np.float32))
    batch = SparseBatch.from_rows(
        [long], spec=limited(None), input_type="passage", token_counts=np.ones(1, np.int32)
    )
    with pytest.raises(ConfigurationError, match="row 0 has 16001: embed with max_active=16000"):
        stores.field(batch.spec, "pgvector").encode(batch)


def with_qdrant(vectors: dict[str, Any], passages: list[Any], queries: list[Any]) -> list[list]:
    qdrant = pytest.importorskip("qdrant_client")
    client = qdrant.QdrantClient(":memory:")
    client.create_collection("c", **vectors)
    points = [
        qdrant.models.PointStruct(id=row, vector={"v": vector})
        for row, vector in enumerate(passages)
    ]
    client.upsert("c", points)
    found = [client.query_points("c", query=query, using="v", limit=K).points for query in queries]
    client.close()
    return [[(point.id, point.score) for point in points] for points in found]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_qdrant_ranks_sparse_vectors_as_numpy_does() -> None:
    models = pytest.importorskip("qdrant_client").models
    passages, queries = sparse(1, "passage"), sparse(2, "query", 6)
    field = stores.field(passages.spec, "qdrant")
    found = with_qdrant(
        {"vectors_config": {}, "sparse_vectors_config": {"v": models.SparseVectorParams()}},
        [models.SparseVector(**vector) for vector in field.encode(passages)],
        [models.SparseVector(**vector) for vector in field.encode(queries)],
    )
    expected = nearest(queries, passages, K)
    assert [[row for row, _ in hits] for hits in found] == expected.rows.tolist()
    scores = [[score for _, score in hits] for hits in found]
    np.testing.assert_allclose(scores, -expected.distances, rtol=1e-5)


@pytest.mark.parametrize("kind", get_args(TokenType))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_qdrant_ranks_multi_vectors_as_numpy_does(kind: TokenType) -> None:
    models = pytest.importorskip("qdrant_client").models
    passages, queries = multi(120, 3, "passage", kind), multi(5, 4, "query", kind)
    field = stores.field(passages.spec, "qdrant")
    found = with_qdrant(
        {
            "vectors_config": {
                "v": models.VectorParams(
                    size=field.options["size"],
                    distance=models.Distance(field.metric),
                    datatype=models.Datatype(field.type),
                    multivector_config=models.MultiVectorConfig(
                        **field.options["multivector_config"]
                    ),
                )
            }
        },
        field.encode(passages),
        field.encode(queries),
    )
    exact = -distances(queries, passages)
    scores = np.array([[score for _, score in hits] for hits in found])
    rows = np.array([[row for row, _ in hits] for hits in found])
    # Texts that share their words tie: what counts is that the best scores are found.
    rtol = 2e-3 if kind == "half" else 1e-5
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :K], rtol=rtol)
    np.testing.assert_allclose(np.take_along_axis(exact, rows, axis=1), scores, rtol=rtol)


@pytest.mark.parametrize("kind", ["float", "half", "ubinary"])
def test_lancedb_ranks_multi_vectors_as_numpy_does(kind: TokenType, tmp_path: Any) -> None:
    lancedb = pytest.importorskip("lancedb")
    pa = pytest.importorskip("pyarrow")
    passages, queries = multi(120, 5, "passage", kind), multi(5, 6, "query", kind)
    field = stores.field(passages.spec, "lancedb")
    width = passages.spec.dimensions
    assert field.type == f"list<fixed_size_list<float32>[{width}]>"
    column = pa.array(field.encode(passages), pa.list_(pa.list_(pa.float32(), width)))
    table = lancedb.connect(tmp_path).create_table(
        "t", pa.table({"row": pa.array(range(len(passages))), "vector": column})
    )
    exact = -distances(queries, passages)
    for place, query in enumerate(field.encode(queries)):
        hits = table.search(np.array(query, np.float32)).distance_type(field.metric)
        rows = hits.limit(K).to_arrow()["row"].to_pylist()
        np.testing.assert_allclose(exact[place][rows], -np.sort(-exact[place])[:K], rtol=1e-5)
