"""The address of a Weaviate in, a connected client out."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import weaviate
from weaviate import WeaviateClient

from nimbed.errors import BackendError, ConfigurationError
from nimbed_weaviate.faults import sentences

__all__ = ["connect"]

_GRPC_PORT = 50051
_CLOUD = (".weaviate.cloud", ".weaviate.network")


def connect(
    url: str,
    *,
    api_key: str | None = None,
    grpc_port: int = _GRPC_PORT,
    headers: Mapping[str, str] | None = None,
) -> WeaviateClient:
    """Connect to a Weaviate by its address; close the client, or use it in a ``with``.

    gRPC is not tried: an import says so itself if it cannot be reached.

    Args:
        url: Such as ``http://localhost:8080``, or that of a cluster of Weaviate Cloud.
        api_key: Weaviate's own key; None reads WEAVIATE_API_KEY.
        grpc_port: Where Weaviate listens beside; Weaviate Cloud has its own place.
        headers: Such as :func:`nimbed_weaviate.headers` gives.

    Raises:
        ConfigurationError: If the address is none, or the key is refused.
        BackendError: If nothing answers.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
        raise ConfigurationError(
            "the address of Weaviate must be such as 'http://localhost:8080', without a key"
        )
    key = api_key or os.environ.get("WEAVIATE_API_KEY") or None
    cloud = host.endswith(_CLOUD)
    if cloud and key is None:
        raise ConfigurationError(
            "Weaviate Cloud wants a key; pass api_key, or set WEAVIATE_API_KEY"
        )
    given = dict(headers or {})
    with sentences(f"connecting to Weaviate at {host}"), _weaviate_alone(host):
        if cloud and key is not None:
            return weaviate.connect_to_weaviate_cloud(
                host, auth_credentials=key, headers=given, skip_init_checks=True
            )
        secure = parts.scheme == "https"
        return weaviate.connect_to_custom(
            http_host=host,
            http_port=port or (443 if secure else 80),
            http_secure=secure,
            grpc_host=host,
            grpc_port=grpc_port,
            grpc_secure=secure,
            headers=given,
            auth_credentials=key,
            skip_init_checks=True,
        )


@contextmanager
def _weaviate_alone(host: str) -> Generator[None]:
    """Turn the client's stumbling over an answer that is not Weaviate's into a sentence."""
    try:
        yield
    except KeyError as error:
        raise BackendError(f"what answers at {host} is no Weaviate: it has no {error}") from error
