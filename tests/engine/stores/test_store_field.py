from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest

from nimbed import EmbeddingBatch, FakeEmbedder, VectorSpec, stores
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.spec import EmbeddingType
from nimbed.stores.databases import DATABASES, Database, Template

TYPES: tuple[EmbeddingType, ...] = get_args(EmbeddingType)
WITHOUT_HAMMING = {"qdrant", "redis", "chroma"}


def spec_of(embedding_type: EmbeddingType, dimensions: int = 64) -> VectorSpec:
    return VectorSpec.of(model="m", dimensions=dimensions, embedding_type=embedding_type)


@pytest.mark.parametrize("embedding_type", TYPES)
@pytest.mark.parametrize("store", stores.names())
def test_every_store_takes_every_type_one_element_a_vector(
    store: str, embedding_type: EmbeddingType
) -> None:
    batch = FakeEmbedder().embed(
        ["a", "b", "c"], input_type="passage", embedding_type=embedding_type
    )
    field = stores.field(batch.spec, store, emulate=True)
    assert len(field.encode(batch)) == 3
    described = json.loads(json.dumps(field.to_dict()))
    assert described["type"] == field.type
    assert described["fingerprint"] == batch.spec.fingerprint


def test_the_fifteen_stores_of_the_issue_are_there() -> None:
    assert set(stores.names()) == {
        "chroma", "elasticsearch", "faiss", "lancedb", "milvus", "mongodb", "opensearch",
        "oracle", "pgvector", "qdrant", "redis", "sqlite-vec", "usearch", "vespa", "weaviate",
    }  # fmt: skip


@pytest.mark.parametrize("store", stores.names())
def test_hamming_where_a_store_has_none_raises_and_names_the_exact_emulation(store: str) -> None:
    spec = spec_of("ubinary")
    if store not in WITHOUT_HAMMING:
        assert stores.field(spec, store).note == ""
        return
    with pytest.raises(ConfigurationError, match="counts the differing bits: pass emulate=True"):
        stores.field(spec, store)
    assert "differing bits" in stores.field(spec, store, emulate=True).note


@pytest.mark.parametrize(
    ("embedding_type", "metric", "sentence"),
    [
        ("ubinary", "cosine", "eight signs"),
        ("binary", "euclidean", "eight signs"),
        ("float", "hamming", "compares bits"),
        ("uint8", "cosine", "its zero is shifted"),
        ("float", "dot", "exactly as cosine"),
        ("int8", "euclidean", "use cosine"),
    ],
)
def test_a_metric_that_ranks_wrongly_is_refused(
    embedding_type: EmbeddingType, metric: str, sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        stores.field(spec_of(embedding_type), "milvus", metric=metric)


def test_the_right_metric_may_be_said_aloud() -> None:
    assert stores.field(spec_of("ubinary"), "milvus", metric="hamming").metric == "HAMMING"


@pytest.mark.parametrize(
    ("dimensions", "kind"), [(2000, "vector"), (2001, "halfvec"), (4000, "halfvec")]
)
def test_pgvector_changes_to_halfvec_where_vector_cannot_be_indexed(
    dimensions: int, kind: str
) -> None:
    field = stores.field(spec_of("float", dimensions), "pgvector")
    assert field.type == f"{kind}({dimensions})"
    assert field.options["operator_class"] == f"{kind}_cosine_ops"


def test_a_vector_too_wide_for_any_index_is_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigurationError, match=r"at most 4000 dimensions.*got 4096.*'ubinary'"):
        stores.field(spec_of("float", 4096), "pgvector")
    assert stores.field(spec_of("ubinary", 4096), "pgvector").type == "bit(4096)"


def test_an_unknown_store_is_answered_with_a_close_name() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'milvus'"):
        stores.field(spec_of("float"), "Millvus")


def test_a_batch_of_another_space_is_refused() -> None:
    batch = FakeEmbedder().embed(["a"], input_type="passage")
    with pytest.raises(SpaceMismatchError):
        stores.field(spec_of("float"), "milvus").encode(batch)


@pytest.mark.parametrize("embedding_type", ["binary", "ubinary"])
@pytest.mark.parametrize("store", stores.names())
def test_offset_and_plain_bytes_give_a_store_the_same_bits(
    store: str, embedding_type: EmbeddingType
) -> None:
    plain = FakeEmbedder().embed(["a", "b"], input_type="passage", embedding_type="ubinary")
    other = FakeEmbedder().embed(["a", "b"], input_type="passage", embedding_type=embedding_type)
    expected = stores.field(plain.spec, store, emulate=True).encode(plain)
    given = stores.field(other.spec, store, emulate=True).encode(other)
    np.testing.assert_array_equal(np.asarray(given), np.asarray(expected))


def test_the_documented_examples_of_bit_layouts_come_out() -> None:
    """ES: 10000001 is -127; Vespa: 1000 0000 is -128; OpenSearch: 01100011 is 99."""
    spec = VectorSpec.of(model="m", dimensions=24, embedding_type="ubinary")
    signs = np.array([[int(bit) for bit in "100000011000000001100011"]], np.float32) - 0.5
    batch = EmbeddingBatch.from_floats(
        signs, spec=spec, input_type="passage", token_counts=np.ones(1, np.int32)
    )
    assert stores.field(spec, "opensearch").encode(batch) == [[-127, -128, 99]]
    assert stores.field(spec, "elasticsearch").encode(batch) == ["818063"]
    assert stores.field(spec, "pgvector").encode(batch) == ["100000011000000001100011"]
    assert stores.field(spec, "milvus").encode(batch) == [bytes([0x81, 0x80, 0x63])]
    assert stores.field(spec, "sqlite-vec").encode(batch) == [bytes([0x81, 0x01, 0xC6])]
    assert stores.field(spec, "mongodb").encode(batch) == [bytes([0x10, 0, 0x81, 0x80, 0x63])]


def test_a_database_is_added_by_an_entry_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    template = Template("vec<{d}>", "cos", "near", "float lists", {"size": "{d}"}, most=64)
    bits = Template("bits<{w}>", "hamming", "near", "packed bytes")
    entry = Database(float=template, int8=template, uint8=template, packed=bits)
    monkeypatch.setattr("nimbed.stores.fields.DATABASES", {**DATABASES, "mine": entry})
    assert "mine" in stores.names()
    field = stores.field(spec_of("float"), "mine")
    assert (field.type, field.options) == ("vec<64>", {"size": 64})
    assert stores.field(spec_of("ubinary"), "mine").type == "bits<8>"
    with pytest.raises(ConfigurationError, match="at most 64 .* of type vec.*or embedding_type="):
        stores.field(spec_of("float", 72), "mine")


def test_an_index_that_is_too_narrow_for_bits_too_is_not_answered_with_bits() -> None:
    with pytest.raises(ConfigurationError, match="use fewer dimensions$"):
        stores.field(spec_of("ubinary", 4104), "elasticsearch")


@pytest.mark.parametrize("store", stores.names())
@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_vectors_that_keep_their_length_are_never_compared_by_cosine(store, metric):
    spec = VectorSpec.of(model="m", dimensions=64, metric=metric)
    unit = stores.field(VectorSpec.of(model="m", dimensions=64), store)
    if (store, metric) in {("sqlite-vec", "dot"), ("mongodb", "dot")}:
        with pytest.raises(ConfigurationError, match="by dot, as this model does; use one of"):
            stores.field(spec, store)
        return
    field = stores.field(spec, store, metric=metric)
    assert (field.metric, field.operator) != (unit.metric, unit.operator) or store == "faiss"
    assert "cos" not in json.dumps(field.to_dict()).lower()
    assert set(field.options) == set(unit.options)
    with pytest.raises(ConfigurationError, match=f"keep their length.*use {metric}"):
        stores.field(spec, store, metric="cosine")
