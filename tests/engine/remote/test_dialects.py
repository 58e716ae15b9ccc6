"""Each kind of server, played strictly, through one and the same call."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nimbed import cards
from nimbed.errors import ConfigurationError, RemoteError
from nimbed.remote.dialects import CAPABILITIES

from .double import Response, error, vectors
from .players import DIMENSIONS, E5, listing, nim, openai, plain, tei, vllm

LLAMA = "nvidia/llama-nemotron-embed-1b-v2"
PLAYERS = {
    "nim": nim(),
    "nim-hosted": nim(hosted=True),
    "openai": openai(E5, DIMENSIONS),
    "vllm": vllm(E5, DIMENSIONS),
    "tei": tei(E5, DIMENSIONS),
}


def passages(count):
    return [f"passage number {row}" for row in range(count)]


@pytest.mark.parametrize("name", PLAYERS)
@pytest.mark.parametrize("role", ["query", "passage"])
def test_the_role_reaches_the_model_whatever_the_server_understands(serve, connect, name, role):
    double = serve(PLAYERS[name])
    batch = connect(double, dialect=name).embed(passages(300), input_type=role)
    expected = vectors([f"{role}: {text}" for text in passages(300)], DIMENSIONS)
    np.testing.assert_allclose(batch.vectors, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["nim", "openai", "vllm", "tei"])
def test_the_dialect_of_an_unknown_address_is_asked_for(serve, connect, name):
    double = serve(PLAYERS[name])
    embedder = connect(double, dialect="auto")
    batch = embedder.embed(passages(40), input_type="query")
    expected = vectors([f"query: {text}" for text in passages(40)], DIMENSIONS)
    np.testing.assert_allclose(batch.vectors, expected, atol=1e-6)
    asked = len(double.seen) - len(double.posts)
    embedder.embed(passages(1), input_type="query")
    assert len(double.seen) - len(double.posts) == asked


def test_a_nim_that_lists_no_owner_is_known_by_its_health(serve, connect):
    inner = nim()

    def handle(request):
        return listing(E5, owner="me") if request.path == "/v1/models" else inner(request)

    double = serve(handle)
    connect(double, dialect="auto").embed(["a"], input_type="query")
    assert double.posts[0].json["input_type"] == "query"


def test_teis_own_limit_is_taken_from_its_page(serve, connect):
    double = serve(tei(E5, DIMENSIONS, most=8))
    connect(double, dialect="auto").embed(passages(20), input_type="query")
    assert [len(post.texts) for post in double.posts] == [8, 8, 4]


def test_suffixed_models_carry_the_role(serve, connect):
    double = serve(plain())
    connect(double, dialect="nim-suffix").embed(["a"], input_type="passage")
    assert double.posts[0].json["model"] == f"{E5}-passage"
    assert "input_type" not in double.posts[0].json


def test_openai_gets_model_and_input_alone_from_who_sends_one_request(serve, connect):
    double = serve(openai("text-embedding-3-small", 1536, knows=["encoding_format"]))
    embedder = connect(double, "text-embedding-3-small", dialect="openai")
    embedder.embed(["a"], input_type="query")
    assert double.posts[0].json == {"model": "text-embedding-3-small", "input": ["a"]}


def test_base64_is_used_once_the_server_has_shown_that_it_knows_it(serve, connect):
    double = serve(openai("text-embedding-3-small", 1536, knows=["encoding_format"]))
    embedder = connect(double, "text-embedding-3-small", dialect="openai", concurrency=1)
    batch = embedder.embed(passages(500), input_type="query")
    np.testing.assert_allclose(batch.vectors, vectors(passages(500), 1536), atol=1e-6)
    asked = [post.json.get("encoding_format") for post in double.posts]
    assert asked == [None, "base64", "base64", "base64"]


@pytest.mark.parametrize("refusal", [None, Response(500), Response(200, b"what?")])
def test_a_gateway_that_does_not_know_base64_is_asked_only_once(serve, connect, refusal):
    strict = openai("text-embedding-3-small", 1536)

    def handle(request):
        return refusal if refusal and "encoding_format" in request.json else strict(request)

    double = serve(handle)
    embedder = connect(double, "text-embedding-3-small", dialect="openai")
    for _ in range(2):
        batch = embedder.embed(passages(500), input_type="query")
        np.testing.assert_allclose(batch.vectors, vectors(passages(500), 1536), atol=1e-6)
    assert sum("encoding_format" in post.json for post in double.posts) <= 1


def test_a_server_that_ignores_base64_is_not_asked_again(serve, connect):
    inner = plain()

    def handle(request):
        body = request.body.replace(b'"base64"', b'"float"')
        return inner(request.__class__(**{**request.__dict__, "body": body}))

    double = serve(handle)
    embedder = connect(double)
    embedder.embed(["a"], input_type="query")
    embedder.embed(["a"], input_type="query")
    assert [post.json["encoding_format"] for post in double.posts] == ["base64", "float"]


@pytest.mark.parametrize("field", ["encoding_format", "truncate"])
def test_a_field_that_is_refused_is_learnt_once_for_server_and_model(serve, connect, field):
    double = serve(nim(forbids=[field]))
    for _ in range(2):
        batch = connect(double).embed(["a"], input_type="query")
        np.testing.assert_allclose(batch.vectors, vectors(["query: a"], DIMENSIONS), atol=1e-6)
    assert [field in post.json for post in double.posts] == [True, False, False]


def test_dimensions_that_are_refused_are_sliced_here(serve, connect):
    double = serve(nim(LLAMA, 2048, hosted=True))
    embedder = connect(double, LLAMA, dialect="nim-hosted")
    batch = embedder.embed(passages(100), input_type="passage", dimensions=512)
    full = vectors([f"passage: {text}" for text in passages(100)], 2048)[:, :512]
    expected = full / np.linalg.norm(full, axis=1, keepdims=True)
    np.testing.assert_allclose(batch.vectors, expected, atol=1e-6)


def test_a_refused_role_becomes_a_prefix(serve, connect):
    double = serve(openai(E5, DIMENSIONS, knows=["encoding_format", "truncate"]))
    batch = connect(double).embed(["a"], input_type="query")
    assert double.posts[-1].texts == ["query: a"]
    np.testing.assert_allclose(batch.vectors, vectors(["query: a"], DIMENSIONS), atol=1e-6)


def test_a_refused_role_without_a_prefix_is_an_error_and_not_a_worse_vector(serve, connect):
    card = dataclasses.replace(cards.find(E5), query_prompt="", passage_prompt="")
    double = serve(openai(E5, DIMENSIONS))
    with pytest.raises(ConfigurationError, match="no field for the role"):
        connect(double, card).embed(["a"], input_type="query")


def test_a_missing_role_is_sent_once_the_server_asks_for_it(serve, connect):
    double = serve(nim())
    batch = connect(double, dialect="tei").embed(["a"], input_type="query")
    np.testing.assert_allclose(batch.vectors, vectors(["query: a"], DIMENSIONS), atol=1e-6)
    assert double.posts[-1].texts == ["a"]


def test_a_text_that_holds_a_fields_name_teaches_nothing(serve, connect):
    def handle(request):
        bad = [text for text in request.texts if "truncate" in text]
        return error(f"cannot embed {bad[0]!r}") if bad else nim()(request)

    double = serve(handle)
    embedder = connect(double)
    with pytest.raises(RemoteError) as caught:
        embedder.embed(["good", "how to truncate a table", "fine"], input_type="query")
    assert caught.value.rows == (1,)
    assert not CAPABILITIES[double.url, E5].refused


def limited(most, message, status=400):
    inner = nim()

    def handle(request):
        if request.method == "POST" and len(request.texts) > most:
            return error(message.format(n=len(request.texts), most=most), status)
        return inner(request)

    return handle


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("batch size {n} > maximum allowed batch size {most}", 422),
        ("batch size is invalid, it should not be larger than {most}.", 400),
        ("input must contain at most {most} items; got {n}", 400),
        ("inference request batch-size must be <= {most} for 'e5'", 400),
        ("exceeds maximum allowed batch size", 400),
        ("payload too large", 413),
    ],
)
def test_a_smaller_limit_is_learnt_from_its_message(serve, connect, message, status):
    double = serve(limited(10, message, status))
    embedder = connect(double, concurrency=1)
    batch = embedder.embed(passages(200), input_type="passage")
    expected = vectors([f"passage: {text}" for text in passages(200)], DIMENSIONS)
    np.testing.assert_allclose(batch.vectors, expected, atol=1e-6)
    if "{most}" in message:
        double.seen.clear()
        embedder.embed(passages(200), input_type="passage")
        assert [len(post.texts) for post in double.posts] == [10] * 20


def test_a_token_limit_is_learnt_from_its_message(serve, connect):
    inner = nim()

    def handle(request):
        tokens = sum(len(text) for text in request.texts)
        if tokens > 3000:
            return error(f"Requested {tokens} tokens, max 3000 tokens per request")
        return inner(request)

    double = serve(handle)
    batch = connect(double, concurrency=1).embed(["x" * 100] * 100, input_type="passage")
    assert len(batch) == 100
    assert CAPABILITIES[double.url, E5].max_tokens == 3000


@pytest.mark.parametrize("truncate", ["START", "END"])
def test_truncation_is_the_servers_where_it_can(serve, connect, truncate):
    double = serve(nim(longest=4))
    batch = connect(double).embed(["a b c d e f", "a b"], input_type="query", truncate=truncate)
    kept = {"END": "a b c d", "START": "c d e f"}[truncate]
    np.testing.assert_allclose(
        batch.vectors, vectors([f"query: {kept}", "query: a b"], DIMENSIONS), atol=1e-6
    )


@pytest.mark.parametrize("truncate", ["START", "END"])
def test_truncation_is_done_here_where_the_server_cannot(serve, connect, truncate):
    words = [f"w{n:03}" for n in range(100)]
    double = serve(openai("text-embedding-3-small", 1536, longest=50))
    embedder = connect(double, "text-embedding-3-small", dialect="openai")
    batch = embedder.embed(["short", " ".join(words)], input_type="query", truncate=truncate)
    assert batch.truncated == (1,)
    kept = double.posts[-1].texts[-1]
    assert " ".join(words).startswith(kept) == (truncate == "END")
    assert " ".join(words).endswith(kept) == (truncate == "START")
    np.testing.assert_allclose(batch.vectors[1], vectors([kept], 1536)[0], atol=1e-6)


@pytest.mark.parametrize("player", [nim(longest=4), openai(E5, DIMENSIONS, longest=4)])
def test_without_truncation_a_long_text_is_an_error_with_its_row(serve, connect, player):
    dialect = "nim" if player.__qualname__.startswith("nim") else "openai"
    with pytest.raises(RemoteError) as caught:
        connect(serve(player), dialect=dialect).embed(["a", "a b c d e f", "b"], input_type="query")
    assert caught.value.rows == (1,)


def test_rows_that_reach_the_models_limit_count_as_truncated(serve, connect):
    long = " ".join(["word"] * 900)
    double = serve(nim(longest=512))
    batch = connect(double).embed([long], input_type="passage", truncate="END")
    assert batch.token_counts.tolist() == [512]
    assert batch.truncated == (0,)
