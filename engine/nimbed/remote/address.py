"""Addresses of servers: where each endpoint lies, and which key may be sent there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import urlsplit

from nimbed.errors import ConfigurationError

__all__ = [
    "NVCF_HOST",
    "Address",
    "ExtraHeaders",
    "Secret",
    "find_key",
    "origin_of",
    "refuse_redirect",
]

#: Where NVIDIA's own gateway is polled for the answer of a request it has only accepted.
NVCF_HOST = "api.nvcf.nvidia.com"

_VERSION = re.compile(r"v\d+\w*")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
# They belong to the connection, or to the variable that names a proxy.
_NOT_YOURS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
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
        """Read a base URL, with or without ``/v1`` or a trailing slash.

        One that ends with ``/embeddings`` is where requests go, whatever stands before that.

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
            segments.pop()  # the whole address was written out: nothing is added
        # ai.api.nvidia.com/v1/retrieval/nvidia has its version in the middle: nothing to add.
        elif not any(_VERSION.fullmatch(segment) for segment in segments):
            segments.append("v1")
        return cls(origin=origin, path="".join(f"/{segment}" for segment in segments))

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


def refuse_redirect(status: int, method: str, url: str, target: str) -> str:
    """Return why a redirect is not followed, or nothing if it is."""
    try:
        place = origin_of(target)
    except ValueError:
        place = "an invalid address"
    why = ""
    if method == "POST" and status not in (307, 308):
        why = "which would turn the request into a GET"
    elif url.startswith("https:") and not target.startswith("https:"):
        why = "which is not encrypted"
    elif not place.startswith(("http://", "https://")):
        why = "which is no web address"
    if not why:
        return ""
    return f"a redirect ({status}) to {place}, {why}; set base_url to the server's own address"


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


class ExtraHeaders:
    """Headers for a gateway, whose values only :meth:`reveal` gives.

    Args:
        headers: Their names and values.

    Raises:
        ConfigurationError: If one cannot be sent, or belongs to the connection.
    """

    __slots__ = ("_pairs",)

    def __init__(self, headers: Mapping[str, str]) -> None:
        pairs: list[tuple[str, str]] = []
        for name, value in headers.items():
            key, text = name.strip().lower(), value.strip()
            if not _HEADER.fullmatch(key) or key in _NOT_YOURS:
                raise ConfigurationError(f"the header {name!r} cannot be set; leave it out")
            if not text.isascii() or not text.isprintable():
                raise ConfigurationError(
                    f"the value of the header {name!r} must be printable ASCII"
                )
            pairs.append((key, text))
        self._pairs = tuple(sorted(pairs))

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in lower case."""
        return tuple(name for name, _ in self._pairs)

    def reveal(self) -> list[tuple[bytes, bytes]]:
        """Return the headers themselves."""
        return [(name.encode("ascii"), value.encode("ascii")) for name, value in self._pairs]

    def digest(self) -> str:
        """Return what tells these headers from others without showing them."""
        return hashlib.sha256(repr(self._pairs).encode("ascii")).hexdigest()

    def scrub(self, text: str) -> str:
        """Return the text with the values blotted out; short ones may be any word."""
        for _, value in self._pairs:
            if len(value) >= 6:
                text = text.replace(value, "***")
        return text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExtraHeaders) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        return f"ExtraHeaders({', '.join(self.names)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("headers cannot be pickled: they may hold secrets; pass them again there")


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
