"""How each database wants float, int8 and uint8 vectors.

One row a database. int8 is compared by cosine, which no common scale can change, so its codes are
stored as they are. uint8 is compared by Euclidean distance, which a shift by 128 cannot change,
so it goes in as int8 where a database has signed bytes alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nimbed.stores.shape import Shape

__all__ = ["float_shapes", "int8_shapes", "uint8_shapes"]

# pgvector's index limits; a wider column can be stored but never indexed.
_VECTOR, _HALFVEC = 2_000, 4_000


def _pgvector(kind: str, d: int, operator: str, distance: str) -> Shape:
    options = {"index": "hnsw", "operator_class": f"{kind}_{distance}_ops"}
    metric = "cosine" if distance == "cosine" else "euclidean"
    return Shape(f"{kind}({d})", metric, operator, "vector text", options, most=_HALFVEC)


def float_shapes(d: int) -> Mapping[str, Shape]:
    """Return the shape for unit float32 vectors of d dimensions, by the name of the database."""
    search: dict[str, Any] = {"dims": d, "similarity": "cosine"}
    return {
        "pgvector": _pgvector("vector" if d <= _VECTOR else "halfvec", d, "<=>", "cosine"),
        "weaviate": Shape("number[]", "cosine", "cosine", "float lists"),
        "milvus": Shape("FLOAT_VECTOR", "COSINE", "COSINE", "float array", {"dim": d}),
        "qdrant": Shape("float32", "Cosine", "Cosine", "float array", {"size": d}),
        "lancedb": Shape(f"fixed_size_list<float32>[{d}]", "cosine", "cosine", "float array"),
        "faiss": Shape("IndexFlatIP", "METRIC_INNER_PRODUCT", "search", "unit floats", {"d": d}),
        "usearch": Shape("f32", "cos", "cos", "float array", {"ndim": d}),
        "sqlite-vec": Shape(
            f"float[{d}]",
            "cosine",
            "vec_distance_cosine",
            "float bytes",
            {"distance_metric": "cosine", "argument": "?"},
        ),
        "elasticsearch": Shape(
            "dense_vector", "cosine", "knn", "float lists", {"element_type": "float", **search},
            most=4096,
        ),
        "opensearch": Shape(
            "knn_vector", "cosinesimil", "knn", "float lists",
            {"data_type": "float", "dimension": d, "space_type": "cosinesimil"},
        ),
        "redis": Shape("FLOAT32", "COSINE", "KNN", "float bytes", {"DIM": d}),
        "mongodb": Shape(
            "vector", "cosine", "$vectorSearch", "bson vector",
            {"numDimensions": d, "similarity": "cosine", "subtype": 9},
        ),
        "vespa": Shape(
            f"tensor<float>(x[{d}])", "angular", "nearestNeighbor", "float lists",
            {"distance-metric": "angular"},
        ),
        "chroma": Shape("float32", "cosine", "cosine", "float lists", {"space": "cosine"}),
        "oracle": Shape(
            f"VECTOR({d}, FLOAT32)", "COSINE", "VECTOR_DISTANCE", "float array", {"dimensions": d}
        ),
    }  # fmt: skip


def int8_shapes(d: int) -> Mapping[str, Shape]:
    """Return the shape for int8 codes of d dimensions, by the name of the database."""
    search: dict[str, Any] = {"dims": d, "similarity": "cosine"}
    return {
        # pgvector has no int8; a halfvec holds every code exactly.
        "pgvector": _pgvector("halfvec", d, "<=>", "cosine"),
        "weaviate": Shape("number[]", "cosine", "cosine", "codes as float lists"),
        "milvus": Shape("INT8_VECTOR", "COSINE", "COSINE", "code array", {"dim": d}),
        "qdrant": Shape("float32", "Cosine", "Cosine", "codes as floats", {"size": d}),
        "lancedb": Shape(f"fixed_size_list<float32>[{d}]", "cosine", "cosine", "codes as floats"),
        "faiss": Shape("IndexFlatIP", "METRIC_INNER_PRODUCT", "search", "unit floats", {"d": d}),
        "usearch": Shape("i8", "cos", "cos", "code array", {"ndim": d}),
        "sqlite-vec": Shape(
            f"int8[{d}]", "cosine", "vec_distance_cosine", "code bytes",
            {"distance_metric": "cosine", "argument": "vec_int8(?)"},
        ),
        "elasticsearch": Shape(
            "dense_vector", "cosine", "knn", "code lists", {"element_type": "byte", **search},
            most=4096,
        ),
        "opensearch": Shape(
            "knn_vector", "cosinesimil", "knn", "code lists",
            {"data_type": "byte", "dimension": d, "space_type": "cosinesimil"},
        ),
        "redis": Shape("INT8", "COSINE", "KNN", "code bytes", {"DIM": d}),  # Redis 8 or newer
        "mongodb": Shape(
            "vector", "cosine", "$vectorSearch", "bson vector",
            {"numDimensions": d, "similarity": "cosine", "subtype": 9},
        ),
        "vespa": Shape(
            f"tensor<int8>(x[{d}])", "angular", "nearestNeighbor", "code lists",
            {"distance-metric": "angular"},
        ),
        "chroma": Shape("float32", "cosine", "cosine", "codes as float lists", {"space": "cosine"}),
        "oracle": Shape(
            f"VECTOR({d}, INT8)", "COSINE", "VECTOR_DISTANCE", "code array", {"dimensions": d}
        ),
    }  # fmt: skip


def uint8_shapes(d: int) -> Mapping[str, Shape]:
    """Return the shape for uint8 codes of d dimensions, by the name of the database."""
    search: dict[str, Any] = {"dims": d, "similarity": "l2_norm"}
    return {
        "pgvector": _pgvector("halfvec", d, "<->", "l2"),
        "weaviate": Shape("number[]", "l2-squared", "l2-squared", "codes as float lists"),
        "milvus": Shape("FLOAT_VECTOR", "L2", "L2", "codes as floats", {"dim": d}),
        "qdrant": Shape("uint8", "Euclid", "Euclid", "code array", {"size": d}),
        "lancedb": Shape(f"fixed_size_list<float32>[{d}]", "l2", "l2", "codes as floats"),
        "faiss": Shape("IndexFlatL2", "METRIC_L2", "search", "codes as floats", {"d": d}),
        # usearch 2.26 gives wrong l2sq distances for its own u8; i8 is exact.
        "usearch": Shape("i8", "l2sq", "l2sq", "signed code array", {"ndim": d}),
        "sqlite-vec": Shape(
            f"int8[{d}]", "l2", "vec_distance_l2", "signed code bytes",
            {"distance_metric": "l2", "argument": "vec_int8(?)"},
        ),
        "elasticsearch": Shape(
            "dense_vector", "l2_norm", "knn", "code lists", {"element_type": "byte", **search},
            most=4096,
        ),
        "opensearch": Shape(
            "knn_vector", "l2", "knn", "code lists",
            {"data_type": "byte", "dimension": d, "space_type": "l2"},
        ),
        "redis": Shape("UINT8", "L2", "KNN", "code bytes", {"DIM": d}),  # Redis 8 or newer
        "mongodb": Shape(
            "vector", "euclidean", "$vectorSearch", "bson vector",
            {"numDimensions": d, "similarity": "euclidean", "subtype": 9},
        ),
        "vespa": Shape(
            f"tensor<int8>(x[{d}])", "euclidean", "nearestNeighbor", "code lists",
            {"distance-metric": "euclidean"},
        ),
        "chroma": Shape("float32", "l2", "l2", "codes as float lists", {"space": "l2"}),
        "oracle": Shape(
            f"VECTOR({d}, INT8)", "EUCLIDEAN", "VECTOR_DISTANCE", "signed code array",
            {"dimensions": d},
        ),
    }  # fmt: skip
