"""Where a server stands: behind proxies with a prefix, on a unix socket, asked by web pages."""

from __future__ import annotations

import os
import socket
import stat
import threading

import httpx
import pytest

from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError
from nimbed_server import Settings, create_app
from nimbed_server.uvicorn_server import Server, bind

from .conftest import MODEL, wait_until

PAGE = "https://app.example"
BODY = {"model": MODEL, "input": "a text", "input_type": "query"}
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


@pytest.mark.parametrize(
    ("base_path", "sent"), [("/embed", {}), ("", {"x-forwarded-prefix": "/embed"})]
)
def test_a_prefix_is_no_model_and_stands_before_every_link(serve, base_path, sent):
    server = serve(base_path=base_path)
    for prefix in ("/embed", ""):  # proxies pass it on, or take it away
        url = f"{prefix}/v1/embeddings"
        assert server.client.post(url, json=BODY, headers=sent).status_code == 200
        told = server.client.get(f"{prefix}/openapi.json", headers=sent).json()
        assert told["servers"] == [{"url": "/embed"}]
        page = server.client.get(f"{prefix}/docs", headers=sent).text
        assert "/embed/v1/embeddings" in page
    named = server.client.post(f"/embed/{MODEL}/v1/embeddings", json=BODY, headers=sent)
    assert named.status_code == 200
    assert server.client.get("/embed", headers=sent).headers["content-type"].startswith("text/html")
    assert server.client.post("/embedder/v1/embeddings", json=BODY, headers=sent).status_code == 404


def test_a_prefix_that_is_none_is_not_believed(serve):
    server = serve()
    for sent in ("embed", "/<script>", '/a"b', "//x", "https://evil.example"):
        answer = server.client.get("/openapi.json", headers={"x-forwarded-prefix": sent})
        assert "servers" not in answer.json()


async def test_an_application_may_be_mounted_by_another(tmp_path):
    app = create_app({MODEL: FakeEmbedder()})
    app.load()
    transport = httpx.ASGITransport(app, root_path="/mounted")
    async with httpx.AsyncClient(transport=transport, base_url="http://inside") as client:
        assert (await client.post("/mounted/v1/embeddings", json=BODY)).status_code == 200
        assert (await client.get("/mounted/openapi.json")).json()["servers"][0]["url"] == "/mounted"
    await app.close()


def test_a_page_that_may_ask_is_told_so_by_the_headers_that_browsers_want(serve):
    server = serve(allow_origins=(PAGE,), api_keys=("key",))
    asked = server.client.options("/v1/embeddings", headers={"origin": PAGE, **PREFLIGHT})
    assert asked.status_code == 204  # without a key: browsers send none
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert "x-stainless-lang" in asked.headers["access-control-allow-headers"]
    for key, status in (("key", 200), ("wrong", 401)):
        headers = {"origin": PAGE, "authorization": f"Bearer {key}"}
        answer = server.client.post("/v1/embeddings", json=BODY, headers=headers)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["vary"] == "origin"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


def test_no_other_page_is_and_by_default_none(serve):
    for server in (serve(allow_origins=(PAGE,)), serve()):
        for origin in ("https://evil.example", f"{PAGE}.evil.example", "null"):
            asked = server.client.options("/v1/embeddings", headers={"origin": origin, **PREFLIGHT})
            assert asked.status_code == 405
            answer = server.client.post("/v1/embeddings", json=BODY, headers={"origin": origin})
            assert answer.status_code == 200
            assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_star_lets_every_page_ask(serve):
    server = serve(allow_origins=("*",))
    answer = server.client.post("/v1/embeddings", json=BODY, headers={"origin": "null"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert server.client.options("/v1/embeddings").status_code == 405  # no browser's question


def test_a_unix_socket_is_served_replaced_if_it_is_left_and_refused_if_it_is_used(tmp_path):
    path = tmp_path / "nimbed.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # of a server that was killed
    settings = Settings(uds=str(path))
    assert not settings.open_to_all
    app = create_app({MODEL: FakeEmbedder()}, settings)
    with bind(settings) as bound:
        server = Server(app, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)), base_url="http://any"
        ) as client:
            wait_until(lambda: app.state.ready)
            assert client.post("/v1/embeddings", json=BODY).status_code == 200
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        with pytest.raises(ConfigurationError, match="another server listens"):
            bind(settings)
        server.stop()
        thread.join(20)
    (tmp_path / "a file").write_text("precious")
    with pytest.raises(ConfigurationError, match="cannot bind"):
        bind(Settings(uds=str(tmp_path / "a file")))
    assert (tmp_path / "a file").read_text() == "precious"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"base_path": "embed"}, "base_path must look like"),
        ({"base_path": "/embed/"}, "base_path must look like"),
        ({"allow_origins": ("app.example",)}, "a scheme and a host"),
        ({"allow_origins": (f"{PAGE}/",)}, "a scheme and a host"),
        ({"uds": "/" + "x" * 200}, "at most 107 bytes"),
        ({"metrics_key": " "}, "must not be blank"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_read(wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        Settings(**wrong)


def test_metrics_have_a_key_of_their_own_or_none(serve):
    def metrics(server, key=None):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return server.client.get("/metrics", headers=headers).status_code

    own = serve(api_keys=("key",), metrics_key="gauge")
    assert [metrics(own, key) for key in ("key", "gauge", "other", None)] == [200, 200, 401, 401]
    assert own.embed({"authorization": "Bearer gauge"}).status_code == 401
    alone = serve(metrics_key="gauge")
    assert [metrics(alone, key) for key in ("gauge", None)] == [200, 401]
    assert alone.embed().status_code == 200
    opened = serve(api_keys=("key",), open_metrics=True)
    assert metrics(opened) == 200
    assert opened.embed().status_code == 401
    assert "gauge" not in repr(own.app.state.settings)
    assert own.app.state.settings.shown()["metrics_key"] == "(given)"
