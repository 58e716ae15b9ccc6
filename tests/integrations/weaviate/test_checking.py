"""Each trap of a stored configuration, read by the real client from answers as Weaviate gives."""

from __future__ import annotations

from typing import Any

import pytest
from weaviate.classes.config import Configure, DataType, Property, VectorDistances
from weaviate.exceptions import WeaviateBaseError

import nimbed_weaviate
from nimbed import FakeEmbedder
from nimbed.errors import BackendError, ConfigurationError
from nimbed_weaviate import NVIDIA, check, self_provided, vectorizer

from .checks import GOOD, HOME, Check
from .double import Double


def test_what_vectorizer_makes_is_in_no_trap(make: Any, checked: Check) -> None:
    title = Property(name="title", data_type=DataType.TEXT, vectorize_property_name=False)
    configs = {
        "Plain": vectorizer("m", base_url=f"{HOME}/v1/", source_properties=["title"]),
        "Bits": vectorizer("m", base_url=HOME, embedding_type="binary", quantizer="bq"),
        "Cloud": vectorizer("nvidia/nv-embedqa-e5-v5", base_url=NVIDIA),
        "Fast": vectorizer("m", base_url=HOME, module="text2vec-cohere", dimensions=32),
        "Own": self_provided(FakeEmbedder().spec(embedding_type="ubinary")),
    }
    for name, config in configs.items():
        make(name, config, properties=[title])
        findings = checked(name)
        assert {verdict for verdict, _ in findings.values()} == {"ok"}, findings
    assert "asked for the model m" in checked("Plain")["address"][1]


@pytest.mark.parametrize("key", ["baseUrl", "base_url", "baseurl", "endpoint"])
def test_a_misspelt_address_goes_to_the_cloud(text2vec: Check, key: str) -> None:
    verdict, detail = text2vec(**{key: HOME}, truncate="END")["address key"]
    assert verdict == "fail"
    assert NVIDIA in detail
    assert "'baseURL' is" in detail


def test_the_default_that_weaviate_misspells_itself_is_no_trap(text2vec: Check) -> None:
    findings = text2vec(**GOOD)
    assert "address key" not in findings
    assert findings["address"][0] == "ok"


@pytest.mark.parametrize(
    ("url", "verdict", "word"),
    [
        (f"{HOME}/v1", "note", f"{HOME}/v1/v1/embeddings; it should be '{HOME}'"),
        (f"{HOME}/", "note", f"{HOME}//v1/embeddings"),
        (f"{NVIDIA}/v1", "fail", "v1/v1/embeddings"),
        (f"{HOME}/v1/embeddings", "fail", "embeddings/v1/embeddings"),
        ("nimbed:8000", "fail", "must be an address"),
        (8000, "fail", "no text, so Weaviate ignores it"),
    ],
)
def test_an_address_of_the_wrong_form_is_shown_as_it_is_used(
    text2vec: Check, url: Any, verdict: str, word: str
) -> None:
    found = text2vec(**GOOD | {"baseURL": url})["address"]
    assert found[0] == verdict
    assert word in found[1]
    assert "redirect=True" in found[1]


def test_an_address_that_is_weaviate_itself_in_a_container_is_noted(text2vec: Check) -> None:
    for host in ("localhost", "127.0.0.1", "[::1]"):
        found = text2vec(**GOOD | {"baseURL": f"http://{host}:8000"})["address"]
        assert (found[0], "in a container" in found[1]) == ("note", True)


@pytest.mark.parametrize(
    ("value", "verdict"), [(True, "fail"), (False, "fail"), ("NONE", "note"), ("START", "ok")]
)
def test_a_boolean_truncate_is_ignored(text2vec: Check, value: Any, verdict: str) -> None:
    found = text2vec(**GOOD | {"truncate": value})["truncate"]
    assert found[0] == verdict
    assert ("nine others" in found[1]) == (verdict != "ok")


def test_names_that_are_embedded_with_the_text_are_shown(make: Any, checked: Check) -> None:
    config = Configure.Vectors.text2vec_nvidia(base_url=HOME, model="m")
    docs = make("Docs", config)
    docs.config.add_property(Property(name="title", data_type=DataType.TEXT))  # True by default
    silent = Property(name="body", data_type=DataType.TEXT, vectorize_property_name=False)
    docs.config.add_property(silent)
    findings = checked()
    assert findings["collection name"][0] == "note"
    verdict, detail = findings["property names"]
    assert verdict == "note"
    assert "title" in detail
    assert "body" not in detail


def test_the_module_for_images_has_no_roles_and_no_truncation(make: Any, checked: Check) -> None:
    config: Any = Configure.Vectors.multi2vec_nvidia(
        base_url=f"{HOME}/",
        text_fields=["title"],
        truncation=True,
    )
    make("Docs", config)
    findings = checked()
    assert findings["address"] == (
        "note",
        f"requests go to {HOME}//v1/embeddings; it should be '{HOME}'; a nimbed server answers "
        f"there all the same, others do not; send X-Nvidia-Baseurl "
        f"(nimbed_weaviate.headers(..., redirect=True)), or make it anew",
    )
    assert "never sent" in findings["truncate"][1]
    assert "default role" in findings["roles"][1]
    ours = vectorizer("m", base_url=HOME, module="multi2vec-nvidia", text_fields={"title": 0.5})
    make("Ours", ours)
    assert "truncate" not in checked("Ours")
    assert "weights" not in checked("Ours")


def test_coheres_modules_are_known_by_their_own_defaults(make: Any, checked: Check) -> None:
    clients: Any = Configure.Vectors.text2vec_cohere(base_url=f"{HOME}/", model="m")
    make("Clients", clients)
    found = checked("Clients")
    assert f"requests go to {HOME}//v2/embed" in found["address"][1]
    assert "X-Cohere-Baseurl" in found["address"][1]
    assert "COHERE_APIKEY" in found["key"][1]
    assert found["collection name"][0] == "note"
    make("Cloud", Configure.Vectors.text2vec_cohere(model="embed-v4.0"))
    assert "Cohere's own" in checked("Cloud")["address"][1]
    make("Nvidia", Configure.Vectors.text2vec_cohere(base_url=NVIDIA, model="m"))
    assert checked("Nvidia")["address"][0] == "fail"
    both = vectorizer("m", base_url=HOME, module="multi2vec-cohere", text_fields=["title"])
    make("Both", both)
    assert "text2vec-cohere sends both roles" in checked("Both")["roles"][1]


def test_weights_want_cosine(double: Double, checked: Check) -> None:
    settings = {"model": "m", "baseURL": HOME, "textFields": ["a"], "weights": {"textFields": [1]}}
    vector = {
        "vectorizer": {"multi2vec-nvidia": settings},
        "vectorIndexConfig": {"distance": "dot"},
    }
    double.create({"class": "Docs", "vectorConfig": {"default": vector}})
    assert checked()["weights"][0] == "fail"


def test_the_container_module_sends_no_key_and_embeds_the_collections_name(
    make: Any, checked: Check
) -> None:
    make("Docs", Configure.Vectors.text2vec_transformers(inference_url=f"{HOME}/"))
    findings = checked()
    assert findings["address"][0] == "fail"
    assert f"{HOME}//vectors" in findings["address"][1]
    assert findings["collection name"][0] == "note"
    assert findings["key"][0] == "note"
    make("Ours", vectorizer(base_url=HOME, module="text2vec-transformers"))
    ours = checked("Ours")
    assert (ours["address"][0], ours["collection name"][0]) == ("ok", "ok")


@pytest.mark.parametrize("quantizer", ["rq", "sq", "pq"])
def test_a_default_quantiser_of_the_server_breaks_hamming(
    double: Double, make: Any, checked: Check, quantizer: str
) -> None:
    double.default_quantization = quantizer
    index = Configure.VectorIndex.hnsw(distance_metric=VectorDistances.HAMMING)
    make("Docs", Configure.Vectors.self_provided(vector_index_config=index))
    verdict, detail = checked()["index"]
    assert verdict == "fail"
    assert f"the quantiser {quantizer.replace('rq', 'rq-8')} knows no hamming" in detail
    make("Ours", self_provided(FakeEmbedder().spec(embedding_type="binary")))
    assert checked("Ours")["index"] == ("ok", "hnsw, hamming, quantised by nothing")


@pytest.mark.parametrize(
    ("kind", "verdict", "said"),
    [
        ("hfresh", "ok", "hfresh, cosine, quantised by nothing"),
        ("flat", "ok", "server's DEFAULT_VECTOR_INDEX_TYPE and DEFAULT_QUANTIZATION has it"),
    ],
)
def test_a_default_index_of_the_server_is_read_as_what_it_is(
    double: Double, checked: Check, kind: str, verdict: str, said: str
) -> None:
    double.default_index = kind
    double.default_quantization = "bq"
    double.create({"class": "Docs", "vectorConfig": {"default": {"vectorizer": {"none": {}}}}})
    found = checked()["index"]
    assert found[0] == verdict
    assert said in found[1]
    assert "DEFAULT_VECTOR_INDEX_TYPE" in found[1]
    # What is made here names its index, and gets no other one.
    double.create({"class": "Other"})
    index = self_provided(FakeEmbedder().spec(embedding_type="binary")).vectorIndexConfig
    assert index is not None
    assert index.vector_index_type().value == "hnsw"


def test_each_of_several_vectors_is_named(make: Any, checked: Check) -> None:
    good = vectorizer("m", base_url=HOME, name="good")
    bad = Configure.Vectors.text2vec_nvidia(base_url=HOME, name="bad", truncate=True)
    make("Docs", [good, bad])
    findings = checked()
    assert findings["good: truncate"][0] == "ok"
    assert findings["bad: truncate"][0] == "fail"


def test_a_collection_of_the_older_unnamed_kind_is_read_too(double: Double, checked: Check) -> None:
    settings = {"baseUrl": HOME, "truncate": True, "vectorizeClassName": True}
    double.create(
        {
            "class": "Docs",
            "vectorizer": "text2vec-nvidia",
            "moduleConfig": {"text2vec-nvidia": settings},
        }
    )
    findings = checked()
    assert findings["address key"][0] == "fail"
    assert findings["truncate"][0] == "fail"
    assert findings["collection name"][0] == "note"


def test_a_module_that_is_off_and_an_old_server_are_told(double: Double, text2vec: Check) -> None:
    double.modules = {"reranker-nvidia": {}}
    double.version = "1.36.2"
    findings = text2vec(**GOOD)
    assert findings["module"][0] == "fail"
    assert "text2vec-nvidia is not switched on" in findings["module"][1]
    assert findings["version"][0] == "note"
    assert "above 90 s" in findings["version"][1]
    assert "fewer vectors" in findings["version"][1]


@pytest.mark.parametrize(
    ("module", "settings", "words"),
    [
        ("text2vec-openai", {"baseURL": HOME, "model": "m"},
         ["no role", "internet", f"vectorizer('m', base_url='{HOME}', module='text2vec-cohere')",
          f"headers('{HOME}', module='text2vec-cohere')"]),
        ("text2vec-openai", {"baseURL": f"{HOME}/v1"}, [f"base_url='{HOME}'"]),
        ("text2vec-huggingface", {"endpointURL": f"{HOME}/v1/embeddings"},
         ["no role", "neither truncate", f"base_url='{HOME}'"]),
        ("text2vec-ollama", {"apiEndpoint": HOME, "model": "m"}, ["Ollama's API", "no role"]),
        ("text2vec-openai", {"baseURL": "https://api.openai.com"}, ["its own api.openai.com"]),
        ("text2vec-openai", {}, ["nimbed knows nothing about it"]),
        ("text2vec-weaviate", {"baseURL": HOME}, ["nimbed knows nothing about it"]),
    ],
)  # fmt: skip
def test_a_module_of_others_at_an_embedding_server_is_told_what_it_loses(
    double: Double, checked: Check, module: str, settings: dict[str, Any], words: list[str]
) -> None:
    double.modules = {module: {}}
    vector = {"vectorizer": {module: settings}}
    double.create({"class": "Docs", "vectorConfig": {"default": vector}})
    verdict, detail = checked()["module"]
    assert verdict == "note"
    assert all(word in detail for word in words), detail


def test_no_collection_and_no_server_are_sentences(
    client: Any, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEAVIATE_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="no such collection"):
        check(client, "Nothing")
    with pytest.raises(ConfigurationError, match="must look like"):
        nimbed_weaviate.connect("http://key@host")
    with pytest.raises(ConfigurationError, match="needs a key"):
        nimbed_weaviate.connect("https://mine.weaviate.cloud")
    double.version = ""
    with pytest.raises(BackendError, match="is not Weaviate"):
        nimbed_weaviate.connect(double.url)
    with pytest.raises(BackendError, match="connecting to Weaviate at 127.0.0.1") as caught:
        nimbed_weaviate.connect("http://127.0.0.1:9")
    assert isinstance(caught.value.__cause__, WeaviateBaseError)
