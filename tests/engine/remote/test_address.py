from __future__ import annotations

from dataclasses import replace

import pytest

from nimbed.errors import ConfigurationError, RemoteError
from nimbed.remote.address import Address, find_key, origin_of

from .players import nim


@pytest.mark.parametrize(
    "base_url",
    [
        "http://localhost:8000",
        "http://localhost:8000/",
        "http://localhost:8000/v1",
        "http://localhost:8000/v1/",
        "HTTP://LOCALHOST:8000/v1/embeddings",
        " http://localhost:8000/v1 ",
    ],
)
def test_a_base_url_may_be_written_with_or_without_its_ends(base_url):
    assert Address.parse(base_url).embeddings == "http://localhost:8000/v1/embeddings"


@pytest.mark.parametrize(
    ("base_url", "embeddings"),
    [
        (
            "https://ai.api.nvidia.com/v1/retrieval/nvidia",
            "https://ai.api.nvidia.com/v1/retrieval/nvidia/embeddings",
        ),
        ("https://gateway.example/openai", "https://gateway.example/openai/v1/embeddings"),
        ("https://gateway.example:443/v2beta", "https://gateway.example/v2beta/embeddings"),
        ("http://[::1]:9000", "http://[::1]:9000/v1/embeddings"),
    ],
)
def test_a_path_is_kept_and_a_version_added_only_where_there_is_none(base_url, embeddings):
    assert Address.parse(base_url).embeddings == embeddings


@pytest.mark.parametrize(
    ("base_url", "info"),
    [
        ("https://gateway.example/openai/embeddings", "https://gateway.example/info"),
        ("http://localhost:9000/embeddings/", "http://localhost:9000/info"),
        ("http://localhost/api/v3/embeddings", "http://localhost/api/info"),
    ],
)
def test_an_address_that_was_written_out_is_final(base_url, info):
    address = Address.parse(base_url)
    assert address.embeddings == base_url.rstrip("/")
    assert address.beside("/info") == info


@pytest.mark.parametrize(
    "base_url",
    [
        "localhost:8000",
        "ftp://host/v1",
        "https://",
        "",
        "nvapi-this-is-a-key",
        "http://host:port/v1",
        "https://user:secret@host/v1",
        "https://host/v1?key=secret",
    ],
)
def test_what_is_no_address_is_refused_without_repeating_secrets(base_url):
    with pytest.raises(ConfigurationError) as caught:
        Address.parse(base_url)
    assert "secret" not in str(caught.value)
    assert "nvapi" not in str(caught.value)


def test_a_port_of_zero_is_no_default(serve, connect):
    assert Address.parse("http://127.0.0.1:0").origin == "http://127.0.0.1:0"
    with pytest.raises(RemoteError, match="127.0.0.1:0/v1: cannot connect"):
        connect(serve(), base_url="http://127.0.0.1:0").embed(["a"], input_type="query")


@pytest.mark.parametrize("path", ["/api/embeddings", "/openai/embeddings/", "/v3/embeddings"])
def test_requests_go_to_an_address_that_was_written_out(serve, connect, path):
    double = serve(nim())
    inner = double.handler
    double.handler = lambda request: inner(replace(request, path="/v1/embeddings"))
    connect(double, base_url=f"{double.origin}{path}").embed(["a"], input_type="query")
    assert [post.path for post in double.posts] == [path.rstrip("/")]


KEYS = {"NVIDIA_API_KEY": "nvidia-key", "NIMBED_API_KEY": "other-key"}


@pytest.mark.parametrize(
    ("base_url", "environment", "expected"),
    [
        ("https://integrate.api.nvidia.com/v1", KEYS, "nvidia-key"),
        ("https://integrate.api.nvidia.com/v1", {"NIMBED_API_KEY": "other-key"}, "other-key"),
        ("http://integrate.api.nvidia.com/v1", KEYS, "other-key"),
        ("https://integrate.api.nvidia.com.evil.example/v1", KEYS, "other-key"),
        ("https://evil-nvidia.com/v1", KEYS, "other-key"),
        ("http://localhost:8000", KEYS, "other-key"),
        ("http://localhost:8000", {"NVIDIA_API_KEY": "nvidia-key"}, None),
        ("http://localhost:8000", {"NIMBED_API_KEY": " "}, None),
    ],
)
def test_nvidias_key_goes_to_nvidias_own_hosts_alone(base_url, environment, expected):
    key = find_key(Address.parse(base_url), None, environment)
    assert (key.reveal() if key else None) == expected


def test_a_given_key_wins_over_the_environment():
    key = find_key(Address.parse("https://integrate.api.nvidia.com"), "mine\n", KEYS)
    assert key is not None
    assert key.reveal() == "mine"


@pytest.mark.parametrize("key", ["", "  ", "two\nlines", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_without_repeating_it(key):
    with pytest.raises(ConfigurationError) as caught:
        find_key(Address.parse("http://localhost"), key, {})
    assert not key.strip() or key not in str(caught.value)


def test_accepted_requests_are_polled_at_nvidia_only_for_nvidias_hosts():
    hosted = Address.parse("https://integrate.api.nvidia.com/v1")
    assert hosted.status("7").startswith("https://api.nvcf.nvidia.com/v2/nvcf/pexec/status/")
    assert origin_of(hosted.status("7")) in hosted.trusted_origins
    other = Address.parse("https://proxy.example/v1")
    assert other.status("7") == "https://proxy.example/v2/nvcf/pexec/status/7"
    assert origin_of(other.status("7")) in other.trusted_origins
    assert origin_of(hosted.status("7")) not in other.trusted_origins
    assert origin_of("http://proxy.example/v1") not in other.trusted_origins
