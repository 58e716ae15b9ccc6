"""Clients of OpenAI's protocol, unchanged, over a real socket: texts, and token ids in their place.

Each means its roles by what it can send: a field of its own, or a suffix of the model's name.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest

pytest.importorskip("tiktoken")
import openai
import tiktoken
from tokenizers import Tokenizer

import nimbed
from nimbed import FakeEmbedder
from nimbed.local.hub import locate
from nimbed_server import Settings

from .conftest import MODEL, running

TEXTS = ["The heart pumps blood.", "Do not say: it's 3.14159, naïve 東京!", "two"]
REMEDY = "send the text: in LangChain OpenAIEmbeddings(check_embedding_ctx_length=False)"


@pytest.fixture(scope="module")
def minilm():
    with (
        nimbed.load() as local,
        running({local.card.id: nimbed.load()}, Settings(port=0)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as sdk,
    ):
        yield server, local, sdk


@pytest.fixture(scope="module")
def own():
    tokenizer = Tokenizer.from_file(str(locate(None).folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def vectors(answer):
    return np.array([item.embedding for item in answer.data])


def test_ids_of_the_models_own_tokenizer_are_its_texts(minilm, own):
    server, local, sdk = minilm
    ids = [own.encode(text).ids for text in TEXTS]
    right = local.embed(TEXTS, input_type="query").vectors
    several = sdk.embeddings.create(model=local.card.id, input=ids)
    np.testing.assert_allclose(vectors(several), right, atol=1e-6)
    one = sdk.embeddings.create(model=local.card.id, input=ids[1])
    np.testing.assert_allclose(vectors(one), right[1:2], atol=1e-6)
    assert one.usage.prompt_tokens == len(ids[1])
    counted = server.client.post("/tokenize", json={"prompt": TEXTS[1]}).json()
    assert counted["tokens"] == ids[1]


@pytest.mark.parametrize(
    "ids",
    [
        [15339, 1917],  # "hello world" of OpenAI's cl100k: words of BERT's vocabulary, too
        [7592, 2088],  # the same in BERT's, without what stands around a text
        [101, 102],
        [101, 50_000, 102],
        [101, 2**40, 102],
        [101, 2078, 4779, 102, 102],
        [101, 5582, 2063, 102],  # a piece that begins no word here, as "##e" behind "ass"
    ],
)
def test_ids_of_another_tokenizer_are_refused_with_the_cure(minilm, own, ids):
    _, local, sdk = minilm
    good = own.encode("fine").ids
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.embeddings.create(model=local.card.id, input=[good, ids])
    assert "row 1" in refused.value.message
    assert REMEDY in refused.value.message
    assert refused.value.param == "input"


def test_ids_are_never_cut(minilm, own):
    _, local, sdk = minilm
    ids = own.encode("word " * 300).ids
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.embeddings.create(model=local.card.id, input=ids, extra_body={"truncate": "END"})
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ([[101], "a"], 1),
        (["a", [101]], 1),
        ([[101], []], 1),
        ([[101], [1.5]], 1),
        ([101, "a"], 0),
        ([[True]], 0),
        ([-1], 0),
    ],
)
def test_what_is_neither_texts_nor_ids_is_named(minilm, wrong, place):
    server, *_ = minilm
    answer = server.client.post("/v1/embeddings", json={"input": wrong})
    assert answer.status_code == 400
    assert f"input[{place}]" in answer.json()["message"]


def test_ids_for_a_model_whose_tokenizer_is_elsewhere(serve):
    answer = serve().embed(input=[101, 7592, 102])
    assert answer.status_code == 400
    assert "is not here" in answer.json()["message"]
    assert REMEDY in answer.json()["message"]


# The clients themselves


@pytest.fixture
def spelling(monkeypatch):
    """OpenAI's tokenizer without its file, which would be downloaded: an id a byte."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    pattern = r"(?s:.)"
    encoding = tiktoken.Encoding(
        "cl100k_base", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda name: encoding)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)


def test_langchains_openai_client(minilm, spelling):
    from langchain_openai import OpenAIEmbeddings

    server, local, _ = minilm
    options = {"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0}
    client = OpenAIEmbeddings(model=f"{local.card.id}-passage", **options)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embed_documents(TEXTS)
    client = OpenAIEmbeddings(
        model=f"{local.card.id}-passage", check_embedding_ctx_length=False, **options
    )
    right = local.embed(TEXTS, input_type="passage").vectors
    np.testing.assert_allclose(client.embed_documents(TEXTS), right, atol=1e-6)


def test_llama_indexs_openai_client(plain):
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    client = OpenAILikeEmbedding(
        model_name=f"{MODEL}-passage", api_base=f"{plain.url}/v1", api_key="none", max_retries=0
    )
    right = FakeEmbedder().embed(TEXTS, input_type="passage").vectors
    np.testing.assert_allclose(client.get_text_embedding_batch(TEXTS), right, atol=1e-6)


def test_haystacks_openai_client(plain, monkeypatch):
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "false")
    embedders = pytest.importorskip("haystack.components.embedders")
    from haystack import Document
    from haystack.utils import Secret

    options = {"api_base_url": f"{plain.url}/v1", "api_key": Secret.from_token("none")}
    fake = FakeEmbedder()
    asked = embedders.OpenAITextEmbedder(model=f"{MODEL}-query", **options).run(text="two")
    right = fake.embed(["two"], input_type="query").vectors[0]
    np.testing.assert_allclose(asked["embedding"], right, atol=1e-6)
    stored = embedders.OpenAIDocumentEmbedder(
        model=f"{MODEL}-passage", progress_bar=False, **options
    ).run(documents=[Document(content=text) for text in TEXTS])
    got = [document.embedding for document in stored["documents"]]
    np.testing.assert_allclose(got, fake.embed(TEXTS, input_type="passage").vectors, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # its own: it closes no client and uses pydantic's old ways
def test_litellm(plain, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it is downloaded
    litellm = pytest.importorskip("litellm")
    logging.getLogger("LiteLLM").setLevel("ERROR")
    answer = litellm.embedding(
        model=f"openai/{MODEL}",
        input=TEXTS,
        api_base=f"{plain.url}/v1",
        api_key="none",
        extra_body={"input_type": "passage"},
    )
    got = [item["embedding"] for item in answer.data]
    right = FakeEmbedder().embed(TEXTS, input_type="passage").vectors
    np.testing.assert_allclose(got, right, atol=1e-6)
