"""Types, limits and the wire form, without a server."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbed import EmbeddingBatch, VectorSpec
from nimbed.errors import ConfigurationError
from nimbed.rows import Row
from nimbed_pgvector import Layout
from nimbed_pgvector.copy import prepare


def layout(dimensions: int, embedding_type: str = "float", **options: str) -> Layout:
    spec = VectorSpec.of(model="m", dimensions=dimensions, embedding_type=embedding_type)  # type: ignore[arg-type]
    return Layout.of(spec, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "types"),
    [
        (layout(2000), ["vector(2000)"]),
        (layout(2048), ["halfvec(2048)"]),
        (layout(1024, "int8"), ["halfvec(1024)"]),
        (layout(4096, "ubinary"), ["bit(4096)"]),
        (layout(4096, "binary", also="halfvec"), ["bit(4096)", "halfvec(4096)"]),
        (layout(384, "ubinary", also="float"), ["bit(384)", "vector(384)"]),
    ],
)
def test_a_spec_becomes_the_columns_that_can_be_indexed(made: Layout, types: list[str]) -> None:
    assert [column.type for column in made.columns] == types


def test_what_cannot_be_indexed_or_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at most 4000"):
        layout(4096)
    with pytest.raises(ConfigurationError, match="the embedding is float already"):
        layout(384, also="halfvec")
    with pytest.raises(ConfigurationError, match="also must be one of"):
        layout(384, "ubinary", also="bit")


def test_the_wire_form_is_that_of_copy_binary() -> None:
    """Bytes by hand, after the sources of PostgreSQL's bit and pgvector's two types."""
    spec = VectorSpec.of(model="m", dimensions=8, embedding_type="ubinary")
    batch = EmbeddingBatch(
        vectors=np.array([[0b10000001]], np.uint8),
        spec=spec,
        input_type="passage",
        token_counts=np.ones(1, np.int32),
    )
    assert Layout.of(spec).embedding.wire(batch).tobytes().hex() == "000000050000000881"
    float_spec = VectorSpec.of(model="m", dimensions=2)
    floats = EmbeddingBatch(
        vectors=np.array([[1.0, -2.0]], np.float32),
        spec=float_spec,
        input_type="passage",
        token_counts=np.ones(1, np.int32),
    )
    assert (
        Layout.of(float_spec).embedding.wire(floats).tobytes().hex() == "0000000c"
        "00020000"
        "3f800000"
        "c0000000"
    )


ANY_ID = st.text() | st.integers() | st.none() | st.booleans() | st.just("x" * 2001)
ANY_ROW = st.builds(
    Row,
    st.integers(1, 99),
    st.text() | st.sampled_from(["\ud800", " \n", "nul \0", "\\u0000"]),
    ANY_ID,
    st.dictionaries(st.text() | st.integers(), st.text() | st.floats() | st.none(), max_size=3),
)


@given(st.lists(ANY_ROW, min_size=1, max_size=4), st.none() | st.just(["", "a"]))
def test_rows_together_become_what_each_becomes_alone(rows: list[Row], wanted: Any) -> None:
    vectors = [bytes([place]) for place in range(len(rows))]
    together, rejects = prepare(rows, source="s", metadata_fields=wanted, vectors=vectors)
    alone = [
        prepare([row], source="s", metadata_fields=wanted, vectors=[vector])
        for row, vector in zip(rows, vectors, strict=True)
    ]
    good = [place for place, (kept, _) in enumerate(alone) if kept]
    assert together.vectors == [vectors[place] for place in good]
    assert [together.select([n]) for n in range(len(together))] == [alone[n][0] for n in good]
    assert rejects == [reject for _, some in alone for reject in some]


def test_metadata_too_deep_for_json_is_a_reject() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    row = Row(1, "a", "x", {"d": deep})
    for rows in ([row], [Row(2, "b", "y"), row]):
        made, (reject,) = prepare(rows, source="s")
        assert "not JSON" in reject.reason
        assert made.numbers == [each.number for each in rows[:-1]]


@given(st.text(), st.dictionaries(st.text(), st.text() | st.floats() | st.none()))
def test_any_row_becomes_a_passage_or_a_reject(text: str, columns: dict[str, object]) -> None:
    made, rejects = prepare([Row(1, text, "id", columns)], source="s")
    if made:
        assert made.texts == [text]
        assert "\0" not in text
        assert json.loads(made.metadata[0]) == columns
    else:
        assert rejects[0].reason


def digest(row: Row, vector: bytes | None = None) -> bytes:
    made, _ = prepare([row], source="s", vectors=None if vector is None else [vector])
    return made.digests[0]


def test_a_content_digest_keeps_text_and_metadata_apart() -> None:
    rows = [
        Row(1, "a", "x", {"b": 1}),
        Row(1, 'a{"b": 1}', "x", {}),
        Row(1, "a", "x", {"b": 2}),
    ]
    digests = {digest(row) for row in rows}
    assert len(digests) == 3
    vectors = {digest(rows[0], raw) for raw in (b"1", b"2")}
    assert len(vectors | digests) == 5


def test_numbers_stay_numbers_and_what_is_no_json_is_named() -> None:
    facts = {
        "count": np.int64(5),
        "share": np.float32(0.5),
        "good": np.bool_(True),
        "numbers": np.arange(3),
        "key": uuid.UUID(int=7),
        "day": datetime.date(2026, 1, 2),
        "moment": np.datetime64("2026-01-02"),
        "price": decimal.Decimal("1.10"),
    }
    made, rejects = prepare([Row(1, "a", "x", facts)], source="s")
    assert not rejects
    assert json.loads(made.metadata[0]) == {
        "count": 5,
        "share": 0.5,
        "good": True,
        "numbers": [0, 1, 2],
        "key": "00000000-0000-0000-0000-000000000007",
        "day": "2026-01-02",
        "moment": "2026-01-02",
        "price": "1.10",
    }
    for value, reason in (
        (b"x", "'odd': bytes is no JSON"),
        ({1, 2}, "'odd': set is no JSON"),
        (object(), "'odd': object is no JSON"),
        (float("nan"), "'odd' is nan"),
    ):
        made, (reject,) = prepare([Row(1, "a", "x", {"fine": 1, "odd": value})], source="s")
        assert reject.reason == f"the metadata is not JSON: the field {reason}"
