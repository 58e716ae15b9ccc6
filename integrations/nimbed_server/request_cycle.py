"""One request of a connection and its answer, as ASGI's ``receive`` and ``send``."""

from __future__ import annotations

import asyncio
import http
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nimbed_server.http_connection import Connection

__all__ = ["STATUS_LINES", "RequestCycle"]

# Bytes that are copied behind their head quicker than two pieces are handed to the system.
_COPIED = 64 * 1024
#: The first line of an answer, by its status.
STATUS_LINES = {
    each.value: b"HTTP/1.1 %d %b\r\n" % (each.value, each.phrase.encode())
    for each in http.HTTPStatus
}
# Headers that say nothing of how an answer is framed, and whose names need no look.
_PLAIN = frozenset(
    {
        *(b"content-type", b"date", b"retry-after", b"server-timing", b"vary", b"x-request-id"),
        *(b"x-nimbed-encoding-format", b"x-nimbed-input-type", b"x-nimbed-truncate"),
        b"x-nimbed-truncated",
    }
)
# What the name of another may hold (RFC 9110, 5.6.2).
_IN_NAME = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Changes a head that holds control characters other than tabs and the ends of its lines.
_CLEANED = bytes(
    byte if byte in b"\t\r\n" or 32 <= byte != 127 else ord("?") for byte in range(256)
)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_FAILED = (
    b"Internal Server Error",
    [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"21"),
        (b"connection", b"close"),
    ],
)


class RequestCycle:
    """One request and its answer; its methods are ASGI's ``receive`` and ``send``.

    Attributes:
        scope: ASGI's.
        more_body: Whether more of its body will come.
        complete: Whether the whole answer is written.
        gone: Whether its client is.
        keep_alive: Whether the connection outlives it.
        awaits_continue: Whether its client sends the body when it is told to.
        task: What runs the application for it.
    """

    __slots__ = (
        *("awaits_continue", "complete", "gone", "keep_alive", "more_body", "scope", "task"),
        *("_body", "_chunked", "_connection", "_event", "_head", "_left", "_news", "_started"),
    )

    def __init__(
        self, connection: Connection, scope: dict[str, Any], *, keep_alive: bool, expects: bool
    ) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.awaits_continue = expects
        self.task: asyncio.Task[None] | None = None
        self.more_body = True
        self.complete = self.gone = False
        self._connection = connection
        self._body: bytes | bytearray = b""
        self._news = False  # since the application was last told
        self._event: asyncio.Event | None = None  # made where somebody has to wait
        self._started = self._chunked = False
        # It goes out with what is behind it: alone it wakes the client for nothing.
        self._head = b""
        self._left = 0  # bytes of the answer that are announced and not written

    def feed(self, body: bytes) -> int:
        """Take a piece of the body; return the bytes that the application has not read."""
        if not self._body:
            self._body = body
        else:  # of which there may be thousands, a byte each
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body
        self.wake()
        return len(self._body)

    def wake(self) -> None:
        """Tell the application that something has happened."""
        self._news = True
        if self._event is not None:
            self._event.set()

    async def receive(self) -> dict[str, Any]:
        """Return the next event of the request."""
        if self.awaits_continue:
            self.awaits_continue = False
            self._connection.write(_CONTINUE)
        if not (self.gone or self.complete):
            self._connection.read_body()
            while not self._news:
                if self._event is None:
                    self._event = asyncio.Event()
                await self._event.wait()
            self._news = False
            if self._event is not None:
                self._event.clear()
        if self.gone or self.complete:
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), b""
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Any) -> None:
        """Take an event of the answer.

        Raises:
            RuntimeError: If it is out of order, or is no HTTP.
        """
        if self._connection.full and not self.gone:
            await self._connection.drained()
        if self.gone:
            return
        kind = message["type"]
        if not self._started:
            if kind != "http.response.start":
                raise RuntimeError(f"an answer begins with http.response.start; got {kind}")
            self._head = self._rendered(message["status"], message.get("headers", ()))
            self._started, self.awaits_continue = True, False
        elif self.complete or kind != "http.response.body":
            raise RuntimeError(
                f"{kind} has no place {'behind' if self.complete else 'in'} an answer"
            )
        else:
            self._send_body(message.get("body", b""), more=message.get("more_body", False))

    def fail(self) -> None:
        """End an answer that is not complete, since the application failed or has left it so."""
        if self.gone:
            return
        if self._started and not self._head:  # half of it is written
            self._connection.close()
            return
        body, headers = _FAILED
        self._chunked = False
        self._head = self._rendered(500, headers)
        self._started = True
        self._send_body(body, more=False)

    def _rendered(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Return the head of an answer, and note how its body is framed."""
        lines = [STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        framed = closes = False
        for name, value in (*self._connection.default_headers, *headers):
            lines.append(b"%b: %b\r\n" % (name, value))
            if name in _PLAIN:
                continue
            if not name or name.translate(None, _IN_NAME):
                raise RuntimeError("the name of a header holds what no name may")
            known = name.lower()
            if known == b"content-length":
                self._left, framed = int(value), True
            elif known == b"transfer-encoding":
                self._chunked = framed = value.lower() == b"chunked"
            elif known == b"connection":
                closes = b"close" in value.lower()
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if self.scope["method"] == "HEAD" or status in (204, 304):
            self._left, self._chunked = 0, False
        elif not framed:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n")
        head = b"".join(lines)
        breaks = head.count(b"\n"), head.count(b"\r")
        if breaks != (len(lines), len(lines)) or head.translate(_CLEANED) != head:
            raise RuntimeError("the value of a header holds what no value may")
        return head

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            body = b""
        elif self._chunked:
            piece = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body = piece if more else piece + b"0\r\n\r\n"
        else:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("an answer's body is not as long as its content-length")
        head, self._head = self._head, b""
        if not head:
            self._connection.write(body)
        elif len(body) < _COPIED:
            self._connection.write(head + body)
        else:
            self._connection.write(head, body)
        if not more:
            self.complete = True
            self.wake()
            self._connection.answered(self)
