from __future__ import annotations

import pytest

import nimbed_weaviate
from nimbed.errors import ConfigurationError
from nimbed_weaviate import NVIDIA, headers

from .double import Double

HOME = "http://nimbed:8000/v1"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NVIDIA_API_KEY", "NIMBED_API_KEY", "WEAVIATE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_a_server_without_a_key_gets_a_word_since_weaviate_wants_one() -> None:
    assert headers(HOME) == {"X-Nvidia-Api-Key": "no-key-needed"}


def test_the_key_of_nvidia_goes_to_nvidia_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_API_KEY", "nvapi-1")
    assert headers(NVIDIA)["X-Nvidia-Api-Key"] == "nvapi-1"
    assert "nvapi-1" not in headers(HOME).values()
    monkeypatch.setenv("NIMBED_API_KEY", "mine")
    assert headers(HOME)["X-Nvidia-Api-Key"] == "mine"
    assert headers(HOME, api_key="given\n")["X-Nvidia-Api-Key"] == "given"


def test_nvidia_without_a_key_is_refused_before_a_collection_fails() -> None:
    with pytest.raises(ConfigurationError, match="set NVIDIA_API_KEY"):
        headers(NVIDIA)


def test_a_collection_can_be_redirected_to_another_server() -> None:
    assert headers(HOME, redirect=True)["X-Nvidia-Baseurl"] == "http://nimbed:8000"


def test_weaviate_gets_the_headers_with_every_request(double: Double) -> None:
    given = headers(HOME, api_key="mine", redirect=True)
    with nimbed_weaviate.connect(double.url, grpc_port=double.grpc_port, headers=given) as client:
        client.collections.list_all()
    last = {name.lower(): value for name, value in double.headers[-1].items()}
    assert last["x-nvidia-api-key"] == "mine"
    assert last["x-nvidia-baseurl"] == "http://nimbed:8000"


def test_coheres_module_gets_its_own_headers_and_no_limit_of_coheres() -> None:
    assert headers(HOME, api_key="mine", redirect=True, module="text2vec-cohere") == {
        "X-Cohere-Api-Key": "mine",
        "X-Cohere-Baseurl": "http://nimbed:8000",
        "X-Cohere-Ratelimit-RequestPM-Embedding": "1000000",
    }
    with pytest.raises(ConfigurationError, match="does not speak Cohere's API"):
        headers(NVIDIA, api_key="x", module="multi2vec-cohere")
