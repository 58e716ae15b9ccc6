"""Failed requests: whether and when to try again, and the error that the caller gets at the end.

The rules began as those of openai-python 3.52. What passes by waiting is waited for until a
deadline; what does not pass by waiting ends after one or two tries.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Literal

from nimbed.cards import known
from nimbed.errors import ConfigurationError, InputError, OverloadedError, RemoteError, name_rows

__all__ = [
    "Failure",
    "RejectedInputError",
    "RetryPolicy",
    "Tries",
    "error_of",
    "requested_wait",
    "wait_in_words",
]

# Of a fault that names no reason, where the server has answered before; and of a broken connection.
_OUR_RETRIES, _OF_CONNECTIONS = 3, 8
# What servers say with a 5xx of a text that is longer than they take.
_SIZE = re.compile(
    r"\btokens\b|context (length|size|window)|too (long|large)|input length|\bn_ctx", re.IGNORECASE
)
_MODEL = re.compile(
    r"\bmodels?\b[^.\n]{0,80}\b(not (found|supported|registered)|does(n't| not) exist|unknown)"
    r"|\b(no such|unknown|unsupported|invalid) model\b|model_not_found",
    re.IGNORECASE,
)
_KEY = re.compile(
    r"(invalid|incorrect|wrong|missing|expired|revoked|unknown|bad|no) "
    r"(api[ _-]?key|access[ _-]?token|auth\w* token|bearer|credentials?|subscription key)"
    r"|(api[ _-]?key|credentials?|access token)( \S+)? (is|was|not|are) ?"
    r"(not )?(invalid|incorrect|valid|missing|expired|found|provided|required|recognized)"
    r"|invalid[_-]api[_-]key|api[_-]key[_-]invalid|invalid[_-]authentication"
    r"|\bunauthori[sz]ed\b|\bunauthenticated\b|authentication (failed|error|required)",
    re.IGNORECASE,
)
# "Please try again in 6m0s", "retry in 41 s", "wait 3 minutes", "retry after 20 seconds"
_WAIT = re.compile(
    r"\b(?:retry|again|wait|available|resets?)\b[^.\d]{0,30}?"
    r"(?=\d)(?:(?P<m>\d{1,4})\s?m(?:in(?:ute)?s?)?(?![a-z])[\s,]?(?:and )?)?"
    r"(?:(?P<n>\d{1,6}(?:\.\d{1,9})?)\s?(?P<unit>ms|milliseconds?|s|secs?|seconds?)(?![a-z\d]))?",
    re.IGNORECASE,
)
# A spent quota does not come back by waiting, whatever its status says.
_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "credits")
_HINTS: Mapping[int, str] = {
    401: "check the api key",
    402: "the account's credits are used up",
    403: "the api key may not use this model",
    404: "check the model's name and the base_url",
    407: "the proxy asks for a user and a password; put them into its variable, as in "
    "http://user:password@host:3128",
}


class RejectedInputError(RemoteError, InputError):
    """The server refused an input; ``.rows`` names it by the caller's row numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What went wrong with one request.

    Attributes:
        kind: ``status``: an HTTP error; ``timeout`` and ``network``: no whole answer came;
            ``malformed``: an answer that cannot be used; ``refused``: nothing was or may be sent.
        message: The server's words, or ours; secrets are blotted out.
        status: The HTTP status, if an answer came.
        code: The server's error code or type.
        param: The request field that the server names.
        request_id: The server's request id.
        retry_after: Seconds the server asks to wait.
        should_retry: What ``x-should-retry`` says, if it is there.
        positions: Which inputs of the request are concerned, where that is known.
        lasting: Whether it will most likely be the same at the next try: the wrong place, or a
            server that answers something else.
        hold: Seconds for which all requests to the server now wait, after a refusal for the rate.
    """

    kind: Literal["status", "timeout", "network", "malformed", "refused"]
    message: str
    status: int | None = None
    code: str | None = None
    param: str | None = None
    request_id: str | None = None
    retry_after: float | None = None
    should_retry: bool | None = None
    positions: tuple[int, ...] = ()
    lasting: bool = False
    hold: float | None = None

    @property
    def limited(self) -> bool:
        """Whether requests came faster than the server allows."""
        return self.status == 429

    @property
    def about_key(self) -> bool:
        """Whether the key is refused, whatever the status: gateways answer 400 and 500 too."""
        if self.status in (401, 403):
            return True
        said = f"{self.code or ''} {self.message}"
        from_server = self.kind in ("status", "malformed") and self.status != 429
        return from_server and bool(_KEY.search(said[:1000]))

    @property
    def about_model(self) -> bool:
        """Whether the server does not have the model; gateways answer 500 and 503 too."""
        said = f"{self.code or ''}\n{self.message}"
        return self.kind == "status" and self.status != 429 and bool(_MODEL.search(said[:1000]))

    @property
    def overload(self) -> bool:
        """Whether the server has too much to do: a reason to send less at a time."""
        if self.about_model:
            return False
        return self.status in (429, 503, 529) or self.kind == "timeout"

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later."""
        if self.status == 402 or any(word in (self.code or "") for word in _QUOTA):
            return False
        if self.should_retry is not None:
            return self.should_retry
        if self.status in (501, 505) or self.about_key or self.about_model or self.about_size:
            return False
        if self.kind != "status":
            return self.kind != "refused"
        return self.status in (408, 409, 429) or (self.status or 0) >= 500

    @property
    def about_input(self) -> bool:
        """Whether the inputs may be to blame, so that a part of them may still pass."""
        if self.kind == "refused":  # by us, and an input is to blame where one is named
            return bool(self.positions)
        if self.kind != "status" or self.about_key:
            return False
        # A 5xx marked as final is how a server reports an input that exhausts its memory.
        final = self.should_retry is False and (self.status or 0) >= 500
        return (self.status in (400, 413, 422) and not self.about_model) or final or self.about_size

    @property
    def about_size(self) -> bool:
        """Whether a 500 is about a text's length: llama.cpp, Ollama and others answer so."""
        return self.kind == "status" and self.status == 500 and bool(_SIZE.search(self.message))

    def scrubbed(self, scrub: Callable[[str], str]) -> Failure:
        """Return the failure with every word of it passed through ``scrub``, on one line.

        Control characters are shown: a terminal would obey them.
        """

        def clean(text: str) -> str:
            text = " ".join(scrub(text).splitlines())
            if text.isprintable():
                return text
            return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)

        return replace(
            self,
            message=clean(self.message),
            code=clean(self.code) if self.code else None,
            param=clean(self.param) if self.param else None,
            request_id=clean(self.request_id) if self.request_id else None,
        )


@dataclass(slots=True)
class Tries:
    """How often a request was sent in vain, and the seconds that went into it."""

    count: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When to try again, and how often.

    Attributes:
        retries: Tries after the first, whatever the fault. If None, waiting is a matter of time: an
            overload, a rate limit, a gateway without its server or a late answer is waited for
            until the deadline; a fault that waiting will not mend, or of a server that has never
            answered, is tried once more; an error without a reason three times, a broken connection
            eight times.
        deadline: Seconds that one request may take, with all its retries; the wait for its turn
            counts while the server refuses everything.
        shortest: Seconds before the first retry; doubled for each further one.
        longest: Longest pause that doubling leads to, in seconds.
        max_retry_after: Longest pause that a server may ask for, in seconds; a longer one is an
            error.
    """

    retries: int | None = None
    deadline: float = 300.0
    shortest: float = 0.5
    longest: float = 8.0
    max_retry_after: float = 120.0

    def __post_init__(self) -> None:
        """Refuse a policy that could not be followed."""
        times = (self.deadline, self.shortest, self.longest, self.max_retry_after)
        if (self.retries or 0) < 0 or not all(math.isfinite(t) and t >= 0 for t in times):
            raise ConfigurationError("a retry policy needs finite times and counts of at least 0")

    def pause(
        self,
        failure: Failure,
        *,
        tried: int,
        elapsed: float,
        jitter: random.Random,
        proven: bool = True,
    ) -> float | None:
        """Return how many seconds to wait before trying again, or None to give up.

        Args:
            failure: What went wrong.
            tried: Tries that failed so far, this one included.
            elapsed: Seconds since the first of them began.
            jitter: Where chance comes from.
            proven: Whether the server has answered before.
        """
        if tried > self._retries(failure, proven=proven) or not failure.transient:
            return None
        requested = failure.retry_after
        if requested is not None and requested > self.max_retry_after:
            return None
        if failure.hold is not None:
            pause = failure.hold
        elif requested is not None and requested > 0:
            # Everybody was told the same moment: a little spread keeps the herd apart.
            pause = requested * (1 + 0.05 * jitter.random())
        else:
            pause = min(self.shortest * 2.0 ** min(tried - 1, 60), self.longest)
            pause *= 1 - 0.25 * jitter.random()
        return pause if elapsed + pause < self.deadline else None

    def _retries(self, failure: Failure, *, proven: bool) -> float:
        if self.retries is not None:
            return self.retries
        unexplained = failure.kind in ("network", "malformed") or failure.status == 500
        if failure.lasting or (unexplained and not proven):
            return 1
        if failure.overload or failure.status in (408, 502, 504):
            return math.inf
        return _OUR_RETRIES if failure.kind == "status" else _OF_CONNECTIONS


def requested_wait(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return the seconds that ``retry-after-ms`` or ``Retry-After`` (seconds or a date) ask for.

    Args:
        headers: The answer's headers, names in lower case.
        now: Seconds since the epoch; None for the clock.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    try:
        date = parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, date - (time.time() if now is None else now))


def wait_in_words(message: str) -> float | None:
    """Return the seconds that a server's words ask to wait, as in "retry in 41 s"."""
    for found in _WAIT.finditer(message[:1000]):
        if not (found["m"] or found["n"]):
            continue
        scale = 0.001 if (found["unit"] or "").lower().startswith("m") else 1.0
        return 60.0 * int(found["m"] or 0) + scale * float(found["n"] or 0)
    return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else None
    except ValueError:
        return None
    return number if number is not None and math.isfinite(number) and number >= 0 else None


def error_of(
    failure: Failure, *, server: str, model: str | None, rows: Sequence[int], keyless: bool
) -> RemoteError:
    """Return the error that a failure becomes when nothing can be done about it.

    Args:
        failure: What went wrong.
        server: The server's address, for the message.
        model: What was asked for, as far as is known.
        rows: The caller's row numbers that are concerned.
        keyless: Whether no key was sent, which explains most refusals.
    """
    status = f"[{failure.status}] " if failure.status else ""
    where = f" ({name_rows(rows)})" if rows else ""
    hint = _HINTS.get(failure.status or 0, "")
    if failure.status == 410:
        hint = _instead(model)
    if failure.about_key and failure.status != 403:
        hint = _HINTS[401]
    if keyless and failure.about_key:
        hint = (
            "no api key was sent: pass api_key, or set NIMBED_API_KEY (NVIDIA_API_KEY for "
            "NVIDIA's own hosts); a key given as an argument does not travel in a pickle"
        )
    message = f"{server} answered {status}{failure.message}{where}"
    if failure.kind in ("network", "timeout", "refused"):
        message = f"{server}: {failure.message}{where}"
    kind: type[RemoteError] = RemoteError
    if failure.overload and failure.kind == "status" and failure.code not in _QUOTA:
        kind = OverloadedError
    elif failure.about_input and rows:
        kind = RejectedInputError
    return kind(
        f"{message}; {hint}" if hint else message,
        status=failure.status,
        code=failure.code,
        request_id=failure.request_id,
        retry_after=failure.retry_after,
        retryable=failure.transient,
        rows=rows,
    )


def _instead(model: str | None) -> str:
    """Say what may be used in place of a model that a server has retired."""
    card = known(model or "")
    ways = []
    if card is not None and card.weights and card.architecture != "unknown":
        ways.append(
            f"its weights give the same vectors here: nimbed.load({card.id!r}) without base_url"
        )
    if card is not None and card.successor:
        ways.append(
            f"its publisher offers {card.successor} in its place, whose vectors are a space of "
            f"their own: embed everything anew"
        )
    return "; or ".join(ways)
