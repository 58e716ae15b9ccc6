"""API keys: who may send requests, and how many a minute."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence

from nimbed_server.wire.errors import HttpError

__all__ = ["Authenticator"]

_CHALLENGE = ((b"www-authenticate", b'Bearer realm="nimbed"'),)


class Authenticator:
    """Checks API keys in constant time, and counts each key's requests.

    Args:
        keys: The keys that are accepted; without any, everybody is.
        requests_per_minute: How many requests a key may send; None for any number.
        clock: Seconds, for tests.

    Attributes:
        needed: Whether there is anything to check.
    """

    def __init__(
        self,
        keys: Sequence[str] = (),
        *,
        requests_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Digests have one length, so that a comparison tells nothing about a key's own.
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._per_minute = requests_per_minute
        self._clock = clock
        self._left: dict[bytes, tuple[float, float]] = {}
        self.needed = bool(keys) or requests_per_minute is not None

    def __repr__(self) -> str:
        return f"Authenticator({len(self._digests)} keys)"

    def check(self, authorization: bytes | None, bare: bytes | None = None) -> None:
        """Admit a request by its ``Authorization`` header, or by a header that is the key alone.

        Args:
            authorization: ``Bearer`` and the key.
            bare: What ``api-key`` holds, as Azure's clients send it, or ``x-api-key``.

        Raises:
            HttpError: 401 without a right key, 429 beyond its rate.
        """
        if authorization is None and bare is not None:
            authorization = b"Bearer " + bare
        self._count(self._recognise(authorization) if self._digests else b"")

    def _recognise(self, authorization: bytes | None) -> bytes:
        if authorization is None:
            raise HttpError(
                401, "an API key is needed: send Authorization: Bearer KEY", headers=_CHALLENGE
            )
        scheme, _, key = authorization.partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
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
