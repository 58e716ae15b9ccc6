"""What a newcomer asks first: documentation, limits, a text's tokens, and where the time went."""

from __future__ import annotations

import html.parser
import re

import pytest

from nimbed import FakeEmbedder
from nimbed_server import Settings, parse_alias

from .conftest import MODEL, PICTURES, running
from .stub import Stub, Worded


@pytest.fixture(scope="module")
def server():
    embedders = {MODEL: Worded(), PICTURES.id: FakeEmbedder(PICTURES)}
    aliases = (parse_alias(f"cut={MODEL},truncate=END,dimensions=16"),)
    with running(embedders, Settings(port=0, aliases=aliases)) as started:
        yield started


class Page(html.parser.HTMLParser):
    """Collects what a page fetches, and whether its text is whole."""

    def __init__(self):
        super().__init__()
        self.fetched = []
        self.links = []
        self.words = ""

    def handle_starttag(self, tag, attributes):
        if tag in ("script", "img", "link", "iframe", "object"):
            self.fetched.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.words += data


@pytest.mark.parametrize("path", ["/docs", "/"])
def test_the_documentation_fetches_nothing_and_names_every_path(server, path):
    answer = server.client.get(path)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = Page()
    page.feed(answer.text)
    assert page.fetched == []
    assert set(page.links) == {"/openapi.json", "/v1/models"}
    told = server.client.get("/openapi.json").json()
    for name, operations in told["paths"].items():
        assert name in page.words
        for operation in operations.values():
            assert operation["summary"] in page.words
    assert "input_type" in page.words
    assert "query | passage" in page.words
    assert "@import" not in answer.text


def test_strangers_read_the_documentation_without_a_name_in_it(serve):
    page = serve(api_keys=("key",)).client.get("/docs")
    assert page.status_code == 200
    assert MODEL not in page.text
    assert "Authorization: Bearer KEY" in page.text


def test_every_example_of_the_document_works(server):
    told = server.client.get("/openapi.json").json()
    asked = 0
    for path, operations in told["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        for media in content.values():
            answer = server.client.post(path, json=media["example"])
            assert answer.status_code == 200, answer.text
            asked += 1
    assert asked == 8


def test_info_says_model_limits_and_pooling(server):
    told = server.client.get("/info").json()
    assert told["model_id"] == MODEL
    assert told["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (told["max_input_length"], told["max_client_batch_size"]) == (512, 2048)
    assert (told["dimensions"], told["auto_truncate"]) == (64, False)
    cut = server.client.get("/cut/info").json()
    assert (cut["dimensions"], cut["auto_truncate"]) == (16, True)


def test_tokens_in_the_shape_of_each_of_two_servers(server):
    ask = server.client.post
    assert ask("/tokenize", json={"inputs": "one two"}).json() == [
        [
            {"id": 1, "text": "[CLS]", "special": True, "start": None, "stop": None},
            {"id": 3, "text": "one", "special": False, "start": 0, "stop": 3},
            {"id": 3, "text": "two", "special": False, "start": 4, "stop": 7},
            {"id": 2, "text": "[SEP]", "special": True, "start": None, "stop": None},
        ]
    ]
    several = ask("/tokenize", json={"inputs": ["a", "b c"], "add_special_tokens": False}).json()
    assert list(map(len, several)) == [1, 2]
    vllm = {"model": MODEL, "prompt": "one three", "return_token_strs": True}
    assert ask("/tokenize", json=vllm).json() == {
        "count": 4,
        "max_model_len": 512,
        "tokens": [1, 3, 5, 2],
        "token_strs": ["[CLS]", "one", "three", "[SEP]"],
    }
    for role in ({"input_type": "query"}, {"prompt_name": "query"}, {"model": f"{MODEL}-query"}):
        assert ask("/tokenize", json={"prompt": "one", **role}).json()["count"] == 4


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "send inputs"),
        ({"inputs": "a", "prompt": "a"}, 400, "send inputs"),
        ({"inputs": []}, 400, "must not be empty"),
        ({"inputs": [3]}, 400, "must be a string"),
        ({"inputs": "x " * 2**20}, 400, "1048576 characters"),
        ({"inputs": "a", "add_special_tokens": "yes"}, 400, "true or false"),
        ({"inputs": "a", "prompt_name": "classification"}, 400, "send input_type"),
        ({"inputs": "a", "model": "nobody"}, 404, "available"),
        ({"inputs": "a", "model": PICTURES.id}, 501, "ask the server that embeds"),
    ],
)
def test_what_cannot_be_tokenized_is_said(server, body, status, message):
    answer = server.client.post("/tokenize", json=body)
    assert (answer.status_code, message in answer.json()["message"]) == (status, True), answer.text


def test_an_answer_says_where_its_time_went(serve):
    answer = serve({MODEL: Stub()}).embed()
    found = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
    assert set(found) == {"tokenize", "queue", "inference"}
    assert float(found["inference"]) > 0


def test_what_is_computed_in_is_said_once_the_model_is_loaded(serve, logged):
    lines = logged("pretty", "info")

    class Placed(FakeEmbedder):
        arithmetic = "bfloat16 on cpu"

    server = serve({MODEL: Placed()})
    assert server.client.get("/v1/metadata").json()["computedIn"] == {MODEL: "bfloat16 on cpu"}
    assert server.client.get("/info").json()["model_dtype"] == "bfloat16"
    assert [line for line in lines() if "is ready" in line and '"in bfloat16 on cpu"' in line]
