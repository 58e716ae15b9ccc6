"""Sparse vectors and multi-vectors over HTTP: one call for all kinds, and TEI's two routes."""

from __future__ import annotations

import base64
import concurrent.futures
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import nimbed
import nimbed_server
from nimbed import FakeEmbedder, MultiVectorSpec, SparseSpec, VectorSpec
from nimbed.embedder import HybridBase
from nimbed.errors import ConfigurationError
from nimbed.fake import FAKE_CARD
from nimbed_server import Settings, parse_alias

from .conftest import MODEL, running, wait_until
from .stub import Stub, expected

KINDS = "/v1/embeddings/kinds"
TEXTS = ["the cat sat on the mat", "a dog barked", "cat and dog"]
FAKE = FakeEmbedder()
DENSE = "nimbed/dense"
ALIASES = (
    f"rare={MODEL},kinds=sparse,max_active=2,input_type=passage",
    f"pair={MODEL},kinds=dense+multi,token_type=ubinary,pool_factor=2,dimensions=16",
)


class Hybrid(Stub, HybridBase):
    """A stub behind the real scheduler that gives a fake's kinds beside its own vectors."""

    kinds = FAKE.kinds

    def sparse_spec(self, **options: Any) -> SparseSpec:
        return FAKE.sparse_spec(**options)

    def multi_spec(self, **options: Any) -> MultiVectorSpec:
        return FAKE.multi_spec(**options)

    def embed_kinds(self, inputs: Any, **options: Any) -> Any:
        if not self.gate.is_set():
            self.held.set()
            self.gate.wait()
        self.seen.append(list(inputs))
        return FakeEmbedder().embed_kinds(inputs, **options)


@pytest.fixture(scope="module")
def server():
    embedders = {MODEL: FakeEmbedder(), DENSE: Stub()}
    aliases = tuple(map(parse_alias, ALIASES))
    with running(embedders, Settings(port=0, aliases=aliases, max_items=40)) as started:
        yield started


def ask(server, path: str = KINDS, **body: Any) -> httpx.Response:
    key = "input" if path.endswith(KINDS) else "inputs"
    return server.client.post(path, json={"model": MODEL, key: TEXTS, **body})


def decoded(text: str, dtype: str) -> Any:
    return np.frombuffer(base64.b64decode(text), np.dtype(dtype).newbyteorder("<"))


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("token_type", ["float", "half", "int8", "ubinary"])
def test_all_kinds_come_as_they_are_stored_with_their_contracts(server, encoding, token_type):
    options = {"input_type": "passage", "token_type": token_type, "pool_factor": 2, "max_active": 3}
    dense = {"embedding_type": "ubinary", "dimensions": 32}
    answer = ask(server, encoding_format=encoding, **options, **dense)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    right = FakeEmbedder().embed_kinds(TEXTS, **options, **dense)
    assert right.dense
    assert right.sparse
    assert right.multi
    for kind, spec in (("dense", VectorSpec), ("sparse", SparseSpec), ("multi", MultiVectorSpec)):
        assert spec.from_dict(told["specs"][kind]) == getattr(right, kind).spec
    assert told["input_type"] == "passage"
    assert told["truncated"] == []
    assert told["usage"]["prompt_tokens"] == right.dense.token_counts.sum()
    rows = zip(right.dense.vectors, right.sparse.rows(), right.multi.rows(), strict=True)
    for row, (item, (vector, (ids, weights), tokens)) in enumerate(
        zip(told["data"], rows, strict=True)
    ):
        assert (item["object"], item["index"]) == ("embedding", row)
        assert item["tokens"] == right.dense.token_counts[row]
        sparse = item["sparse_embedding"]
        got = [item["embedding"], sparse["indices"], sparse["values"], item["token_embeddings"]]
        types = ["u1", "i4", "f4", tokens.dtype.str]
        if encoding == "base64":
            got = [decoded(text, kind) for text, kind in zip(got, types, strict=True)]
            got[-1] = got[-1].reshape(-1, tokens.shape[1])
        for found, exact in zip(got, (vector, ids, weights, tokens), strict=True):
            np.testing.assert_array_equal(np.array(found, exact.dtype), exact)


@pytest.mark.parametrize("kinds", [["sparse"], "multi", ["multi", "dense", "dense"]])
def test_only_the_kinds_that_are_asked_for_are_answered(server, kinds):
    told = ask(server, kinds=kinds).json()
    names = {
        "dense": "embedding",
        "sparse": "sparse_embedding",
        "multi": "token_embeddings",
    }
    listed = {kinds} if isinstance(kinds, str) else set(kinds)
    assert set(told["specs"]) == listed
    given = {"object", "index", "tokens"} | {names[kind] for kind in listed}
    assert {name for item in told["data"] for name in item} == given


def test_dense_vectors_are_those_of_the_other_route(server):
    told = ask(server, kinds=["dense"], input_type="query").json()
    other = server.embed(input=TEXTS, input_type="query").json()
    assert [item["embedding"] for item in told["data"]] == [
        item["embedding"] for item in other["data"]
    ]


@pytest.mark.parametrize("inputs", [TEXTS, TEXTS[0]])
@pytest.mark.parametrize("role", [{"input_type": "passage"}, {"prompt_name": "document"}])
def test_two_routes_answer_as_text_embeddings_inference(server, inputs, role):
    """By TEI's OpenAPI document: a list for every text, whether one or several were sent."""
    texts = [inputs] if isinstance(inputs, str) else inputs
    sparse = FAKE.embed_sparse(texts, input_type="passage")
    weights = ask(server, "/embed_sparse", inputs=inputs, **role)
    assert weights.headers.get("x-nimbed-input-type") is None
    told = [{each["index"]: np.float32(each["value"]) for each in row} for row in weights.json()]
    assert told == sparse.dicts()
    vectors = ask(server, "/embed_all", inputs=inputs, **role).json()
    right = FAKE.embed_multi(texts, input_type="passage").lists()
    assert [np.array(row, np.float32).tolist() for row in vectors] == right


@pytest.mark.parametrize(
    ("direction", "kept"), [({}, "END"), ({"truncation_direction": "Left"}, "START")]
)
def test_texts_are_cut_at_the_end_that_tei_names(server, direction, kept):
    text = " ".join(f"w{n}" for n in range(600))
    path = "/embed_sparse"
    answer = ask(server, path, inputs=text, input_type="query", truncate=True, **direction)
    right = FAKE.embed_sparse([text], input_type="query", truncate=kept)
    assert {each["index"] for each in answer.json()[0]} == set(right.dicts()[0])
    assert answer.headers["x-nimbed-truncated"] == "0"
    whole = ask(server, path, inputs=text, input_type="query")
    assert whole.status_code == 400
    assert whole.json() == {
        "error": "Input length 601 exceeds maximum allowed token size 512 (input[0])",
        "error_type": "invalid_request_error",
    }


def test_a_role_that_was_not_sent_is_said(server):
    assert ask(server).headers["x-nimbed-input-type"] == "query; source=default"
    told = ask(server, model="rare")
    assert told.headers["x-nimbed-input-type"] == "passage; source=alias"


def test_an_alias_fixes_kinds_and_their_options(server):
    told = ask(server, model="rare").json()
    assert told["specs"] == {"sparse": FAKE.sparse_spec(max_active=2).to_dict()}
    assert max(len(item["sparse_embedding"]["indices"]) for item in told["data"]) == 2
    assert len(ask(server, "/embed_sparse", model="rare").json()[0]) == 2
    pair = server.client.post(f"/pair{KINDS}", json={"input": TEXTS, "kinds": ["multi", "dense"]})
    specs = pair.json()["specs"]
    assert specs["multi"] == FAKE.multi_spec(token_type="ubinary", pool_factor=2).to_dict()
    assert specs["dense"] == FAKE.spec(dimensions=16).to_dict()
    assert server.embed(model="pair").status_code == 200
    refused = server.embed(model="rare")
    assert refused.status_code == 400
    assert "'rare' gives sparse vectors alone, by POST" in refused.json()["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (KINDS, {"model": DENSE}, 200, ""),
        (KINDS, {"model": DENSE, "kinds": ["sparse"]}, 400, "gives no sparse vectors; it gives d"),
        ("/embed_sparse", {"model": DENSE}, 400, "nimbed/fake gives no sparse vectors"),
        ("/embed_all", {"model": DENSE}, 400, "gives no multi vectors; it gives dense"),
        ("/embed_all", {"model": "rare"}, 400, "'rare' gives sparse vectors alone"),
        (KINDS, {"model": "rare", "kinds": ["dense"]}, 400, "fixes kinds"),
        (KINDS, {"model": "rare", "max_active": 3}, 400, "'rare' fixes max_active=2; got 3"),
        (KINDS, {"kinds": []}, 400, "kinds must be an array of dense, sparse, multi"),
        (KINDS, {"kinds": ["spares"]}, 400, "kinds must be one of 'dense', 'sparse', 'multi'"),
        (KINDS, {"max_active": 0}, 400, "max_active must be positive"),
        (KINDS, {"max_active": 2**64}, 400, "max_active must be at most 2147483647"),
        (KINDS, {"token_type": "int4"}, 400, "token_type must be one of"),
        (KINDS, {"pool_factor": 1.5}, 400, "pool_factor must be an integer"),
        (KINDS, {"dimensions": 17}, 400, "dimensions must be one of 16, 32, 64"),
        (KINDS, {"input": ["a", " "]}, 400, "input[1] must not be blank"),
        (KINDS, {"input": [[1, 2]]}, 400, "must be a string or an array of strings"),
        (KINDS, {"input": ["a"] * 41}, 400, "at most 40 items; got 41"),
        (KINDS, {"input_type": "query", "task": "document"}, 400, "send input_type alone"),
        (KINDS, {"model": "nobody"}, 404, "available"),
        ("/embed_sparse", {"truncate": "END"}, 400, "truncate must be true or false"),
        ("/embed_sparse", {"inputs": None}, 400, "inputs is required"),
        ("/embed_sparse", {"truncation_direction": "up"}, 400, "truncation_direction must be"),
        ("/embed_all", {"prompt_name": "classification"}, 400, "send input_type"),
    ],
)
def test_what_is_not_possible_is_said(server, path, body, status, message):
    answer = ask(server, path, **body)
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert message in (told.get("message") or told.get("error") or "")


def test_kinds_stand_in_what_a_server_says_of_itself(server):
    told = server.client.get("/v1/metadata").json()["kinds"]
    assert told[MODEL] == {
        "dense": FAKE.spec().to_dict(),
        "sparse": FAKE.sparse_spec().to_dict(),
        "multi": FAKE.multi_spec().to_dict(),
    }
    assert told["rare"] == {"sparse": FAKE.sparse_spec(max_active=2).to_dict()}
    assert list(told[DENSE]) == ["dense"]
    for name, kinds in (
        (MODEL, list(FAKE.kinds)),
        ("pair", ["dense", "multi"]),
        (DENSE, ["dense"]),
    ):
        assert server.client.get(f"/{name}/info").json()["kinds"] == kinds


def test_inputs_are_counted_by_kind(serve):
    server = serve()
    ask(server, kinds=["sparse", "multi"])
    ask(server, "/embed_sparse", inputs=TEXTS[:1])
    server.embed(input=TEXTS)
    lines = server.client.get("/metrics").text.splitlines()
    counted = {kind: 0.0 for kind in FAKE.kinds}
    for line in lines:
        for kind in counted:
            if line.startswith(f'nimbed_kinds_total{{kind="{kind}",model="{MODEL}"}} '):
                counted[kind] = float(line.split()[-1])
    assert counted == {"dense": 3, "sparse": 4, "multi": 3}
    assert f'nimbed_items_total{{input_type="query",model="{MODEL}"}} 7.0' in lines
    assert 'nimbed_requests_total{endpoint="/embed_sparse",status="200"} 1.0' in lines


@pytest.mark.parametrize("path", [KINDS, "/embed_sparse", "/embed_all"])
def test_a_key_is_needed_as_everywhere(serve, path):
    server = serve(api_keys=("key",))
    assert ask(server, path).status_code == 401
    server.client.headers["authorization"] = "Bearer key"
    assert ask(server, path).status_code == 200


def test_an_alias_of_a_kind_that_its_model_lacks_keeps_the_server_from_being_ready(serve):
    server = serve({MODEL: Stub()}, aliases=(parse_alias(f"rare={MODEL},kinds=sparse"),))
    answer = server.client.get("/v1/health/ready")
    assert answer.status_code == 503
    assert "alias 'rare': nimbed/fake gives no sparse vectors" in answer.json()["message"]


def test_a_model_without_dense_vectors_is_served(serve):
    class Sparse(Hybrid):
        kinds = ("sparse",)

        def spec(self, **options: Any) -> VectorSpec:
            raise ConfigurationError("it gives sparse")

        def replicas(self) -> Any:
            raise AssertionError("nothing is scheduled")

    server = serve({MODEL: Sparse()})
    assert server.client.get("/v1/health/ready").status_code == 200
    assert len(ask(server, "/embed_sparse").json()) == 3
    assert list(ask(server, kinds=["sparse"]).json()["specs"]) == ["sparse"]
    assert "gives sparse vectors alone" in server.embed().json()["message"]
    told = server.client.get("/v1/metadata").json()
    assert (told["spaces"], list(told["kinds"][MODEL])) == ({}, ["sparse"])
    info = server.client.get("/info").json()
    assert info["fingerprint"] == FAKE.sparse_spec().fingerprint


def test_many_texts_take_turns_and_come_in_order(serve):
    stub = Hybrid()
    server = serve({MODEL: stub})
    texts = [f"text {n} of many" for n in range(75)]
    told = ask(server, input=texts, input_type="passage", kinds=["sparse", "dense"])
    assert "inference;dur" in told.headers["server-timing"]
    assert [len(part) for part in stub.seen if part[0].startswith("text")] == [32, 32, 11]
    right = FAKE.embed_sparse(texts, input_type="passage").dicts()
    got = [item["sparse_embedding"] for item in told.json()["data"]]
    assert [dict(zip(each["indices"], each["values"], strict=True)) for each in got] == right
    texts[70] = "word " * 600
    refused = ask(server, input=texts, input_type="passage")
    assert "(input[70])" in refused.json()["message"]
    assert server.embed().json()["data"][0]["embedding"] == pytest.approx(
        expected("a text"), abs=1e-6
    )


def test_an_answer_that_would_be_too_large_is_refused(serve, monkeypatch):
    monkeypatch.setattr("nimbed_server.kinds._MOST_NUMBERS", 64 * 80)
    stub = Hybrid()
    server = serve({MODEL: stub})
    few = ask(server, "/embed_all", inputs=["one two three"] * 20)
    assert few.status_code == 200
    many = ask(server, input=["one two three"] * 75, kinds=["multi"])
    assert many.status_code == 413
    assert "more than 5,120 numbers; send fewer texts" in many.json()["message"]
    assert [len(part) for part in stub.seen if part[0].startswith("one")] == [20, 32]
    with nimbed.load(FAKE_CARD, base_url=server.url) as there:  # sends fewer then
        found = there.embed_multi(["one two three"] * 75, input_type="query")
    assert len(found) == 75


def test_what_waits_is_bounded_and_ends_in_time(serve):
    stub = Hybrid()
    server = serve({MODEL: stub}, max_queue=4, request_timeout_s=0.5)
    stub.hold()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, server, input_type="passage")
        try:
            assert stub.held.wait(20)
            with httpx.Client(base_url=server.url, timeout=30) as other:
                body = {"model": MODEL, "inputs": TEXTS}
                full = other.post("/embed_sparse", json=body)
                assert full.status_code == 503
                assert full.headers["retry-after"]
                assert "the queue is full: 3 inputs are under way" in full.json()["error"]
            late = first.result(20)
            assert late.status_code == 504
        finally:
            stub.gate.set()
    wait_until(lambda: ask(server).status_code == 200)


def test_the_readmes_example_works(server):
    page = Path(nimbed_server.__file__).with_name("README.md").read_text("utf-8")
    (block,) = re.findall(r"```bash\n(curl .*?)```", page, re.DOTALL)
    command, url, header, kind, option, body = shlex.split(block.replace("\\\n", " "))
    assert (command, header, kind, option) == ("curl", "-H", "Content-Type: application/json", "-d")
    path = url.removeprefix("http://localhost:8000")
    answer = server.client.post(path, content=body.replace("BAAI/bge-m3", MODEL))
    assert list(answer.json()["specs"]) == ["sparse"]
