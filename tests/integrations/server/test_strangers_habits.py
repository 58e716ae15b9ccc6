"""What clients of other servers send out of habit: it works, or the answer says what to send."""

from __future__ import annotations

import gzip
import json
import os
import zlib

import pytest

from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError
from nimbed_server import Settings, create_app, gather, parse_alias

from .conftest import MODEL, PICTURES
from .test_attacks import in_memory

GOOD = json.dumps({"model": MODEL, "input": ["a text"], "input_type": "query"}).encode()


def send_gzip(server, body):
    return server.client.post("/v1/embeddings", content=body, headers={"content-encoding": "gzip"})


def vectors(answer):
    assert answer.status_code == 200, answer.text
    return [item["embedding"] for item in answer.json()["data"]]


# Roles, lengths and limits by other names


@pytest.mark.parametrize("field", ["prompt_name", "task"])
@pytest.mark.parametrize(
    ("word", "role"),
    [
        ("query", "query"),
        ("retrieval.query", "query"),
        ("s2p_query", "query"),
        ("document", "passage"),
        ("retrieval.passage", "passage"),
        ("search_document", "passage"),
    ],
)
def test_a_role_by_another_name_is_that_role(plain, field, word, role):
    answer = plain.embed(**{field: word})
    assert vectors(answer) == vectors(plain.embed(input_type=role))
    assert "x-nimbed-input-type" not in answer.headers
    assert plain.embed(**{field: word}, input_type=role).status_code == 200
    other = "passage" if role == "query" else "query"
    assert "send input_type alone" in plain.embed(**{field: word}, input_type=other).text


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_name": "clustering"},
        {"task": "text-matching"},
        {"task": 3},
        {"normalize": False},
        {"normalize": 0},
        {"truncate_prompt_tokens": 128},
        {"truncate_prompt_tokens": -1},
    ],
)
def test_what_would_change_the_vectors_is_never_dropped(plain, fields):
    answer = plain.embed(**fields)
    assert answer.status_code == 400
    assert answer.json()["param"] == next(iter(fields))
    assert "input_type" in answer.json()["message"]


def test_what_is_so_anyway_is_served(plain):
    asked = {"normalize": True, "truncate_prompt_tokens": None, "task": None, "unheard_of": 3}
    assert vectors(plain.embed(**asked)) == vectors(plain.embed())


# Paths, keys and names


def test_health_is_known_by_its_usual_path(serve):
    server = serve(api_keys=("secret",))
    assert server.client.get("/health").status_code == 200
    assert server.client.head("/health").status_code == 200
    assert server.client.post("/health").status_code == 405


def test_a_model_can_be_retrieved_by_its_name(plain):
    listed = plain.client.get("/v1/models").json()["data"]
    for model in listed:
        assert plain.client.get(f"/v1/models/{model['id']}").json() == model
        escaped = model["id"].replace("/", "%2F")
        assert plain.client.get(f"/v1/models/{escaped}").json() == model
    assert plain.client.get("/v1/models/nobody").json()["code"] == "model_not_found"
    assert plain.client.get("/foo/v1/models/nobody").status_code == 404
    assert plain.client.delete(f"/v1/models/{MODEL}").status_code == 405


@pytest.mark.parametrize("header", ["api-key", "x-api-key", "X-API-Key"])
def test_a_key_may_come_in_a_header_of_its_own(serve, header):
    server = serve(api_keys=("secret",))
    assert server.embed(headers={header: "secret"}).status_code == 200
    assert server.embed(headers={header: "wrong"}).status_code == 401
    assert server.embed(headers={header: ""}).status_code == 401
    both = {header: "secret", "authorization": "Bearer wrong"}
    assert server.embed(headers=both).status_code == 401
    assert server.client.get("/v1/models/nobody").status_code == 401


def test_one_served_model_need_not_be_named(serve, plain):
    server = serve()
    for body in ({"model": None}, {"model": None, "dimensions": 16}):
        answer = server.embed(**body)
        named = server.embed(**{**body, "model": MODEL})
        assert answer.json() == named.json()
        assert answer.json()["model"] == MODEL
    assert server.embed(model="nobody").status_code == 404
    assert server.embed(model="").status_code == 404
    assert plain.embed(model=None).json()["message"] == "model is required"


def test_an_alias_may_name_a_folder_as_model_did(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    embedders = {MODEL: FakeEmbedder(), PICTURES.id: FakeEmbedder(PICTURES)}
    for named in ("./one", "one", str(tmp_path / "one"), "./one/"):
        alias = parse_alias(f"bits={named},embedding_type=binary")
        settings = Settings(models=("./one", "other"), aliases=(alias,))
        served = create_app(embedders, settings).state.models.find("bits")
        assert served.card.id == MODEL
    wrong = Settings(models=("./one", "other"), aliases=(parse_alias("bits=./two"),))
    with pytest.raises(ConfigurationError, match="which is not served"):
        create_app(embedders, wrong)


# Variables


@pytest.mark.parametrize(
    ("variable", "hint"),
    [("NIMBED_PROT", "NIMBED_PORT"), ("NIMBED_MODEL", "NIMBED_MODELS"), ("NIMBED_Q", "there are")],
)
def test_a_variable_that_is_no_setting_is_named(variable, hint):
    with pytest.raises(ConfigurationError, match=f"{variable} is not a setting.*{hint}"):
        gather({}, environment={variable: "1"})


@pytest.mark.parametrize(
    "variable",
    [
        "NIMBED_API_KEY",
        "NIMBED_SERVICE_HOST",
        "NIMBED_SERVICE_PORT_HTTP",
        "NIMBED_PORT_80_TCP_ADDR",
    ],
)
def test_a_variable_that_others_set_is_none_of_ours(variable):
    assert gather({}, environment={variable: "1"}) == Settings()


# Bodies


def test_a_body_may_be_compressed_by_gzip(plain):
    answer = plain.client.post(
        "/v1/embeddings", content=gzip.compress(GOOD), headers={"content-encoding": "gzip"}
    )
    assert vectors(answer) == vectors(plain.embed(input_type="query"))


@pytest.mark.parametrize(
    "body",
    [
        GOOD,
        b"",
        gzip.compress(GOOD, mtime=0)[:-1],
        gzip.compress(GOOD, mtime=0) * 2,
        gzip.compress(GOOD, mtime=0) + b"x",
        zlib.compress(GOOD),
    ],
)
def test_a_body_that_is_not_the_gzip_it_says_is_400(plain, body):
    answer = plain.client.post("/v1/embeddings", content=body, headers={"content-encoding": "gzip"})
    assert answer.status_code == 400
    assert "gzip" in answer.json()["message"]


def test_what_a_body_becomes_has_the_bound_of_a_body(serve):
    server = serve(max_body_bytes=2**20)
    bomb = gzip.compress(b" " * 2**27)
    assert len(bomb) < 2**20
    with in_memory(16 * 2**20):
        answer = send_gzip(server, bomb)
    assert answer.status_code == 413
    assert server.app.state.body_room.used == 0


def test_a_large_body_comes_out_of_gzip_as_it_went_in(serve):
    server = serve()
    noise = json.dumps({**json.loads(GOOD), "user": os.urandom(600_000).hex()}).encode()
    blank = GOOD[:-1] + b" " * 3_000_000 + b"}"
    for body in (noise, blank, noise[:-1] + b" " * 3_000_000 + b"}"):
        assert vectors(send_gzip(server, gzip.compress(body))) == vectors(
            server.embed(input_type="query")
        )


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b"\xef\xbb\xbf" + GOOD, "byte order mark"),
        (b'{"input": ["a", "\\ud83d"], "model": "m"}', "input[1] holds half a character"),
        (b'{"input": ["a", "b", "c\xed\xa0\x80"]}', "input[2] holds half a character"),
        (b'{"input": "\xff"}', "input[0] holds half a character"),
    ],
)
def test_what_is_wrong_with_a_text_is_said_with_its_number(plain, body, hint):
    answer = plain.client.post("/v1/embeddings", content=body)
    assert answer.status_code == 400
    assert hint in answer.json()["message"]


# The log


@pytest.mark.parametrize("form", ["pretty", "json"])
def test_the_log_says_why_a_request_was_refused_and_never_a_text(serve, logged, form):
    lines = logged(form, "debug")
    server = serve(max_items=2)
    secret = "a-secret-text"
    for body, reason in [
        ({"input": [secret] * 3}, "input must contain at most 2 items; got 3"),
        ({"input": [f"{secret} " * 600]}, "exceeds maximum allowed token size"),
        ({"input_type": secret}, "input_type must be one of"),
        ({"input": [secret], "dimensions": 17}, "dimensions must be one of"),
        ({"input": [secret, 5]}, "input[1] is an integer"),
    ]:
        before = len(lines())
        assert server.embed(**body).status_code == 400
        assert reason in "\n".join(lines()[before:])
    assert secret not in "\n".join(lines())
