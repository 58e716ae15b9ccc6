"""Whichever backend runs the model, the server keeps its word on roles, types and limits."""

from __future__ import annotations

import numpy as np
import pytest
from tests.engine.local.families import FAMILIES, TEXTS, load

from nimbed_server import Settings, parse_alias
from nimbed_server.backends import backend_for
from nimbed_server.metrics import Metrics

from .conftest import running

pytest.importorskip("sentence_transformers")
LONG = "the warm sky over york and the river " * 40 + "what is a quick token?"
ALIASES = (
    "cut=tiny,truncate=END",
    "codes=tiny,embedding_type=int8",
    "stored=tiny,input_type=passage",
)


@pytest.fixture(scope="module", params=["torch", "onnxruntime"])
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Its prompts make the roles differ, and it reads 180 tokens."""
    return FAMILIES["modernbert"](tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def theirs(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def served(folder, backend):
    settings = Settings(port=0, aliases=tuple(map(parse_alias, ALIASES)))
    with running({"tiny": load(folder, backend=backend)}, settings) as server:
        yield server


def vectors(answer):
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]])


def expected(theirs, role, texts=TEXTS):
    return theirs.encode(texts, prompt_name=role, normalize_embeddings=True)


@pytest.mark.parametrize(
    ("asked", "role"),
    [
        ({"model": "tiny", "input_type": "query"}, "query"),
        ({"model": "tiny", "input_type": "passage"}, "document"),
        ({"model": "tiny-query"}, "query"),
        ({"model": "tiny-passage"}, "document"),
        ({"model": "stored"}, "document"),
        ({"model": "tiny"}, "query"),
    ],
)
def test_every_way_to_say_a_role(served, theirs, asked, role):
    answer = served.embed(input=TEXTS, **asked)
    np.testing.assert_allclose(vectors(answer), expected(theirs, role), atol=1e-5, rtol=0)


def test_every_type(served, theirs):
    floats = expected(theirs, "document")
    sure = np.abs(floats) > 1e-5

    def got(kind):
        body = {"input_type": "passage", "embedding_type": kind}
        return vectors(served.embed(model="tiny", input=TEXTS, **body))

    bits = np.unpackbits(got("ubinary").astype(np.uint8), axis=1)
    np.testing.assert_array_equal(bits[sure], (floats > 0)[sure])
    packed = got("binary").astype(np.int8).view(np.uint8) ^ 128  # as sentence-transformers packs
    np.testing.assert_array_equal(np.unpackbits(packed, axis=1)[sure], (floats > 0)[sure])
    # A float on the edge of a level may fall on either side of it.
    codes = got("int8")
    assert np.abs(codes).max() <= 128
    assert np.abs(got("uint8") - 128 - codes).max() <= 1
    fixed = served.embed(model="codes", input=TEXTS, input_type="passage")
    np.testing.assert_array_equal(vectors(fixed), codes)
    cosines = (codes * floats).sum(1) / np.linalg.norm(codes, axis=1)
    assert cosines.min() > 0.999


def test_what_is_too_long_is_refused_or_cut(served, theirs):
    answer = served.embed(model="tiny", input=["short", LONG], input_type="query")
    assert answer.status_code == 400
    (length,) = [len(row) for row in theirs.tokenizer(["query: " + LONG])["input_ids"]]
    assert answer.json()["message"] == (
        f"Input length {length} exceeds maximum allowed token size 180 (input[1])"
    )
    for asked in ({"model": "tiny", "truncate": "END"}, {"model": "cut"}):
        answer = served.embed(input=["short", LONG], input_type="query", **asked)
        assert answer.headers["x-nimbed-truncated"] == "1"
        right = expected(theirs, "query", ["short", LONG])
        np.testing.assert_allclose(vectors(answer), right, atol=1e-5, rtol=0)
    start = served.embed(model="tiny", input=[LONG], input_type="query", truncate="START")
    assert np.abs(vectors(start) - right[1]).max() > 1e-3
    refused = served.embed(model="tiny", input=TEXTS, dimensions=7)
    assert refused.status_code == 400
    assert "dimensions" in refused.json()["message"]


def test_it_says_what_computes(served, backend):
    (computed_in,) = served.client.get("/v1/metadata").json()["computedIn"].values()
    assert computed_in == f"float32 on cpu by {backend}"


def test_what_runs_a_model_of_two_routes_is_told(tmp_path):
    from sentence_transformers.base.modules import Dense, Normalize, Router
    from sentence_transformers.sentence_transformer.modules import Pooling
    from tests.engine.local.sentence_folders import saved, transformer

    network = FAMILIES["bert"](tmp_path / "network")
    ends = Router({"query": [Dense(32, 8)], "document": [Dense(32, 8)]})
    saved(tmp_path / "routed", [transformer(network), Pooling(32), ends, Normalize()])
    with load(tmp_path / "routed", backend="torch") as routed:
        assert (
            backend_for(
                routed,
                Metrics().of_model("m"),
                max_items=1,
                max_tokens=1,
                max_wait=0,
                queries_first=True,
            ).runtime
            == "torch"
        )
