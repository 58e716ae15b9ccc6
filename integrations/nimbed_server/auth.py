"""Who may send requests, by key or from which web page, and how many a minute."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Sequence

from nimbed_server.http import Request
from nimbed_server.wire.errors import HttpError

__all__ = ["Authenticator", "Origins"]

_CHALLENGE = ((b"www-authenticate", b'Bearer realm="nimbed"'),)


class Authenticator:
    """Checks API keys in constant time, and counts each key's requests.

    Args:
        keys: The keys that are accepted; without any, everybody is.
        requests_per_minute: How many requests a key may send; None for any number.
        metrics_key: A key that reads the metrics alone.
        clock: Seconds, for tests.

    Attributes:
        needed: Whether there is anything to check.
    """

    def __init__(
        self,
        keys: Sequence[str] = (),
        *,
        requests_per_minute: int | None = None,
        metrics_key: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Digests have one length, so that a comparison tells nothing about a key's own.
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._metrics = hashlib.sha256(metrics_key.encode()).digest() if metrics_key else None
        self._per_minute = requests_per_minute
        self._clock = clock
        self._left: dict[bytes, tuple[float, float]] = {}
        self.needed = bool(keys) or bool(metrics_key) or requests_per_minute is not None

    def __repr__(self) -> str:
        return f"Authenticator({len(self._digests)} keys)"

    def check(
        self, authorization: bytes | None, bare: bytes | None = None, *, metrics: bool = False
    ) -> None:
        """Admit a request by its ``Authorization`` header, or by a header that is the key alone.

        Args:
            authorization: ``Bearer`` and the key.
            bare: What ``api-key`` holds, as Azure's clients send it, or ``x-api-key``.
            metrics: Whether it reads the metrics alone.

        Raises:
            HttpError: 401 without a right key, 429 beyond its rate.
        """
        if authorization is None and bare is not None:
            authorization = b"Bearer " + bare
        digests = self._digests
        if metrics and self._metrics is not None:
            digests = [*digests, self._metrics]
        self._count(self._recognise(authorization, digests) if digests else b"")

    def _recognise(self, authorization: bytes | None, digests: Sequence[bytes]) -> bytes:
        if authorization is None:
            raise HttpError(
                401, "an API key is needed: send Authorization: Bearer KEY", headers=_CHALLENGE
            )
        scheme, _, key = authorization.partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        matches = [hmac.compare_digest(given, digest) for digest in digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise HttpError(
                401, "the API key is not one that this server knows", headers=_CHALLENGE
            )
        return given

    def _count(self, key: bytes) -> None:
        """Take one of the key's requests; they come back evenly over the minute."""
        if self._per_minute is None:
            return
        now = self._clock()
        left, since = self._left.get(key, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - since) * self._per_minute / 60)
        if left < 1:
            self._left[key] = (left, now)
            raise HttpError(
                429,
                f"this key may send {self._per_minute} requests a minute; try again later",
                code="rate_limit_exceeded",
                retry_after=(1 - left) * 60 / self._per_minute,
            )
        self._left[key] = (left - 1, now)


# What a page of another origin may read and send.
_EXPOSED = (
    b"x-request-id, retry-after, retry-after-ms, server-timing, x-nimbed-input-type, "
    b"x-nimbed-truncate, x-nimbed-truncated, x-nimbed-encoding-format"
)
_SENT = b"authorization, content-type, api-key, x-api-key, x-request-id"
_HEADERS = re.compile(rb"[A-Za-z0-9, _-]{1,1000}")


class Origins:
    """Tells browsers which pages of other origins may ask (CORS); by itself none may.

    Args:
        allowed: The origins, or ``*``.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        self._all = "*" in allowed
        self._allowed = frozenset(origin.encode() for origin in allowed)

    def admit(self, request: Request) -> bool:
        """Add the headers that let a page read the answer, if it may.

        Returns:
            Whether the request only asks whether another may be sent, and is answered by them.
        """
        origin = request.header(b"origin")
        if origin is None or not (self._all or origin in self._allowed):
            return False
        said = "*" if self._all else origin.decode("latin-1")
        request.add_header(b"access-control-allow-origin", said)
        if not self._all:
            request.add_header(b"vary", "origin")
        if request.method != "OPTIONS" or not request.header(b"access-control-request-method"):
            request.add_header(b"access-control-expose-headers", _EXPOSED.decode())
            return False
        wished = request.header(b"access-control-request-headers")
        sent = wished if wished and _HEADERS.fullmatch(wished) else _SENT
        request.add_header(b"access-control-allow-methods", "GET, HEAD, POST")
        request.add_header(b"access-control-allow-headers", sent.decode("latin-1"))
        request.add_header(b"access-control-max-age", "86400")
        return True
