"""weaviate-client's own index objects, judged by the spec of the vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from weaviate.classes.config import Configure, VectorDistances

from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError
from nimbed_weaviate import backfill, batch_import, self_provided, vectorizer
from nimbed_weaviate.indexes import index_fault

from .checks import HOME, Check
from .double import Double

Made = Callable[[Any], dict[str, Any]]
INDEX = Configure.VectorIndex
BY = INDEX.Quantizer
# The client deprecates the argument that does this, but not the result.
SEVERAL = INDEX.hnsw().model_copy(update={"multivector": INDEX.MultiVector.multi_vector()})
HAMMING, DOT = VectorDistances.HAMMING, VectorDistances.DOT


def spec(kind: Any = "float") -> Any:
    return FakeEmbedder().spec(embedding_type=kind)


@pytest.fixture
def made(make: Callable[..., Any], double: Double) -> Made:
    """Create a collection of one vector through the client, and return what Weaviate stores."""

    def create(config: Any) -> dict[str, Any]:
        make("Docs", config)
        vector: dict[str, Any] = double.classes["Docs"]["vectorConfig"]["default"]
        return vector

    return create


@pytest.mark.parametrize(
    ("kind", "index", "metric", "quantizers"),
    [
        ("float", INDEX.hnsw(quantizer=BY.rq(bits=8)), "cosine", {"rq-8"}),
        ("float", INDEX.hnsw(quantizer=BY.rq(bits=1), ef=64), "cosine", {"rq-1"}),
        ("float", INDEX.hnsw(quantizer=BY.sq()), "cosine", {"sq"}),
        ("float", INDEX.hnsw(distance_metric=DOT, quantizer=BY.pq()), "dot", {"pq"}),
        ("float", INDEX.flat(quantizer=BY.bq(cache=True)), "cosine", {"bq"}),
        ("float", INDEX.hfresh(), "cosine", set()),
        ("float", INDEX.dynamic(hnsw=INDEX.hnsw(quantizer=BY.rq()),
                                flat=INDEX.flat(quantizer=BY.bq())), "cosine", {"rq-8", "bq"}),
        ("int8", INDEX.hnsw(quantizer=BY.rq()), "cosine", {"rq-8"}),
        ("uint8", INDEX.hnsw(quantizer=BY.rq()), "l2-squared", {"rq-8"}),
        ("uint8", INDEX.hfresh(), "l2-squared", set()),
        ("binary", INDEX.hnsw(), "hamming", set()),
        ("binary", INDEX.flat(quantizer=BY.bq()), "hamming", {"bq"}),
        ("ubinary", INDEX.dynamic(), "hamming", set()),
        ("binary", INDEX.hnsw(distance_metric=VectorDistances.L2_SQUARED, quantizer=BY.rq()),
         "l2-squared", {"rq-8"}),
    ],
)  # fmt: skip
def test_an_index_that_ranks_rightly_gets_what_it_leaves_open(
    made: Made, double: Double, checked: Check, kind: Any, index: Any, metric: str,
    quantizers: set[str],
) -> None:  # fmt: skip
    # A server that compresses by itself must not come between packed types and their metric.
    double.default_quantization = "sq" if kind.endswith("binary") else ""
    before = repr(index)
    vector = made(self_provided(spec(kind), index=index))
    assert repr(index) == before, "the caller's object was changed"
    stored = vector["vectorIndexConfig"]
    assert stored["distance"] == metric
    found = {
        name if name != "rq" else f"rq-{each[name].get('bits') or 8}"
        for each in (stored, stored.get("hnsw", {}), stored.get("flat", {}))
        for name in ("pq", "bq", "sq", "rq")
        if each.get(name, {}).get("enabled")
    }
    assert found == quantizers
    verdict, detail = checked()["index"]
    assert verdict == "ok"
    assert detail.startswith(f"{vector['vectorIndexType']}, {metric}, quantised by ")
    served = made(vectorizer("m", base_url=HOME, embedding_type=kind, index=index))
    assert served["vectorIndexConfig"] == stored


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("binary", {"quantizer": BY.rq()}, "the quantiser rq-8 knows no hamming"),
        ("binary", {"index": INDEX.hnsw(quantizer=BY.sq())}, "sq knows no hamming"),
        ("binary", {"index": INDEX.hfresh()}, "hfresh knows no hamming"),
        ("binary", {"index": INDEX.dynamic(flat=INDEX.flat(quantizer=BY.rq()))}, "no hamming"),
        ("float", {"index": INDEX.hnsw(distance_metric=HAMMING)}, "floats are hardly ever equal"),
        ("float", {"index": INDEX.flat(quantizer=BY.sq())}, "no sq for a flat index"),
        ("float", {"index": INDEX.dynamic(flat=INDEX.flat(quantizer=BY.pq()))}, "no pq for a flat"),
        ("float", {"index": INDEX.dynamic(hnsw=INDEX.hnsw(distance_metric=VectorDistances.DOT),
                                          distance_metric=VectorDistances.COSINE)},
         "cosine and by dot"),
        ("uint8", {"quantizer": BY.rq(bits=1)}, "rq-1 keeps signs"),
        ("uint8", {"index": INDEX.hnsw(distance_metric=VectorDistances.COSINE)}, "use l2-squared"),
        ("float", {"index": INDEX.hnsw(), "quantizer": "bq"}, "leave quantizer out"),
        ("float", {"index": SEVERAL}, "several vectors a text"),
        ("float", {"index": 7}, "index must be"),
        ("float", {"quantizer": 7}, "quantizer must be"),
        ("float", {"index": "ivf"}, "index must be one of"),
    ],
)  # fmt: skip
def test_an_index_that_would_rank_wrongly_is_refused_with_the_cure(
    kind: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        self_provided(spec(kind), **options)


def test_the_signs_of_rotated_codes_from_0_say_little() -> None:
    """Why rq-1 is refused for uint8: what all vectors share decides most of their bits."""
    rng = np.random.default_rng(0)
    texts = [str(n) for n in range(300)]
    rotation = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    shares = {}
    for kind in ("int8", "uint8"):
        codes = FakeEmbedder().embed(texts, input_type="passage", embedding_type=kind)  # type: ignore[arg-type]
        signs = np.float32(codes.vectors) @ rotation < 0
        likelier = np.maximum(signs.mean(0), 1 - signs.mean(0))
        shares[kind] = likelier.mean()
    assert shares["int8"] < 0.6 < 0.9 < shares["uint8"]
    assert index_fault("codes from 0", "l2-squared", {"rq-1"}) is not None
    assert index_fault("codes", "cosine", {"rq-1"}) is None


def test_bq_of_floats_ranks_as_ubinary_does() -> None:
    """What the page of ``nimbed tradeoff`` says of it: the same bits, the same distances."""
    texts = [str(n) for n in range(50)]
    floats = FakeEmbedder().embed(texts, input_type="passage").vectors
    packed = FakeEmbedder().embed(texts, input_type="passage", embedding_type="ubinary")
    bits = np.unpackbits(packed.vectors, axis=1)
    kept = floats < 0  # binary_quantization.go
    ours = (bits[0] != bits).sum(1)
    np.testing.assert_array_equal((kept[0] != kept).sum(1), ours)


def test_what_the_operator_does_not_allow_is_named(
    double: Double, make: Callable[..., Any], client: Any
) -> None:
    docs = make("Docs", self_provided(spec(), name="a"))
    batch_import(docs, [("a", "a text")], FakeEmbedder())
    double.allowed_compression = frozenset({"rq-8"})
    with pytest.raises(ConfigurationError, match="ALLOWED_COMPRESSION_TYPES"):
        backfill(docs, FakeEmbedder(), vector="b", quantizer="bq")
    backfill(docs, FakeEmbedder(), vector="b", quantizer=BY.rq())
