"""The clients people have, unchanged, over a real socket."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

pytest.importorskip("openai")
pytest.importorskip("langchain_nvidia_ai_endpoints")
pytest.importorskip("llama_index.embeddings.nvidia")
import openai
from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings
from llama_index.embeddings.nvidia import NVIDIAEmbedding

import nimbed
from nimbed import FakeEmbedder
from nimbed_cli.server_check import examine
from nimbed_server import Settings

from .conftest import MODEL, running

LONG = "word " * 600


def wanted(texts, role, **options):
    return FakeEmbedder().embed(texts, input_type=role, **options).vectors


@pytest.fixture
def sdk(plain):
    with openai.OpenAI(base_url=f"{plain.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def vectors(answer):
    return np.array([item.embedding for item in answer.data])


def test_openai_reads_the_base64_it_asks_for_without_being_told(sdk):
    answer = sdk.embeddings.create(model=MODEL, input=["one", "two"])
    np.testing.assert_allclose(vectors(answer), wanted(["one", "two"], "query"), atol=1e-6)
    assert answer.usage.total_tokens == 4
    assert answer.model == MODEL


def test_openai_reads_lists_and_sizes(sdk):
    answer = sdk.embeddings.create(
        model=MODEL, input="one", dimensions=16, encoding_format="float", user="somebody"
    )
    np.testing.assert_allclose(vectors(answer), wanted(["one"], "query", dimensions=16), atol=1e-6)


def test_openais_extra_body_reaches_nims_fields(sdk):
    extra = {"input_type": "passage", "truncate": "END"}
    answer = sdk.embeddings.create(model=MODEL, input=[LONG], extra_body=extra)
    np.testing.assert_allclose(
        vectors(answer), wanted([LONG], "passage", truncate="END"), atol=1e-6
    )


@pytest.mark.parametrize("kind", ["int8", "uint8", "binary", "ubinary"])
def test_openai_reads_integers_although_it_would_decode_base64_as_floats(sdk, kind):
    answer = sdk.embeddings.create(
        model=MODEL, input=["one"], extra_body={"input_type": "query", "embedding_type": kind}
    )
    scale = "nim" if "int" in kind else None
    right = wanted(["one"], "query", embedding_type=kind, int8_scale=scale)
    np.testing.assert_array_equal(vectors(answer), right)


def test_openai_lists_the_models(sdk):
    assert next(iter(sdk.models.list())).id == MODEL


def test_openai_raises_its_typed_errors_with_our_sentences(sdk):
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.embeddings.create(model="wrong-model", input="one")
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    assert "model 'wrong-model' not found" in missing.value.message
    with pytest.raises(openai.BadRequestError) as wrong:
        sdk.embeddings.create(model=MODEL, input=[LONG])
    assert "Input length 601 exceeds maximum allowed token size 512" in str(wrong.value)
    assert wrong.value.type == "invalid_request_error"
    assert wrong.value.code == "context_length_exceeded"
    assert wrong.value.request_id == wrong.value.response.headers["x-request-id"]


def test_openai_is_told_in_its_own_error_that_a_key_is_wrong(serve):
    server = serve(api_keys=("right",))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError, match="not one that this server knows"):
            client.embeddings.create(model=MODEL, input="one")
        right = client.with_options(api_key="right")
        assert len(right.embeddings.create(model=MODEL, input="one").data) == 1


def test_openai_tries_again_what_a_full_queue_refused(serve, monkeypatch):
    server = serve(max_queue=4)
    server.app.state.models.default.backend.capacity.used = 4
    told = []

    def freed(seconds):
        told.append(seconds)
        server.app.state.models.default.backend.capacity.used = 0

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        monkeypatch.setattr(client, "_sleep_for_retry", lambda **_: freed(1))
        answer = client.embeddings.create(model=MODEL, input="one")
    assert told == [1]
    assert len(answer.data) == 1


async def test_async_openai_gets_the_same_under_concurrency(plain):
    async with openai.AsyncOpenAI(base_url=f"{plain.url}/v1", api_key="none") as client:

        async def one(text):
            answer = await client.embeddings.create(
                model=MODEL, input=text, extra_body={"input_type": "passage"}
            )
            return answer.data[0].embedding

        texts = [f"text {n}" for n in range(40)]
        got = await asyncio.gather(*map(one, texts))
    np.testing.assert_allclose(got, wanted(texts, "passage"), atol=1e-6)


def test_langchains_nvidia_client_takes_the_first_model_if_none_is_named(plain):
    with pytest.warns(UserWarning, match="Default model is set as"):
        client = NVIDIAEmbeddings(base_url=f"{plain.url}/v1")
    assert client.model == MODEL
    np.testing.assert_allclose(client.embed_query("one"), wanted(["one"], "query")[0], atol=1e-6)


def test_langchains_nvidia_client_is_served(plain):
    client = NVIDIAEmbeddings(base_url=f"{plain.url}/v1", model=MODEL)
    np.testing.assert_allclose(client.embed_query("one"), wanted(["one"], "query")[0], atol=1e-6)
    texts = [f"text {n}" for n in range(120)]
    np.testing.assert_allclose(client.embed_documents(texts), wanted(texts, "passage"), atol=1e-6)


def test_langchains_nvidia_client_gets_sizes_and_cuts(plain):
    client = NVIDIAEmbeddings(
        base_url=f"{plain.url}/v1", model=MODEL, truncate="END", dimensions=32
    )
    right = wanted([LONG], "passage", truncate="END", dimensions=32)
    np.testing.assert_allclose(client.embed_documents([LONG]), right, atol=1e-6)


def test_langchains_nvidia_client_shows_why_a_text_is_refused(plain):
    client = NVIDIAEmbeddings(base_url=f"{plain.url}/v1", model=MODEL)
    with pytest.raises(Exception, match="400.*Input length 601 exceeds maximum allowed token"):
        client.embed_query(LONG)


async def test_langchains_nvidia_client_is_served_async(plain):
    client = NVIDIAEmbeddings(base_url=f"{plain.url}/v1", model=MODEL)
    np.testing.assert_allclose(
        await client.aembed_query("one"), wanted(["one"], "query")[0], atol=1e-6
    )
    np.testing.assert_allclose(
        await client.aembed_documents(["one"]), wanted(["one"], "passage"), atol=1e-6
    )


@pytest.fixture
async def llama(plain):
    """Make LlamaIndex's client, and close what it leaves open."""
    made = []

    def make(**options):
        made.append(NVIDIAEmbedding(base_url=f"{plain.url}/v1", **options))
        return made[-1]

    yield make
    for client in made:
        client._client.close()
        await client._aclient.close()


def test_llama_index_is_served_and_its_sync_query_is_a_passage_by_its_own_fault(llama):
    client = llama(model=MODEL)
    texts = ["one", "two"]
    got = client.get_text_embedding_batch(texts)
    np.testing.assert_allclose(got, wanted(texts, "passage"), atol=1e-6)
    # llama-index-embeddings-nvidia 0.6.0 sends input_type "passage" here; what is sent is served.
    query = client.get_query_embedding("one")
    np.testing.assert_allclose(query, wanted(["one"], "passage")[0], atol=1e-6)


async def test_llama_index_is_served_async(llama):
    client = llama(model=MODEL)
    query = await client.aget_query_embedding("one")
    np.testing.assert_allclose(query, wanted(["one"], "query")[0], atol=1e-6)
    got = await client.aget_text_embedding_batch(["one", "two"])
    np.testing.assert_allclose(got, wanted(["one", "two"], "passage"), atol=1e-6)


def test_llama_index_takes_the_first_model_if_none_is_named(llama):
    with pytest.warns(UserWarning, match="Default model is set as"):
        client = llama()
    assert client.model == MODEL
    np.testing.assert_allclose(
        client.get_text_embedding("one"), wanted(["one"], "passage")[0], atol=1e-6
    )


def test_llama_index_gets_sizes_and_cuts(llama):
    client = llama(model=MODEL, dimensions=16, truncate="START")
    right = wanted([LONG], "passage", dimensions=16, truncate="START")
    np.testing.assert_allclose(client.get_text_embedding(LONG), right[0], atol=1e-6)


@pytest.fixture(scope="module")
def minilm():
    with (
        nimbed.load() as embedder,
        running({embedder.card.id: nimbed.load()}, Settings(port=0)) as server,
    ):
        yield server, embedder


@pytest.mark.parametrize("options", [{}, {"embedding_type": "int8", "int8_scale": "nim"}])
def test_nimbeds_own_client_gets_the_vectors_and_the_space_of_a_local_model(minilm, options):
    server, local = minilm
    texts = ["one", "another text"]
    with nimbed.load(local.card.id, base_url=server.url) as remote:
        far = remote.embed(texts, input_type="query", **options)
        assert remote.identify()[1] == "nim"
    near = local.embed(texts, input_type="query", **options)
    assert near.spec.fingerprint == far.spec.fingerprint
    np.testing.assert_allclose(far.vectors, near.vectors, atol=1e-6)
    assert far.token_counts.sum() == near.token_counts.sum()


def test_nimbeds_doctor_finds_nothing_wrong_with_the_server(minilm):
    server, local = minilm
    findings = examine(server.url, local.card.id, against=local)
    assert {finding.name for finding in findings} >= {"parity", "base64"}
    assert [finding for finding in findings if finding.verdict == "fail"] == []
