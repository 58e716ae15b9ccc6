"""A fault and how often it happened, to how long to wait before the next try.

Knows nothing about HTTP libraries; the rules are those of openai-python 3.52, with a deadline.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from nimbed.errors import ConfigurationError
from nimbed.remote.faults import Fault

__all__ = ["RetryPolicy", "asked_wait"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When to try again, and how often.

    Attributes:
        retries: Tries after the first.
        deadline: Seconds that one request may take, with all its retries; the wait for its turn
            does not count.
        shortest: Seconds before the first retry; doubled for each further one.
        longest: Longest pause that doubling leads to, in seconds.
        patience: Longest pause that a server may ask for; a longer one is an error.
    """

    retries: int = 8
    deadline: float = 300.0
    shortest: float = 0.5
    longest: float = 8.0
    patience: float = 120.0

    def __post_init__(self) -> None:
        """Refuse a policy that could not be followed."""
        times = (self.deadline, self.shortest, self.longest, self.patience)
        if self.retries < 0 or not all(math.isfinite(t) and t >= 0 for t in times):
            raise ConfigurationError("a retry policy needs finite times and counts of at least 0")

    def pause(
        self, fault: Fault, *, tried: int, elapsed: float, jitter: random.Random
    ) -> float | None:
        """Return how many seconds to wait before trying again, or None to give up.

        Args:
            fault: What went wrong.
            tried: Tries that failed so far, this one included.
            elapsed: Seconds since the first of them began.
            jitter: Where chance comes from.
        """
        if tried > self.retries or not fault.transient:
            return None
        asked = fault.retry_after
        if asked is not None and asked > self.patience:
            return None
        if asked is not None and asked > 0:
            # Everybody was told the same moment: a little spread keeps the herd apart.
            pause = asked * (1 + 0.05 * jitter.random())
        else:
            pause = min(self.shortest * 2.0 ** (tried - 1), self.longest)
            pause *= 1 - 0.25 * jitter.random()
        return pause if elapsed + pause < self.deadline else None


def asked_wait(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return the seconds that ``retry-after-ms`` or ``Retry-After`` (seconds or a date) ask for.

    Args:
        headers: The answer's headers, names in lower case.
        now: Seconds since the epoch; None for the clock.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    said = headers.get("retry-after")
    seconds = _number(said)
    if seconds is not None or said is None:
        return seconds
    try:
        date = parsedate_to_datetime(said)
    except (TypeError, ValueError):
        return None
    return max(0.0, date.timestamp() - (time.time() if now is None else now))


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else None
    except ValueError:
        return None
    return number if number is not None and math.isfinite(number) and number >= 0 else None
