from __future__ import annotations

import copy
import logging
import pickle
import traceback

import pytest

from nimbed.errors import RemoteError
from nimbed.remote.address import Secret

from .double import Response, error
from .players import nim

KEY = "nvapi-do-not-tell-anyone"


def test_a_secret_shows_itself_to_nobody():
    secret = Secret(KEY)
    assert KEY not in f"{secret} {secret!r}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        copy.deepcopy(secret)


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_a_key_that_the_server_echoes_stays_out_of_errors_and_logs(serve, connect, caplog, status):
    def echo(request):
        said = request.headers["authorization"]
        return error(f"bad key {said}", status, x_request_id=said, retry_after="999")

    embedder = connect(serve(echo), api_key=KEY)
    with caplog.at_level(logging.DEBUG, "nimbed"), pytest.raises(RemoteError) as caught:
        embedder.embed(["a"], input_type="query")
    shown = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
    assert "***" in shown
    for words in (shown, caplog.text, repr(embedder)):
        assert KEY not in words
    assert KEY.encode() not in pickle.dumps(caught.value)


def test_an_error_of_the_transport_drags_no_request_along(serve, connect):
    embedder = connect(serve(lambda request: Response(close=True)), api_key=KEY)
    with pytest.raises(RemoteError) as caught:
        embedder.embed(["a"], input_type="query")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_the_key_is_sent_as_a_bearer(serve, connect, monkeypatch):
    double = serve(nim())
    monkeypatch.setenv("NVIDIA_API_KEY", "not-for-this-host")
    connect(double).embed(["a"], input_type="query")
    assert "authorization" not in double.posts[-1].headers
    monkeypatch.setenv("NIMBED_API_KEY", KEY)
    connect(double).embed(["a"], input_type="query")
    assert double.posts[-1].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_to_another_origin_is_followed_without_the_key(serve, connect, status):
    target = serve(nim())
    location = f"{target.url}/embeddings"
    double = serve(lambda request: Response(status, headers={"location": location}))
    batch = connect(double, api_key=KEY).embed(["a"], input_type="query")
    assert len(batch) == 1
    assert double.posts[0].headers["authorization"] == f"Bearer {KEY}"
    assert "authorization" not in target.posts[0].headers
    assert target.posts[0].body == double.posts[0].body


def test_a_redirect_within_the_origin_keeps_the_key(serve, connect):
    inner = nim()

    def handle(request):
        if request.path == "/v1/embeddings" and "moved" not in request.headers.get("x", ""):
            return Response(307, headers={"location": "/moved"})
        return inner(request.__class__(**{**request.__dict__, "path": "/v1/embeddings"}))

    double = serve(handle)
    connect(double, api_key=KEY).embed(["a"], input_type="query")
    assert [post.path for post in double.posts] == ["/v1/embeddings", "/moved"]
    assert double.posts[1].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("status", "location", "reason"),
    [
        (301, "http://127.0.0.1:1/v1/embeddings", "turn the request into a GET"),
        (307, "ftp://127.0.0.1/v1", "no web address"),
        (307, "http://127.0.0.1:port/", "an invalid address"),
        (307, "http://[::1", "an invalid address"),
        (307, "/v1/embeddings", "in circles"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_refused(serve, connect, status, location, reason):
    double = serve(lambda request: Response(status, headers={"location": location}))
    with pytest.raises(RemoteError, match=reason):
        connect(double).embed(["a"], input_type="query")
