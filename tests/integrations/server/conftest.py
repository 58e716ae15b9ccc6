"""Servers on free ports of the loopback: in threads, or in processes of their own."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import httpx
import pytest

pytest.importorskip("uvicorn")
from nimbed import FakeEmbedder
from nimbed.embedder import Embedder
from nimbed.fake import FAKE_CARD
from nimbed_server import App, Settings, create_app
from nimbed_server.logging import LogFormat, set_up
from nimbed_server.uvicorn_server import Server, bind

MODEL = "nimbed/fake"
PICTURES = replace(
    FAKE_CARD, id="nimbed/fake-vl", modalities=("text", "image", "text_image"), dimensions=64
)


@dataclass
class Running:
    """A server that answers; ``client`` speaks to it over a real socket, ``stop`` is a signal's."""

    url: str
    port: int
    app: App | None
    client: httpx.Client
    stop: Callable[[], None]

    def embed(self, headers: Mapping[str, str] | None = None, **body) -> httpx.Response:
        body = {"model": MODEL, "input": ["a text"], **body}
        return self.client.post("/v1/embeddings", json=body, headers=headers)


Serve = Callable[..., Running]


@contextlib.contextmanager
def running(
    embedders: Mapping[str, Embedder], settings: Settings, *, loaded: bool = True
) -> Iterator[Running]:
    """Serve from a thread until the block ends; the models are loaded when it begins."""
    app = create_app(embedders, settings)
    with bind(settings) as bound:
        port = bound.getsockname()[1]
        server = Server(app, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        url, verify = f"http://127.0.0.1:{port}", None
        if settings.tls_cert is not None:
            url, verify = f"https://127.0.0.1:{port}", ssl.create_default_context()
            verify.load_verify_locations(settings.tls_cert)
        try:
            with httpx.Client(base_url=url, timeout=30, verify=verify or True) as client:
                wait_until(lambda: client.get("/v1/health/live").status_code == 200)
                if loaded:
                    wait_until(lambda: app.state.ready or app.state.failure is not None)
                yield Running(url, port, app, client, server.stop)
        finally:
            server.stop()
            thread.join(timeout=20)
            assert not thread.is_alive()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers: ``serve({"name": embedder}, max_queue=5)``; no embedders give a fake one."""
    with contextlib.ExitStack() as stack:

        def start(embedders: Mapping[str, Embedder] | None = None, **settings) -> Running:
            made = embedders or {MODEL: FakeEmbedder()}
            return stack.enter_context(running(made, Settings(port=0, **settings)))

        yield start


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    """One server with a fake text model and a fake model of pictures, for tests that only ask."""
    embedders = {MODEL: FakeEmbedder(), PICTURES.id: FakeEmbedder(PICTURES)}
    with running(embedders, Settings(port=0)) as server:
        yield server


@pytest.fixture
def logged(monkeypatch) -> Iterator[Callable[[LogFormat, str], Callable[[], list[str]]]]:
    """Log as ``nimbed serve`` does: ``logged("json", "debug")`` returns a reader of the lines."""
    loggers = [logging.getLogger(name) for name in ("nimbed", "uvicorn.error")]
    before = [(each.handlers[:], each.propagate, each.level) for each in loggers]

    def start(form: LogFormat, level: str) -> Callable[[], list[str]]:
        stream = io.StringIO()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", stream)
            set_up(form, level=level)
        return lambda: stream.getvalue().splitlines()

    yield start
    for each, (handlers, propagate, level) in zip(loggers, before, strict=True):
        each.handlers[:], each.propagate = handlers, propagate
        each.setLevel(level)


@dataclass
class Command:
    """``nimbed serve`` in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    lines: list[str]

    def stop(self, *, number: int = signal.SIGTERM, within: float = 30) -> int:
        self.process.send_signal(number)
        return self.process.wait(within)


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    """Run ``nimbed serve`` with flags on a free port, and wait until it is ready."""
    started: list[subprocess.Popen[str]] = []

    def start(*flags: str, environment: Mapping[str, str] | None = None) -> Command:
        process = subprocess.Popen(
            [sys.executable, "-m", "nimbed_cli.main", "serve", "--port", "0", *flags],
            stderr=subprocess.PIPE,
            text=True,
            env=dict(environment) if environment is not None else None,
        )
        started.append(process)
        lines: list[str] = []
        assert process.stderr is not None
        threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True).start()

        def address() -> str:
            assert process.poll() is None, "".join(lines)
            said = re.search(r"on (http://127\.0\.0\.1:\d+)", "".join(lines))
            return said[1] if said else ""

        def ready() -> bool:
            url = address()
            return bool(url) and httpx.get(f"{url}/v1/health/ready").status_code == 200

        wait_until(ready, seconds=60)
        return Command(process, address(), lines)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(holds: Callable[[], bool], *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if holds():
                return
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
