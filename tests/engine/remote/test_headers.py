"""Headers that a gateway wants: sent where the key goes, shown nowhere."""

from __future__ import annotations

import copy
import logging
import pickle
import traceback

import pytest

import nimbed
from nimbed.errors import ConfigurationError, RemoteError
from nimbed.load import LoadOptions
from nimbed.remote.address import ExtraHeaders

from .double import Response, error
from .players import E5, nim

HEADERS = {"X-Tenant": "blue", "Ocp-Apim-Subscription-Key": "do-not-tell-anyone"}
SECRET = "do-not-tell-anyone"


def test_they_are_sent_with_every_request(serve):
    double = serve(nim())
    with nimbed.load(None, base_url=double.url, headers=HEADERS) as embedder:
        embedder.embed(["a"], input_type="query")
    assert len(double.seen) > 1
    for request in double.seen:
        assert request.headers["x-tenant"] == "blue"
        assert request.headers["ocp-apim-subscription-key"] == SECRET


def test_they_do_not_follow_a_redirect_to_another_place(serve, connect):
    other = serve(nim())
    moved = Response(307, b"", {"location": f"{other.url}/embeddings"})
    embedder = connect(serve(lambda request: moved), headers=HEADERS)
    embedder.embed(["a"], input_type="query")
    assert other.posts
    assert "x-tenant" not in other.posts[0].headers


def test_they_take_the_place_of_a_key_and_of_our_own(serve, connect, monkeypatch):
    monkeypatch.setenv("NIMBED_API_KEY", "from-the-environment")
    double = serve(nim())
    headers = {"Authorization": "Basic abc", "User-Agent": "mine"}
    connect(double, headers=headers).embed(["a"], input_type="query")
    assert double.posts[0].headers["authorization"] == "Basic abc"
    assert double.posts[0].headers["user-agent"] == "mine"
    with pytest.raises(ConfigurationError, match="not both"):
        connect(double, headers=headers, api_key="k")


def test_their_values_are_shown_nowhere(serve, connect, caplog):
    double = serve(lambda request: error(f"what is {SECRET}?", 400))
    embedder = connect(double, headers=HEADERS)
    with caplog.at_level(logging.DEBUG, "nimbed"), pytest.raises(RemoteError) as caught:
        embedder.embed(["a"], input_type="query")
    options = LoadOptions(base_url=double.url, headers=HEADERS)
    shown = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
    for words in (shown, caplog.text, repr(embedder), repr(options), repr(options.headers)):
        assert SECRET not in words
    with pytest.raises(TypeError):
        pickle.dumps(options)
    with pytest.raises(TypeError):
        copy.deepcopy(options.headers)


def test_a_pickle_says_that_they_did_not_travel(serve, connect):
    packed = pickle.dumps(connect(serve(nim()), headers=HEADERS))
    assert SECRET.encode() not in packed
    with pytest.raises(ConfigurationError, match="x-tenant.*do not travel in a pickle"):
        pickle.loads(packed).embed(["a"], input_type="query")


def test_options_with_other_headers_are_others():
    one, same, other = (
        LoadOptions(base_url="http://h", headers={"X-A": value}) for value in ("1", "1", "2")
    )
    assert one == same
    assert hash(one) == hash(same)
    assert one != other


@pytest.mark.parametrize(
    "headers", [{"Host": "x"}, {"Content-Length": "1"}, {"a b": "c"}, {"x": "a\r\nb: c"}, {"": "x"}]
)
def test_what_cannot_be_a_header_is_refused(headers):
    with pytest.raises(ConfigurationError, match="header"):
        ExtraHeaders(headers)


def test_they_belong_to_a_server():
    with pytest.raises(ConfigurationError, match="headers can only be used with a server"):
        nimbed.load(E5, headers=HEADERS)
