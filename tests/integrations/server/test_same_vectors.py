"""Served vectors are the vectors of ``embed`` in process: alone, in a crowd, in every form."""

from __future__ import annotations

import base64
import concurrent.futures
import random

import httpx
import numpy as np
import pytest

import nimbed
from nimbed import FakeEmbedder
from nimbed.remote.embedder import RemoteEmbedder
from nimbed.remote.retry import RetryPolicy
from nimbed_server import Settings, parse_alias

from .conftest import running

NAME = "sentence-transformers/all-MiniLM-L6-v2"
WORDS = [
    "river",
    "stone",
    "market",
    "engine",
    "violet",
    "harbour",
    "signal",
    "winter",
    "copper",
    "lantern",
    "meadow",
]
ALIASES = (
    f"int8={NAME},embedding_type=int8",
    f"even={NAME},embedding_type=int8,int8_scale=even",
    f"bits={NAME},embedding_type=ubinary",
    f"signs={NAME},embedding_type=binary,as=signs",
)
KINDS = {
    "int8": {"embedding_type": "int8", "int8_scale": "nim"},
    "even": {"embedding_type": "int8", "int8_scale": "even"},
    "bits": {"embedding_type": "ubinary"},
}


@pytest.fixture(scope="module", params=["torch", "onnxruntime"])
def local(request):
    with nimbed.load(backend=request.param) as embedder:
        yield embedder


@pytest.fixture(scope="module")
def served(local):
    settings = Settings(port=0, aliases=tuple(map(parse_alias, ALIASES)))
    with running({NAME: nimbed.load(backend=local.backend)}, settings) as server:
        yield server


def texts(rng, count):
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(count)]


def decoded(answer, encoding):
    rows = [item["embedding"] for item in answer.json()["data"]]
    if encoding == "base64":
        return np.array([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])
    return np.array(rows)


@pytest.mark.parametrize("count", [1, 10, 70])
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_alone(served, local, count, encoding):
    asked = texts(random.Random(count), count)
    answer = served.embed(model=NAME, input=asked, encoding_format=encoding)
    right = local.embed(asked, input_type="query")
    np.testing.assert_allclose(decoded(answer, encoding), right.vectors, atol=1e-6, rtol=0)
    assert answer.json()["usage"]["prompt_tokens"] == right.token_counts.sum()


@pytest.mark.parametrize("side", ["START", "END"])
def test_cut(served, local, side):
    asked = ["short", " ".join(WORDS * 60)]
    answer = served.embed(model=NAME, input=asked, truncate=side)
    right = local.embed(asked, input_type="query", truncate=side)
    np.testing.assert_allclose(decoded(answer, "float"), right.vectors, atol=1e-6, rtol=0)
    assert answer.headers["x-nimbed-truncated"] == "1"


def test_in_a_crowd_of_mixed_sizes_types_and_roles(served, local):
    def client(seed):
        rng = random.Random(seed)
        with httpx.Client(base_url=served.url, timeout=60) as connection:
            for _ in range(4):
                asked = texts(rng, rng.choice([1, 1, 1, 3, 12]))
                name = rng.choice([NAME, NAME, "int8", "even", "bits", "signs"])
                role = rng.choice(["query", "passage"])
                body = {"model": name, "input": asked, "input_type": role}
                answer = connection.post("/v1/embeddings", json=body)
                assert answer.status_code == 200
                collected.append((asked, name, role, decoded(answer, "float")))

    collected = []
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        list(pool.map(client, range(12)))
    assert len(collected) == 48
    for asked, name, role, got in collected:
        if name == NAME:
            right = local.embed(asked, input_type=role).vectors
            np.testing.assert_allclose(got, right, atol=1e-6, rtol=0)
            continue
        floats = local.embed(asked, input_type=role).vectors
        if name == "signs":
            sure = np.abs(floats) > 1e-6
            np.testing.assert_array_equal(got[sure], np.sign(floats)[sure])
            continue
        right = local.embed(asked, input_type=role, **KINDS[name]).vectors
        # A float on the edge of a level may fall on either side of it.
        assert (got != right).mean() < 1e-3
        if name != "bits":
            assert np.abs(got - right).max() <= 1


def test_the_container_gives_the_same(served, local):
    for text in texts(random.Random(7), 5):
        sent = {"text": text, "config": {"task_type": "passage"}}
        got = served.client.post("/vectors", json=sent).json()["vector"]
        right = local.embed([text], input_type="passage").vectors[0]
        np.testing.assert_allclose(got, right, atol=1e-6, rtol=0)


def test_a_server_behind_a_server_gives_the_same(served, local, serve):
    front = serve(
        {NAME: nimbed.load(NAME, base_url=served.url)}, aliases=(parse_alias(ALIASES[0]),)
    )
    asked = texts(random.Random(3), 20)
    for role in ("query", "passage"):
        answer = front.embed(model=NAME, input=asked, input_type=role)
        right = local.embed(asked, input_type=role)
        np.testing.assert_allclose(decoded(answer, "float"), right.vectors, atol=1e-6, rtol=0)
    int8 = decoded(front.embed(model="int8", input=asked), "float")
    right = local.embed(asked, input_type="query", **KINDS["int8"]).vectors
    assert np.abs(int8 - right).max() <= 1
    assert (int8 != right).mean() < 1e-3


def test_a_server_behind_a_server_that_fails_is_told_apart(serve):
    behind = serve({"nimbed/fake": FakeEmbedder()})
    once = RetryPolicy(retries=0)
    front = serve({"nimbed/fake": RemoteEmbedder(base_url=behind.url, retry=once)})
    long = front.embed(model="nimbed/fake", input=["word " * 600], input_type="query")
    assert long.status_code == 400
    assert "exceeds maximum allowed token size" in long.json()["message"]
    behind.app.state.draining = True
    refused = front.embed(model="nimbed/fake", input_type="query")
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
