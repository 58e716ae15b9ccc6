"""Addresses of servers: where each endpoint lies, and which key may be sent there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import urlsplit

from nimbed.errors import ConfigurationError

__all__ = ["NVCF_HOST", "Address", "Secret", "find_key", "origin_of"]

#: Where NVIDIA's own gateway is polled for the answer of a request it has only accepted.
NVCF_HOST = "api.nvcf.nvidia.com"

_VERSION = re.compile(r"v\d+\w*")
_HOST = re.compile(r"[\w.:%~-]+")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server's endpoints lie.

    Attributes:
        origin: Scheme, host and port, without a trailing slash.
        path: What stands between origin and endpoint, its version included (``/v1``).
    """

    origin: str
    path: str

    @classmethod
    def parse(cls, base_url: str) -> Address:
        """Read a base URL, with or without ``/v1``, a trailing slash or ``/embeddings``.

        Raises:
            ConfigurationError: If it is not a plain http or https address.
        """
        try:
            parts = urlsplit(base_url.strip())
            host, user = parts.hostname, parts.username or parts.password
            origin = origin_of(base_url.strip())
        except ValueError:
            host, user, origin = None, None, ""
            parts = urlsplit("")
        if parts.scheme.lower() not in ("http", "https") or not host:
            # The text is not repeated: what is no address may be a key in the wrong argument.
            raise ConfigurationError(
                "base_url must be an address such as 'http://localhost:8000/v1'"
            )
        if user is not None:
            raise ConfigurationError("base_url must not hold credentials; pass api_key instead")
        if parts.query or parts.fragment:
            raise ConfigurationError(
                f"base_url must end with its path; take the query off {origin}{parts.path}"
            )
        segments = [segment for segment in parts.path.split("/") if segment]
        if segments and segments[-1] == "embeddings":
            segments.pop()
        # ai.api.nvidia.com/v1/retrieval/nvidia has its version in the middle: nothing to add.
        if not any(_VERSION.fullmatch(segment) for segment in segments):
            segments.append("v1")
        return cls(origin=origin, path="/" + "/".join(segments))

    @property
    def api(self) -> str:
        """Origin and path: what identifies the server."""
        return self.origin + self.path

    @property
    def embeddings(self) -> str:
        """The embeddings endpoint."""
        return f"{self.api}/embeddings"

    def beside(self, path: str) -> str:
        """Return an endpoint that lies beside the API, not under its version (``/info``)."""
        return self.origin + self.path.rpartition("/")[0] + path

    @property
    def host(self) -> str:
        """The host name, in lower case."""
        return urlsplit(self.origin).hostname or ""

    @property
    def is_nvidia(self) -> bool:
        """Whether NVIDIA itself answers there, as a certificate will have to prove."""
        return self.origin.startswith("https://") and self.host.endswith(".nvidia.com")

    def status(self, request_id: str) -> str:
        """Return where an accepted (202) request is polled.

        For another host than NVIDIA's it is the same path of that host: a proxy's requests and
        its key must not wander to NVIDIA.
        """
        origin = f"https://{NVCF_HOST}" if self.is_nvidia else self.origin
        return f"{origin}/v2/nvcf/pexec/status/{request_id}"

    @property
    def trusted_origins(self) -> frozenset[str]:
        """The origins to which the key for this address may be sent."""
        also = {f"https://{NVCF_HOST}"} if self.is_nvidia else set[str]()
        return frozenset({self.origin} | also)


def origin_of(url: str) -> str:
    """Return scheme, host and port in one spelling: ASCII, lower case, no default port.

    Raises:
        ValueError: If host or port cannot be one.
    """
    parts = urlsplit(url)
    scheme, host = parts.scheme.lower(), (parts.hostname or "").encode("idna").decode("ascii")
    if not _HOST.fullmatch(host):
        raise ValueError(f"{host!r} is no host name")
    if ":" in host:
        host = f"[{host}]"
    default = {"http": 80, "https": 443}.get(scheme)
    port = "" if parts.port in (None, default) else f":{parts.port}"
    return f"{scheme}://{host}{port}"


class Secret:
    """A key that only :meth:`reveal` gives, never ``repr``, ``str``, a pickle or a copy."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        value = value.strip()  # a key read from a file ends in a newline, which no header may hold
        if not value or not value.isascii() or not value.isprintable():
            raise ConfigurationError(
                "the api key must be printable ASCII without blanks around it; "
                "check how it was read"
            )
        self._value = value

    def reveal(self) -> str:
        """Return the key itself."""
        return self._value

    def digest(self) -> str:
        """Return what tells this key from others without showing it."""
        return hashlib.sha256(self._value.encode("ascii")).hexdigest()

    def scrub(self, text: str) -> str:
        """Return the text with the key blotted out, for words that a server sent."""
        return text.replace(self._value, "***")

    def __repr__(self) -> str:
        return "Secret('***')"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied; read it from the environment there")


def find_key(
    address: Address, api_key: str | None, environment: Mapping[str, str]
) -> Secret | None:
    """Return the key for an address: the given one, else the environment's.

    ``NVIDIA_API_KEY`` goes to NVIDIA's own hosts over TLS alone; ``NIMBED_API_KEY`` to whatever
    address the caller named.

    Raises:
        ConfigurationError: If the key cannot stand in a header.
    """
    if api_key is not None:
        return Secret(api_key)
    names = ("NVIDIA_API_KEY", "NIMBED_API_KEY") if address.is_nvidia else ("NIMBED_API_KEY",)
    for name in names:
        value = environment.get(name, "").strip()
        if value:
            return Secret(value)
    return None
