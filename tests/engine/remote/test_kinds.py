"""Sparse vectors and multi-vectors of servers: what is asked, and what of an answer is believed."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nimbed import FakeEmbedder, SparseBatch
from nimbed.errors import (
    ConfigurationError,
    RemoteError,
    SpaceMismatchError,
    TooLongError,
)
from nimbed.fake import FAKE_CARD
from nimbed.kinds import EmbeddingKinds

from .double import JSON, Handler, Request, Response, as_json, edited, error, failing_after
from .players import listing

FAKE = FakeEmbedder()
TEXTS = ["the cat sat on the mat", "a dog barked", "cat and dog", "quiet"]
OFFERED = {"dense": FAKE.spec(), "sparse": FAKE.sparse_spec(), "multi": FAKE.multi_spec()}


def own(edit: Callable[[JSON], object] = lambda body: None, **names: Any) -> Handler:
    """nimbed's own server with a fake model, every answer of kinds edited."""

    def handle(request: Request) -> Response:
        if request.path == "/v1/models":
            return listing(FAKE_CARD.id, owner="nimbed")
        if request.path == "/v1/metadata":
            stated = {kind: spec.to_dict() for kind, spec in OFFERED.items()}
            return as_json({"kinds": {FAKE_CARD.id: stated, **names}})
        if request.path != "/v1/embeddings/kinds":
            return Response(404)
        asked = request.json
        texts = asked.pop("input")
        if len(texts) > 16:
            return error("input must contain at most 16 items", param="input")
        options = {name: asked[name] for name in asked.keys() - {"model", "encoding_format"}}
        try:
            found = FakeEmbedder().embed_kinds(texts, **options)
        except TooLongError as caught:
            return error(f"Input length {caught.length} exceeds maximum of 512 (input[0])")
        return edited(as_json(written(found)), edit)

    return handle


def written(found: EmbeddingKinds) -> JSON:
    def coded(array: Any) -> str:
        return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()

    batches = [each for each in (found.dense, found.sparse, found.multi) if each is not None]
    items: list[JSON] = [
        {"index": row, "tokens": int(count)} for row, count in enumerate(batches[0].token_counts)
    ]
    for row, item in enumerate(items):
        if found.dense is not None:
            item["embedding"] = coded(found.dense.vectors[row])
        if found.sparse is not None:
            ids, weights = list(found.sparse.rows())[row]
            item["sparse_embedding"] = {"indices": coded(ids), "values": coded(weights)}
        if found.multi is not None:
            item["token_embeddings"] = coded(list(found.multi.rows())[row])
    return {
        "data": items,
        "input_type": batches[0].input_type,
        "specs": {batch.spec.kind: batch.spec.to_dict() for batch in batches},
        "truncated": list(batches[0].truncated),
    }


def same(left: EmbeddingKinds, right: EmbeddingKinds) -> None:
    for kind in ("dense", "sparse", "multi"):
        found, exact = getattr(left, kind), getattr(right, kind)
        assert (found is None) == (exact is None)
        if exact is None:
            continue
        assert found.spec == exact.spec
        assert found.spec.fingerprint == exact.spec.fingerprint
        assert (found.input_type, found.truncated) == (exact.input_type, exact.truncated)
        np.testing.assert_array_equal(found.token_counts, exact.token_counts)
        names = {"dense": ["vectors"], "sparse": ["ids", "weights", "offsets"]}
        for name in names.get(kind, ["vectors", "offsets"]):
            np.testing.assert_allclose(getattr(found, name), getattr(exact, name), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kinds": ("sparse",), "max_active": 2},
        {"kinds": ("multi", "dense"), "token_type": "ubinary", "embedding_type": "ubinary"},
        {"pool_factor": 2, "token_type": "int8", "dimensions": 16},
        {"kinds": ("dense",), "embedding_type": "int8", "int8_scale": "even"},
    ],
)
def test_a_server_of_our_own_gives_what_its_model_gives(serve, connect, options):
    double = serve(own())
    embedder = connect(double, FAKE_CARD)
    told = []
    found = embedder.embed_kinds(
        TEXTS, input_type="passage", progress=lambda done, total: told.append(done), **options
    )
    same(found, FakeEmbedder().embed_kinds(TEXTS, input_type="passage", **options))
    assert told[-1] == 4
    again = asyncio.run(embedder.aembed_kinds(TEXTS, input_type="passage", **options))
    same(again, found)
    posts = [request for request in double.seen if request.method == "POST"]
    assert len(posts) == 2  # one forward pass for all kinds


def test_many_texts_are_divided_and_put_in_order(serve, connect):
    """The server takes 16 at a time, and has too much to do twice."""
    double = serve(own())
    double.script += [error("busy", 503), error("busy", 503)]
    texts = [f"text {n} " * (n % 5 + 1) for n in range(70)]
    texts[33] = "word " * 700
    found = connect(double, FAKE_CARD).embed_kinds(texts, input_type="query", truncate="END")
    same(found, FakeEmbedder().embed_kinds(texts, input_type="query", truncate="END"))
    assert found.sparse is not None
    assert found.sparse.truncated == (33,)
    with pytest.raises(RemoteError, match="exceeds maximum") as raised:
        connect(double, FAKE_CARD).embed_kinds(texts, input_type="query")
    assert raised.value.rows == (33,)


@pytest.mark.parametrize("end", ["NONE", "END"])
def test_what_a_call_had_finished_is_kept(serve, connect, end):
    """The server takes 16 at a time; the key expires after three requests."""
    path = "/v1/embeddings/kinds"
    embedder = connect(serve(failing_after(own(), 3, path)), FAKE_CARD)
    texts = [f"text {n} " * (n % 5 + 1) for n in range(70)]
    if end == "END":
        texts[3] = "word " * 700
    with pytest.raises(RemoteError, match="expired") as raised:
        embedder.embed_kinds(texts, input_type="passage", truncate=end)
    partial = raised.value.partial
    assert partial is not None
    rows = list(partial.rows)
    assert 0 < len(rows) < 70
    assert rows == sorted(rows)
    exact = FakeEmbedder().embed_kinds(
        [texts[row] for row in rows], input_type="passage", truncate=end
    )
    same(partial.batch, exact)
    cut = [rows.index(3)] if end == "END" and 3 in rows else []
    assert [list(batch.truncated) for batch in partial.batch.batches] == [cut] * 3
    with pytest.raises(RemoteError, match="expired") as raised:
        embedder.embed_kinds(texts, input_type="passage", truncate=end)
    assert raised.value.partial is None


def test_contracts_are_known_before_anything_is_embedded(serve, connect):
    double = serve(own())
    embedder = connect(double, FAKE_CARD)
    assert embedder.kinds == ("dense", "sparse", "multi")
    assert embedder.sparse_spec(max_active=9) == FAKE.sparse_spec(max_active=9)
    half = {"token_type": "half", "pool_factor": 3}
    assert embedder.multi_spec(**half) == FAKE.multi_spec(**half)
    assert {request.method for request in double.seen} == {"GET"}
    nothing = embedder.embed_kinds([], input_type="query", max_active=3)
    same(nothing, FakeEmbedder().embed_kinds([], input_type="query", max_active=3))
    assert {request.method for request in double.seen} == {"GET"}


def test_what_a_name_of_the_server_fixes_is_taken_unless_something_else_is_asked(serve, connect):
    fixed = {"sparse": FAKE.sparse_spec(max_active=2).to_dict()}

    def handle(request: Request) -> Response:
        if request.method == "POST":
            asked = {"max_active": 2, **request.json}
            request = replace(request, body=json.dumps({**asked, "model": FAKE_CARD.id}).encode())
        return own(rare=fixed)(request)

    embedder = connect(serve(handle), "rare")
    assert embedder.kinds == ("sparse",)
    assert embedder.sparse_spec() == FAKE.sparse_spec(max_active=2)
    assert embedder.embed_sparse(TEXTS, input_type="query").spec.max_active == 2
    with pytest.raises(ConfigurationError, match="rare at .* gives no multi vectors; it gives spa"):
        embedder.embed_multi(TEXTS, input_type="query")


def test_another_spelling_of_a_name_is_asked_what_it_gives(serve, connect):
    embedder = connect(serve(own()), f"{FAKE_CARD.id}-query")
    assert embedder.sparse_spec() == FAKE.sparse_spec()


def flip(body: JSON) -> None:
    body["data"].reverse()


def lose(body: JSON) -> None:
    body["data"].pop()


def other_space(body: JSON) -> None:
    body["specs"]["sparse"] = replace(FAKE.sparse_spec(), vocabulary="another").to_dict()


def edited_contract(body: JSON) -> None:
    body["specs"]["sparse"]["vocabulary"] = "another"


def setting(path: str, value: Any) -> Callable[[JSON], None]:
    def edit(body: JSON) -> None:
        *outer, last = path.split(".")
        place: Any = body
        for step in outer:
            place = place[int(step) if step.isdigit() else step]
        place[last] = value

    return edit


def numbers(*values: float, dtype: str = "<f4") -> str:
    return base64.b64encode(np.array(values, dtype).tobytes()).decode()


NAN = float("nan")
ONE, WIDE = "data.0.sparse_embedding", "data.0.token_embeddings"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (flip, "what stands at place 0 is not the answer to input 0"),
        (lose, "3 vectors for 4 inputs"),
        (setting("input_type", "query"), "vectors of a 'query', not of a passage"),
        (other_space, "sparse vectors of another contract than was stated"),
        (edited_contract, "it was edited"),
        (setting("specs", {}), "none instead of"),
        (setting(f"{ONE}.indices", numbers(5, 5, 5, dtype="<i4")), "one weight an id"),
        (setting(ONE, {"indices": numbers(7, 2, dtype="<i4"), "values": numbers(1, 1)}), "ascend"),
        (setting(ONE, {"indices": numbers(2**15, dtype="<i4"), "values": numbers(1)}), "lie betw"),
        (setting(ONE, {"indices": numbers(1, dtype="<i4"), "values": numbers(NAN)}), "finite"),
        (setting(ONE, None), "base64 that is damaged, or missing"),
        (setting(f"{ONE}.values", "AAA"), "base64 that is damaged"),
        (setting(WIDE, numbers(*[0.5] * 63)), "63 numbers, of vectors of 64"),
        (setting(WIDE, numbers(*[0.5] * 63, NAN)), "NaN or infinity stands in row 0"),
        (setting(WIDE, ""), "0 numbers, of vectors of 64"),
        (setting("data.0.embedding", numbers(*[0.0] * 64)), "a vector of zeros alone"),
        (setting("data.0.tokens", None), "without the number of tokens"),
        (setting("truncated", [1]), "the server cut a text, which its own settings"),
        (setting("truncated", None), "does not say which texts were cut"),
        (setting("data", "x"), "without a list of data"),
    ],
)
def test_an_answer_that_lies_is_not_believed(serve, connect, edit, message):
    with pytest.raises(RemoteError, match=message):
        connect(serve(own(edit)), FAKE_CARD).embed_kinds(TEXTS, input_type="passage")


def test_another_model_than_the_cards_is_refused(serve, connect):
    other = replace(FAKE_CARD, id="somebody/else")
    embedder = connect(serve(own()), other, served_name=FAKE_CARD.id)
    with pytest.raises((ConfigurationError, SpaceMismatchError), match="somebody/else"):
        embedder.embed_sparse(TEXTS, input_type="query")
    prompted = replace(FAKE_CARD, query_prompt="ask: ")
    with pytest.raises(SpaceMismatchError, match="query_prompt 'ask: ' and 'query: '"):
        _ = connect(serve(own()), prompted).kinds


@pytest.mark.parametrize("dialect", ["nim", "openai", "auto"])
def test_a_server_that_has_only_dense_vectors_is_said_to(serve, connect, dialect):
    def handle(request: Request) -> Response:
        return listing("m", owner="somebody") if request.path == "/v1/models" else Response(404)

    embedder = connect(serve(handle), "m", dialect=dialect)
    assert embedder.kinds == ("dense",)
    with pytest.raises(ConfigurationError, match="gives no sparse vectors; it gives dense"):
        embedder.embed_sparse(TEXTS, input_type="query")


def test_texts_that_are_refused_cannot_be_left_out(serve, connect):
    embedder = connect(serve(own()), FAKE_CARD, on_bad_input="skip")
    with pytest.raises(ConfigurationError, match="use on_bad_input='raise'"):
        embedder.embed_sparse(TEXTS, input_type="query")


def test_a_batch_joins_those_of_the_same_model_here(serve, connect):
    far = connect(serve(own()), FAKE_CARD).embed_kinds(TEXTS, input_type="passage")
    here = FakeEmbedder().embed_kinds(TEXTS, input_type="passage")
    assert far.sparse
    assert here.sparse
    assert len(SparseBatch.concatenate([far.sparse, here.sparse])) == 8
