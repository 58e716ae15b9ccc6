"""Who may come in: keys, their rates, and that a key is never shown."""

from __future__ import annotations

import hmac
import json

import pytest

from nimbed import FakeEmbedder
from nimbed_server import Settings
from nimbed_server.auth import Authenticator
from nimbed_server.wire.errors import HttpError

from .conftest import MODEL, running
from .raw import Wire, post

KEY, OTHER = "nvapi-the-right-one", "nvapi-another"
HEALTH = ["/v1/health/live", "/v1/health/ready", "/.well-known/live", "/.well-known/ready"]
REST = [
    "/v1/models",
    "/v1/metrics",
    "/metrics",
    "/v1/metadata",
    "/v1/manifest",
    "/v1/license",
    "/v1/version",
    "/openapi.json",
    "/meta",
    "/v1/embeddings",
    "/vectors",
    "/nothing/here",
]


@pytest.fixture(scope="module")
def closed():
    with running({MODEL: FakeEmbedder()}, Settings(port=0, api_keys=(KEY, OTHER))) as server:
        yield server


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_each_key_opens(closed, key):
    assert closed.embed(headers=bearer(key)).status_code == 200
    lower = {"authorization": f"bearer  {key}"}
    assert closed.embed(headers=lower).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        KEY,
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.upper()}",
        f"Bearer {KEY},{OTHER}",
        "Bearer \xff\xfe",
    ],
)
def test_nothing_else_does(closed, header):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    answer = closed.embed(headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["type"] == "authentication_error"
    assert KEY not in answer.text
    assert header is None or len(header) < 10 or header not in answer.text


@pytest.mark.parametrize("path", HEALTH)
def test_health_is_open_to_everybody(closed, path):
    assert closed.client.get(path).status_code in (200, 204)


@pytest.mark.parametrize("path", REST)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_everything_else_is_closed_and_tells_strangers_nothing(closed, path, method):
    answer = closed.client.request(method, path)
    assert answer.status_code == 401
    assert MODEL not in answer.text
    assert closed.client.request(method, path, headers=bearer(KEY)).status_code != 401


def test_a_key_is_asked_for_before_the_body_is_read(closed):
    with Wire(closed.port) as wire:
        wire.send(post(b"", length=10**9))
        assert wire.answer().status == 401


def test_names_in_paths_are_not_told_to_strangers(closed):
    for name in (MODEL, "nobody"):
        answer = closed.client.post(f"/{name}/v1/embeddings", json={"input": "a"})
        assert answer.status_code == 401


def test_every_key_is_compared_whole_and_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(
        "nimbed_server.auth.hmac.compare_digest",
        lambda left, right: compared.append((left, right)) or _compare(left, right),
    )
    auth = Authenticator([KEY, OTHER])
    auth.check(f"Bearer {KEY}".encode())
    with pytest.raises(HttpError):
        auth.check(b"Bearer x")
    # Both keys each time, the first match notwithstanding, and by digests of one length.
    assert len(compared) == 4
    assert {len(side) for pair in compared for side in pair} == {32}


_compare = hmac.compare_digest


def test_a_key_may_send_so_many_requests_a_minute_and_is_told_when_again():
    now = 0.0
    auth = Authenticator([KEY, OTHER], requests_per_minute=3, clock=lambda: now)
    for _ in range(3):
        auth.check(f"Bearer {KEY}".encode())
    with pytest.raises(HttpError) as refused:
        auth.check(f"Bearer {KEY}".encode())
    assert refused.value.status == 429
    assert refused.value.retry_after == pytest.approx(20)
    auth.check(f"Bearer {OTHER}".encode())  # another key's count is its own
    now = 20.0
    auth.check(f"Bearer {KEY}".encode())
    with pytest.raises(HttpError):
        auth.check(f"Bearer {KEY}".encode())


def test_too_many_requests_are_429_with_retry_after(serve):
    server = serve(api_keys=(KEY,), requests_per_minute=2)
    answers = [server.embed(headers=bearer(KEY)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 0 < int(answers[-1].headers["retry-after"]) <= 30
    assert answers[-1].json()["type"] == "rate_limit_error"
    assert server.client.get("/v1/health/ready").status_code == 200


def test_wrong_keys_do_not_use_up_a_right_ones_rate(serve):
    server = serve(api_keys=(KEY,), requests_per_minute=1)
    for _ in range(5):
        assert server.embed(headers=bearer("wrong")).status_code == 401
    assert server.embed(headers=bearer(KEY)).status_code == 200


def test_a_server_without_keys_ignores_them(plain):
    assert plain.embed(headers=bearer("anything")).status_code == 200


@pytest.mark.parametrize("form", ["json", "pretty"])
def test_neither_keys_nor_texts_are_logged_and_no_line_can_be_forged(serve, logged, form):
    lines = logged(form, "debug")
    server = serve(api_keys=(KEY,))
    for key, fields in ((KEY, {}), ("my-wrong-key", {}), (KEY, {"truncate": "my word"})):
        server.embed(input=["my text"], headers=bearer(key), **fields)
    server.client.get("/nowhere%0aforged", headers=bearer(KEY))
    written = lines()
    assert not [line for line in written if line.startswith("forged")]
    assert len([line for line in written if "forged" in line]) == 1
    for hidden in (KEY, "my text", "my-wrong-key", "my word"):
        assert hidden not in "".join(written)
    if form == "json":
        facts = [json.loads(line) for line in written]
        statuses = [each["status"] for each in facts if "status" in each]
        assert statuses[-4:] == [200, 401, 400, 404]
