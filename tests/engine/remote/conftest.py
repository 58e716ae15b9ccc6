from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nimbed.cards import ModelCard
from nimbed.remote.capabilities import CAPABILITIES
from nimbed.remote.embedder import RemoteEmbedder
from nimbed.remote.retry import RetryPolicy

from .double import Double, Handler
from .players import E5, plain

#: Waits short enough for tests.
QUICK = RetryPolicy(shortest=0.01, longest=0.05, deadline=20)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's own keys and proxies play no part, nor what other tests taught."""
    for name in (
        "NVIDIA_API_KEY",
        "NIMBED_API_KEY",
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    yield
    CAPABILITIES.clear()


@pytest.fixture
def serve() -> Iterator[Callable[..., Double]]:
    """Starts doubles, and stops them."""
    running: list[Double] = []

    def start(handler: Handler | None = None, **options: Any) -> Double:
        running.append(Double(handler or plain(), **options))
        return running[-1]

    yield start
    for double in running:
        double.stop()


@pytest.fixture
def connect() -> Iterator[Callable[..., RemoteEmbedder]]:
    """Makes embedders for a double, and closes them."""
    made: list[RemoteEmbedder] = []

    def make(double: Double, model: str | ModelCard | None = E5, **options: Any) -> RemoteEmbedder:
        facts = {"base_url": double.url, "dialect": "nim", "retry": QUICK, **options}
        made.append(RemoteEmbedder(model, **facts))
        return made[-1]

    yield make
    for embedder in made:
        embedder.close()
