from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nimbed.remote.response import MalformedAnswer, decode

from .double import answer, edited

ROWS = np.random.default_rng(5).standard_normal((4, 8)).astype(np.float32)


def body_of(rows=ROWS, encoding=None, edit=None):
    response = answer(rows, encoding=encoding, tokens=11)
    return (edited(response, edit) if edit else response).body


@pytest.mark.parametrize("encoding", [None, "base64"])
def test_vectors_come_back_as_they_were(encoding):
    read = decode(body_of(encoding=encoding), count=4, widths={8})
    np.testing.assert_array_equal(read.vectors, ROWS)
    assert read.vectors.dtype == np.float32
    assert read.tokens == 11
    assert read.base64 == (encoding == "base64")


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 20)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_base64_and_lists_carry_the_same_bits(rows):
    for encoding in (None, "base64"):
        read = decode(body_of(rows, encoding), count=len(rows))
        np.testing.assert_array_equal(read.vectors, rows)


@pytest.mark.parametrize("encoding", [None, "base64"])
def test_shuffled_answers_are_put_in_order(encoding):
    body = body_of(encoding=encoding, edit=lambda said: said["data"].reverse())
    np.testing.assert_array_equal(decode(body, count=4).vectors, ROWS)


def test_packed_bits_come_back_as_bytes():
    rows = np.random.default_rng(0).integers(0, 256, (3, 4))
    read = decode(body_of(rows), count=3, widths={4}, packed=True)
    assert read.vectors.dtype == np.uint8
    np.testing.assert_array_equal(read.vectors, rows)


def put(position, name, value):
    def edit(said):
        said["data"][position][name] = value

    return edit


def text(values):
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


WRONG = {
    "too few": lambda said: said["data"].pop(),
    "too many": lambda said: said["data"].append(dict(said["data"][0], index=4)),
    "duplicate": put(1, "index", 0),
    "out of range": put(0, "index", 4),
    "negative": put(0, "index", -1),
    "index missing": lambda said: said["data"][2].pop("index"),
    "index a truth": put(1, "index", True),
    "index a text": put(1, "index", "1"),
    "index a float": put(1, "index", 1.0),
    "null vector": put(1, "embedding", None),
    "empty vector": put(0, "embedding", []),
    "NaN": put(1, "embedding", [float("nan")] * 8),
    "infinity": put(1, "embedding", [float("inf")] * 8),
    "beyond float32": put(1, "embedding", [1e39] * 8),
    "a huge integer": put(1, "embedding", [10**400] * 8),
    "narrower": put(1, "embedding", [0.5] * 7),
    "wider": put(1, "embedding", [0.5] * 9),
    "all narrower": lambda said: [item.update(embedding=[0.5] * 4) for item in said["data"]],
    "words": put(1, "embedding", ["0.5"] * 8),
    "truths beside numbers": put(1, "embedding", [True, 0.5, 1, 0, 0, 0, 0, False]),
    "nested": put(1, "embedding", [[0.5]] * 8),
    "nulls within": put(1, "embedding", [None] * 8),
    "two encodings": put(1, "embedding", text([0.5] * 8)),
    "no data": lambda said: said.pop("data"),
    "data an object": lambda said: said.update(data={}),
    "items of no kind": lambda said: said.update(data=[1, 2, 3, 4]),
}


@pytest.mark.parametrize("edit", WRONG.values(), ids=WRONG.keys())
def test_lists_that_cannot_be_trusted_are_refused(edit):
    with pytest.raises(MalformedAnswer):
        decode(body_of(edit=edit), count=4, widths={8})


WRONG_TEXT = {
    "three bytes short": base64.b64encode(b"x" * 29).decode(),
    "narrower": text([0.5] * 7),
    "float64": base64.b64encode(np.ones(8).tobytes()).decode(),
    "NaN": text([np.nan] * 8),
    "empty": "",
    "not base64": "!" * 44,
    "line breaks": text([0.5] * 8)[:20] + "\n" + text([0.5] * 8)[20:],
    "cut": text([0.5] * 8)[:-3],
    "not ascii": "é" * 44,
}


@pytest.mark.parametrize("embedding", WRONG_TEXT.values(), ids=WRONG_TEXT.keys())
@pytest.mark.parametrize("position", [0, 2])
def test_base64_that_cannot_be_trusted_is_refused(embedding, position):
    with pytest.raises(MalformedAnswer) as caught:
        decode(
            body_of(encoding="base64", edit=put(position, "embedding", embedding)),
            count=4,
            widths={8},
        )
    assert caught.value.positions in ((position,), (1,))


def test_all_vectors_of_float64_base64_are_refused_where_the_width_is_known():
    body = body_of(
        encoding="base64",
        edit=lambda said: [item.update(embedding=WRONG_TEXT["float64"]) for item in said["data"]],
    )
    with pytest.raises(MalformedAnswer, match="width 16 where 8 was promised"):
        decode(body, count=4, widths={8})


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"data": [', b"<html>502</html>", b"[]", b"null", b"\xff\xfe", b"[" * 100_000],
)
def test_a_body_that_is_no_answer_is_refused(body):
    with pytest.raises(MalformedAnswer):
        decode(body, count=1)


@pytest.mark.parametrize("bad", [[256, 0], [-1, 0], [0.5, 1], [True, 1.5], ["1", "2"]])
def test_packed_vectors_that_are_not_bytes_are_refused(bad):
    with pytest.raises(MalformedAnswer):
        decode(
            body_of(edit=lambda said: said.update(data=[{"index": 0, "embedding": bad}])),
            count=1,
            packed=True,
        )


def test_the_guilty_positions_are_named():
    rows = ROWS.copy()
    rows[[1, 3], 2] = np.nan
    with pytest.raises(MalformedAnswer) as caught:
        decode(body_of(rows), count=4)
    assert caught.value.positions == (1, 3)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "7"}, {"prompt_tokens": -1}, [7]])
def test_a_token_count_that_is_none_is_left_out(usage):
    body = json.loads(body_of())
    body["usage"] = usage
    assert decode(json.dumps(body).encode(), count=4).tokens is None
