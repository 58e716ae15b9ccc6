"""The address of an embedding server in, the headers that let Weaviate use it out."""

from __future__ import annotations

import os

from nimbed.errors import ConfigurationError
from nimbed.remote.address import Address, find_key
from nimbed_weaviate.addresses import served_at

__all__ = ["headers"]

_NONE_NEEDED = "no-key-needed"


def headers(base_url: str, *, api_key: str | None = None, redirect: bool = False) -> dict[str, str]:
    """Return headers for ``weaviate.connect_to_local(headers=...)`` and its siblings.

    Weaviate sends no request without a key, so a server that wants none gets a word instead. It
    hands the key to whatever address the collection names. The dictionary holds the key in clear;
    do not log it.

    Args:
        base_url: The server that the collections' vectors come from.
        api_key: Its key; None reads NVIDIA_API_KEY for NVIDIA alone, NIMBED_API_KEY for others.
        redirect: Use ``base_url`` in place of the address in the collection, which cannot be
            changed. It applies to all of NVIDIA's modules: reranker and generative as well.

    Raises:
        ConfigurationError: If the address cannot be used, or NVIDIA's key is missing.
    """
    address = served_at(base_url)
    target = Address.parse(address)
    secret = find_key(target, api_key or None, os.environ)
    if secret is None and target.is_nvidia:
        raise ConfigurationError(
            "NVIDIA wants a key; pass api_key, or set NVIDIA_API_KEY in the environment"
        )
    key = _NONE_NEEDED if secret is None else secret.reveal()
    given = {"X-Nvidia-Api-Key": key}
    return given | {"X-Nvidia-Baseurl": address} if redirect else given
