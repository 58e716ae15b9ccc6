"""The table of databases for sparse vectors and multi-vectors, or what to do where there is none.

One entry a database: a template, or a sentence that says what takes its place. Three rules hold:

- A weight belongs to a token's number. Where a database wants names, the number is the name.
- Token vectors are given as floats, int8 as the value of its level and bits as ±1/√dimensions,
  whose sums of largest dot products rank as MaxSim does; where a database has a smaller type that
  ranks just so, it is used.
- What a database would leave out by itself, such as tokens that it calls frequent, is switched off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from nimbed.errors import ConfigurationError
from nimbed.spec import MultiVectorSpec, SparseSpec, TokenType
from nimbed.stores.databases import Template

__all__ = ["MULTI_VECTORS", "SPARSE_VECTORS", "KindTemplate", "kind_template"]

# Stands for the number of dimensions, as in the table of dense vectors.
_D = "{d}"


@dataclass(frozen=True, slots=True)
class KindTemplate(Template):
    """How a database stores one kind of vector.

    Attributes:
        note: What to know of it.
        stored: The most weights of a sparse vector that it takes.
        indexed: The most that its index takes.
    """

    note: str = ""
    stored: int | None = None
    indexed: int | None = None


_NINE_BITS = "weights keep nine bits, an error of up to 0.4%, so that near ties may change places"
_RANKS_ALONE = "it ranks the candidates of another query, and has no index"

#: Every database with its template, or what to do instead.
SPARSE_VECTORS: Mapping[str, KindTemplate | str] = {
    "pgvector": KindTemplate(
        "sparsevec({d})", "inner product", "<#>", "sparsevec text",
        {"index": "hnsw", "operator_class": "sparsevec_ip_ops"},
        most=1_000_000_000, stored=16_000, indexed=1_000,
    ),
    "milvus": KindTemplate(
        "SPARSE_FLOAT_VECTOR", "IP", "IP", "token weights", {"index": "SPARSE_INVERTED_INDEX"}
    ),
    "qdrant": KindTemplate("sparse", "Dot", "Dot", "indices and values"),
    "elasticsearch": KindTemplate(
        # Since 8.19 and 9.1 an index prunes tokens unless it is told otherwise.
        "sparse_vector", "dot product", "sparse_vector", "named weights",
        {"index_options": {"prune": False}}, note=_NINE_BITS,
    ),
    "opensearch": KindTemplate(
        "rank_features", "dot product", "neural_sparse", "named weights", note=_NINE_BITS
    ),
    "vespa": KindTemplate(
        "tensor<float>(token{{}})", "dot product", "sum(query(q) * attribute(vector))",
        "named cells",
    ),
    "oracle": KindTemplate(
        "VECTOR({d}, FLOAT32, SPARSE)", "DOT", "VECTOR_DISTANCE", "dimensions, indices and values",
        {"dimensions": _D}, most=65_535,
        note="python-oracledb takes them as oracledb.SparseVector(*vector); Oracle 23.7 or newer",
    ),
    "weaviate": "its keyword search (BM25) reads the texts themselves: use its hybrid search, or a "
    "store that has sparse vectors",
    "lancedb": "use its full text search beside the dense vectors",
    "redis": "use its full text search beside the dense vectors",
    "mongodb": "use its full text search beside the dense vectors",
    "chroma": "its own server indexes none, Chroma Cloud alone does",
    "faiss": "it indexes dense vectors alone; nimbed.search ranks sparse ones exactly",
    "usearch": "it indexes dense vectors alone; nimbed.search ranks sparse ones exactly",
    "sqlite-vec": "use SQLite's full text search (FTS5) beside the dense vectors",
}  # fmt: skip

_INSTEAD = (
    "rank the candidates of a dense search again by nimbed.search.rescore, or store one vector a "
    "text (nimbed.Muvera)"
)


def _floats(
    type: str, metric: str, operator: str, note: str = "", **options: object
) -> dict[TokenType, KindTemplate | str]:
    """Return a database's templates where every type of token vector is stored as floats."""
    template = KindTemplate(type, metric, operator, "token float lists", options, note=note)
    return {"float": template, "half": template, "int8": template, "ubinary": template}


def _qdrant(type: str) -> dict[TokenType, KindTemplate | str]:
    return _floats(type, "Dot", "Dot", size=_D, multivector_config={"comparator": "max_sim"})


_LANCE = _floats("list<fixed_size_list<float32>[{d}]>", "cosine", "cosine")
_VESPA_FLOAT = KindTemplate(
    "tensor<float>(token{{}}, x[{d}])",
    "MaxSim",
    "sum(reduce(sum(query(q) * attribute(vector), x), max, token), querytoken)",
    "token float blocks",
)
_ELASTIC = KindTemplate(
    "rank_vectors", "maxSimDotProduct", "script_score", "token float lists",
    {"element_type": "float", "dims": _D}, note=_RANKS_ALONE,
)  # fmt: skip

#: Every database with its template for each type of token vector, or what to do instead.
MULTI_VECTORS: Mapping[str, Mapping[TokenType, KindTemplate | str] | str] = {
    "pgvector": _INSTEAD,
    # Whatever the metric of the index, the tokens of a multi-vector are compared by dot product.
    "weaviate": _floats(
        "number[][]", "dot", "near_vector", "Weaviate 1.29 or newer; 1.31 can encode it (MUVERA)",
        multi_vector={"aggregation": "maxSim"},
    ),
    "milvus": _floats(
        "ARRAY of STRUCT with FLOAT_VECTOR", "MAX_SIM_IP", "MAX_SIM_IP",
        "Milvus 2.6.4 or newer; a list of vectors is one struct each", dim=_D,
    ),
    "qdrant": {**_qdrant("float32"), "half": _qdrant("float16")["half"]},
    "lancedb": {
        **_LANCE,
        "int8": "it ranks multi-vectors by cosine alone, which levels of int8 change; use "
        "token_type='half'",
    },
    "elasticsearch": {
        "float": _ELASTIC,
        "half": _ELASTIC,
        "int8": dataclasses.replace(
            _ELASTIC, payload="token code lists", options={"element_type": "byte", "dims": _D}
        ),
        # Of bits the dot product counts the ones alone; what agrees ranks as signs do.
        "ubinary": dataclasses.replace(
            _ELASTIC, metric="maxSimInvHamming", payload="token hex lists",
            options={"element_type": "bit", "dims": _D},
        ),
    },
    "vespa": {
        "float": _VESPA_FLOAT,
        "half": _VESPA_FLOAT,
        "int8": dataclasses.replace(
            _VESPA_FLOAT, type="tensor<int8>(token{{}}, x[{d}])", payload="token code blocks"
        ),
        "ubinary": KindTemplate(
            "tensor<int8>(token{{}}, x[{w}])", "MaxSim of bits",
            "-sum(reduce(sum(hamming(query(q), attribute(vector)), x), min, token), querytoken)",
            "token code blocks",
        ),
    },
    "opensearch": _INSTEAD,
    "redis": _INSTEAD,
    "mongodb": _INSTEAD,
    "chroma": _INSTEAD,
    "faiss": _INSTEAD,
    "usearch": _INSTEAD,
    "sqlite-vec": _INSTEAD,
    "oracle": _INSTEAD,
}  # fmt: skip


def kind_template(store: str, spec: SparseSpec | MultiVectorSpec) -> KindTemplate:
    """Return how a database stores the vectors of a spec.

    Raises:
        ConfigurationError: If it has no such vectors, or takes fewer weights a vector.
    """
    if isinstance(spec, MultiVectorSpec):
        found = MULTI_VECTORS.get(store, _INSTEAD)
        template = found if isinstance(found, str) else found[spec.token_type]
        name = "multi-vectors" if isinstance(found, str) else f"{spec.token_type} multi-vectors"
    else:
        template, name = SPARSE_VECTORS.get(store, "use another store"), "sparse vectors"
    if isinstance(template, str):
        raise ConfigurationError(f"{store} stores no {name}: {template}")
    if isinstance(spec, MultiVectorSpec):
        return template
    if template.most is not None and spec.dimensions > template.most:
        raise ConfigurationError(
            f"{store} stores sparse vectors of at most {template.most} dimensions; the vocabulary "
            f"of {spec.model} has {spec.dimensions}"
        )
    active = spec.dimensions if spec.max_active is None else spec.max_active
    if template.stored is not None and spec.max_active is not None and active > template.stored:
        raise ConfigurationError(
            f"{store} stores at most {template.stored} weights a vector; got max_active={active}"
        )
    if template.indexed is not None and active > template.indexed:
        note = (
            f"a search reads every row: an index takes at most {template.indexed} weights a "
            f"vector; embed with max_active={template.indexed} to have one"
        )
        return dataclasses.replace(template, options={}, note=note)
    return template
