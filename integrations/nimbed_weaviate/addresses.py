"""The address of an embedding server in, in the one form that Weaviate's modules can use.

Weaviate joins texts, not paths: ``/v1/embeddings`` or ``/vectors`` is put right behind what the
collection says. Knows nothing about collections.
"""

from __future__ import annotations

from nimbed.errors import ConfigurationError
from nimbed.remote.address import Address

__all__ = ["NVIDIA", "address_fault", "is_forgiven", "is_loopback", "is_nvidia", "served_at"]

#: NVIDIA's own API, to which Weaviate turns where a collection names no address.
NVIDIA = "https://integrate.api.nvidia.com"


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
