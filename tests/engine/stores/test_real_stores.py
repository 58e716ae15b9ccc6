"""The neighbours that a real store returns are the exact ones of numpy, for every type."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from nimbed import EmbeddingBatch, FakeEmbedder, search, stores
from nimbed.errors import ConfigurationError
from nimbed.fake import FAKE_CARD
from nimbed.spec import EmbeddingType, Metric
from nimbed.stores import StoreField

K = 10
PASSAGES, QUERIES = 600, 5
Search = Callable[[StoreField, Any, Any], tuple[NDArray[Any], NDArray[Any]]]


def batches(
    embedding_type: EmbeddingType, metric: Metric = "cosine"
) -> tuple[EmbeddingBatch, EmbeddingBatch]:
    embedder = FakeEmbedder(dataclasses.replace(FAKE_CARD, metric=metric))
    passages = embedder.embed(
        [f"passage {number}" for number in range(PASSAGES)],
        input_type="passage",
        embedding_type=embedding_type,
    )
    queries = embedder.embed(
        [f"query {number}" for number in range(QUERIES)],
        input_type="query",
        embedding_type=embedding_type,
    )
    return queries, passages


def with_faiss(field: StoreField, queries: Any, passages: Any) -> tuple[Any, Any]:
    faiss = pytest.importorskip("faiss")
    index = getattr(faiss, field.type)(field.options["d"])
    index.add(passages)
    distances, rows = index.search(queries, K)
    if field.metric == "METRIC_INNER_PRODUCT":
        return rows, 1 - distances
    return rows, np.sqrt(distances) if field.metric == "METRIC_L2" else distances


def with_usearch(field: StoreField, queries: Any, passages: Any) -> tuple[Any, Any]:
    usearch = pytest.importorskip("usearch.index")
    index = usearch.Index(ndim=field.options["ndim"], metric=field.metric, dtype=field.type)
    index.add(np.arange(len(passages)), passages)
    found = index.search(queries, K, exact=True)
    squared = field.metric == "l2sq"
    return found.keys, np.sqrt(found.distances) if squared else found.distances


def with_lancedb(field: StoreField, queries: Any, passages: Any) -> tuple[Any, Any]:
    lancedb = pytest.importorskip("lancedb")
    pa = pytest.importorskip("pyarrow")
    width = len(passages[0])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(passages)), width)
    assert field.type == f"fixed_size_list<{passages.dtype}>[{width}]"
    with tempfile.TemporaryDirectory() as folder:
        table = lancedb.connect(folder).create_table(
            "t", pa.table({"row": pa.array(range(len(passages))), "vector": vectors})
        )
        hits = [
            table.search(query).distance_type(field.metric).limit(K).to_arrow() for query in queries
        ]
        rows = np.array([hit["row"].to_pylist() for hit in hits])
        distances = np.array([hit["_distance"].to_pylist() for hit in hits])
    return rows, np.sqrt(distances) if field.metric == "l2" else distances


def with_qdrant(field: StoreField, queries: Any, passages: Any) -> tuple[Any, Any]:
    qdrant = pytest.importorskip("qdrant_client")
    models = qdrant.models
    client = qdrant.QdrantClient(":memory:")
    client.create_collection(
        "c",
        vectors_config=models.VectorParams(
            size=field.options["size"],
            distance=models.Distance(field.metric),
            datatype=models.Datatype(field.type),
        ),
    )
    client.upsert(
        "c",
        [
            models.PointStruct(id=row, vector=vector.tolist())
            for row, vector in enumerate(np.asarray(passages, np.float32))
        ],
    )
    found = [
        client.query_points("c", query=query.tolist(), limit=K).points
        for query in np.asarray(queries, np.float32)
    ]
    client.close()
    rows = np.array([[point.id for point in points] for points in found])
    scores = np.array([[point.score for point in points] for points in found])
    return rows, 1 - scores if field.metric == "Cosine" else scores


def with_sqlite_vec(field: StoreField, queries: Any, passages: Any) -> tuple[Any, Any]:
    apsw = pytest.importorskip("apsw")
    sqlite_vec = pytest.importorskip("sqlite_vec")
    connection = apsw.Connection(":memory:")
    connection.enable_load_extension(True)
    connection.load_extension(sqlite_vec.loadable_path())
    metric = field.options.get("distance_metric")
    option = f" distance_metric={metric}" if metric else ""
    connection.execute(f"CREATE VIRTUAL TABLE v USING vec0(embedding {field.type}{option})")
    argument = field.options["argument"]
    connection.executemany(
        f"INSERT INTO v (rowid, embedding) VALUES (?, {argument})", list(enumerate(passages))
    )
    found = [
        list(
            connection.execute(
                f"SELECT rowid, distance FROM v WHERE embedding MATCH {argument} AND k = {K}",
                (query,),
            )
        )
        for query in queries
    ]
    connection.close()
    return (
        np.array([[row for row, _ in hits] for hits in found]),
        np.array([[distance for _, distance in hits] for hits in found]),
    )


REAL: list[tuple[str, Search]] = [
    ("faiss", with_faiss),
    ("usearch", with_usearch),
    ("lancedb", with_lancedb),
    ("qdrant", with_qdrant),
    ("sqlite-vec", with_sqlite_vec),
]


@pytest.mark.parametrize("embedding_type", get_args(EmbeddingType))
@pytest.mark.parametrize(("store", "run"), REAL)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_real_store_returns_the_exact_neighbours(
    store: str, run: Search, embedding_type: EmbeddingType
) -> None:
    queries, passages = batches(embedding_type)
    field = stores.field(passages.spec, store, emulate=True)
    rows, distances = run(field, field.encode(queries), field.encode(passages))
    expected = search.nearest(queries, passages, K)
    if queries.spec.packed:
        np.testing.assert_array_equal(np.sort(distances, axis=1), expected.distances)
        own = search.distances(queries, passages)
        np.testing.assert_array_equal(
            np.take_along_axis(own, np.asarray(rows, np.intp), axis=1), distances
        )
    elif embedding_type == "uint8" or store == "usearch":
        # Dequantised distances differ from those of the codes by one factor; ranks do not.
        assert [set(row) for row in rows.tolist()] == [set(row) for row in expected.rows.tolist()]
    else:
        np.testing.assert_allclose(distances, expected.distances, atol=2e-6)
        assert [set(row) for row in rows.tolist()] == [set(row) for row in expected.rows.tolist()]


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
@pytest.mark.parametrize(("store", "run"), REAL)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_real_store_ranks_floats_by_the_metric_of_their_model(
    store: str, run: Search, metric: Metric
) -> None:
    queries, passages = batches("float", metric)
    expected = search.nearest(queries, passages, K)
    cosines = search.nearest(*batches("float"), K)
    assert not np.array_equal(expected.rows, cosines.rows)
    if (store, metric) == ("sqlite-vec", "dot"):
        with pytest.raises(ConfigurationError, match="sqlite-vec does not rank.*by dot.*pgvector"):
            stores.field(passages.spec, store)
        return
    field = stores.field(passages.spec, store)
    rows, _ = run(field, field.encode(queries), field.encode(passages))
    assert [set(row) for row in rows.tolist()] == [set(row) for row in expected.rows.tolist()]


def test_sqlite_vec_quantises_a_query_to_the_bits_that_nimbed_stores() -> None:
    apsw = pytest.importorskip("apsw")
    sqlite_vec = pytest.importorskip("sqlite_vec")
    connection = apsw.Connection(":memory:")
    connection.enable_load_extension(True)
    connection.load_extension(sqlite_vec.loadable_path())
    floats = FakeEmbedder().embed(["a"], input_type="query")
    bits = FakeEmbedder().embed(["a"], input_type="query", embedding_type="ubinary")
    (theirs,) = connection.execute(
        "SELECT vec_quantize_binary(?)", (json.dumps(floats.vectors[0].tolist()),)
    )
    assert [theirs[0]] == stores.field(bits.spec, "sqlite-vec").encode(bits)
