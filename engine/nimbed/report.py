"""What a call cost, as numbers that ride with its batch.

Knows nothing about models, servers or vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The accounting of one ``embed`` call.

    Attributes:
        requests: HTTP requests sent, failed ones, retries and polls among them.
        retries: Requests sent again after a fault (an overload, a reset, a malformed answer).
        tokens: Tokens the server says it read; None if it did not say so for every answer.
        bytes_sent: Bytes of request bodies.
        bytes_received: Bytes of response bodies, after decompression.
        skipped: Row numbers whose input the server or the input check refused and the caller
            asked to skip, ascending; their vectors are zero and their token counts 0.
    """

    requests: int = 0
    retries: int = 0
    tokens: int | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    skipped: tuple[int, ...] = ()
