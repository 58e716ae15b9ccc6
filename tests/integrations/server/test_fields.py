"""Every row of NIM's tables: fields, defaults, sentences."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from nimbed import FakeEmbedder

from .conftest import MODEL, PICTURES

REMEDY = (
    "the tokenizer of nimbed/fake is not here; send the text: in LangChain "
    "OpenAIEmbeddings(check_embedding_ctx_length=False)"
)
ROWS = [
    ({"input": []}, "input must not be empty"),
    ({"input": [" \n"]}, "input[0] must not be blank or empty"),
    ({"input": ["a", ""]}, "input[1] must not be blank or empty"),
    ({"input": ""}, "input[0] must not be blank or empty"),
    ({"input": None}, "input is required"),
    ({"input": 3}, "input must be a string or an array of strings"),
    ({"input": [1, 2]}, REMEDY),
    (
        {"input": [["a"]]},
        "input must hold texts alone, or arrays of token ids alone; input[0] is no array of token "
        "ids",
    ),
    (
        {"input": ["a", {}]},
        "input must be a string or an array of strings; input[1] is an object",
    ),
    ({"model": None}, "model is required"),
    ({"model": 7}, "model must be a string; got an integer"),
    ({"modality": "bogus"}, "modality must be one of 'text', 'image', 'text_image'; got 'bogus'"),
    (
        {"modality": ["text", "text"]},
        "modality must hold one value or one an input; got 2 values for 1 inputs",
    ),
    ({"encoding_format": "bad"}, "encoding_format must be one of 'float', 'base64'; got 'bad'"),
    (
        {"embedding_type": "bad"},
        "Input should be 'float', 'binary', 'ubinary', 'int8' or 'uint8'",
    ),
    ({"input_type": "document"}, "input_type must be one of 'query', 'passage'; got 'document'"),
    ({"truncate": "end"}, "truncate must be one of 'NONE', 'START', 'END'; got 'end'"),
    ({"truncate": True}, "truncate must be one of 'NONE', 'START', 'END'; got a boolean"),
    ({"dimensions": 100}, "dimensions must be one of 16, 32, 64; got 100"),
    ({"dimensions": 0}, "dimensions must be positive; got 0"),
    ({"dimensions": -1}, "dimensions must be positive; got -1"),
    ({"dimensions": "64"}, "dimensions must be an integer; got a string"),
    ({"dimensions": True}, "dimensions must be an integer; got a boolean"),
    ({"dimensions": 16.5}, "dimensions must be an integer; got a number"),
    ({"user": 5}, "user must be a string; got an integer"),
]


@pytest.mark.parametrize(("wrong", "sentence"), ROWS, ids=[str(row[0]) for row in ROWS])
def test_a_wrong_field_is_named_in_nims_words(plain, wrong, sentence):
    answer = plain.embed(**wrong)
    assert answer.status_code == 400
    body = answer.json()
    assert body["message"] == sentence
    assert body["object"] == "error"
    assert body["type"] == "invalid_request_error"
    assert body["param"] == next(iter(wrong))


def test_every_client_finds_the_message_where_it_looks(plain):
    body = plain.embed(input=[]).json()
    assert {body["message"], body["title"], body["detail"], body["error"]["message"]} == {
        "input must not be empty"
    }
    assert isinstance(body["code"], int)
    assert body["error"]["type"] == body["type"]


def test_an_unknown_model_is_404_and_the_known_ones_are_named(plain):
    answer = plain.embed(model="wrong-model")
    assert answer.status_code == 404
    assert answer.json()["message"] == (
        f"model 'wrong-model' not found; available: '{MODEL}', '{PICTURES.id}'"
    )
    assert answer.json()["type"] == "not_found_error"


def test_a_text_that_is_too_long_is_refused_in_the_words_clients_look_for(plain):
    answer = plain.embed(input=["short", "word " * 600], input_type="query")
    assert answer.status_code == 400
    assert answer.json()["message"] == (
        "Input length 601 exceeds maximum allowed token size 512 (input[1])"
    )


@pytest.mark.parametrize("side", ["START", "END"])
def test_a_text_that_is_too_long_is_cut_where_asked(plain, side):
    long = " ".join(f"w{n}" for n in range(600))
    answer = plain.embed(input=["short", long], input_type="query", truncate=side)
    assert answer.headers["x-nimbed-truncated"] == "1"
    wanted = FakeEmbedder().embed(["short", long], input_type="query", truncate=side)
    got = [item["embedding"] for item in answer.json()["data"]]
    np.testing.assert_allclose(got, wanted.vectors, atol=1e-6)


def test_the_answer_has_nims_shape(plain):
    answer = plain.embed(input=["one", "two words"], input_type="passage")
    body = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert list(body) == ["object", "data", "model", "usage"]
    assert body["object"] == "list"
    assert body["model"] == MODEL
    # Words stand for tokens, and the prompt is one of them.
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert [item["index"] for item in body["data"]] == [0, 1]
    assert {item["object"] for item in body["data"]} == {"embedding"}


def test_one_string_is_one_input(plain):
    assert len(plain.embed(input="one").json()["data"]) == 1


def test_null_is_absent_in_every_optional_field(plain):
    names = ("input_type", "modality", "embedding_type", "encoding_format", "dimensions")
    nulls = dict.fromkeys((*names, "truncate", "user"))
    assert plain.embed(**nulls).json() == plain.embed().json()


def test_an_unknown_field_is_ignored(plain):
    assert plain.embed(priority=3, extra={"a": []}).json() == plain.embed().json()


@pytest.mark.parametrize("kind", ["float", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("dimensions", [16, 64, None])
def test_every_type_and_size_is_what_the_engine_gives(plain, kind, dimensions):
    scale = "nim" if kind in ("int8", "uint8") else None
    wanted = FakeEmbedder().embed(
        ["one", "two"],
        input_type="passage",
        embedding_type=kind,
        dimensions=dimensions,
        int8_scale=scale,
    )
    asked = {"input": ["one", "two"], "input_type": "passage", "embedding_type": kind}
    lists = plain.embed(**asked, dimensions=dimensions).json()
    got = np.array([item["embedding"] for item in lists["data"]])
    np.testing.assert_array_equal(got.astype(wanted.vectors.dtype), wanted.vectors)
    packed = plain.embed(**asked, dimensions=dimensions, encoding_format="base64").json()
    raw = b"".join(base64.b64decode(item["embedding"]) for item in packed["data"])
    assert raw == wanted.vectors.astype(wanted.vectors.dtype.newbyteorder("<")).tobytes()


def test_int8_is_nims_scale_by_default_and_even_where_asked(serve):
    text = {"input": ["one"], "input_type": "passage", "embedding_type": "int8"}
    floats = FakeEmbedder().embed(["one"], input_type="passage").vectors[0]
    nim = serve().embed(**text).json()["data"][0]["embedding"]
    np.testing.assert_array_equal(nim, np.trunc(floats.astype(np.float64) * 127))
    even = serve(int8_scale="even").embed(**text).json()["data"][0]["embedding"]
    wanted = FakeEmbedder().embed(["one"], input_type="passage", embedding_type="int8")
    np.testing.assert_array_equal(even, wanted.vectors[0])


def test_a_fixed_model_says_that_it_has_one_size(serve):
    from dataclasses import replace

    from nimbed.fake import FAKE_CARD

    fixed = FakeEmbedder(replace(FAKE_CARD, matryoshka=()))
    server = serve({MODEL: fixed})
    assert server.embed(dimensions=2048).json()["message"] == (
        "This model does not support 'dimensions', but a value of '2048' was provided."
    )
    assert server.embed(dimensions=64).status_code == 200
    strict = serve({MODEL: fixed}, strict_nim=True)
    assert strict.embed(dimensions=64).status_code == 400


def test_strict_nim_refuses_a_size_with_a_type_and_trims_its_errors(serve):
    answer = serve(strict_nim=True).embed(dimensions=16, embedding_type="int8")
    assert answer.status_code == 400
    assert answer.json() == {
        "object": "error",
        "message": "dimensions cannot be used in combination with embedding_type",
        "type": "invalid_request_error",
    }


def test_more_items_than_a_request_may_hold_are_refused(serve):
    server = serve(max_items=3)
    assert server.embed(input=["a"] * 3).status_code == 200
    assert server.embed(input=["a"] * 4).json()["message"] == (
        "input must contain at most 3 items; got 4"
    )


def test_base64_of_integers_is_not_given_to_a_client_that_would_read_floats(plain):
    sdk = {"X-Stainless-Lang": "python"}
    asked = {"embedding_type": "int8", "encoding_format": "base64"}
    answer = plain.embed(headers=sdk, **asked)
    assert isinstance(answer.json()["data"][0]["embedding"], list)
    assert answer.headers["x-nimbed-encoding-format"] == "float; source=sdk"
    floats = plain.embed(headers=sdk, encoding_format="base64")
    assert isinstance(floats.json()["data"][0]["embedding"], str)
    assert isinstance(plain.embed(**asked).json()["data"][0]["embedding"], str)
