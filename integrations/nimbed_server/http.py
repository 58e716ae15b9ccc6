"""One HTTP request and its response, over bare ASGI, and the limits on both.

There is no framework in between: every layer that was measured (tests/benchmarks/RESULTS.md) costs
as much as the server itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import uuid
import zlib
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol

from nimbed_server.wire.errors import HttpError

__all__ = [
    "CapacityLimit",
    "ClientDisconnected",
    "Receive",
    "Request",
    "Scope",
    "Send",
    "TimeLimit",
    "Timed",
    "new_request_id",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_JSON = b"application/json"
_CLOSE = ((b"connection", b"close"),)
# Digits of a Content-Length: 2**63 has 19, and int() raises where there are more than 4300.
_MAX_DIGITS = 19
# A random prefix for the process and a counter: a UUID for each request takes as long as parsing
# its body.
_PROCESS = uuid.uuid4().hex[:16]
_NUMBERS = itertools.count()
# Seconds for which a body that nobody wants is still read, and thrown away: a client that sends
# everything before it reads would find its connection reset, and no reason.
_LINGER = 5.0
# Bytes that are decompressed before anybody else has a turn.
_PIECE = 256 * 1024
# A client's request id that is safe in a header and in a log.
_SAFE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}\Z")


class ClientDisconnected(Exception):
    """The client has gone; nobody waits for an answer."""


class Request:
    """What a route reads from and responds to.

    Args:
        scope: ASGI's.
        receive: ASGI's.
        send: ASGI's.
        stopping: Whether the server stops, so that the connection should end with this response.

    Attributes:
        method: The verb; HEAD is GET without a body.
        path: The path, slashes doubled by clients made single again.
        base: What stands before the paths that clients see; see :meth:`strip`.
        request_id: The client's, if it is safe to repeat, else a new one.
        client: Address of the peer.
        status: The status sent, or 0.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, stopping: Callable[[], bool]
    ) -> None:
        self.method: str = scope["method"]
        path: str = scope["path"]
        self.path = re.sub("/{2,}", "/", path) if "//" in path else path
        self.base = ""
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._scope = scope
        self._receive = receive
        self._send = send
        self._stopping = stopping
        peer = scope.get("client")
        self.client: str = peer[0] if peer else ""
        sent = self._headers.get(b"x-request-id", b"")
        self.request_id = sent.decode() if sent and _SAFE_ID.match(sent) else new_request_id()
        self.status = 0
        self._body_unread = (
            self._headers.get(b"content-length", b"0") != b"0"
            or b"transfer-encoding" in self._headers
        )
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._reading = self._gone = False
        self._extra: list[tuple[bytes, bytes]] = []

    def check_head(self) -> None:
        """Refuse a head that two readers would understand differently.

        Raises:
            HttpError: 400 without exactly one Host, which HTTP/1.1 wants, or with a length that is
                no number of a sane size; the connection ends with it.
        """
        hosts = int(b"host" in self._headers)
        if len(self._headers) < len(self._scope["headers"]):
            hosts = sum(name == b"host" for name, _ in self._scope["headers"])
        if hosts != 1 and (hosts or self._scope.get("http_version") == "1.1"):
            raise HttpError(400, f"a request has one Host header; got {hosts}", headers=_CLOSE)
        length = self._headers.get(b"content-length", b"0")
        if len(length) > _MAX_DIGITS or not length.isdigit():
            raise HttpError(
                400,
                f"Content-Length must be a number of at most {_MAX_DIGITS} digits; got "
                f"{len(length)} characters",
                headers=_CLOSE,
            )

    def strip(self, base_path: str, allowed: re.Pattern[str]) -> None:
        """Take away what a proxy, or a server around this one, put before the path.

        A proxy that takes it away itself says so in ``X-Forwarded-Prefix``.

        Args:
            base_path: As the settings have it.
            allowed: What a prefix may look like.
        """
        sent = self._headers.get(b"x-forwarded-prefix")
        forwarded = sent.decode("latin-1").rstrip("/") if sent else ""
        if forwarded and not allowed.fullmatch(forwarded):
            forwarded = ""
        mounted: str = self._scope.get("root_path") or ""
        if not (forwarded or mounted or base_path):
            return
        for prefix in (mounted, forwarded, base_path):
            if prefix and (self.path == prefix or self.path.startswith(f"{prefix}/")):
                self.path = self.path.removeprefix(prefix) or "/"
        self.base = forwarded or base_path or mounted

    def header(self, name: bytes) -> bytes | None:
        """Return a request header by its lower-case name; of several the last."""
        return self._headers.get(name)

    def add_header(self, name: bytes, value: str) -> None:
        """Add a header to the response, whatever it will be."""
        self._extra.append((name, value.encode("latin-1", "replace")))

    async def body(self, *, limit: int, timeout: TimeLimit, room: CapacityLimit) -> bytes:
        """Read the request's body.

        Args:
            limit: Bytes it may hold.
            timeout: How long it may take to arrive.
            room: Bytes of all bodies that may be in memory at once.

        Raises:
            HttpError: 413 if it is too large, before it is read where its length is declared, or
                decompressed where it is compressed; 408 if it does not arrive in time; 415 if it
                is compressed by anything but gzip, 400 if it is not gzip then.
            ClientDisconnected: If the client goes before it is complete.
        """
        if int(self._headers.get(b"content-length", b"0")) > limit:
            raise _too_large(limit)
        encoding = self._headers.get(b"content-encoding", b"identity").lower()
        if encoding not in (b"identity", b"gzip"):
            raise HttpError(415, "a body that is not compressed, or by gzip, is read; no other")
        self._task, self._reading = asyncio.current_task(), True
        timeout.start(self)
        try:
            message = await self._receive()
            if message.get("more_body"):
                body = await self._gather(message, limit, room)
            else:
                body = _chunk(message)
        except asyncio.CancelledError:
            if self._reading or self._task is None or self._task.uncancel():
                raise
            self._body_unread = False  # it was waited for long enough
            raise HttpError(
                408,
                "the body did not come in time; send it faster, or in several requests",
                headers=_CLOSE,
            ) from None
        finally:
            timeout.stop(self)
        self._reading = self._body_unread = False
        if len(body) > limit:
            raise _too_large(limit)
        return await _decompressed(body, limit, room) if encoding == b"gzip" else body

    def watch(self, unwatched: TimeLimit) -> None:
        """Cancel this task if the client goes, once the work has lasted for some time.

        Only after the body was read; what is watched ends with :meth:`unwatch`.
        """
        unwatched.start(self)

    def unwatch(self, unwatched: TimeLimit) -> None:
        """Watch no more.

        Raises:
            ClientDisconnected: If the client has gone, which is why the work was cancelled.
        """
        unwatched.stop(self)
        if self._watcher is None:
            return
        self._watcher.cancel()
        if self._gone and self._task is not None:
            self._task.uncancel()
            raise ClientDisconnected from None

    def timed_out(self) -> None:
        """Give up a body that does not arrive, or begin to watch; see :class:`TimeLimit`."""
        if self._reading:
            self._reading = False
            assert self._task is not None
            self._task.cancel()
        else:
            self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        assert self._task is not None
        self._task.cancel()

    async def respond(
        self,
        status: int,
        body: bytes = b"",
        *,
        content_type: bytes = _JSON,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Send the whole response."""
        self.status = status
        lines = [(b"x-request-id", self.request_id.encode()), *self._extra, *headers]
        if self._stopping():
            # Said, so that a client sends its next request to somebody who will answer it.
            lines.append((b"connection", b"close"))
        if status != 204:
            lines.append((b"content-length", b"%d" % len(body)))
        if body:
            lines.append((b"content-type", content_type))
        await self._send({"type": "http.response.start", "status": status, "headers": lines})
        message = {"type": "http.response.body", "body": b"" if self.method == "HEAD" else body}
        if not self._body_unread:
            await self._send(message)
            return
        # The response goes out whole; what ends later is only its end.
        await self._send({**message, "more_body": True})
        await self._discard_body()
        await self._send({"type": "http.response.body"})

    async def _gather(
        self, message: MutableMapping[str, Any], limit: int, room: CapacityLimit
    ) -> bytes:
        chunks: list[bytes] = []
        total = 0
        try:
            while True:
                chunk = _chunk(message)
                if total + len(chunk) > limit:
                    raise _too_large(limit)
                room.acquire(len(chunk))
                total += len(chunk)
                chunks.append(chunk)
                if not message.get("more_body"):
                    return b"".join(chunks)
                message = await self._receive()
        finally:
            room.release(total)

    async def _discard_body(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while (await self._receive()).get("more_body"):
                    pass


def new_request_id() -> str:
    """Return an id for a request that came without one."""
    return f"{_PROCESS}-{next(_NUMBERS):x}"


def _chunk(message: MutableMapping[str, Any]) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    body: bytes = message.get("body", b"")
    return body


async def _decompressed(body: bytes, limit: int, room: CapacityLimit) -> bytes:
    """Return what gzip made a body of, a piece at a time: 64 kB may become 64 MB."""
    inflater, pieces, total, read = zlib.decompressobj(wbits=31), [], 0, 0
    try:
        for start in range(0, len(body), _PIECE):
            part, piece = body[start : start + _PIECE], b"more"
            while (part or piece) and not inflater.eof:
                piece = inflater.decompress(part, _PIECE)
                part = inflater.unconsumed_tail
                if total + len(piece) > limit:
                    raise _too_large(limit)
                room.acquire(len(piece))
                total += len(piece)
                pieces.append(piece)
                await asyncio.sleep(0)  # others' turn
            read = start + _PIECE
    except zlib.error:
        raise HttpError(400, "the body is said to be gzip and is not") from None
    finally:
        room.release(total)
    if not inflater.eof or inflater.unused_data or read < len(body):
        raise HttpError(400, "the body is not one whole gzip member")
    return b"".join(pieces)


def _too_large(limit: int) -> HttpError:
    return HttpError(
        413,
        f"the body is larger than {limit} bytes; send fewer inputs a request",
        headers=_CLOSE,
    )


class CapacityLimit:
    """A bounded count, checked before anything is spent; used from the event loop alone.

    Args:
        most: How much may be under way.
        noun: What is counted, for messages.
        drain_rate: How many are finished a second, for ``Retry-After``; 0 where it is unknown.

    Attributes:
        used: How much is under way.
    """

    def __init__(
        self, most: int, *, noun: str = "inputs", drain_rate: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.most = most
        self.used = 0
        self._noun = noun
        self._drain_rate = drain_rate

    def acquire(self, count: int, *, kept_free: int = 0) -> None:
        """Admit ``count`` more; a request that is alone is admitted whatever its size.

        Args:
            count: How many.
            kept_free: How much of the limit is not for these.

        Raises:
            HttpError: With status 503, and the seconds after which there will be room.
        """
        if self.used and self.used + count > self.most - kept_free:
            rate = self._drain_rate()
            surplus = self.used + count - self.most + kept_free
            raise HttpError(
                503,
                f"the queue is full: {self.used} {self._noun} are under way, {self.most} may be; "
                f"try again later",
                code="queue_full",
                retry_after=min(60.0, max(0.05, surplus / rate)) if rate else 1.0,
            )
        self.used += count

    def release(self, count: int) -> None:
        """Give back what :meth:`acquire` took."""
        self.used -= count


class Timed(Protocol):
    """Something that has a limited time."""

    def timed_out(self) -> None:
        """React to the end of that time."""
        ...


class TimeLimit:
    """Tells whatever lasts longer than a fixed time; used from one event loop at a time.

    One timer serves all, since a timer for each request would cost as much as validating it. Their
    time is the same, so they end in the order in which they started, and only the oldest need be
    looked at.

    Args:
        seconds: How long anything may last.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends: dict[Timed, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, timed: Timed) -> None:
        """Start the time of something; where it has started before, that moment counts."""
        loop = self._loop  # to ask which one runs is a call of the system
        if self._timer is None or loop is None or not loop.is_running():
            loop = self._loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, self._check)
        self._ends.setdefault(timed, loop.time() + self._seconds)

    def stop(self, timed: Timed) -> None:
        """Say that something has ended in time, or that its time never started."""
        self._ends.pop(timed, None)

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        while self._ends:
            oldest, end = next(iter(self._ends.items()))
            if end > now:
                self._timer = loop.call_at(end, self._check)
                return
            del self._ends[oldest]
            oldest.timed_out()
