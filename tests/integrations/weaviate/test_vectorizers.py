"""Configurations as weaviate-client sends them, read by the rules of Weaviate's modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from weaviate.classes.config import Configure

import nimbed
from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError
from nimbed_weaviate import NVIDIA, self_provided, vectorizer

from .double import Double
from .modules import request

Sent = Callable[[Any], dict[str, Any]]
HOME = "http://nimbed:8000"


@pytest.fixture
def sent(make: Callable[..., Any], double: Double) -> Sent:
    """Create a collection through the client and return its vector as Weaviate stores it."""

    def create(config: Any, name: str = "default") -> dict[str, Any]:
        make("Docs", config)
        vector: dict[str, Any] = double.classes["Docs"]["vectorConfig"][name]
        return vector

    return create


def test_a_nimbed_server_is_asked_for_the_model_by_name(sent: Sent) -> None:
    vector = sent(vectorizer("small", base_url=HOME, source_properties=["text"]))
    assert request(vector) == {
        "url": f"{HOME}/v1/embeddings",
        "model": "small",
        "truncate": "END",
        "class_name": False,
        "properties": ["text"],
    }
    assert vector["vectorIndexType"] == "hnsw"
    assert vector["vectorIndexConfig"]["distance"] == "cosine"


@pytest.mark.parametrize(
    "form",
    [HOME, f"{HOME}/", f"{HOME}/v1", f"{HOME}/v1/", f"{HOME}//v1", f"{HOME}/v1/embeddings",
     f"{HOME}/v1/v1", f" {HOME}/v1 ", "HTTP://nimbed:8000/v1"],
)  # fmt: skip
def test_every_form_of_an_address_leads_to_the_endpoint(sent: Sent, form: str) -> None:
    assert request(sent(vectorizer("m", base_url=form)))["url"] == f"{HOME}/v1/embeddings"


def test_a_path_before_the_version_stays(sent: Sent) -> None:
    vector = sent(vectorizer("m", base_url=f"{HOME}/small/v1"))
    assert request(vector)["url"] == f"{HOME}/small/v1/embeddings"


def test_nvidia_is_an_address_like_others(sent: Sent) -> None:
    vector = sent(vectorizer("nvidia/nv-embedqa-e5-v5", base_url=NVIDIA, truncate="START"))
    said = request(vector)
    assert said["url"] == "https://integrate.api.nvidia.com/v1/embeddings"
    assert said["truncate"] == "START"


def test_images_and_texts_go_to_the_module_for_both(sent: Sent) -> None:
    config = vectorizer(
        "clip",
        base_url=f"{HOME}/v1",
        module="multi2vec-nvidia",
        name="both",
        text_fields={"title": 0.25},
        image_fields={"front": 0.5, "back": 0.25},
    )
    assert request(sent(config, "both")) == {
        "url": f"{HOME}/v1/embeddings",
        "model": "clip",
        "textFields": {"title": 0.25},
        "imageFields": {"front": 0.5, "back": 0.25},
    }


def test_coheres_module_sends_the_role_in_large_requests(sent: Sent) -> None:
    config = vectorizer(
        "m", base_url=f"{HOME}/v1", module="text2vec-cohere", dimensions=32, truncate="START"
    )
    assert request(sent(config)) == {
        "url": f"{HOME}/v2/embed",
        "model": "m",
        "dimensions": 32,
        "truncate": "START",
        "class_name": False,
        "properties": None,
    }


def test_the_container_contract_gets_an_address_alone(sent: Sent) -> None:
    config = vectorizer(base_url=f"{HOME}/vectors", module="text2vec-transformers")
    assert request(sent(config)) == {"url": f"{HOME}/vectors", "class_name": False}


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("float", "cosine"), ("int8", "cosine"), ("uint8", "l2-squared"),
     ("binary", "hamming"), ("ubinary", "hamming")],
)  # fmt: skip
@pytest.mark.parametrize("index", ["hnsw", "flat"])
def test_the_type_of_the_alias_decides_the_metric(
    sent: Sent, double: Double, kind: Any, metric: str, index: Any
) -> None:
    double.default_quantization = "rq"  # as a server may be told to by its environment
    served = sent(vectorizer("m", base_url=HOME, embedding_type=kind, index=index))
    own = sent(self_provided(FakeEmbedder().spec(embedding_type=kind), index=index))
    for vector in (served, own):
        made = vector["vectorIndexConfig"]
        assert vector["vectorIndexType"] == index
        assert made["distance"] == metric
        assert made["rq"]["enabled"] == (metric != "hamming")
    assert own["vectorizer"] == {"none": {}}


def test_bq_may_stand_before_signs_and_floats_but_not_before_what_is_never_negative(
    sent: Sent,
) -> None:
    for kind in ("float", "int8", "binary"):
        vector = sent(vectorizer("m", base_url=HOME, embedding_type=kind, quantizer="bq"))
        assert vector["vectorIndexConfig"]["bq"]["enabled"]
        assert not vector["vectorIndexConfig"]["skipDefaultQuantization"]
    with pytest.raises(ConfigurationError, match="no number here is below 0"):
        vectorizer("m", base_url=HOME, embedding_type="uint8", quantizer="bq")


def test_the_hamming_of_weaviate_counts_the_bits_of_what_is_sent() -> None:
    batch = FakeEmbedder().embed(["a", "b"], input_type="passage", embedding_type="ubinary")
    signs = np.array(nimbed.stores.field(batch.spec, "weaviate").encode(batch))
    bits = np.unpackbits(batch.vectors, axis=1)
    assert (signs[0] != signs[1]).sum() == (bits[0] != bits[1]).sum()  # hamming.go
    assert ((signs[0] < 0) != (signs[1] < 0)).sum() == (bits[0] != bits[1]).sum()  # BQ


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"model": None}, "name the model"),
        ({"module": "text2vec-openai"}, "module must be one of"),
        ({"truncate": True}, "truncate must be one of"),
        ({"embedding_type": "bit"}, "embedding_type must be one of"),
        ({"quantizer": "rq"}, "quantizer must be one of"),
        ({"base_url": "nimbed:8000"}, "must be an address"),
        ({"base_url": "http://key@nimbed"}, "must not hold credentials"),
        ({"base_url": "https://ai.api.nvidia.com/v1/retrieval/nvidia"}, "ends before /v1"),
        ({"base_url": NVIDIA, "embedding_type": "binary"}, "cannot ask NVIDIA for binary"),
        ({"text_fields": ["a"]}, "use source_properties"),
        ({"image_fields": ["a"]}, "use multi2vec-nvidia"),
        ({"module": "text2vec-transformers"}, "no model"),
        ({"base_url": NVIDIA, "module": "text2vec-cohere"}, "does not speak Cohere's API"),
        ({"dimensions": 32}, "an alias of nimbed serve with dimensions"),
        ({"module": "multi2vec-cohere"}, "multi2vec-cohere embeds named properties alone"),
        ({"module": "multi2vec-nvidia"}, "give text_fields or image_fields"),
        ({"module": "multi2vec-nvidia", "truncate": "END"}, "no truncate"),
        ({"module": "multi2vec-nvidia", "source_properties": ["a"]}, "named fields alone"),
        ({"module": "multi2vec-nvidia", "text_fields": {"a": 1.0}, "image_fields": ["b"]},
         "or for neither"),
    ],
)  # fmt: skip
def test_what_a_module_cannot_do_is_refused(asked: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model": "m", "base_url": HOME} | asked
    with pytest.raises(ConfigurationError, match=message):
        vectorizer(**given)


def test_the_clients_own_functions_step_into_the_traps(sent: Sent) -> None:
    own = Configure.Vectors.text2vec_nvidia(base_url=f"{HOME}/v1", model="m", truncate=True)
    assert request(sent(own)) == {
        "url": f"{HOME}/v1/v1/embeddings",
        "model": "m",
        "truncate": "NONE",
        "class_name": True,
        "properties": None,
    }
    both: Any = Configure.Vectors.multi2vec_nvidia(
        base_url=HOME,
        text_fields=["a"],
        truncation=True,
    )
    assert request(sent(both))["url"] == f"{HOME}//v1/embeddings"
