"""What check() sees in the vectors that a collection holds."""

from __future__ import annotations

from typing import Any

import pytest

from nimbed import FakeEmbedder
from nimbed_weaviate import batch_import, self_provided

from .checks import GOOD, Check
from .double import Double


@pytest.mark.parametrize(
    ("metric", "quantizer", "vector", "word"),
    [
        ("hamming", None, [0.3, -0.2, 0.1], "floats are hardly ever equal"),
        ("hamming", None, [17.0, -120.0, 3.0], "compared by byte and not by bit"),
        ("hamming", "bq", [1.0, 0.0, 1.0], "no number here is below 0"),
        ("hamming", None, [1.0, 0.0, 1.0], ""),
        ("hamming", "bq", [1.0, -1.0, 1.0], ""),
        ("cosine", None, [17.0, 250.0, 3.0], "does not rank codes from 0"),
        ("cosine", None, [1.0, 0.0, 1.0], "does not rank zeros and ones"),
        ("dot", None, [17.0, -120.0, 3.0], "use cosine"),
        ("cosine", "bq", [0.3, -0.2, 0.1], ""),
        ("l2-squared", None, [17.0, 250.0, 3.0], ""),
    ],
)
def test_stored_vectors_that_the_index_ranks_wrongly_are_found(
    double: Double, checked: Check, metric: str, quantizer: str | None,
    vector: list[float], word: str,
) -> None:  # fmt: skip
    index: dict[str, Any] = {"distance": metric}
    if quantizer:
        index[quantizer] = {"enabled": True}
    config = {"vectorizer": {"none": {}}, "vectorIndexConfig": index}
    double.create({"class": "Docs", "vectorConfig": {"default": config}})
    double.objects["Docs"] = {f"00000000-0000-0000-0000-{n:012}": ({}, {"default": vector})
                              for n in range(3)}  # fmt: skip
    verdict, detail = checked()["vectors"]
    assert verdict == ("fail" if word else "ok")
    assert word in detail


def test_objects_without_a_vector_are_found(
    double: Double, text2vec: Check, checked: Check
) -> None:
    text2vec(**GOOD)
    for n in range(3):
        vectors: dict[str, list[float]] = {} if n == 1 else {"default": [0.5, -0.5]}
        double.objects["Docs"][f"00000000-0000-0000-0000-{n:012}"] = ({}, vectors)
    verdict, detail = checked()["vectors"]
    assert verdict == "fail"
    assert "1 of 3 objects have none" in detail


def test_what_was_imported_is_checked_against_its_contract(
    double: Double, make: Any, checked: Check
) -> None:
    embedder = FakeEmbedder()
    spec = embedder.spec(embedding_type="binary")
    collection = make("Docs", self_provided(spec))
    batch_import(collection, [("a", "a text")], embedder, embedding_type="binary")
    findings = checked()
    assert spec.fingerprint in findings["contract"][1]
    assert findings["vectors"] == ("ok", "1 of 64 dimensions looked at: signs")
    double.objects["Docs"]["00000000-0000-0000-0000-000000000000"] = ({}, {"default": [1.0] * 32})
    assert "different lengths" in checked()["vectors"][1]
    double.objects["Docs"].popitem()
    for properties, vectors in double.objects["Docs"].values():
        assert properties["nimbed_id"] == "a"
        vectors["default"] = [1.0] * 32
    assert "something else wrote into it" in checked()["vectors"][1]


def test_a_configuration_is_checked_even_where_no_vector_can_be_read(
    double: Double, text2vec: Check
) -> None:
    double.stop_grpc()
    findings = text2vec(**GOOD)
    assert findings["truncate"][0] == "ok"
    assert findings["vectors"][0] == "note"
    assert "does not answer by gRPC" in findings["vectors"][1]
