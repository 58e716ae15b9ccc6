"""Sparse vectors and multi-vectors of text-embeddings-inference and of vLLM."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nimbed import FakeEmbedder, MultiVectorBatch
from nimbed.cards import find
from nimbed.errors import RemoteError
from nimbed.fake import FAKE_CARD

from .double import Handler, Request, Response, answer, as_json, error, failing_after, vectors
from .players import listing

TEXTS = ["the cat sat on the mat", "a dog barked", "cat and dog", "quiet"]


def tei(*, pooling: str = "splade", longest: int = 512) -> Handler:
    """text-embeddings-inference by its OpenAPI document; words stand for tokens."""

    def handle(request: Request) -> Response:
        if request.path == "/info":
            return as_json(
                {
                    "model_id": "splade",
                    "model_type": {"embedding": {"pooling": pooling}},
                    "max_client_batch_size": 8,
                    "max_input_length": longest,
                    "auto_truncate": True,
                }
            )
        if request.path not in ("/embed_sparse", "/embed_all"):
            return Response(404)
        texts = request.json["inputs"]
        if len(texts) > 8:
            words = f"batch size {len(texts)} > maximum allowed batch size 8"
            return as_json({"error": words, "error_type": "Validation"}, 422)
        kept = [text.split() for text in texts]
        if any(len(each) > longest for each in kept):
            if not request.json.get("truncate", True):  # auto_truncate
                words = f"`inputs` must have less than {longest} tokens. Given: 10000"
                return as_json({"error": words, "error_type": "Validation"}, 413)
            left = request.json.get("truncation_direction", "Right") == "Left"
            kept = [each[-longest:] if left else each[:longest] for each in kept]
        texts = [" ".join(each) for each in kept]
        if request.path == "/embed_all":
            return as_json([rows.tolist() for rows in states(texts)])
        weights = raw_fake().embed_sparse(texts, input_type="query").dicts()
        return as_json([[{"index": i, "value": w} for i, w in row.items()] for row in weights])

    return handle


def raw_fake() -> FakeEmbedder:
    """A fake without prompts and without an end."""
    return FakeEmbedder(
        replace(FAKE_CARD, query_prompt="", passage_prompt="", asymmetric=False, max_tokens=10**6)
    )


def states(texts: list[str]) -> list[Any]:
    """Vectors of words that are not of unit length, as TEI gives them."""
    return [3 * rows for rows in raw_fake().embed_multi(texts, input_type="query").rows()]


@pytest.mark.parametrize("known", [True, False])
def test_teis_weights_are_taken_with_the_prompt_and_without_a_vocabulary(serve, connect, known):
    double = serve(tei())
    model = replace(FAKE_CARD, id="splade") if known else "splade"
    embedder = connect(double, model, dialect="tei")
    texts = [f"text {n} of {n % 3}" for n in range(30)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = embedder.embed_sparse(texts, input_type="passage", max_active=2)
    assert bool(told) != known
    prompt = "passage: " if known else ""
    exact = raw_fake().embed_sparse(
        [prompt + text for text in texts], input_type="query", max_active=2
    )
    np.testing.assert_array_equal(found.ids, exact.ids)
    np.testing.assert_array_equal(found.weights, exact.weights)
    assert found.spec.model == "splade"
    assert found.spec.vocabulary is None
    assert found.spec.passage_prompt == prompt
    assert found.spec == embedder.sparse_spec(max_active=2)
    assert embedder.kinds == ("sparse",)
    assert all(len(r.json["inputs"]) <= 8 for r in double.seen if r.path == "/embed_sparse")


def test_a_tei_that_would_cut_in_silence_is_told_not_to(serve, connect):
    embedder = connect(serve(tei(longest=6)), replace(FAKE_CARD, id="splade"), dialect="tei")
    texts = ["short", " ".join(f"w{n}" for n in range(20))]
    with pytest.raises(RemoteError, match="must have less than") as raised:
        embedder.embed_sparse(texts, input_type="query")
    assert raised.value.rows == (1,)
    for end, words in (("END", range(5)), ("START", range(14, 20))):
        found = embedder.embed_sparse(texts, input_type="query", truncate=end)
        given = ("query: " if end == "END" else "") + " ".join(f"w{n}" for n in words)
        exact = raw_fake().embed_sparse([given], input_type="query")
        assert found.dicts()[1] == exact.dicts()[0]


def test_teis_token_states_are_stored_as_asked(serve, connect):
    embedder = connect(serve(tei(pooling="mean")), "m", dialect="tei")
    assert embedder.kinds == ("dense", "multi")
    with pytest.warns(UserWarning, match="without a role prompt"):
        found = embedder.embed_multi(TEXTS, input_type="passage", token_type="int8")
    spec = replace(raw_fake().multi_spec(token_type="int8"), model="m")
    exact = MultiVectorBatch.from_floats(
        states(TEXTS), spec=spec, input_type="passage", token_counts=found.token_counts
    )
    assert found.spec == spec == embedder.multi_spec(token_type="int8")
    np.testing.assert_array_equal(found.vectors, exact.vectors)
    dense_alone = connect(serve(tei(pooling="cls")), find("all-MiniLM-L6-v2").id, dialect="tei")
    assert dense_alone.kinds == ("dense",)


def test_kinds_that_come_one_after_the_other_are_kept_too(serve, connect):
    """Such as TEI's: dense vectors of all texts, and then vectors of their tokens."""

    def both(request: Request) -> Response:
        if request.path == "/v1/embeddings":
            return answer(vectors(request.texts))
        return tei(pooling="mean")(request)

    texts = [f"text {n}" for n in range(30)]
    for answered in (0, 2):
        server = serve(failing_after(both, answered, "/embed_all"))
        embedder = connect(server, "m", dialect="tei")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(RemoteError, match="expired") as raised:
                embedder.embed_kinds(texts, kinds=("dense", "multi"), input_type="query")
        partial = raised.value.partial
        assert partial is not None
        rows = list(partial.rows)
        assert len(rows) == (30 if answered == 0 else 16)
        exact = vectors([texts[row] for row in rows])
        np.testing.assert_allclose(partial.batch.dense.vectors, exact, atol=1e-6)
        multi = partial.batch.multi
        assert (multi is None) == (answered == 0)
        assert multi is None or len(multi) == 16


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([[{"index": 1, "value": 0.5}]], "vectors of 1 texts for 2 inputs"),
        ([[{"index": 1, "value": 0.5}], [{"id": 1}]], "no list of index and value for input 1"),
        ([[{"index": 1.5, "value": 0.5}], []], "no list of index and value for input 0"),
        ([[{"index": 1, "value": 1}, {"index": 1, "value": 2}], []], "do not ascend in row 0"),
        ([[{"index": 2**20, "value": 1}], []], "the vocabulary has 1048576"),
        ([[{"index": 1, "value": -1}], []], "not positive and finite"),
        ({"error": "model is not an embedding model with SPLADE pooling"}, "with SPLADE pooling"),
        ("<html>hello</html>", "of 20 bytes that is not JSON|data"),
    ],
)
def test_what_is_not_teis_shape_is_refused(serve, connect, body, message):
    def handle(request: Request) -> Response:
        return as_json(body) if request.path == "/embed_sparse" else tei()(request)

    embedder = connect(serve(handle), replace(FAKE_CARD, id="splade"), dialect="tei")
    with pytest.raises(RemoteError, match=message):
        embedder.embed_sparse(TEXTS[:2], input_type="query")


def vllm(*, special: int) -> Handler:
    """vLLM's pooling of token embeddings, which leaves out some of the special tokens."""

    def handle(request: Request) -> Response:
        if request.path != "/pooling":
            return listing("m", owner="vllm") if request.path == "/v1/models" else Response(404)
        assert request.json["task"] == "token_embed"
        rows = states(request.texts)
        data = [
            {"index": n, "object": "pooling", "data": each.tolist()} for n, each in enumerate(rows)
        ]
        tokens = sum(map(len, rows)) + special * len(rows)
        return as_json({"object": "list", "data": data[::-1], "usage": {"prompt_tokens": tokens}})

    return handle


def test_vllms_token_vectors_are_taken(serve, connect):
    embedder = connect(serve(vllm(special=0)), "m", dialect="auto")
    with pytest.warns(UserWarning, match="without a role prompt"):
        found = embedder.embed_multi(TEXTS, input_type="query")
    exact = raw_fake().embed_multi(TEXTS, input_type="query")
    np.testing.assert_allclose(found.vectors, exact.vectors, atol=1e-6)
    assert embedder.kinds == ("dense", "multi")


def test_a_model_that_vllm_serves_without_its_head_is_found_out(serve, connect):
    m3 = replace(find("BAAI/bge-m3"), dimensions=64, matryoshka=())
    right = connect(serve(vllm(special=1)), m3, dialect="vllm", served_name="m")
    assert len(right.embed_multi(TEXTS, input_type="query")) == 4
    wrong = connect(serve(vllm(special=0)), m3, dialect="vllm", served_name="m")
    with pytest.raises(RemoteError, match="not those of the model's multi-vector head"):
        wrong.embed_multi(TEXTS, input_type="query")


IDS = {"the": 70, "cat": 71, "sat": 72, "on": 73, "mat": 74, "?": 3}


def vllm_m3(*, longest: int = 512, nested: bool = False, served: bool = True) -> Handler:
    """vLLM's bge-m3: a weight for every token but the first and the last; 3 is what is unknown."""

    def tokens(text: str) -> list[int]:
        return [0, *(IDS[word] for word in text.split()), 2]

    def weight(place: int, token: int) -> float:
        return (token % 7 + place) / 8 - 0.25

    def handle(request: Request) -> Response:
        if request.path == "/v1/models":
            return listing("m", owner="vllm")
        if request.path == "/tokenize":
            found = tokens(request.json["prompt"])
            return as_json({"count": len(found), "max_model_len": longest, "tokens": found})
        assert request.path == "/pooling"
        assert request.json["task"] == "token_classify"
        if not served:
            return error("Unsupported task: 'token_classify' Supported tasks: ['embed']")
        side = request.json.get("truncation_side")
        data = []
        for number, text in enumerate(request.json["input"]):
            given = [[weight(n, token)] for n, token in enumerate(tokens(text)[1:-1])]
            if side is not None:
                most = longest - 2
                given = given[:most] if side == "right" else given[-most:]
            data.append(
                {"index": number, "data": given if nested else [value for (value,) in given]}
            )
        return as_json({"object": "list", "data": data[::-1], "usage": {"prompt_tokens": 9}})

    return handle


@pytest.mark.parametrize("nested", [False, True])
def test_vllms_weights_of_tokens_become_bge_m3s_sparse_vectors(serve, connect, nested):
    """By token id the larger weight of each, as FlagEmbedding has it; what is no word has none."""
    embedder = connect(
        serve(vllm_m3(nested=nested)), find("BAAI/bge-m3"), dialect="vllm", served_name="m"
    )
    assert embedder.kinds == ("dense", "sparse", "multi")
    texts = ["the cat sat on the ? mat", "mat", "the the the"] * 5
    found = embedder.embed_sparse(texts, input_type="passage")
    assert found.spec.vocabulary is None
    assert found.token_counts.tolist() == [9, 3, 5] * 5
    first = {70: 0.25, 71: 0.125 + 1 / 8 - 0.25, 72: 0.5 - 0.25, 73: 0.75 - 0.25, 74: 1.25 - 0.25}
    first = {token: value for token, value in first.items() if value > 0}
    assert found.dicts()[:3] == [pytest.approx(first), pytest.approx({74: 0.25}), {}]
    assert found.dicts()[3:] == found.dicts()[:3] * 4
    lighter = embedder.embed_sparse(texts[:1], input_type="passage", max_active=2)
    assert lighter.dicts() == [pytest.approx({73: 0.5, 74: 1.0})]


@pytest.mark.parametrize("end", ["END", "START"])
def test_a_text_that_vllm_cut_keeps_the_weights_of_its_own_tokens(serve, connect, end):
    embedder = connect(
        serve(vllm_m3(longest=4)), find("BAAI/bge-m3"), dialect="vllm", served_name="m"
    )
    found = embedder.embed_sparse(["mat mat cat on", "on"], input_type="query", truncate=end)
    kept = {74: 0.375} if end == "END" else {71: 0.125, 73: 0.5}
    assert found.dicts()[0] == pytest.approx(kept)
    assert found.truncated == (0,)


def test_what_vllm_does_not_serve_is_told(serve, connect):
    card = find("BAAI/bge-m3")
    plain = connect(serve(vllm_m3(served=False)), card, dialect="vllm", served_name="m")
    with pytest.raises(RemoteError, match="Unsupported task: 'token_classify'"):
        plain.embed_sparse(["cat"], input_type="query")

    def short(request: Request) -> Response:
        if request.path != "/pooling":
            return vllm_m3()(request)
        return as_json({"data": [{"index": 0, "data": [0.5]}]})

    wrong = connect(serve(short), card, dialect="vllm", served_name="m")
    with pytest.raises(RemoteError, match=r"weights of shape \(1,\) for 2 tokens of input 0"):
        wrong.embed_sparse(["cat mat"], input_type="query")
