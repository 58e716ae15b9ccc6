"""Cohere's API through the clients that people have: its SDKs, LangChain and LlamaIndex."""

from __future__ import annotations

import base64
import warnings

import httpx
import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the clients' own imports
    cohere = pytest.importorskip("cohere")
    from langchain_cohere import CohereEmbeddings
    from llama_index.embeddings.cohere import CohereEmbedding
from tests.engine.pictures import drawing, encoded

from nimbed import FakeEmbedder, Image
from nimbed_server import Settings, parse_alias

from .conftest import MODEL, PICTURES, running

# Of the SDK, which uses what pydantic gives up.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LONG = "word " * 600
TEXTS = ["one", "two"]
ALIASES = (
    f"embed-english-v3.0={MODEL}",
    f"small={MODEL},dimensions=16",
    f"bits={MODEL},embedding_type=binary,as=signs",
    f"codes={MODEL},embedding_type=int8",
    f"stored={MODEL},input_type=passage",
)


def wanted(texts=TEXTS, role="passage", card=None, **options):
    embedder = FakeEmbedder(card) if card else FakeEmbedder()
    return embedder.embed(texts, input_type=role, **options).vectors


@pytest.fixture(scope="module")
def server():
    embedders = {MODEL: FakeEmbedder(), PICTURES.id: FakeEmbedder(PICTURES)}
    aliases = tuple(map(parse_alias, ALIASES))
    with running(embedders, Settings(port=0, aliases=aliases)) as started:
        yield started


@pytest.fixture(scope="module")
def http():
    """Connections for the SDKs, which close none of their own."""
    with httpx.Client(timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def v2(server, http):
    return cohere.ClientV2("none", base_url=server.url, httpx_client=http)


@pytest.fixture(scope="module")
def v1(server, http):
    return cohere.Client("none", base_url=server.url, httpx_client=http)


def test_both_versions_give_the_vectors_of_both_roles(v1, v2):
    for client in (v1, v2):
        for said, role in (("search_document", "passage"), ("search_query", "query")):
            answer = client.embed(
                texts=TEXTS, model=MODEL, input_type=said, embedding_types=["float"]
            )
            np.testing.assert_allclose(answer.embeddings.float_, wanted(role=role), atol=1e-6)
            assert answer.texts == TEXTS
            assert answer.meta.billed_units.input_tokens == 4


def test_version_1_gives_plain_floats_to_those_who_name_no_type(v1):
    answer = v1.embed(texts=TEXTS, model=MODEL, input_type="search_document")
    assert answer.response_type == "embeddings_floats"
    np.testing.assert_allclose(answer.embeddings, wanted(), atol=1e-6)


def test_the_sdk_divides_what_is_more_than_96_texts(v1):
    texts = [f"text {n}" for n in range(200)]
    answer = v1.embed(texts=texts, model=MODEL, input_type="search_document")
    np.testing.assert_allclose(answer.embeddings, wanted(texts), atol=1e-6)


@pytest.mark.parametrize("asked", [["int8"], ["float", "int8", "uint8", "binary", "ubinary"]])
@pytest.mark.parametrize("size", [None, 32])
def test_every_type_is_what_is_embedded_as_that_type(v2, asked, size):
    answer = v2.embed(
        texts=TEXTS,
        model=MODEL,
        input_type="search_document",
        embedding_types=asked,
        output_dimension=size,
    )
    for kind in asked:
        got = getattr(answer.embeddings, "float_" if kind == "float" else kind)
        scale = "nim" if "int8" in kind else None
        right = wanted(embedding_type=kind, dimensions=size, int8_scale=scale)
        if kind == "float":
            np.testing.assert_allclose(got, right, atol=1e-6)
        else:
            np.testing.assert_array_equal(got, right)


def test_base64_is_of_little_endian_floats(v2):
    answer = v2.embed(
        texts=TEXTS, model=MODEL, input_type="search_query", embedding_types=["base64", "int8"]
    )
    rows = [np.frombuffer(base64.b64decode(each), "<f4") for each in answer.embeddings.base64]
    np.testing.assert_allclose(rows, wanted(role="query"), atol=1e-7)


def test_texts_are_cut_at_their_end_unless_a_client_says_otherwise(v2):
    ask = {"texts": [LONG], "model": MODEL, "input_type": "search_document"}
    for said, cut in ((None, "END"), ("START", "START")):
        answer = v2.embed(**ask, truncate=said)
        np.testing.assert_allclose(
            answer.embeddings.float_, wanted([LONG], truncate=cut), atol=1e-6
        )
    with pytest.raises(cohere.BadRequestError, match="exceeds maximum allowed token size"):
        v2.embed(**ask, truncate="NONE")


def test_images_and_texts_with_their_images(v2):
    data = encoded(drawing(), "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    ask = {"model": PICTURES.id, "embedding_types": ["float"]}
    alone = v2.embed(images=[url], input_type="image", **ask)
    right = wanted([Image(data)], card=PICTURES)
    np.testing.assert_allclose(alone.embeddings.float_, right, atol=1e-6)
    assert alone.meta.billed_units.images == 1
    inputs = [
        {"content": [{"type": "text", "text": "a cat"}]},
        {"content": [{"type": "image_url", "image_url": {"url": url}}]},
        {
            "content": [
                {"type": "text", "text": "a cat"},
                {"type": "image_url", "image_url": {"url": url}},
            ]
        },
    ]
    mixed = v2.embed(inputs=inputs, input_type="search_document", **ask)
    right = wanted(["a cat", Image(data), ("a cat", Image(data))], card=PICTURES)
    np.testing.assert_allclose(mixed.embeddings.float_, right, atol=1e-6)


def test_a_name_may_fix_size_type_and_role(v2):
    ask = {"texts": TEXTS, "embedding_types": ["float"], "input_type": "search_document"}
    small = v2.embed(model="small", **ask).embeddings.float_
    np.testing.assert_allclose(small, wanted(dimensions=16), atol=1e-6)
    codes = v2.embed(model="codes", **ask).embeddings.float_
    np.testing.assert_array_equal(codes, wanted(embedding_type="int8", int8_scale="nim"))
    signs = v2.embed(model="bits", **ask).embeddings.float_
    right = FakeEmbedder().embed(TEXTS, input_type="passage", embedding_type="binary").signs()
    np.testing.assert_array_equal(signs, right)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"input_type": "classification"}, 400, "know queries and passages"),
        ({"input_type": "clustering"}, 400, "know queries and passages"),
        ({"input_type": "document"}, 400, "input_type must be one of"),
        ({"input_type": "image"}, 400, "is for images"),
        ({"input_type": None}, 400, "input_type is required"),
        ({"input_type": None, "model": "stored"}, 200, ""),
        ({"model": f"{MODEL}-passage"}, 400, "the model's suffix asks for"),
        ({"model": None}, 400, "model is required"),
        ({"model": "embed-v4.0"}, 404, "available"),
        ({"embedding_types": ["int4"]}, 400, "embedding_types must be one of"),
        ({"embedding_types": []}, 400, "array of types"),
        ({"embedding_types": ["ubinary"], "model": "codes"}, 400, "fixes embedding_type=int8"),
        ({"truncate": "RIGHT"}, 400, "truncate must be one of"),
        ({"output_dimension": 33}, 400, "16, 32, 64"),
        ({"max_tokens": 5}, 400, "the model's limit holds"),
        ({"priority": 1000}, 400, "from 0 to 999"),
        ({"priority": 3}, 200, ""),
        ({"texts": None}, 400, "send one of texts, images and inputs; got none"),
        ({"images": ["x"]}, 400, "got texts and images"),
        ({"texts": ["a", " "]}, 400, "texts[1] must not be blank"),
        ({"texts": ["a"] * 3000}, 400, "at most 2048"),
        ({"texts": None, "images": ["data:image/png;base64,AAAA"]}, 400, "input[0]"),
        ({"texts": None, "inputs": [{"content": []}]}, 400, "must hold one text"),
        ({"texts": None, "inputs": [{"content": [{"type": "video"}]}]}, 400, "'text' or"),
        ({"texts": None, "inputs": [3]}, 400, "must hold one text"),
    ],
)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_what_cannot_be_done_is_said_in_a_message(server, version, body, status, message):
    whole = {"model": MODEL, "texts": ["a"], "input_type": "search_query", **body}
    answer = server.client.post(f"/{version}/embed", json=whole)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert message in answer.json()["message"]
        assert set(answer.json()) == {"message"}


def test_an_image_is_no_query_and_a_text_model_shows_none(server):
    data = base64.b64encode(encoded(drawing(), "PNG")).decode()
    body = {"images": [f"data:image/png;base64,{data}"], "input_type": "search_query"}
    for model, message in ((PICTURES.id, "never a query"), (MODEL, "embeds texts alone")):
        answer = server.client.post("/v2/embed", json={**body, "model": model})
        assert (answer.status_code, message in answer.json()["message"]) == (400, True)


def test_a_key_is_asked_for_and_cohere_raises_its_own_error(serve, http):
    server = serve(api_keys=("right",))
    ask = {"texts": ["a"], "model": MODEL, "input_type": "search_query"}
    with pytest.raises(cohere.UnauthorizedError, match="not one that this server knows"):
        cohere.ClientV2("wrong", base_url=server.url, httpx_client=http).embed(**ask)
    answer = cohere.ClientV2("right", base_url=server.url, httpx_client=http).embed(**ask)
    np.testing.assert_allclose(answer.embeddings.float_, wanted(["a"], "query"), atol=1e-6)


def test_a_path_may_name_the_model(server):
    body = {"texts": TEXTS, "input_type": "search_document"}
    answer = server.client.post("/small/v2/embed", json=body).json()
    np.testing.assert_allclose(answer["embeddings"]["float"], wanted(dimensions=16), atol=1e-6)


async def test_langchains_and_llama_indexs_classes_work(server, v1, http):
    async with httpx.AsyncClient(timeout=30) as others:
        chain = CohereEmbeddings(cohere_api_key="none", base_url=server.url, model=MODEL)
        ours = {"base_url": server.url, "httpx_client": others}
        chain.client, chain.async_client = v1, cohere.AsyncClient("none", **ours)
        index = CohereEmbedding(
            api_key="none", base_url=server.url, model_name="embed-english-v3.0", httpx_client=http
        )
        np.testing.assert_allclose(chain.embed_documents(TEXTS), wanted(), atol=1e-6)
        np.testing.assert_allclose([chain.embed_query("one")], wanted(["one"], "query"), atol=1e-6)
        np.testing.assert_allclose(await chain.aembed_documents(TEXTS), wanted(), atol=1e-6)
    np.testing.assert_allclose(index.get_text_embedding_batch(TEXTS), wanted(), atol=1e-6)
    np.testing.assert_allclose(
        [index.get_query_embedding("one")], wanted(["one"], "query"), atol=1e-6
    )
