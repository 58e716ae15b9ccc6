"""Who may come in, and how often."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence

from nimbed_server.wire.refusal import Refusal

__all__ = ["Gate"]

_ASK = ((b"www-authenticate", b'Bearer realm="nimbed"'),)


class Gate:
    """Checks API keys in constant time, and counts each key's requests.

    Args:
        keys: The keys that open; none lets everybody in.
        requests_per_minute: How many a key may send; None for any number.
        clock: Seconds, for tests.
    """

    def __init__(
        self,
        keys: Sequence[str] = (),
        *,
        requests_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Digests are of one length, so that a comparison tells nothing of a key's own.
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._per_minute = requests_per_minute
        self._clock = clock
        self._left: dict[bytes, tuple[float, float]] = {}

    def __repr__(self) -> str:
        return f"Gate({len(self._digests)} keys)"

    def check(self, authorization: bytes | None) -> None:
        """Let a request in by its ``Authorization`` header.

        Raises:
            Refusal: 401 without a right key, 429 beyond its rate.
        """
        if self._digests:
            self._count(self._recognised(authorization))
        elif self._per_minute is not None:
            self._count(b"")

    def _recognised(self, authorization: bytes | None) -> bytes:
        if authorization is None:
            raise Refusal(401, "an API key is needed: send Authorization: Bearer KEY", headers=_ASK)
        scheme, _, key = authorization.partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise Refusal(401, "the API key is not one that this server knows", headers=_ASK)
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
            raise Refusal(
                429,
                f"this key may send {self._per_minute} requests a minute; try again later",
                code="rate_limit_exceeded",
                retry_after=(1 - left) * 60 / self._per_minute,
            )
        self._left[key] = (left - 1, now)
