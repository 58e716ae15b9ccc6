"""LangChain and LlamaIndex under one set of names, and NVIDIA's adapters beside ours.

The fixture ``adapter`` of this folder gives an adapter on the strict NIM of the fixture ``server``.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
from tests.engine.remote.double import Double
from tests.engine.remote.players import E5

from nimbed import cards

MATRYOSHKA = replace(cards.find(E5), matryoshka=(64,))


@dataclass(frozen=True)
class Framework:
    """What a framework calls the things that both have."""

    needs: str
    package: str
    ours: str
    nvidias: str
    model: str
    query: str
    aquery: str
    passages: str
    apassages: str

    def make(self, **settings: Any) -> Adapter:
        """Return our adapter, with the model's name under the framework's own word."""
        pytest.importorskip(self.needs)
        if "model" in settings:
            settings[self.model] = settings.pop("model")
        return Adapter(self, getattr(importlib.import_module(self.package), self.ours)(**settings))

    def from_embedder(self, embedder: Any, **settings: Any) -> Adapter:
        pytest.importorskip(self.needs)
        ours = getattr(importlib.import_module(self.package), self.ours)
        return Adapter(self, ours.from_embedder(embedder, **settings))

    def make_nvidias(self, url: str, **settings: Any) -> Adapter:
        package, _, name = self.nvidias.rpartition(".")
        theirs = getattr(pytest.importorskip(package), name)
        return Adapter(self, theirs(base_url=url, model=E5, api_key="none", **settings))


@dataclass(frozen=True)
class Adapter:
    """An adapter of either framework."""

    framework: Framework
    made: Any

    def query(self, text: str) -> list[float]:
        vector: list[float] = getattr(self.made, self.framework.query)(text)
        return vector

    def aquery(self, text: str) -> list[float]:
        vector: list[float] = asyncio.run(getattr(self.made, self.framework.aquery)(text))
        return vector

    def passages(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = getattr(self.made, self.framework.passages)(texts)
        return vectors

    def aboth(self, text: str) -> tuple[list[float], list[list[float]]]:
        """The text as a query and as a passage, on one event loop: NVIDIA's bears no second."""

        async def embed() -> tuple[list[float], list[list[float]]]:
            query = await getattr(self.made, self.framework.aquery)(text)
            return query, await getattr(self.made, self.framework.apassages)([text])

        return asyncio.run(embed())

    def apassages(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = asyncio.run(
            getattr(self.made, self.framework.apassages)(texts)
        )
        return vectors


LANGCHAIN = Framework(
    needs="langchain_core",
    package="nimbed_langchain",
    ours="NimbedEmbeddings",
    nvidias="langchain_nvidia_ai_endpoints.NVIDIAEmbeddings",
    model="model",
    query="embed_query",
    aquery="aembed_query",
    passages="embed_documents",
    apassages="aembed_documents",
)
LLAMA_INDEX = Framework(
    needs="llama_index.core",
    package="nimbed_llama_index",
    ours="NimbedEmbedding",
    nvidias="llama_index.embeddings.nvidia.NVIDIAEmbedding",
    model="model_name",
    query="get_query_embedding",
    aquery="aget_query_embedding",
    passages="get_text_embedding_batch",
    apassages="aget_text_embedding_batch",
)
EACH = pytest.mark.parametrize(
    "framework",
    [pytest.param(LANGCHAIN, id="langchain"), pytest.param(LLAMA_INDEX, id="llama_index")],
)


def fails(why: str, raises: type[Exception]) -> Any:
    """Say that NVIDIA's adapter fails in this way, and in no other."""
    return pytest.mark.xfail(strict=True, reason=why, raises=raises)


#: NVIDIA's adapter passes, which shows that its failures elsewhere are not the server's.
PASSES = pytest.mark.filterwarnings("ignore")


def beside_nvidias(*, langchain: Any = None, llama_index: Any = None) -> Any:
    """Run a test with both of our adapters, and with NVIDIA's of a framework that is marked."""
    runs = [(LANGCHAIN, langchain, "langchain"), (LLAMA_INDEX, llama_index, "llama_index")]
    cases = [pytest.param((each, False), id=f"{name}-nimbed") for each, _, name in runs]
    for framework, mark, name in runs:
        if mark is not None:
            # Its warnings are none of ours.
            marks = [pytest.mark.filterwarnings("ignore"), mark]
            cases.append(pytest.param((framework, True), id=f"{name}-nvidia", marks=marks))
    return pytest.mark.parametrize("adapter", cases, indirect=True)


def forget() -> None:
    """Drop what NVIDIA's adapter has left open while its warnings are not yet errors again.

    An expected failure keeps its frames, and they their sockets, until the next test begins.
    """
    sys.last_value = sys.last_traceback = None
    if sys.version_info >= (3, 12):
        sys.last_exc = None
    gc.collect()


def sent(server: Double, field: str) -> list[Any]:
    return [request.json.get(field) for request in server.posts]
