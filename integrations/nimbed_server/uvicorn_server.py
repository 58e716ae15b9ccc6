"""The application under uvicorn: socket, bounds on a connection, signals, drain, exit code."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http
import logging
import os
import socket
import stat
import sys
import time
from types import FrameType
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from nimbed.errors import ConfigurationError
from nimbed_server.app import App
from nimbed_server.http import CONNECTION, TimeLimit, new_request_id
from nimbed_server.logging import LOG, traced
from nimbed_server.settings import Settings
from nimbed_server.wire.errors import HttpError, render_error

if sys.platform != "win32":
    import resource

__all__ = ["Server", "bind", "guarded", "run"]

# Bytes of a head, or of trailers, or of what else is not a body's content; nginx takes half.
_MAX_HEAD = 64 * 1024
# Bytes after which the parser is asked whether it holds a whole request. What one read gives may be
# 10,000 requests, each of which takes 2 kB as soon as it is parsed.
_PARSED_AT_ONCE = 16 * 1024


# Bytes that are copied behind their head quicker than two pieces are handed to the system.
_COPIED = 64 * 1024


class Server(uvicorn.Server):
    """uvicorn, but a stop is announced, waited for, and ends with exit code 0."""

    def __init__(self, app: App, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                traced(app),
                http=guarded(settings),
                loop="asyncio" if sys.platform == "win32" else "uvloop",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # who the peer is, only the socket knows
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=max(1, round(settings.drain_s)),
                ssl_certfile=settings.tls_cert,
                ssl_keyfile=settings.tls_key,
            )
        )
        self._app = app
        self._drain_s, self._handshake_s = settings.drain_s, settings.body_timeout_s
        self._drain_end = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; a TLS handshake has the time of a head, where uvicorn names none."""
        loop = asyncio.get_running_loop()
        if self.config.ssl_certfile is not None:
            loop.create_server = functools.partial(  # type: ignore[method-assign]
                loop.create_server, ssl_handshake_timeout=self._handshake_s
            )
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; uvicorn would note the signal, raise it again at the end, and die of it."""
        self.stop()

    def stop(self) -> None:
        """Become unready, finish what was accepted, then end; a second call ends it now."""
        if self._app.state.draining:
            self.force_exit = True
        else:
            LOG.info("stopping; %d s are left for what was taken", max(1, round(self._drain_s)))
            self._drain_end = time.monotonic() + self._drain_s
        self._app.state.draining = True
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether to close the door; until then whoever comes is told that it stops.

        uvicorn asks every tenth of a second.
        """
        if not await super().on_tick(counter):
            return False
        left = self._drain_end - time.monotonic()
        if self._app.busy and left > 0 and not self.force_exit:
            return False
        self.config.timeout_graceful_shutdown = max(1, round(left))
        return True


class _Http(HttpToolsProtocol):
    """uvicorn's protocol, but an upgrade is ignored and a line break is no sign of life.

    By itself uvicorn drops what follows a head that asks for an upgrade, takes the rest of its body
    for the next request, keeps every trailer, and forgets to end a connection that was idle if two
    bytes come that belong to nothing.

    Attributes:
        in_head: Whether a head has begun and is not complete.
        progressed: Set when a head or a message was completed, or a piece of a body came.
    """

    def __init__(self, connection: _Connection, **others: Any) -> None:
        super().__init__(**others)
        self._connection = connection
        self._replaying = False
        self.in_head = self.progressed = False

    @property
    def answering(self) -> bool:
        """Whether a request has arrived whole and is not answered."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not (cycle.response_complete or cycle.more_body)

    def data_received(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._ignore_upgrade()
            except httptools.HttpParserError:
                error = HttpError(400, "this is not HTTP/1.1; the connection ends here")
                self._connection.refuse(error)
                return

    def _ignore_upgrade(self) -> None:
        """Parse what follows as the body of the head that was just parsed.

        The parser cannot be told that nobody upgrades; another one is told the framing alone.
        """
        framing = [
            b"%b: %b\r\n" % header
            for header in self.scope["headers"]
            if header[0] in (b"content-length", b"transfer-encoding")
        ]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._replaying = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
        self._replaying = False

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._replaying:
            return
        self._keep_open()
        super().on_message_begin()
        self.in_head = True
        self._connection.head_began()

    def on_headers_complete(self) -> None:
        if self._replaying:
            return
        self._keep_open()
        self.in_head, self.progressed = False, True
        super().on_headers_complete()
        self.headers = []  # of the request no more: trailers that come here are read by nobody
        self._connection.head_ended()

    def on_body(self, body: bytes) -> None:
        self.progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self.progressed = True
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._connection.answered()

    def timed_out(self) -> None:
        """Give up a head that does not arrive; see :class:`nimbed_server.http.TimeLimit`."""
        self._connection.close()

    def _keep_open(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None


class _Connection(asyncio.Protocol, asyncio.Transport):
    """A connection with bounds on what is read, on what is written, and on every wait.

    It is the :class:`nimbed_server.http.Connection` of its requests. To the socket it is the
    protocol, to uvicorn's own protocol the transport. By itself uvicorn waits for a head for ever
    and for a client that reads no answer, keeps whatever arrives of a head and of pipelined
    requests in memory, and answers what is not HTTP in plain text.
    """

    def __init__(
        self,
        settings: Settings,
        head_time: TimeLimit,
        answer_time: TimeLimit,
        *,
        app_state: dict[str, Any],
        **others: Any,
    ) -> None:
        super().__init__()
        self.joins_writes = False
        self._settings = settings
        self._head_time = head_time
        self._answer_time = answer_time
        self._protocol = _Http(self, app_state={**app_state, CONNECTION: self}, **others)
        self._transport: Any = None
        self._idle_bytes = 0  # since a head, a message or a piece of a body was complete
        self._unparsed = b""  # came while a request was being answered; the socket keeps the rest
        self._held = b""
        self._paused = False
        self._error: HttpError | None = None  # why nothing more is read

    # What the socket calls.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._protocol.connection_made(self)
        self._head_time.start(self._protocol)

    def data_received(self, data: bytes) -> None:
        if self._unparsed:
            self._unparsed += data
        else:
            self._parse(data)

    def eof_received(self) -> None:
        self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_time.stop(self._protocol)
        self._answer_time.stop(self)
        self._unparsed = b""
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._answer_time.start(self)
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if not self._transport.is_closing():
            self._answer_time.stop(self)
        self._protocol.resume_writing()

    # What uvicorn's protocol calls.

    def write(self, data: Any) -> None:
        if self.joins_writes:
            self.joins_writes = False
            self._held = data
        elif self._held:
            held, self._held = self._held, b""
            if len(data) < _COPIED:
                self._transport.write(held + data)
            else:  # at once, too: a head alone wakes the client for nothing
                self._transport.writelines((held, data))
        else:
            self._transport.write(data)

    def close(self) -> None:
        if self._held:  # the application failed between the two
            self.write(b"")
        self._transport.close()
        if self._transport.get_write_buffer_size():  # which to close waits for
            self._answer_time.start(self)

    def is_closing(self) -> bool:
        return bool(self._transport.is_closing())

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._paused:
            self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def head_began(self) -> None:
        """Give a head its time; one that follows a request gets it when that is answered."""
        if not self._protocol.answering:
            self._head_time.start(self._protocol)

    def head_ended(self) -> None:
        """Take note that a head has arrived whole."""
        self._head_time.stop(self._protocol)

    def answered(self) -> None:
        """Go on with what came while the request was being answered."""
        if self._protocol.in_head:
            self._head_time.start(self._protocol)
        if self._unparsed or self._error is not None:
            asyncio.get_running_loop().call_soon(self._read_on)

    def refuse(self, error: HttpError) -> None:
        """Read no more; requests that arrived whole before are answered first."""
        if self._error is None:
            self._error = error
            self._unparsed = b""
            self._pause()
            asyncio.get_running_loop().call_soon(self._read_on)

    # The bounds.

    def timed_out(self) -> None:
        """Give up a client that does not read; see :class:`nimbed_server.http.TimeLimit`."""
        self._transport.abort()

    def _parse(self, data: bytes) -> None:
        """Parse what no request has to wait for, a little at a time: it may be many requests."""
        for start in range(0, len(data), _PARSED_AT_ONCE):
            if self._error is not None:
                return
            if self._protocol.answering:
                self._unparsed = data[start:]
                self._pause()
                return
            part = data[start : start + _PARSED_AT_ONCE]
            self._protocol.progressed = False
            self._protocol.data_received(part)
            self._idle_bytes = 0 if self._protocol.progressed else self._idle_bytes + len(part)
            if self._idle_bytes > _MAX_HEAD:
                self.refuse(
                    HttpError(
                        431,
                        f"the request's head, or the trailers behind its body, are larger than "
                        f"{_MAX_HEAD} bytes",
                    )
                )

    def _pause(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def _read_on(self) -> None:
        if self._protocol.answering or self._protocol.pipeline or self._transport.is_closing():
            return
        if self._error is not None:
            self._say_error(self._error)
            return
        unparsed, self._unparsed = self._unparsed, b""
        self._paused = False
        self._parse(unparsed)
        if not self._paused and not self._protocol.flow.read_paused:
            self._transport.resume_reading()

    def _say_error(self, error: HttpError) -> None:
        request_id = new_request_id()
        body = render_error(error, request_id=request_id, strict_nim=self._settings.strict_nim)
        head = (
            f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        self.close()


def guarded(settings: Settings) -> type[asyncio.Protocol]:
    """Return the protocol of a server's connections, for ``uvicorn.Config(http=...)``."""
    head_time, answer_time = TimeLimit(settings.body_timeout_s), TimeLimit(settings.body_timeout_s)

    class Guarded(_Connection):
        def __init__(self, **given: Any) -> None:
            super().__init__(settings, head_time, answer_time, **given)

    return Guarded


def bind(settings: Settings) -> socket.socket:
    """Bind the address, or the unix socket.

    Raises:
        ConfigurationError: If it cannot be bound; the message says why.
    """
    if settings.uds is not None:
        return _bind_unix(settings.uds)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host, settings.port))
    except OSError as error:
        bound.close()
        raise ConfigurationError(
            f"cannot bind {settings.host}:{settings.port}: {error.strerror or error}; give another "
            f"--host or --port"
        ) from error
    return bound


def _bind_unix(path: str) -> socket.socket:
    """Bind a unix socket; one that is left of a server that was killed is replaced."""
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigurationError("this system has no unix sockets; give --host and --port instead")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                if other.connect_ex(path) == 0:
                    raise ConfigurationError(
                        f"another server listens on {path}; give another --uds"
                    )
            os.unlink(path)
    except FileNotFoundError:
        pass
    except BaseException:
        bound.close()
        raise
    try:
        bound.bind(path)
    except OSError as error:
        bound.close()
        raise ConfigurationError(
            f"cannot bind {path}: {error.strerror or error}; give another --uds"
        ) from error
    return bound


def run(app: App, settings: Settings) -> None:
    """Serve until a signal comes; return when everything accepted has been answered.

    If a model is still being read then, the process ends here, with exit code 0.
    """
    _raise_file_limit()
    with bind(settings) as bound:
        names = ", ".join(model.name for model in app.state.models)
        runtimes = {each.runtime for each in app.state.models.backends.values()} - {None}
        by = f" by {', '.join(sorted(map(str, runtimes)))}" if runtimes else ""
        LOG.info("serving %s%s on %s", names, by, _address(bound, settings))
        if settings.open_to_all:
            LOG.warning("everybody on the network may use this server; give it an --api-key")
        Server(app, settings).run(sockets=[bound])
    if settings.uds is not None:
        with contextlib.suppress(OSError):
            os.unlink(settings.uds)
    if app.loading:
        # A thread within a library can neither be stopped nor, at Python's own end, be survived.
        LOG.info("ending before the model was read")
        logging.shutdown()
        os._exit(0)


def _address(bound: socket.socket, settings: Settings) -> str:
    if settings.uds is not None:
        return f"unix:{settings.uds}"
    host, port = bound.getsockname()[:2]
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{settings.base_path}"


def _raise_file_limit() -> None:
    """Allow as many connections as the machine does: idle strangers must not fill the table."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
