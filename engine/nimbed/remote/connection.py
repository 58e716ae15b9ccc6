"""One request at a time over one kept connection: an httpx transport.

Knows nothing about embeddings. Lives on one event loop. httpx's own transport leaves what follows
an answer in its buffer and takes it for the answer to the next request: vectors of other texts,
and nothing shows it. Here such a connection is not used again. It also reads as much as the kernel
has instead of 64 KiB, which halves what a request costs.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator

import h11
import httpx

__all__ = ["KeptConnection", "OversizedError"]

_MOST_HEADERS = 100 * 1024  # bytes, as httpx has it


class OversizedError(httpx.TransportError):
    """An answer has more bytes than anybody would wait for."""


class KeptConnection(httpx.AsyncBaseTransport):
    """Opens a connection when there is none that can be used for the next request.

    Args:
        context: Certificates to trust, for https.
        connect: Seconds that opening may take.
        idle: Seconds after which an unused connection is not trusted any more.
        most: Bytes of an answer at most.
    """

    def __init__(self, context: ssl.SSLContext, *, connect: float, idle: float, most: int) -> None:
        context.set_alpn_protocols(["http/1.1"])
        self._context = context
        self._connect = connect
        self._idle = idle
        self._most = most
        self._line: _Line | None = None
        self._place: tuple[str, bytes, int | None] | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its answer, read to the end.

        Raises:
            httpx.TransportError: If there is no whole answer.
        """
        place = (request.url.scheme, request.url.raw_host, request.url.port)
        line, oldest = self._line, asyncio.get_running_loop().time() - self._idle
        if line is None or place != self._place or not line.usable(since=oldest):
            await self.aclose()
            line = self._line = await self._opened(request.url)
            self._place = place
        try:
            return await line.exchange(request)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        line, self._line = self._line, None
        if line is not None:
            line.close()

    async def _opened(self, url: httpx.URL) -> _Line:
        secure = url.scheme == "https"
        try:
            async with asyncio.timeout(self._connect):
                _, line = await asyncio.get_running_loop().create_connection(
                    lambda: _Line(self._most),
                    url.raw_host.decode("ascii"),
                    url.port or (443 if secure else 80),
                    ssl=self._context if secure else None,
                    happy_eyeballs_delay=0.25,
                )
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {self._connect:g} seconds") from None
        except (OSError, ssl.CertificateError, UnicodeError) as error:  # the last: a label too long
            raise httpx.ConnectError(str(error)) from None
        return line


class _Line(asyncio.Protocol):
    """Bytes of one connection to answers; h11 reads them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEADERS)
        self._transport: asyncio.Transport
        self._awaited: asyncio.Future[httpx.Response] | None = None
        self._head: h11.Response | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._last_used = 0.0

    def usable(self, *, since: float) -> bool:
        """Whether a request may be sent: open, in use lately, and nothing was said unasked."""
        ready = self._parser.our_state is h11.IDLE and not self._transport.is_closing()
        return ready and self._last_used >= since

    async def exchange(self, request: httpx.Request) -> httpx.Response:
        """Send a request and wait for its answer."""
        loop = asyncio.get_running_loop()
        head = h11.Request(
            method=request.method.encode("ascii"),
            target=request.url.raw_path,
            headers=request.headers.raw,
        )
        try:
            sent = self._parser.send(head) or b""
            if request.content:
                sent += self._parser.send(h11.Data(data=request.content)) or b""
            sent += self._parser.send(h11.EndOfMessage()) or b""
        except h11.LocalProtocolError as error:
            raise httpx.LocalProtocolError(str(error)) from None
        self._head, self._parts, self._size = None, [], 0
        awaited: asyncio.Future[httpx.Response] = loop.create_future()
        self._awaited = awaited
        try:
            self._transport.write(sent)
            return await awaited
        finally:
            self._awaited = None  # whoever was cancelled waits no more
            self._last_used = loop.time()

    def close(self) -> None:
        """Drop the connection."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._last_used = asyncio.get_running_loop().time()

    def data_received(self, data: bytes) -> None:
        self._size += len(data)
        if self._awaited is None:
            self.close()  # an answer to nothing
        elif self._size > self._most:
            self._fail(OversizedError(f"an answer of more than {self._most} bytes"))
        else:
            self._read(data)

    def eof_received(self) -> None:
        if self._awaited is not None and self._head is not None:
            self._read(b"")  # the end of an answer that says no length

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(
            httpx.ReadError(
                str(exc) if exc else "the server closed the connection without a whole answer"
            )
        )

    def _read(self, data: bytes) -> None:
        try:
            self._parser.receive_data(data)
            while True:
                event = self._parser.next_event()
                if isinstance(event, h11.Response):
                    self._head = event
                elif isinstance(event, h11.Data):
                    self._parts.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    return self._answer()
                elif not isinstance(event, h11.InformationalResponse):
                    return None  # needs more
        except h11.RemoteProtocolError as error:
            self._fail(httpx.RemoteProtocolError(str(error)))

    def _answer(self) -> None:
        awaited, self._awaited = self._awaited, None
        if self._head is not None and awaited is not None and not awaited.done():
            headers, parts = self._head.headers.raw_items(), _Parts(self._parts)
            awaited.set_result(
                httpx.Response(self._head.status_code, headers=headers, stream=parts)
            )
        states = (self._parser.our_state, self._parser.their_state)
        if states == (h11.DONE, h11.DONE) and self._parser.trailing_data == (b"", False):
            self._parser.start_next_cycle()
        else:
            self.close()

    def _fail(self, error: httpx.TransportError) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_exception(error)
        self.close()


class _Parts(httpx.AsyncByteStream):
    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part
