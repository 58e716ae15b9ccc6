"""Configurations, the requests that Weaviate's modules make of them, and a nimbed server.

Weaviate itself cannot run here; ``modules.py`` reads the stored settings as its Go code does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from nimbed import FakeEmbedder
from nimbed_server import Settings, create_app, parse_alias
from nimbed_server.uvicorn_server import Server, bind
from nimbed_weaviate import headers, vectorizer

from .double import Double
from .modules import body, request

MODEL = "nimbed/fake"
ALIASES = (
    f"small={MODEL},dimensions=32",
    f"bits={MODEL},embedding_type=binary,as=signs",
    f"codes={MODEL},embedding_type=int8,int8_scale=even",
    f"pictures={MODEL},input_type=passage",
)
TEXTS = ["a first text", "a second text", "a third text"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    settings = Settings(port=0, aliases=tuple(map(parse_alias, ALIASES)))
    app = create_app({MODEL: FakeEmbedder()}, settings)
    with bind(settings) as bound:
        running = Server(app, settings)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
        thread.start()
        deadline = time.monotonic() + 30
        while not app.state.ready:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        running.stop()
        thread.join()


Ask = Callable[..., np.ndarray]


@pytest.fixture
def ask(server: str, make: Callable[..., Any], double: Double) -> Ask:
    """Create a collection and embed texts as Weaviate would for it."""

    def embedded(texts: list[str], role: str, model: str | None, **options: Any) -> np.ndarray:
        options.setdefault("base_url", f"{server}/v1")
        make("Docs", vectorizer(model, **options))
        vector = double.classes["Docs"]["vectorConfig"]["default"]
        given = headers(server, module=options.get("module", "text2vec-nvidia"))
        key = next(value for name, value in given.items() if name.endswith("-Api-Key"))
        bearer = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        answer = httpx.post(
            request(vector)["url"], json=body(vector, texts, role), headers=bearer, timeout=30
        )
        assert answer.status_code == 200, answer.text
        said = answer.json()
        if "embeddings" in said:
            return np.array(said["embeddings"]["float"], np.float32)
        rows = [said["vector"]] if "vector" in said else [it["embedding"] for it in said["data"]]
        return np.array(rows, np.float32)

    return embedded


@pytest.mark.parametrize("role", ["query", "passage"])
def test_texts_of_weaviate_become_the_vectors_of_the_model(ask: Ask, role: Any) -> None:
    expected = FakeEmbedder().embed(TEXTS, input_type=role)
    np.testing.assert_allclose(ask(TEXTS, role, MODEL), expected.vectors, atol=1e-6)
    small = FakeEmbedder().embed(TEXTS, input_type=role, dimensions=32)
    np.testing.assert_allclose(ask(TEXTS, role, "small"), small.vectors, atol=1e-6)


def test_an_alias_of_bits_gives_what_hamming_counts(ask: Ask) -> None:
    expected = FakeEmbedder().embed(TEXTS, input_type="passage", embedding_type="binary")
    got = ask(TEXTS, "passage", "bits", embedding_type="binary")
    np.testing.assert_array_equal(got, expected.signs())


def test_an_alias_of_int8_gives_its_codes(ask: Ask) -> None:
    expected = FakeEmbedder().embed(TEXTS, input_type="passage", embedding_type="int8")
    got = ask(TEXTS, "passage", "codes", embedding_type="int8")
    np.testing.assert_array_equal(got, expected.vectors)


def test_a_text_that_is_too_long_is_cut_and_its_neighbours_live(ask: Ask) -> None:
    texts = [*TEXTS, "word " * 1000]
    expected = FakeEmbedder().embed(texts, input_type="passage", truncate="END")
    np.testing.assert_allclose(ask(texts, "passage", MODEL), expected.vectors, atol=1e-6)


def test_the_module_without_roles_gets_that_of_its_alias(ask: Ask) -> None:
    expected = FakeEmbedder().embed(TEXTS, input_type="passage")
    options: dict[str, Any] = {"module": "multi2vec-nvidia", "text_fields": ["title"]}
    got = ask(TEXTS, "query", "pictures", **options)
    np.testing.assert_allclose(got, expected.vectors, atol=1e-6)


@pytest.mark.parametrize("role", ["query", "passage"])
def test_the_container_contract_chooses_a_model_by_its_path(
    ask: Ask, server: str, role: Any
) -> None:
    options: dict[str, Any] = {"module": "text2vec-transformers"}
    expected = FakeEmbedder().embed(TEXTS[:1], input_type=role)
    np.testing.assert_allclose(ask(TEXTS, role, None, **options), expected.vectors, atol=1e-6)
    small = FakeEmbedder().embed(TEXTS[:1], input_type=role, dimensions=32)
    got = ask(TEXTS, role, None, base_url=f"{server}/small", **options)
    np.testing.assert_allclose(got, small.vectors, atol=1e-6)


@pytest.mark.parametrize("role", ["query", "passage"])
def test_coheres_module_reaches_roles_sizes_and_aliases(ask: Ask, role: Any) -> None:
    options: dict[str, Any] = {"module": "text2vec-cohere"}
    expected = FakeEmbedder().embed(TEXTS, input_type=role, dimensions=32)
    got = ask(TEXTS, role, MODEL, dimensions=32, **options)
    np.testing.assert_allclose(got, expected.vectors, atol=1e-6)
    bits = FakeEmbedder().embed(TEXTS, input_type=role, embedding_type="binary")
    signs = ask(TEXTS, role, "bits", embedding_type="binary", **options)
    np.testing.assert_array_equal(signs, bits.signs())


def test_coheres_module_of_images_asks_questions_as_passages(ask: Ask) -> None:
    options: dict[str, Any] = {"module": "multi2vec-cohere", "text_fields": ["title"]}
    expected = FakeEmbedder().embed(TEXTS, input_type="passage")
    np.testing.assert_allclose(ask(TEXTS, "query", MODEL, **options), expected.vectors, atol=1e-6)
