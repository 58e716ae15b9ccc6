"""One HTTP request and its answer, over bare ASGI.

No framework stands between: measured on this work (tests/benchmarks/RESULTS.md), every layer
costs as much as the server itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from nimbed_server.admission import Admission
from nimbed_server.patience import Patience
from nimbed_server.wire.refusal import Refusal

__all__ = ["Disconnected", "Exchange", "Receive", "Scope", "Send", "fresh_id"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_JSON = b"application/json"
# A random number a process and a counter: one an answer costs as much as parsing its question.
_PROCESS = uuid.uuid4().hex[:16]
_NUMBERS = itertools.count()
# Seconds for which the rest of a body that is too large is still read, and thrown away: a client
# that sends all before it reads would find its connection reset, and no reason.
_LINGER = 5.0
# What may come back in a header and go into a log as it is.
_PLAIN_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}\Z")


class Disconnected(Exception):
    """The client has gone; nobody waits for an answer."""


class Exchange:
    """What a route reads from and answers to.

    Args:
        scope: ASGI's.
        receive: ASGI's.
        send: ASGI's.
        ending: Whether the server stops, so that the connection should end with this answer.

    Attributes:
        method: The verb; HEAD is GET without a body.
        path: The path, slashes doubled by clients made single again.
        request_id: The client's, if it sent a plain one.
        client: Address of the peer.
        answered: The status sent, or 0.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, ending: Callable[[], bool]
    ) -> None:
        self.method: str = scope["method"]
        path: str = scope["path"]
        self.path = re.sub("/{2,}", "/", path) if "//" in path else path
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self._ending = ending
        peer = scope.get("client")
        self.client: str = peer[0] if peer else ""
        sent = self._headers.get(b"x-request-id", b"")
        self.request_id = sent.decode() if sent and _PLAIN_ID.match(sent) else fresh_id()
        self.answered = 0
        self._reader: asyncio.Task[Any] | None = None
        self._too_much = False
        self._extra: list[tuple[bytes, bytes]] = []

    def header(self, name: bytes) -> bytes | None:
        """Return a request header by its lower-case name; of several the last."""
        return self._headers.get(name)

    def disclose(self, name: bytes, value: str) -> None:
        """Add a header to the answer, whatever it will be."""
        self._extra.append((name, value.encode("latin-1", "replace")))

    async def body(self, *, limit: int, patience: Patience, room: Admission) -> bytes:
        """Read the request's body.

        Args:
            limit: Bytes it may hold.
            patience: How long it may take to come.
            room: Bytes of all bodies that may be in memory at once.

        Raises:
            Refusal: 413 if it is too large, before it is read where its length is said; 408 if it
                does not come; 415 if it is compressed.
            Disconnected: If the client goes before it is whole.
        """
        length = self._headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            raise self._too_large(limit)
        encoding = self._headers.get(b"content-encoding", b"identity").lower()
        if encoding != b"identity":
            raise Refusal(415, "a compressed body is not read; send it as it is")
        reader = self._reader = asyncio.current_task()
        patience.begin(self)
        try:
            message = await self._receive()
            if message.get("more_body"):
                return await self._gathered(message, limit, room)
        except asyncio.CancelledError:
            if self._reader is not None or reader is None or reader.uncancel():
                raise
            raise Refusal(
                408,
                "the body did not come in time; send it faster, or in several requests",
                headers=((b"connection", b"close"),),
            ) from None
        finally:
            patience.end(self)
        whole = _piece(message)
        if len(whole) > limit:
            raise self._too_large(limit)
        return whole

    def late(self) -> None:
        """Give up a body that does not come; see :class:`nimbed_server.patience.Patience`."""
        reader, self._reader = self._reader, None
        assert reader is not None
        reader.cancel()

    async def gone(self) -> None:
        """Return when the client has closed the connection; only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(
        self,
        status: int,
        body: bytes = b"",
        *,
        kind: bytes = _JSON,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Send the whole answer."""
        self.answered = status
        lines = [(b"x-request-id", self.request_id.encode()), *self._extra, *headers]
        if self._ending():
            # Said, so that a client sends its next request to somebody who will answer it.
            lines.append((b"connection", b"close"))
        if status != 204:
            lines.append((b"content-length", b"%d" % len(body)))
        if body:
            lines.append((b"content-type", kind))
        await self._send({"type": "http.response.start", "status": status, "headers": lines})
        message = {"type": "http.response.body", "body": b"" if self.method == "HEAD" else body}
        if not self._too_much:
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        await self._discard()
        await self._send({"type": "http.response.body"})

    async def _gathered(
        self, message: MutableMapping[str, Any], limit: int, room: Admission
    ) -> bytes:
        chunks: list[bytes] = []
        total = 0
        try:
            while True:
                chunk = _piece(message)
                if total + len(chunk) > limit:
                    raise self._too_large(limit)
                room.take(len(chunk))
                total += len(chunk)
                chunks.append(chunk)
                if not message.get("more_body"):
                    return b"".join(chunks)
                message = await self._receive()
        finally:
            room.give(total)

    def _too_large(self, limit: int) -> Refusal:
        self._too_much = True
        return Refusal(
            413,
            f"the body is larger than {limit} bytes; send fewer inputs a request",
            headers=((b"connection", b"close"),),
        )

    async def _discard(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while (await self._receive()).get("more_body"):
                    pass


def _piece(message: MutableMapping[str, Any]) -> bytes:
    if message["type"] == "http.disconnect":
        raise Disconnected
    body: bytes = message.get("body", b"")
    return body


def fresh_id() -> str:
    """Return an id for a request that came without one."""
    return f"{_PROCESS}-{next(_NUMBERS):x}"
