"""One connection as HTTP/1.1, and its requests as ASGI: what uvicorn listens with.

uvicorn's own protocol waits for a head for ever and for a client that reads no answer, keeps every
trailer and whatever is pipelined, drops what follows an upgrade, and checks each header twice.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from collections import deque
from typing import Any

import httptools
import uvicorn
from uvicorn.server import ServerState

from nimbed_server.http import TimeLimit, new_request_id
from nimbed_server.logging import LOG
from nimbed_server.request_cycle import STATUS_LINES, RequestCycle
from nimbed_server.settings import Settings
from nimbed_server.wire.errors import HttpError, render_error

__all__ = ["Connection", "guarded"]

# Bytes of a head, or of trailers, or of what else is not a body's content; nginx takes half.
_MAX_HEAD = 64 * 1024
# Bytes after which the parser is asked whether it holds a whole request. What one read gives may be
# 10,000 requests, each of which takes 2 kB as soon as it is parsed.
_PARSED_AT_ONCE = 16 * 1024
# Bytes of a body that wait for the application before no more is read.
_UNREAD_BODY = 64 * 1024


class _Unread:
    """A client that reads no answer, for its :class:`nimbed_server.http.TimeLimit`."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def timed_out(self) -> None:
        """Give it up."""
        self._connection.abort()


class Connection(asyncio.Protocol):
    """A connection with bounds on what is read, on what is written, and on every wait.

    An upgrade is ignored, and a line break is no sign of life.

    Args:
        settings: The server's.
        head_time: How long a head may take.
        idle_time: How long nothing may be asked.
        answer_time: How long an answer may go unread.
        config: uvicorn's.
        server_state: uvicorn's: it knows the connections and the tasks that its end waits for.
        app_state: What the application keeps for its requests.
        others: What else uvicorn may say.

    Attributes:
        full: Whether the client reads more slowly than it is written to.
    """

    def __init__(
        self,
        settings: Settings,
        head_time: TimeLimit,
        idle_time: TimeLimit,
        answer_time: TimeLimit,
        *,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        **others: Any,
    ) -> None:
        if not config.loaded:
            config.load()
        self.full = False
        self._settings = settings
        self._head_time, self._idle_time = head_time, idle_time
        self._answer_time, self._unread = answer_time, _Unread(self)
        self._server = server_state
        self._app: Any = config.loaded_app
        self._loop = asyncio.get_running_loop()
        self._scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "root_path": config.root_path,
        }
        self._app_state = app_state
        self._transport: Any = None
        self._writable: asyncio.Event | None = None
        self._parser = self._new_parser()
        self._replaying = False
        # Of the head that is being parsed.
        self._in_head = self._head_timed = False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects = False
        # The last request that was parsed, and those that wait for the answer to one before them.
        self._cycle: RequestCycle | None = None
        self._pipelined: deque[RequestCycle] = deque()
        # What is bounded.
        self._progressed = False  # whether a head, a message or a piece of a body was complete
        self._idle_bytes = 0  # since then
        self._unparsed = b""  # came while a request was being answered; the socket keeps the rest
        self._held = self._crowded = self._paused = False
        self._error: HttpError | None = None  # why nothing more is read

    # What the socket calls.

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport
        self._server.connections.add(self)  # type: ignore[arg-type]
        peer, local = (transport.get_extra_info(name) for name in ("peername", "sockname"))
        self._scope["client"] = peer[:2] if isinstance(peer, tuple) else None
        self._scope["server"] = local[:2] if isinstance(local, tuple) else (local, None)
        self._scope["scheme"] = "https" if transport.get_extra_info("sslcontext") else "http"
        self._time_head()

    def data_received(self, data: bytes) -> None:
        """Parse what came, or keep it until the request before it is answered."""
        if self._unparsed:
            self._unparsed += data
        else:
            self._parse(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the requests under way."""
        self._server.connections.discard(self)
        for limit in (self._head_time, self._idle_time):
            limit.stop(self)
        self._answer_time.stop(self._unread)
        self._unparsed = b""
        for cycle in (*self._pipelined, self._cycle):
            if cycle is not None:
                cycle.gone = not cycle.complete
                cycle.wake()
        self._pipelined.clear()
        self.resume_writing()
        if exc is None:
            self._transport.close()

    def pause_writing(self) -> None:
        """Give a client its time to read."""
        self.full = True
        self._answer_time.start(self._unread)

    def resume_writing(self) -> None:
        """Go on writing."""
        if not self._transport.is_closing():
            self._answer_time.stop(self._unread)
        self.full = False
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    # What uvicorn calls.

    def shutdown(self) -> None:
        """End with the request that is under way, or at once."""
        if self._cycle is None or self._cycle.complete:
            self._transport.close()
        else:
            self._cycle.keep_alive = False

    # What a request calls.

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The date, which uvicorn writes anew every second."""
        return self._server.default_headers

    def write(self, *pieces: bytes) -> None:
        """Write to the client, if it is there."""
        if self._transport.is_closing():
            return
        if len(pieces) == 1:
            self._transport.write(pieces[0])
        else:
            self._transport.writelines(pieces)

    async def drained(self) -> None:
        """Wait until the client has read."""
        while self.full:
            if self._writable is None:
                self._writable = asyncio.Event()
            await self._writable.wait()

    def read_body(self) -> None:
        """Read on, where a body had waited for the application."""
        if self._crowded:
            self._crowded = False
            self._read_or_pause()

    def close(self) -> None:
        """Close when all is written, and the client has read it in time."""
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._answer_time.start(self._unread)

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    def timed_out(self) -> None:
        """Give up a head that does not come, or whoever asks nothing."""
        self.close()

    def answered(self, cycle: RequestCycle) -> None:
        """Go on with what came while a request was being answered."""
        self._server.total_requests += 1
        if not cycle.keep_alive:
            self.close()
        if self._transport.is_closing():
            return
        self.read_body()
        if self._pipelined:
            self._begin(self._pipelined.popleft())
        elif self._in_head:
            self._time_head()
        else:
            self._idle_time.start(self)
        if self._unparsed or self._error is not None:
            self._loop.call_soon(self._read_on)

    def _begin(self, cycle: RequestCycle) -> None:
        task = cycle.task = self._loop.create_task(self._serve(cycle))
        self._server.tasks.add(task)

    async def _serve(self, cycle: RequestCycle) -> None:
        try:
            await self._app(cycle.scope, cycle.receive, cycle.send)
        except (Exception, asyncio.CancelledError):  # cancelled where a stop has lasted too long
            LOG.exception("the application failed")
        if not cycle.complete:
            cycle.fail()
        # Not by a callback, for which the loop would have to turn once more.
        self._server.tasks.discard(cycle.task)

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Begin a head."""
        if self._replaying:
            return
        self._idle_time.stop(self)
        self._in_head, self._expects = True, False
        self._url, self._headers = b"", []

    def on_url(self, url: bytes) -> None:
        """Take a piece of the address."""
        if not self._replaying:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; one that comes behind a body, a trailer, is read by nobody."""
        if self._in_head:
            name = name.lower()
            if name == b"expect":
                self._expects = value.lower() == b"100-continue"
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Begin a request."""
        if self._replaying:
            return
        self._in_head, self._progressed = False, True
        if self._head_timed:
            self._head_timed = False
            self._head_time.stop(self)
        parser, url = self._parser, httptools.parse_url(self._url)
        path, version = url.path.decode("ascii"), parser.get_http_version()
        scope = {
            **self._scope,
            "method": parser.get_method().decode("ascii"),
            "path": self._scope["root_path"]
            + (urllib.parse.unquote(path) if "%" in path else path),
            "raw_path": url.path,
            "query_string": url.query or b"",
            "headers": self._headers,
            "state": self._app_state.copy(),
        }
        if version != "1.1":
            scope["http_version"] = version
        before = self._cycle
        self._cycle = cycle = RequestCycle(
            self,
            scope,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            expects=self._expects,
        )
        if before is None or before.complete:
            self._begin(cycle)
        else:
            self._pipelined.append(cycle)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body; of a request that is answered already nobody wants it."""
        self._progressed = True
        cycle = self._cycle
        assert cycle is not None
        if not cycle.complete and cycle.feed(body) > _UNREAD_BODY:
            self._crowded = True
            self._read_or_pause()

    def on_message_complete(self) -> None:
        """Take note that a request is whole."""
        if self._parser.should_upgrade():
            return  # its body comes yet
        self._progressed = True
        cycle = self._cycle
        assert cycle is not None
        cycle.more_body = False
        if not cycle.complete:
            cycle.wake()

    def _new_parser(self) -> Any:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._ignore_upgrade()
            except httptools.HttpParserError:
                self._refuse(HttpError(400, "this is not HTTP/1.1; the connection ends here"))
                return

    def _ignore_upgrade(self) -> None:
        """Parse what follows as the body of the head that was just parsed.

        The parser cannot be told that nobody upgrades; another one is told the framing alone.
        """
        framing = [
            b"%b: %b\r\n" % header
            for header in self._headers
            if header[0] in (b"content-length", b"transfer-encoding")
        ]
        self._parser = self._new_parser()
        self._replaying = True
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
        self._replaying = False

    # The bounds.

    @property
    def _answering(self) -> bool:
        """Whether a request has arrived whole and is not answered."""
        cycle = self._cycle
        return cycle is not None and not (cycle.complete or cycle.more_body)

    def _time_head(self) -> None:
        self._head_timed = True
        self._head_time.start(self)

    def _parse(self, data: bytes) -> None:
        """Parse what no request has to wait for, a little at a time: it may be many requests."""
        for start in range(0, len(data), _PARSED_AT_ONCE):
            if self._error is not None:
                return
            if self._cycle is not None and self._answering:
                self._unparsed = data[start:]
                self._hold(True)
                return
            part = data[start : start + _PARSED_AT_ONCE] if len(data) > _PARSED_AT_ONCE else data
            self._progressed = False
            self._feed(part)
            self._idle_bytes = 0 if self._progressed else self._idle_bytes + len(part)
            if self._idle_bytes > _MAX_HEAD:
                self._refuse(
                    HttpError(
                        431,
                        f"the request's head, or the trailers behind its body, are larger than "
                        f"{_MAX_HEAD} bytes",
                    )
                )
        if self._in_head and not self._answering:  # one that follows a request has to wait
            self._time_head()

    def _hold(self, held: bool) -> None:
        self._held = held
        self._read_or_pause()

    def _read_or_pause(self) -> None:
        pause = self._held or self._crowded
        if pause != self._paused and not self._transport.is_closing():
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _read_on(self) -> None:
        if self._answering or self._pipelined or self._transport.is_closing():
            return
        if self._error is not None:
            self._say_error(self._error)
            return
        unparsed, self._unparsed = self._unparsed, b""
        self._held = False
        self._parse(unparsed)
        self._read_or_pause()

    def _refuse(self, error: HttpError) -> None:
        """Read no more; requests that arrived whole before are answered first."""
        if self._error is None:
            self._error = error
            self._unparsed = b""
            self._hold(True)
            self._loop.call_soon(self._read_on)

    def _say_error(self, error: HttpError) -> None:
        request_id = new_request_id()
        body = render_error(error, request_id=request_id, strict_nim=self._settings.strict_nim)
        head = (
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.write(STATUS_LINES[error.status] + head.encode() + body)
        self.close()


def guarded(settings: Settings) -> type[asyncio.Protocol]:
    """Return the protocol of a server's connections, for ``uvicorn.Config(http=...)``."""
    head_time, answer_time = TimeLimit(settings.body_timeout_s), TimeLimit(settings.body_timeout_s)
    idle_time = TimeLimit(settings.keep_alive_s)

    class Guarded(Connection):
        def __init__(self, **given: Any) -> None:
            super().__init__(settings, head_time, idle_time, answer_time, **given)

    return Guarded
