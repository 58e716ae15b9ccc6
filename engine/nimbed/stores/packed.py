"""How each database wants packed bits, compared by Hamming distance.

One row a database. Where it has no Hamming metric, the row says which other metric gives exactly
the same neighbours. Sources: the databases' documentation, and runs of the embeddable ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from nimbed.stores.shape import Shape

__all__ = ["packed_shapes"]


def packed_shapes(d: int, w: int) -> Mapping[str, Shape]:
    """Return the shape for d bits in w bytes, by the name of the database."""
    return {
        # varbit cannot be indexed; bit(n) can, to 64,000 bits.
        "pgvector": Shape(
            f"bit({d})",
            "hamming",
            "<~>",
            "bit text",
            {"index": "hnsw", "operator_class": "bit_hamming_ops"},
            most=64_000,
        ),
        # Weaviate's hamming counts unequal floats, so packed bytes would count differing bytes.
        # Signs are also right under BQ, cosine and dot. Its server may quantise by default.
        "weaviate": Shape("number[]", "hamming", "hamming", "signs", {"quantizer": "none"}),
        "milvus": Shape(
            "BINARY_VECTOR", "HAMMING", "HAMMING", "packed bytes", {"dim": d, "index": "BIN_FLAT"}
        ),
        "qdrant": Shape(
            "float32",
            "Manhattan",
            "Manhattan",
            "zeros and ones",
            {"size": d},
            emulates="Manhattan distance over 0 and 1 counts the differing bits",
        ),
        "lancedb": Shape(
            f"fixed_size_list<uint8>[{w}]",
            "hamming",
            "hamming",
            "packed array",
            {"index": "IVF_FLAT"},  # IVF_PQ, IVF_RQ and IVF_HNSW_SQ reject uint8
        ),
        "faiss": Shape("IndexBinaryFlat", "Hamming", "search", "packed array", {"d": d}),
        "usearch": Shape("b1", "hamming", "hamming", "packed array", {"ndim": d}),
        # Its own vec_quantize_binary() puts dimension 0 into the lowest bit; so do we, or a
        # query quantised inside the database would meet reversed bytes.
        "sqlite-vec": Shape(
            f"bit[{d}]",
            "hamming",
            "vec_distance_hamming",
            "packed bytes, lsb first",
            {"argument": "vec_bit(?)"},
        ),
        # For element_type bit, l2_norm means Hamming: _score = (dims - distance) / dims.
        "elasticsearch": Shape(
            "dense_vector",
            "l2_norm",
            "knn",
            "packed hex",
            {"element_type": "bit", "dims": d, "similarity": "l2_norm"},
            most=4096,
        ),
        "opensearch": Shape(
            "knn_vector",
            "hamming",
            "knn",
            "packed signed lists",
            {"data_type": "binary", "dimension": d, "space_type": "hamming", "engine": "faiss"},
        ),
        "redis": Shape(
            "FLOAT32",
            "L2",
            "KNN",
            "zeros and ones bytes",
            {"DIM": d},
            emulates="squared L2 distance over 0 and 1 counts the differing bits",
        ),
        # euclidean is the only similarity that Atlas allows on packed bits; there it is Hamming.
        "mongodb": Shape(
            "vector",
            "euclidean",
            "$vectorSearch",
            "bson vector",
            {"numDimensions": d, "similarity": "euclidean", "subtype": 9},
        ),
        "vespa": Shape(
            f"tensor<int8>(x[{w}])",
            "hamming",
            "nearestNeighbor",
            "packed signed lists",
            {"distance-metric": "hamming"},
        ),
        "chroma": Shape(
            "float32",
            "l2",
            "l2",
            "zeros and ones lists",
            {"space": "l2"},
            emulates="squared L2 distance over 0 and 1 counts the differing bits",
        ),
        "oracle": Shape(
            f"VECTOR({d}, BINARY)", "HAMMING", "VECTOR_DISTANCE", "packed array", {"dimensions": d}
        ),
    }
