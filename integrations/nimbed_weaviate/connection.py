"""Connections to Weaviate, addresses and keys of embedding servers, and errors as nimbed's.

Weaviate joins texts, not paths: ``/v1/embeddings`` or ``/vectors`` is put right behind the address
that a collection names, so an address must have the one form that its modules can use.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Literal
from urllib.parse import urlsplit

import weaviate
from weaviate import WeaviateClient, exceptions

from nimbed.errors import BackendError, ConfigurationError
from nimbed.remote.address import Address, find_key
from nimbed.spec import check_literal

__all__ = [
    "NVIDIA",
    "Module",
    "address_fault",
    "connect",
    "headers",
    "is_forgiven",
    "is_loopback",
    "is_nvidia",
    "served_at",
    "translate_errors",
]

#: NVIDIA's own API, to which Weaviate turns where a collection names no address.
NVIDIA = "https://integrate.api.nvidia.com"

#: The modules of Weaviate that a nimbed server can stand behind.
Module = Literal[
    "text2vec-cohere",
    "multi2vec-cohere",
    "text2vec-nvidia",
    "multi2vec-nvidia",
    "text2vec-transformers",
]

_GRPC_PORT = 50051
# Requests a minute, of which Weaviate allows itself 10,000 by its own: Cohere's limit, not ours.
_UNLIMITED = "1000000"
_CLOUD = (".weaviate.cloud", ".weaviate.network")
_NO_KEY = "no-key-needed"
# Of a gRPC call, whose status is no number of HTTP.
_FORBIDDEN = exceptions.InsufficientPermissionsError


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
            "the address of Weaviate must look like 'http://localhost:8080', without a key in it"
        )
    key = api_key or os.environ.get("WEAVIATE_API_KEY") or None
    cloud = host.endswith(_CLOUD)
    if cloud and key is None:
        raise ConfigurationError(
            "Weaviate Cloud needs a key; pass api_key, or set WEAVIATE_API_KEY"
        )
    given = dict(headers or {})
    with translate_errors(f"connecting to Weaviate at {host}"), _weaviate_alone(host):
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
    """Say so where the client stumbles over an answer that is not Weaviate's."""
    try:
        yield
    except KeyError as error:
        raise BackendError(
            f"what answers at {host} is not Weaviate: its answer lacks {error}"
        ) from error


def headers(
    base_url: str,
    *,
    api_key: str | None = None,
    redirect: bool = False,
    module: Module = "text2vec-nvidia",
) -> dict[str, str]:
    """Return headers for ``weaviate.connect_to_local(headers=...)`` and its siblings.

    Weaviate sends no request without a key, so a server that wants none gets a word instead. It
    hands the key to whatever address the collection names. The dictionary holds the key in clear;
    do not log it.

    Args:
        base_url: The server that the collections' vectors come from.
        api_key: Its key; None reads NVIDIA_API_KEY for NVIDIA alone, NIMBED_API_KEY for others.
        redirect: Use ``base_url`` in place of the address in the collection, which cannot be
            changed. It applies to all of NVIDIA's modules, or all of Cohere's: reranker and
            generative as well.
        module: The module that the collections use.

    Raises:
        ConfigurationError: If the address cannot be used, or NVIDIA's key is missing.
    """
    address = served_at(base_url)
    target = Address.parse(address)
    secret = find_key(target, api_key or None, os.environ)
    if secret is None and target.is_nvidia:
        raise ConfigurationError(
            "NVIDIA needs a key; pass api_key, or set NVIDIA_API_KEY in the environment"
        )
    check_literal("module", module, Module)
    name = "Cohere" if "cohere" in module else "Nvidia"
    if name == "Cohere" and target.is_nvidia:
        raise ConfigurationError(f"NVIDIA does not speak Cohere's API, as {module} does")
    given = {f"X-{name}-Api-Key": _NO_KEY if secret is None else secret.reveal()}
    if name == "Cohere":
        given["X-Cohere-Ratelimit-RequestPM-Embedding"] = _UNLIMITED
    return given | {f"X-{name}-Baseurl": address} if redirect else given


def served_at(base_url: str) -> str:
    """Return an address as Weaviate wants it: no ``/v1`` and no slash at its end.

    Args:
        base_url: Any form that :func:`nimbed.load` takes, as Weaviate sees the server: inside a
            container ``localhost`` is Weaviate itself. A path in front of ``/v1`` stays.

    Raises:
        ConfigurationError: If Weaviate cannot be made to reach such an address.
    """
    address = Address.parse(base_url.strip().rstrip("/").removesuffix("/vectors"))
    if not address.path.endswith("/v1"):
        raise ConfigurationError(
            f"Weaviate puts /v1/embeddings behind the address, which cannot lead to "
            f"{address.embeddings}; give an address that ends before /v1"
        )
    path = address.path
    while path.endswith("/v1"):
        path = path.removesuffix("/v1")
    return address.origin + path


def is_nvidia(base_url: str) -> bool:
    """Whether NVIDIA itself answers at an address that :func:`served_at` accepts."""
    return Address.parse(base_url).is_nvidia


def is_loopback(base_url: str) -> bool:
    """Whether an address that :func:`served_at` accepts leads to the asking machine itself."""
    host = Address.parse(base_url).host
    return host in ("localhost", "::1") or host.startswith("127.")


def address_fault(stored: str, *, path: str) -> str | None:
    """Return what is wrong with an address in a collection, or None.

    Args:
        stored: The address, as it stands there.
        path: What Weaviate puts behind it.
    """
    try:
        right = served_at(stored)
    except ConfigurationError as error:
        return str(error)
    if stored == right:
        return None
    return f"requests go to {stored}{path}; it should be {right!r}"


def is_forgiven(stored: str) -> bool:
    """Whether a nimbed server answers although the address has a fault: a slash or /v1 too many."""
    try:
        right = served_at(stored)
    except ConfigurationError:
        return False
    return not is_nvidia(right) and stored.rstrip("/") in (right, f"{right}/v1")


@contextmanager
def translate_errors(doing: str) -> Generator[None]:
    """Turn the client's errors inside the block into nimbed's.

    Args:
        doing: What the block does, for the message.

    Raises:
        ConfigurationError: If there is no such collection, or the key is refused.
        BackendError: If Weaviate cannot be reached, or fails.
    """
    try:
        yield
    except exceptions.AuthenticationFailedError as error:
        raise ConfigurationError(f"{doing}: {_refusal(error)}") from error
    except exceptions.UnexpectedStatusCodeError as error:
        if error.status_code == 404:
            raise ConfigurationError(
                f"{doing}: there is no such collection, or no Weaviate at this address"
            ) from error
        if error.status_code in (401, 403) or isinstance(error, _FORBIDDEN):
            raise ConfigurationError(f"{doing}: {_refusal(error)}") from error
        if "CONFIG_NOT_ALLOWED" in error.message:
            raise ConfigurationError(
                f"{doing}: whoever runs this Weaviate does not allow such an index or quantiser "
                f"(ALLOWED_VECTOR_INDEX_TYPES, ALLOWED_COMPRESSION_TYPES); choose another with "
                f"index= or quantizer=: {error.message}"
            ) from error
        raise BackendError(f"{doing}: {error}") from error
    except exceptions.WeaviateBaseError as error:
        raise BackendError(f"{doing}: {error}") from error


def _refusal(error: Exception) -> str:
    return f"Weaviate refuses the key, or needs one (WEAVIATE_API_KEY): {error}"
