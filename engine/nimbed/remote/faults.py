"""A bad answer, or none, to facts about what went wrong; and those facts to a typed error.

Knows nothing about retries or about what was asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nimbed.errors import InputError, OverloadedError, RemoteError, name_rows
from nimbed.remote.secret import Secret

__all__ = ["Fault", "RejectedInputError", "error_of", "read_fault", "scrubbed"]

_LONGEST = 500
_TAG = re.compile(r"<(script|style).*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
# input[3], inputs.3, and pydantic's ('body', 'input', 3)
_NAMED = re.compile(r"inputs?(?:\[|\.|', )(\d+)\b")
# A spent quota does not come back by waiting, whatever its status says.
_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "credits")
_HINTS: Mapping[int, str] = {
    401: "check the api key",
    402: "the account's credits are used up",
    403: "the api key may not use this model",
    404: "check the model's name and the base_url",
}


class RejectedInputError(RemoteError, InputError):
    """The server refused an input; ``.rows`` names it by the caller's row numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What went wrong with one request.

    Attributes:
        kind: ``status``: an HTTP error; ``timeout`` and ``network``: no whole answer came;
            ``malformed``: an answer that is none; ``refused``: nothing was or may be sent.
        message: The server's words, or ours; the key is blotted out.
        status: The HTTP status, if an answer came.
        code: The server's error code or type.
        param: The request field that the server names.
        request_id: The server's request id.
        retry_after: Seconds the server asks to wait.
        should_retry: What ``x-should-retry`` says, if it is there.
        positions: Which inputs of the request are concerned, where that is known.
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

    @property
    def overload(self) -> bool:
        """Whether the server has too much to do: a reason to send less at a time."""
        return self.status in (429, 503, 529) or self.kind == "timeout"

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later."""
        if self.status == 402 or any(word in (self.code or "") for word in _QUOTA):
            return False
        if self.should_retry is not None:
            return self.should_retry
        if self.kind != "status":
            return self.kind != "refused"
        return self.status in (408, 409, 429) or (self.status or 0) >= 500

    @property
    def about_input(self) -> bool:
        """Whether the inputs may be to blame, so that a part of them may still pass."""
        if self.kind != "status":
            return False
        # A 5xx marked as final is how a server reports an input that exhausts its memory.
        final = self.should_retry is False and (self.status or 0) >= 500
        return self.status in (400, 413, 422) or final


def read_fault(
    status: int, headers: Mapping[str, str], body: bytes, *, key: Secret | None, wait: float | None
) -> Fault:
    """Read an error answer of any of the shapes that servers send.

    Args:
        status: Its HTTP status.
        headers: Its headers, names in lower case.
        body: Its body: JSON of half a dozen shapes, HTML, or nothing.
        key: The key to blot out, should the server echo it.
        wait: Seconds that its headers ask to wait.
    """
    message, code, param = _words(body)
    request_id = (
        headers.get("x-request-id") or headers.get("nvcf-reqid") or headers.get("request-id")
    )
    scrub = key.scrub if key else _same
    named = _NAMED.search(message)
    return Fault(
        kind="status",
        message=scrub(message)[:_LONGEST] or "no explanation",
        status=status,
        code=scrub(code) if code else None,
        param=param,
        request_id=scrub(request_id) if request_id else None,
        retry_after=wait,
        should_retry={"true": True, "false": False}.get(headers.get("x-should-retry", "")),
        positions=(int(named[1]),) if named else (),
    )


def scrubbed(fault: Fault, key: Secret | None) -> Fault:
    """Return a fault with the key blotted out of every word in it, whoever said it."""
    if key is None:
        return fault
    return replace(
        fault,
        message=key.scrub(fault.message),
        code=key.scrub(fault.code) if fault.code else None,
        param=key.scrub(fault.param) if fault.param else None,
        request_id=key.scrub(fault.request_id) if fault.request_id else None,
    )


def error_of(fault: Fault, *, api: str, rows: Sequence[int], keyless: bool) -> RemoteError:
    """Return the error that a fault becomes when nothing can be done about it.

    Args:
        fault: What went wrong.
        api: The server's address, for the message.
        rows: The caller's row numbers that are concerned.
        keyless: Whether no key was sent, which explains most refusals.
    """
    status = f"[{fault.status}] " if fault.status else ""
    where = f" ({name_rows(rows)})" if rows else ""
    hint = _HINTS.get(fault.status or 0, "")
    if keyless and fault.status in (401, 403):
        hint = (
            "no api key was sent: pass api_key, or set NIMBED_API_KEY (NVIDIA_API_KEY for "
            "NVIDIA's own hosts); a key given as an argument does not travel in a pickle"
        )
    message = f"{api} answered {status}{fault.message}{where}"
    if fault.kind in ("network", "timeout", "refused"):
        message = f"{api}: {fault.message}{where}"
    kind: type[RemoteError] = RemoteError
    if fault.overload and fault.kind == "status" and fault.code not in _QUOTA:
        kind = OverloadedError
    elif fault.about_input and rows:
        kind = RejectedInputError
    return kind(
        f"{message}; {hint}" if hint else message,
        status=fault.status,
        code=fault.code,
        request_id=fault.request_id,
        retry_after=fault.retry_after,
        retryable=fault.transient,
        rows=rows,
    )


def _words(body: bytes) -> tuple[str, str | None, str | None]:
    """Return message, code and field name from a body of any shape."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        text = _TAG.sub(" ", body.decode("utf-8", "replace"))
        return " ".join(text.split()), None, None
    outer = said if isinstance(said, dict) else {"message": said}
    inner = outer.get("error")
    facts: dict[str, Any] = {**outer, **inner} if isinstance(inner, dict) else outer
    message = next(
        (
            _flat(facts[name])
            for name in ("message", "detail", "error", "title", "reason")
            if facts.get(name)
        ),
        "",
    )
    code = next((str(facts[name]) for name in ("code", "type") if facts.get(name)), None)
    param = facts.get("param")
    return message, code, param if isinstance(param, str) else None


def _flat(value: Any) -> str:
    """Return pydantic's lists and nested details as one line."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("detail"), (str, list)):
        return _flat(value["detail"])
    return json.dumps(value, ensure_ascii=False)


def _same(text: str) -> str:
    return text
