"""The table of databases: how each one stores and compares every type of vector.

One entry a database and, in it, one template for each of ``float``, ``int8``, ``uint8`` and
``packed`` (the bits of ``binary`` and ``ubinary``). The sources are the databases' documentation
and runs of those that can be embedded. Four rules hold throughout:

- int8 is compared by cosine, which no common scale can change, so its codes are stored as they
  are; where a database has no signed bytes they are stored as floats, which hold every code.
- uint8 is compared by Euclidean distance, which a shift by 128 cannot change, so it is stored as
  int8 where a database has signed bytes only.
- Bits are compared by Hamming distance. Where a database has none, the template names another
  metric that gives exactly the same neighbours, and says why.
- Floats of a model that ranks by ``dot`` or ``euclidean`` keep their length, and are compared by
  that metric; :data:`_LENGTHS` has how each database spells it, if it has it at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from nimbed.errors import ConfigurationError
from nimbed.spec import MultiVectorSpec, SparseSpec, VectorSpec
from nimbed.stores.payloads import Payload

__all__ = ["DATABASES", "AnySpec", "Database", "Template", "keeping_lengths"]

AnySpec: TypeAlias = VectorSpec | SparseSpec | MultiVectorSpec

# Placeholders: the number of dimensions, and of the bytes that hold their bits.
_D, _W = "{d}", "{w}"


@dataclass(frozen=True, slots=True)
class Template:
    """How a database stores one type of vector, whatever its dimensions.

    Attributes:
        type: Type of the field or column; ``{d}`` and ``{w}`` stand for dimensions and bytes.
        metric: The metric, as the database spells it.
        operator: What a query orders by: operator, function or search parameter.
        payload: Name of what the client takes, in :data:`nimbed.stores.payloads.PAYLOADS`.
        options: Further settings of the field or its index; the value ``{d}`` stands for the
            dimensions as a number.
        most: Most dimensions that the database can index; None where no limit matters.
        wider: What takes vectors of more dimensions than ``most``.
        emulates: Empty if the database has the metric; else why the one used instead gives
            exactly the same neighbours.
    """

    type: str
    metric: str
    operator: str
    payload: Payload
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    most: int | None = None
    wider: Template | None = None
    emulates: str = ""

    def type_for(self, spec: AnySpec) -> str:
        """Return the type of the field for the vectors of a spec."""
        width = spec.dimensions if isinstance(spec, SparseSpec) else spec.width
        return self.type.format(d=spec.dimensions, w=width)

    def options_for(self, spec: AnySpec) -> dict[str, Any]:
        """Return the settings of the field for the vectors of a spec."""
        return {
            name: spec.dimensions if value == _D else value for name, value in self.options.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """How a database stores each type of vector; ``packed`` is for binary and ubinary."""

    float: Template
    int8: Template
    uint8: Template
    packed: Template

    def template(self, spec: VectorSpec) -> Template:
        """Return the template for the vectors of a spec; the widest if none is wide enough."""
        kind = "packed" if spec.packed else spec.embedding_type
        found: Template = getattr(self, kind)
        while found.most is not None and spec.dimensions > found.most and found.wider is not None:
            found = found.wider
        return found


def _hnsw(operator_class: str) -> dict[str, Any]:
    """Return pgvector's options: its index and the operators that the index serves."""
    return {"index": "hnsw", "operator_class": operator_class}


_BITS_BY_L2 = "squared L2 distance over 0 and 1 counts the differing bits"

# pgvector's halfvec holds every int8 and uint8 code exactly. A wider column than the index takes
# could be stored, but never indexed.
_HALFVEC = Template(
    "halfvec({d})", "cosine", "<=>", "vector text", _hnsw("halfvec_cosine_ops"), most=4_000
)


@dataclass(frozen=True, slots=True)
class _Spelling:
    """How a database compares floats by another metric; what is empty is as for cosine.

    Attributes:
        metric: The metric.
        operator: What a query orders by.
        option: The word that stands in the options in place of cosine's; the metric if empty.
        type: Type of the field or column.
        payload: Name of what the client takes.
    """

    metric: str
    operator: str
    option: str = ""
    type: str = ""
    payload: Payload | None = None


def _alike(dot: str, euclidean: str) -> dict[str, _Spelling]:
    """Return the metrics of a database whose queries name the metric itself."""
    return {"dot": _Spelling(dot, dot), "euclidean": _Spelling(euclidean, euclidean)}


_LENGTHS: Mapping[str, Mapping[str, _Spelling]] = {
    "pgvector": {
        "dot": _Spelling("inner product", "<#>", "ip"),
        "euclidean": _Spelling("euclidean", "<->", "l2"),
    },
    "weaviate": _alike("dot", "l2-squared"),
    "milvus": _alike("IP", "L2"),
    "qdrant": _alike("Dot", "Euclid"),
    "lancedb": _alike("dot", "l2"),
    "faiss": {
        "dot": _Spelling("METRIC_INNER_PRODUCT", "search", payload="float array"),
        "euclidean": _Spelling("METRIC_L2", "search", type="IndexFlatL2", payload="float array"),
    },
    "usearch": _alike("ip", "l2sq"),
    "sqlite-vec": {"euclidean": _Spelling("l2", "vec_distance_l2")},  # it has no dot product
    # By dot_product Elasticsearch takes unit vectors alone.
    "elasticsearch": {
        "dot": _Spelling("max_inner_product", "knn"),
        "euclidean": _Spelling("l2_norm", "knn"),
    },
    "opensearch": {"dot": _Spelling("innerproduct", "knn"), "euclidean": _Spelling("l2", "knn")},
    "redis": {"dot": _Spelling("IP", "KNN"), "euclidean": _Spelling("L2", "KNN")},
    "mongodb": {"euclidean": _Spelling("euclidean", "$vectorSearch")},  # dotProduct: unit vectors
    "vespa": {
        "dot": _Spelling("dotproduct", "nearestNeighbor"),
        "euclidean": _Spelling("euclidean", "nearestNeighbor"),
    },
    "chroma": _alike("ip", "l2"),
    "oracle": {
        "dot": _Spelling("DOT", "VECTOR_DISTANCE"),
        "euclidean": _Spelling("EUCLIDEAN", "VECTOR_DISTANCE"),
    },
}


def keeping_lengths(store: str, template: Template, metric: str) -> Template:
    """Return a template of unit floats for floats that keep their length.

    Raises:
        ConfigurationError: If the database does not compare such vectors by that metric.
    """
    spelled = _LENGTHS[store].get(metric)
    if spelled is None:
        having = [name for name, spellings in _LENGTHS.items() if metric in spellings]
        raise ConfigurationError(
            f"{store} does not rank vectors that are not of unit length by {metric}, as this model "
            f"does; use one of {', '.join(sorted(having))}"
        )
    word = spelled.option or spelled.metric
    options = {
        name: value.replace(template.metric, word) if isinstance(value, str) else value
        for name, value in template.options.items()
    }
    return dataclasses.replace(
        template,
        metric=spelled.metric,
        operator=spelled.operator,
        options=options,
        type=spelled.type or template.type,
        payload=spelled.payload or template.payload,
    )


#: Every database by its name.
DATABASES: Mapping[str, Database] = {
    "pgvector": Database(
        float=Template(
            "vector({d})", "cosine", "<=>", "vector text", _hnsw("vector_cosine_ops"),
            most=2_000, wider=_HALFVEC,
        ),
        int8=_HALFVEC,
        uint8=Template(
            "halfvec({d})", "euclidean", "<->", "vector text", _hnsw("halfvec_l2_ops"), most=4_000
        ),
        # varbit cannot be indexed; bit(n) can, up to 64,000 bits.
        packed=Template(
            "bit({d})", "hamming", "<~>", "bit text", _hnsw("bit_hamming_ops"), most=64_000
        ),
    ),
    "weaviate": Database(
        float=Template("number[]", "cosine", "cosine", "float lists"),
        int8=Template("number[]", "cosine", "cosine", "codes as float lists"),
        uint8=Template("number[]", "l2-squared", "l2-squared", "codes as float lists"),
        # Weaviate's hamming counts unequal floats, so packed bytes would count differing bytes.
        # Signs are also right under BQ, cosine and dot. Its server may quantise by default.
        packed=Template("number[]", "hamming", "hamming", "signs", {"quantizer": "none"}),
    ),
    "milvus": Database(
        float=Template("FLOAT_VECTOR", "COSINE", "COSINE", "float array", {"dim": _D}),
        int8=Template("INT8_VECTOR", "COSINE", "COSINE", "code array", {"dim": _D}),
        uint8=Template("FLOAT_VECTOR", "L2", "L2", "codes as floats", {"dim": _D}),
        packed=Template(
            "BINARY_VECTOR", "HAMMING", "HAMMING", "packed bytes", {"dim": _D, "index": "BIN_FLAT"}
        ),
    ),
    "qdrant": Database(
        float=Template("float32", "Cosine", "Cosine", "float array", {"size": _D}),
        int8=Template("float32", "Cosine", "Cosine", "codes as floats", {"size": _D}),
        uint8=Template("uint8", "Euclid", "Euclid", "code array", {"size": _D}),
        packed=Template(
            "float32", "Manhattan", "Manhattan", "zeros and ones", {"size": _D},
            emulates="Manhattan distance over 0 and 1 counts the differing bits",
        ),
    ),
    "lancedb": Database(
        float=Template("fixed_size_list<float32>[{d}]", "cosine", "cosine", "float array"),
        int8=Template("fixed_size_list<float32>[{d}]", "cosine", "cosine", "codes as floats"),
        uint8=Template("fixed_size_list<float32>[{d}]", "l2", "l2", "codes as floats"),
        # IVF_PQ, IVF_RQ and IVF_HNSW_SQ reject uint8.
        packed=Template(
            "fixed_size_list<uint8>[{w}]", "hamming", "hamming", "packed array",
            {"index": "IVF_FLAT"},
        ),
    ),
    "faiss": Database(
        float=Template("IndexFlatIP", "METRIC_INNER_PRODUCT", "search", "unit floats", {"d": _D}),
        int8=Template("IndexFlatIP", "METRIC_INNER_PRODUCT", "search", "unit floats", {"d": _D}),
        uint8=Template("IndexFlatL2", "METRIC_L2", "search", "codes as floats", {"d": _D}),
        packed=Template("IndexBinaryFlat", "Hamming", "search", "packed array", {"d": _D}),
    ),
    "usearch": Database(
        float=Template("f32", "cos", "cos", "float array", {"ndim": _D}),
        int8=Template("i8", "cos", "cos", "code array", {"ndim": _D}),
        # usearch 2.26 gives wrong l2sq distances for its own u8; i8 is exact.
        uint8=Template("i8", "l2sq", "l2sq", "signed code array", {"ndim": _D}),
        packed=Template("b1", "hamming", "hamming", "packed array", {"ndim": _D}),
    ),
    "sqlite-vec": Database(
        float=Template(
            "float[{d}]", "cosine", "vec_distance_cosine", "float bytes",
            {"distance_metric": "cosine", "argument": "?"},
        ),
        int8=Template(
            "int8[{d}]", "cosine", "vec_distance_cosine", "code bytes",
            {"distance_metric": "cosine", "argument": "vec_int8(?)"},
        ),
        uint8=Template(
            "int8[{d}]", "l2", "vec_distance_l2", "signed code bytes",
            {"distance_metric": "l2", "argument": "vec_int8(?)"},
        ),
        # Its own vec_quantize_binary() puts dimension 0 into the lowest bit; so do we, or a
        # query quantised inside the database would meet reversed bytes.
        packed=Template(
            "bit[{d}]", "hamming", "vec_distance_hamming", "packed bytes, lsb first",
            {"argument": "vec_bit(?)"},
        ),
    ),
    "elasticsearch": Database(
        float=Template(
            "dense_vector", "cosine", "knn", "float lists",
            {"element_type": "float", "dims": _D, "similarity": "cosine"}, most=4096,
        ),
        int8=Template(
            "dense_vector", "cosine", "knn", "code lists",
            {"element_type": "byte", "dims": _D, "similarity": "cosine"}, most=4096,
        ),
        uint8=Template(
            "dense_vector", "l2_norm", "knn", "code lists",
            {"element_type": "byte", "dims": _D, "similarity": "l2_norm"}, most=4096,
        ),
        # For element_type bit, l2_norm means Hamming: _score = (dims - distance) / dims.
        packed=Template(
            "dense_vector", "l2_norm", "knn", "packed hex",
            {"element_type": "bit", "dims": _D, "similarity": "l2_norm"}, most=4096,
        ),
    ),
    "opensearch": Database(
        float=Template(
            "knn_vector", "cosinesimil", "knn", "float lists",
            {"data_type": "float", "dimension": _D, "space_type": "cosinesimil"},
        ),
        int8=Template(
            "knn_vector", "cosinesimil", "knn", "code lists",
            {"data_type": "byte", "dimension": _D, "space_type": "cosinesimil"},
        ),
        uint8=Template(
            "knn_vector", "l2", "knn", "code lists",
            {"data_type": "byte", "dimension": _D, "space_type": "l2"},
        ),
        packed=Template(
            "knn_vector", "hamming", "knn", "packed signed lists",
            {"data_type": "binary", "dimension": _D, "space_type": "hamming", "engine": "faiss"},
        ),
    ),
    "redis": Database(
        float=Template("FLOAT32", "COSINE", "KNN", "float bytes", {"DIM": _D}),
        # INT8 and UINT8 need Redis 8 or newer.
        int8=Template("INT8", "COSINE", "KNN", "code bytes", {"DIM": _D}),
        uint8=Template("UINT8", "L2", "KNN", "code bytes", {"DIM": _D}),
        packed=Template(
            "FLOAT32", "L2", "KNN", "zeros and ones bytes", {"DIM": _D}, emulates=_BITS_BY_L2
        ),
    ),
    "mongodb": Database(
        float=Template(
            "vector", "cosine", "$vectorSearch", "bson vector",
            {"numDimensions": _D, "similarity": "cosine", "subtype": 9},
        ),
        int8=Template(
            "vector", "cosine", "$vectorSearch", "bson vector",
            {"numDimensions": _D, "similarity": "cosine", "subtype": 9},
        ),
        uint8=Template(
            "vector", "euclidean", "$vectorSearch", "bson vector",
            {"numDimensions": _D, "similarity": "euclidean", "subtype": 9},
        ),
        # euclidean is the only similarity that Atlas allows on packed bits; there it is Hamming.
        packed=Template(
            "vector", "euclidean", "$vectorSearch", "bson vector",
            {"numDimensions": _D, "similarity": "euclidean", "subtype": 9},
        ),
    ),
    "vespa": Database(
        float=Template(
            "tensor<float>(x[{d}])", "angular", "nearestNeighbor", "float lists",
            {"distance-metric": "angular"},
        ),
        int8=Template(
            "tensor<int8>(x[{d}])", "angular", "nearestNeighbor", "code lists",
            {"distance-metric": "angular"},
        ),
        uint8=Template(
            "tensor<int8>(x[{d}])", "euclidean", "nearestNeighbor", "code lists",
            {"distance-metric": "euclidean"},
        ),
        packed=Template(
            "tensor<int8>(x[{w}])", "hamming", "nearestNeighbor", "packed signed lists",
            {"distance-metric": "hamming"},
        ),
    ),
    "chroma": Database(
        float=Template("float32", "cosine", "cosine", "float lists", {"space": "cosine"}),
        int8=Template("float32", "cosine", "cosine", "codes as float lists", {"space": "cosine"}),
        uint8=Template("float32", "l2", "l2", "codes as float lists", {"space": "l2"}),
        packed=Template(
            "float32", "l2", "l2", "zeros and ones lists", {"space": "l2"}, emulates=_BITS_BY_L2
        ),
    ),
    "oracle": Database(
        float=Template(
            "VECTOR({d}, FLOAT32)", "COSINE", "VECTOR_DISTANCE", "float array", {"dimensions": _D}
        ),
        int8=Template(
            "VECTOR({d}, INT8)", "COSINE", "VECTOR_DISTANCE", "code array", {"dimensions": _D}
        ),
        uint8=Template(
            "VECTOR({d}, INT8)", "EUCLIDEAN", "VECTOR_DISTANCE", "signed code array",
            {"dimensions": _D},
        ),
        packed=Template(
            "VECTOR({d}, BINARY)", "HAMMING", "VECTOR_DISTANCE", "packed array", {"dimensions": _D}
        ),
    ),
}  # fmt: skip
