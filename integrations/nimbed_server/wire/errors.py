"""Errors as HTTP statuses and JSON bodies that every client can read.

The body is the union of what clients look for: NIM 2.x takes ``object``,
``message`` and ``type``; openai-python looks into ``error``; Weaviate wants ``message``, ``title``
and ``detail`` as strings, whatever the status; LangChain prints ``title`` and ``detail``.
"""

from __future__ import annotations

import math
from typing import Any

import orjson

from nimbed.errors import (
    BackendError,
    ConfigurationError,
    DeadlineError,
    InputError,
    NimbedError,
    OverloadedError,
    RemoteError,
    TooLongError,
)

__all__ = ["HttpError", "http_error", "render_error"]

# What each status is called; NIM says only that the type is a string.
_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class HttpError(Exception):
    """An answer that is an error.

    Attributes:
        status: The HTTP status.
        message: What was asked, what is possible, how to mend it.
        param: The request field that is to blame.
        code: A word for programs.
        retry_after: Seconds after which the same request may succeed.
        headers: More headers of the answer.
        reason: The message as the log may hold it: without what a client sent.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.headers = headers

    @property
    def type(self) -> str:
        """The kind of error, in a word."""
        fallback = "internal_error" if self.status >= 500 else "invalid_request_error"
        return _TYPES.get(self.status, fallback)

    def all_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that tell a client whether and when to try again."""
        headers = list(self.headers)
        if self.retry_after is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after))).encode()))
            headers.append((b"retry-after-ms", str(math.ceil(self.retry_after * 1000)).encode()))
        elif self.status >= 500:
            # openai-python tries every 5xx twice more; what fails by itself would fail again.
            headers.append((b"x-should-retry", b"false"))
        return headers


def http_error(error: Exception) -> HttpError:
    """Return the answer for an exception that the engine raised."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, TooLongError):
        # Elasticsearch, and many a script, look for these very words.
        first = error.rows[0] if error.rows else 0
        return HttpError(
            400,
            f"Input length {error.length} exceeds maximum allowed token size {error.limit} "
            f"(input[{first}])",
            param="input",
            code="context_length_exceeded",
        )
    if isinstance(error, OverloadedError):
        return HttpError(503, str(error), code="queue_full", retry_after=error.retry_after or 1.0)
    if isinstance(error, DeadlineError):
        return HttpError(504, str(error), code="deadline_exceeded")
    if isinstance(error, InputError):
        return HttpError(400, str(error), param="input")
    if isinstance(error, RemoteError):
        return _upstream(error)
    if isinstance(error, ConfigurationError):
        return HttpError(400, str(error))
    if isinstance(error, BackendError):
        return HttpError(500, str(error))
    if isinstance(error, NimbedError):
        return HttpError(501, str(error))
    # Anything else is a fault of ours; its words may hold a text of somebody's.
    return HttpError(500, f"the server failed ({type(error).__name__}); its log says more")


def _upstream(error: RemoteError) -> HttpError:
    if error.retryable:
        return HttpError(503, str(error), code=error.code, retry_after=error.retry_after or 1.0)
    return HttpError(502, f"the server behind this one failed: {error}", code=error.code)


def render_error(error: HttpError, *, request_id: str, strict_nim: bool = False) -> bytes:
    """Return the body of an error answer.

    Args:
        error: What went wrong.
        request_id: The request's id.
        strict_nim: Only the three fields of NIM 2.x.
    """
    body: dict[str, Any] = {
        "object": "error",
        "message": error.message,
        "type": error.type,
    }
    if not strict_nim:
        body |= {
            "param": error.param,
            "code": error.code or error.status,
            "title": error.message,
            "detail": error.message,
            "status": error.status,
            "requestId": request_id,
            "error": {
                "message": error.message,
                "type": error.type,
                "param": error.param,
                "code": error.code or str(error.status),
            },
        }
    return orjson.dumps(body)
