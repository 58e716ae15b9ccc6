"""The official clients and ours at the same server double: they must mean the same."""

from __future__ import annotations

import asyncio
import warnings

import numpy as np
import pytest

from .double import vectors
from .players import DIMENSIONS, E5, nim, openai, plain

TEXTS = ["first text", "second text", "drittes Stück"]
ROLE_FIELDS = {"input_type": "passage", "truncate": "NONE"}
ON_THE_WIRE = {
    "nim": {"input": TEXTS, "model": E5, "encoding_format": "base64", **ROLE_FIELDS},
    "nim-hosted": {"input": TEXTS, "model": E5, "encoding_format": "base64", **ROLE_FIELDS},
    "nim-suffix": {"input": TEXTS, "model": f"{E5}-passage", "encoding_format": "base64"},
    "openai": {"input": [f"passage: {text}" for text in TEXTS], "model": E5},
    "vllm": {
        "input": [f"passage: {text}" for text in TEXTS],
        "model": E5,
        "encoding_format": "base64",
    },
    "tei": {
        "input": [f"passage: {text}" for text in TEXTS],
        "model": E5,
        "encoding_format": "base64",
    },
}


@pytest.mark.parametrize("dialect", ON_THE_WIRE)
def test_the_body_on_the_wire_is_the_recorded_one(serve, connect, dialect):
    double = serve(plain())
    connect(double, dialect=dialect).embed(TEXTS, input_type="passage")
    request = double.posts[0]
    assert request.json == ON_THE_WIRE[dialect]
    assert request.path == "/v1/embeddings"
    assert request.headers["content-type"] == "application/json"


@pytest.fixture
def openai_client():
    """The official client, if it is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("openai")


def test_the_openai_client_gets_the_same_vectors_from_a_nim(serve, connect, openai_client):
    double = serve(nim())
    ours = connect(double).embed(TEXTS, input_type="passage")
    with openai_client.OpenAI(base_url=double.url, api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model=E5, input=TEXTS, extra_body=ROLE_FIELDS)
    theirs = np.array([item.embedding for item in answer.data], np.float32)
    np.testing.assert_allclose(ours.vectors, theirs, atol=1e-6)
    assert double.posts[0].json == double.posts[1].json
    assert answer.usage.prompt_tokens == ours.token_counts.sum()


def test_the_async_openai_client_gets_the_same_vectors(serve, connect, openai_client):
    double = serve(openai("text-embedding-3-small", 1536, knows=["encoding_format"]))
    embedder = connect(double, "text-embedding-3-small", dialect="openai")
    ours = embedder.embed(TEXTS, input_type="query")

    async def ask():
        async with openai_client.AsyncOpenAI(
            base_url=double.url, api_key="none", max_retries=0
        ) as client:
            return await client.embeddings.create(model="text-embedding-3-small", input=TEXTS)

    theirs = np.array([item.embedding for item in asyncio.run(ask()).data], np.float32)
    np.testing.assert_allclose(ours.vectors, theirs, atol=1e-6)


def test_the_openai_client_reads_the_doubles_errors(serve, openai_client):
    double = serve(nim())
    with (
        openai_client.OpenAI(base_url=double.url, api_key="none", max_retries=0) as client,
        pytest.raises(openai_client.BadRequestError, match="input_type"),
    ):
        client.embeddings.create(model=E5, input=TEXTS)


@pytest.fixture
def langchain_client():
    """NVIDIA's client for LangChain, if it is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("langchain_nvidia_ai_endpoints")


def test_the_langchain_client_means_the_same(serve, connect, langchain_client):
    double = serve(nim())
    embedder = connect(double)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = langchain_client.NVIDIAEmbeddings(
            base_url=double.url, model=E5, nvidia_api_key="none"
        )
        theirs = {"passage": client.embed_documents(TEXTS), "query": [client.embed_query("q")]}
    for role, texts in (("passage", TEXTS), ("query", ["q"])):
        ours = embedder.embed(texts, input_type=role)
        np.testing.assert_allclose(ours.vectors, np.array(theirs[role]), atol=1e-6)
        bodies = [post.json for post in double.posts if post.json["input_type"] == role]
        assert {**bodies[0], "encoding_format": "base64"} == bodies[1]


@pytest.fixture
def llama_index_client():
    """NVIDIA's client for LlamaIndex, if it is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("llama_index.embeddings.nvidia")


def test_the_llama_index_client_means_the_same_of_passages(serve, connect, llama_index_client):
    double = serve(nim())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = llama_index_client.NVIDIAEmbedding(
            base_url=double.url, model=E5, api_key="none", truncate="NONE"
        )
        theirs = np.array(client.get_text_embedding_batch(TEXTS))
    ours = connect(double).embed(TEXTS, input_type="passage")
    np.testing.assert_allclose(ours.vectors, theirs, atol=1e-6)
    np.testing.assert_allclose(
        ours.vectors, vectors([f"passage: {text}" for text in TEXTS], DIMENSIONS), atol=1e-6
    )
    assert double.posts[0].json == double.posts[-1].json
