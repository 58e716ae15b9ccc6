from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import weaviate
import weaviate.retry

import nimbed_weaviate
from nimbed import FakeEmbedder

from .checks import Check
from .double import Double


@pytest.fixture
def double() -> Iterator[Double]:
    running = Double()
    yield running
    running.stop()


@pytest.fixture
def client(double: Double) -> Iterator[weaviate.WeaviateClient]:
    with nimbed_weaviate.connect(double.url, grpc_port=double.grpc_port) as connected:
        yield connected


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the client repeat a broken request at once; gives the pauses that it would have made."""
    pauses: list[float] = []
    monkeypatch.setattr(weaviate.retry, "time", types.SimpleNamespace(sleep=pauses.append))
    return pauses


@pytest.fixture
def make(client: weaviate.WeaviateClient) -> Callable[..., Any]:
    def create(name: str, vector_config: Any, **options: Any) -> Any:
        return client.collections.create(name, vector_config=vector_config, **options)

    return create


@pytest.fixture
def checked(client: Any) -> Check:
    """Check a collection: verdict and detail by the finding's name."""

    def run(name: str = "Docs") -> dict[str, tuple[str, str]]:
        return {
            each.name: (each.verdict, each.detail) for each in nimbed_weaviate.check(client, name)
        }

    return run


@pytest.fixture
def text2vec(double: Double, checked: Check) -> Check:
    """Store settings of text2vec-nvidia as they are, and check them."""

    def run(**settings: Any) -> dict[str, tuple[str, str]]:
        vector = {"vectorizer": {"text2vec-nvidia": settings}}
        double.create({"class": "Docs", "vectorConfig": {"default": vector}})
        return checked()

    return run
