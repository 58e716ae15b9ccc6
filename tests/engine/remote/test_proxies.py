"""Requests through proxies: the same client, the same guarantees, and no password in any error."""

from __future__ import annotations

import asyncio
import base64
import copy
import pickle
import socket
import ssl
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from nimbed.errors import ConfigurationError, RemoteError
from nimbed.remote.proxies import Proxies
from nimbed.remote.retry import RetryPolicy

from .double import Double, Response, answer, error, vectors
from .players import DIMENSIONS, nim
from .proxy import LoopbackProxy
from .test_connection import WRONG, expected, followed

NIM = nim()
BRIEF = RetryPolicy(retries=1, shortest=0.001, longest=0.002)
LOGIN = "me:pa%24%24word-of-the-proxy"
PASSWORD, TOKEN = "pa$$word-of-the-proxy", base64.b64encode(b"me:pa$$word-of-the-proxy").decode()


@pytest.fixture
def proxy() -> Iterator[Callable[..., LoopbackProxy]]:
    """Starts proxies, and stops them."""
    running: list[LoopbackProxy] = []

    def start(**options: Any) -> LoopbackProxy:
        running.append(LoopbackProxy(**options))
        return running[-1]

    yield start
    for each in running:
        each.stop()


def embedded(embedder, *texts):
    return embedder.embed(list(texts), input_type="passage").vectors


def port_of(double: Double) -> int:
    return int(double.origin.rpartition(":")[2])


def test_an_http_server_is_asked_by_its_whole_address(serve, connect, proxy, monkeypatch):
    double = serve(NIM)
    between = proxy(leads_to=port_of(double))
    monkeypatch.setenv("HTTP_PROXY", f"http://{LOGIN}@127.0.0.1:{between.port}")
    embedder = connect(double, base_url="http://far.example:8000/v1", api_key="k-1")
    for n in range(3):
        np.testing.assert_allclose(embedded(embedder, f"t{n}"), expected(f"t{n}"), atol=1e-6)
    assert between.asked == ["http://far.example:8000/v1/embeddings"]
    assert f"proxy-authorization: Basic {TOKEN}".encode() in between.heads[0]
    assert double.posts[0].headers["host"] == "far.example:8000"
    assert double.connections == 1


def test_an_https_server_is_reached_by_a_tunnel(secure, connect, proxy, certificate, monkeypatch):
    between = proxy()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("HTTPS_PROXY", f"http://{LOGIN}@127.0.0.1:{between.port}")
    embedder = connect(secure, api_key="k-1")
    for n in range(3):
        np.testing.assert_allclose(embedded(embedder, f"t{n}"), expected(f"t{n}"), atol=1e-6)
    place = secure.origin.removeprefix("https://")
    assert between.asked == [place]
    assert between.heads[0].startswith(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n".encode())
    assert f"Basic {TOKEN}".encode() in between.heads[0]
    assert "proxy-authorization" not in secure.posts[0].headers
    assert secure.posts[0].headers["authorization"] == "Bearer k-1"
    assert secure.connections == 1


def test_a_certificate_is_checked_through_a_tunnel_too(secure, connect, proxy, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy().port}")
    with pytest.raises(RemoteError, match="certificate cannot be trusted through the proxy"):
        embedded(connect(secure, api_key="k-1"), "a")
    assert not secure.seen


@pytest.mark.parametrize("secured", [False, True], ids=["http", "https"])
def test_a_proxy_may_be_reached_by_tls_itself(
    serve, secure, connect, proxy, certificate, monkeypatch, secured
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    between = proxy(tls=context)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("ALL_PROXY", f"https://127.0.0.1:{between.port}")
    embedder = connect(secure if secured else serve(NIM))
    for n in range(2):
        np.testing.assert_allclose(embedded(embedder, f"t{n}"), expected(f"t{n}"), atol=1e-6)
    assert len(between.asked) == 1


@pytest.mark.parametrize("login", [None, (b"me", PASSWORD.encode())])
@pytest.mark.parametrize("secured", [False, True], ids=["http", "https"])
def test_socks_leads_to_both_kinds_of_server(
    serve, secure, connect, proxy, certificate, monkeypatch, login, secured
):
    double = secure if secured else serve(NIM)
    between = proxy(login=login)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    user = f"{LOGIN}@" if login else ""
    monkeypatch.setenv("ALL_PROXY", f"socks5://{user}127.0.0.1:{between.port}")
    embedder = connect(double)
    for n in range(3):
        np.testing.assert_allclose(embedded(embedder, f"t{n}"), expected(f"t{n}"), atol=1e-6)
    assert between.asked == [f"127.0.0.1:{port_of(double)}"]
    assert between.logins == ([login] if login else [])


def test_socks_looks_names_up_at_the_proxy(serve, connect, proxy, monkeypatch):
    double = serve(NIM)
    between = proxy(leads_to=port_of(double))
    monkeypatch.setenv("ALL_PROXY", f"socks5h://127.0.0.1:{between.port}")
    embedded(connect(double, base_url="http://far.example/v1"), "a")
    assert between.asked == ["far.example:80"]


@pytest.mark.parametrize("kind", ["http", "socks5", "tunnel"])
@pytest.mark.parametrize("more", [WRONG, WRONG[:40], b"\r\n"], ids=["whole", "part", "blank"])
def test_a_second_answer_behind_a_proxy_is_never_the_answer_to_the_next_request(
    serve, connect, proxy, certificate, monkeypatch, kind, more
):
    context = None
    if kind == "tunnel":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    double = serve(lambda request: followed(request, more), tls=context)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    scheme = "socks5" if kind == "socks5" else "http"
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://127.0.0.1:{proxy().port}")
    embedder = connect(double)
    for n in range(6):
        batch = embedder.embed([f"text {n}"], input_type="passage")
        np.testing.assert_allclose(batch.vectors, expected(f"text {n}"), atol=1e-6)
        assert batch.report.retries == 0
    assert double.connections == 6


def test_what_a_proxy_says_behind_its_consent_is_never_an_answer(
    serve, connect, proxy, monkeypatch
):
    double = serve(NIM)
    between = proxy(refusal=b"HTTP/1.1 200 OK\r\n\r\n" + WRONG)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{between.port}")
    secured = double.url.replace("http:", "https:")
    with pytest.raises(RemoteError, match="sent more than was asked for"):
        embedded(connect(double, base_url=secured, retry=BRIEF), "a")


@pytest.mark.parametrize("exempt", ["*", "127.0.0.1", "10.1.2.3, 127.0.0.0/8", "far.example,*"])
def test_no_proxy_comes_first(serve, connect, monkeypatch, exempt):
    double = serve(NIM)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "gopher://nobody speaks this:port")
    monkeypatch.setenv("NO_PROXY", exempt)
    np.testing.assert_allclose(embedded(connect(double), "a"), expected("a"), atol=1e-6)
    assert double.connections == 1


def test_a_proxy_for_https_alone_changes_nothing_for_http(serve, connect, monkeypatch):
    double = serve(lambda request: followed(request, WRONG))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    embedder = connect(double)
    for n in range(4):
        np.testing.assert_allclose(embedded(embedder, f"t{n}"), expected(f"t{n}"), atol=1e-6)


EXEMPT = [
    ("example.com", "example.com", 80, True),
    ("example.com", "api.example.com", 443, True),
    (".example.com", "api.example.com", 443, True),
    ("*.example.com", "api.example.com", 443, True),
    ("EXAMPLE.com", "api.example.com", 443, True),
    ("http://example.com", "example.com", 443, True),
    ("example.com", "notexample.com", 80, False),
    ("example.com", "example.com.evil.example", 80, False),
    ("example.com:8080", "example.com", 8080, True),
    ("example.com:8080", "example.com", 80, False),
    ("localhost, 127.0.0.1", "127.0.0.1", 80, True),
    ("localhost 127.0.0.1", "127.0.0.1", 80, True),
    ("10.0.0.0/8", "10.200.0.1", 80, True),
    ("10.0.0.0/8", "11.0.0.1", 80, False),
    ("10.0.0.0/8", "host", 80, False),
    ("[::1]", "::1", 80, True),
    ("::1", "::1", 80, True),
    ("[::1]:8000", "::1", 8000, True),
    ("[::1]:8000", "::1", 80, False),
    ("fe80::/10", "fe80::7", 80, True),
    (",,", "example.com", 80, False),
    ("", "example.com", 80, False),
]


@pytest.mark.parametrize(("exempt", "host", "port", "direct"), EXEMPT)
def test_no_proxy_is_read_as_curl_reads_it(exempt, host, port, direct):
    proxies = Proxies({"all": "http://127.0.0.1:3128", "no": exempt})
    assert (proxies.find("http", host, port) is None) == direct


def test_the_proxy_for_a_scheme_comes_before_the_one_for_all():
    proxies = Proxies({"all": "socks5://a", "https": "b:8080", "http": "http://[::1]:9"})
    https, http = proxies.find("https", "h", 443), proxies.find("http", "h", 80)
    assert (https.scheme, https.host, https.port) == ("http", "b", 8080)
    assert (http.host, http.port) == ("::1", 9)
    other = Proxies({"all": "socks5://a"}).find("http", "h", 80)
    assert (other.scheme, other.host, other.port) == ("socks5", "a", 1080)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("HTTP_PROXY", f"http://{LOGIN}@", "must be the address of a proxy"),
        ("HTTP_PROXY", f"http://{LOGIN}@host:port", "must be the address of a proxy"),
        ("http_proxy", f"http://{LOGIN}@[::1", "must be the address of a proxy"),
        ("ALL_PROXY", f"ftp://{LOGIN}@host", "of the kind ftp://"),
        ("all_proxy", f"socks4://{LOGIN}@host", "of the kind socks4://"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_by_the_variables_name(
    serve, connect, monkeypatch, variable, value, words
):
    double = serve(NIM)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"{variable}.*{words}") as caught:
        embedded(connect(double), "a")
    assert "NO_PROXY" in str(caught.value)
    assert "word" not in str(caught.value)
    assert not double.seen


@pytest.mark.parametrize("value", ["/no/such.pem", "/no/such"])
@pytest.mark.parametrize(
    "variable", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
)
def test_certificates_that_are_not_there_are_refused_by_the_variables_name(
    secure, connect, monkeypatch, variable, value
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"{variable} is '{value}'"):
        embedded(connect(secure), "a")


def test_a_file_of_certificates_that_holds_none_is_refused(secure, connect, monkeypatch, tmp_path):
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    monkeypatch.setenv("SSL_CERT_FILE", str(empty))
    with pytest.raises(ConfigurationError, match="no certificates can be read"):
        embedded(connect(secure), "a")


def shown(caught: pytest.ExceptionInfo[BaseException], embedder: object) -> str:
    """Everything that a log could hold of an error."""
    trace = "".join(traceback.format_exception(caught.value))
    return f"{trace}{vars(caught.value)!r}{pickle.dumps(caught.value)!r}{embedder!r}"


def test_a_proxy_that_answers_for_the_server_is_named(serve, connect, monkeypatch):
    between = serve(
        lambda request: error(f"busy, {request.headers['proxy-authorization']} {PASSWORD}", 503)
    )
    host = between.origin.removeprefix("http://")
    monkeypatch.setenv("HTTP_PROXY", f"http://{LOGIN}@{host}")
    embedder = connect(between, base_url="http://far.example/v1", retry=BRIEF)
    with pytest.raises(RemoteError) as caught:
        embedded(embedder, "a")
    assert f"through the proxy http://{host} of HTTP_PROXY" in str(caught.value)
    assert "[503] busy, Basic ***" in str(caught.value)
    words = shown(caught, embedder)
    assert PASSWORD not in words
    assert TOKEN not in words
    assert "pa%24" not in words


@pytest.mark.parametrize(
    ("options", "variable", "scheme", "words", "retryable"),
    [
        ({"refusal": b"HTTP/1.1 407 X\r\n\r\n"}, "HTTPS_PROXY", "http", "put a user and a", False),
        ({"refusal": b"HTTP/1.1 403 X\r\n\r\n"}, "HTTPS_PROXY", "http", "answered 403", False),
        ({"refusal": b"HTTP/1.1 503 X\r\n\r\n"}, "HTTPS_PROXY", "http", "answered 503", True),
        ({"refusal": b"SSH-2.0-x\r\n\r\n"}, "HTTPS_PROXY", "http", "not speak HTTP", False),
        ({"refusal": b"X" * 70_000}, "HTTPS_PROXY", "http", "headers without end", False),
        ({"refusal": b"HTTP/1.1 200"}, "HTTPS_PROXY", "http", "closed the connection", True),
        ({"socks_reply": 5}, "ALL_PROXY", "socks5", "the connection was refused", True),
        ({"socks_reply": 2}, "ALL_PROXY", "socks5", "not allowed by its rules", False),
        ({"socks_reply": 99}, "ALL_PROXY", "socks5", "reply 99", True),
        ({"login": (b"you", b"x")}, "ALL_PROXY", "socks5", "refuses its user", False),
        ({"refusal": b""}, "ALL_PROXY", "socks5", "another way to log in", False),
    ],
)
def test_a_proxy_that_does_not_connect_is_named_without_its_password(
    secure, connect, proxy, monkeypatch, options, variable, scheme, words, retryable
):
    if scheme == "socks5" and not options.keys() & {"refusal", "login"}:
        options = {**options, "login": (b"me", PASSWORD.encode())}
    between = proxy(**options)
    monkeypatch.setenv(variable, f"{scheme}://{LOGIN}@127.0.0.1:{between.port}")
    embedder = connect(secure, retry=BRIEF)
    with pytest.raises(RemoteError, match=words) as caught:
        embedded(embedder, "a")
    assert f"the proxy {scheme}://127.0.0.1:{between.port} of {variable}" in str(caught.value)
    assert caught.value.retryable == retryable
    words = shown(caught, embedder)
    assert PASSWORD not in words
    assert TOKEN not in words
    assert not secure.seen


def test_a_proxy_that_is_not_there_is_named(serve, connect, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HTTP_PROXY", f"http://{LOGIN}@127.0.0.1:{port}")
    with pytest.raises(RemoteError, match="cannot connect through the proxy") as caught:
        embedded(connect(serve(NIM), retry=BRIEF), "a")
    assert PASSWORD not in str(caught.value)


def test_a_proxy_is_printed_without_its_login():
    found = Proxies({"http": f"http://{LOGIN}@host:9"}).find("http", "h", 80)
    assert found.password == PASSWORD
    for words in (str(found), repr(found), f"{copy.copy(found)!r}"):
        assert "me" not in words.replace("named", "").replace("scheme", "")
        assert PASSWORD not in words


def test_a_redirect_to_another_host_is_led_by_its_own_rules(serve, connect, proxy, monkeypatch):
    target = serve(NIM)
    location = f"http://far.example:{port_of(target)}/v1/embeddings"
    double = serve(lambda request: Response(307, headers={"location": location}))
    between = proxy(leads_to=port_of(target))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{between.port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    embedder = connect(double, api_key="k-1")
    np.testing.assert_allclose(embedded(embedder, "a"), expected("a"), atol=1e-6)
    assert between.asked == [location]
    assert "authorization" not in target.posts[0].headers


async def test_many_requests_share_a_proxy(serve, connect, proxy, monkeypatch):
    double = serve(NIM)
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy().port}")
    embedder = connect(double, batch_size=5)
    texts = [f"text {n}" for n in range(200)]
    batches = await asyncio.gather(
        *[embedder.aembed(texts, input_type="passage") for _ in range(3)]
    )
    for batch in batches:
        np.testing.assert_allclose(batch.vectors, expected(*texts), atol=1e-6)


def test_an_answer_of_another_width_is_found_through_a_proxy(serve, connect, proxy, monkeypatch):
    double = serve(lambda request: answer(vectors(request.texts, DIMENSIONS // 2)))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy().port}")
    with pytest.raises(RemoteError, match="width 512 where 1024"):
        embedded(connect(double, retry=BRIEF), "a")
