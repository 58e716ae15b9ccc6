"""The application under uvicorn: socket, bounds on a connection, signals, drain, exit code."""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import os
import resource
import socket
import time
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nimbed.errors import ConfigurationError
from nimbed_server.app import App
from nimbed_server.http import CONNECTION, new_request_id
from nimbed_server.limits import TimeLimit
from nimbed_server.logging import LOG
from nimbed_server.settings import Settings
from nimbed_server.tracing import traced
from nimbed_server.wire.errors import HttpError, render_error

__all__ = ["Server", "bind", "guarded", "run"]

# Bytes of a head, and what the socket may give beyond them in one piece; nginx takes half.
_MAX_HEAD = 64 * 1024


class Server(uvicorn.Server):
    """uvicorn, but a stop is announced, waited for, and ends with exit code 0."""

    def __init__(self, app: App, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                traced(app),
                http=guarded(settings),
                loop="uvloop",
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
        self._drain_s = settings.drain_s
        self._drain_end = 0.0

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


class _Connection(asyncio.Protocol, asyncio.Transport):
    """A connection with bounds on the head of a request.

    It is the :class:`nimbed_server.http.Connection` of its requests. To the socket it is the
    protocol, to uvicorn's own protocol the transport. By itself uvicorn waits for a head for ever,
    keeps whatever arrives of it in memory, and answers what is not HTTP in plain text.
    """

    def __init__(
        self, settings: Settings, head_time: TimeLimit, *, app_state: dict[str, Any], **others: Any
    ) -> None:
        super().__init__()
        self.receiving_body = self.joins_writes = False
        self._settings = settings
        self._head_time = head_time
        self._protocol = HttpToolsProtocol(app_state={**app_state, CONNECTION: self}, **others)
        self._transport: Any = None
        self._under_way = False
        self._head_bytes = 0  # of a head that is not complete
        self._held = b""
        self._parsing = False
        self._paused = False
        self._error: HttpError | None = None  # why nothing more is read

    # What the socket calls.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._protocol.connection_made(self)
        self._head_time.start(self)

    def data_received(self, data: bytes) -> None:
        if self._error is not None:
            return
        self._parsing = True
        try:
            self._protocol.data_received(data)
        finally:
            self._parsing = False
        if self.receiving_body:
            return
        if self._under_way:
            # Another request before the answer to this one. What follows may wait in the socket.
            self._paused = True
            self._transport.pause_reading()
        elif b"\r\n\r\n" not in data:
            self._count_head(len(data))

    def eof_received(self) -> None:
        self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_time.stop(self)
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    # What uvicorn's protocol calls.

    def write(self, data: Any) -> None:
        if self._parsing:  # only what cannot be parsed is answered before anybody has run
            self._end(HttpError(400, "this is not HTTP/1.1; the connection ends here"))
        elif self.joins_writes:
            self.joins_writes = False
            self._held = data
        elif self._held:
            held, self._held = self._held, b""
            self._transport.write(held + data)
        else:
            self._transport.write(data)

    def close(self) -> None:
        if self._held:  # the application failed between the two
            self.write(b"")
        if not self._parsing:
            self._transport.close()

    def is_closing(self) -> bool:
        return bool(self._transport.is_closing())

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._paused:
            self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    # What the application calls.

    def request_started(self, *, has_body: bool) -> None:
        self._under_way = True
        self.receiving_body = has_body
        self._head_bytes = 0
        self._head_time.stop(self)

    def request_finished(self) -> None:
        self._under_way = self.receiving_body = False
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
        if self._error is not None:
            asyncio.get_running_loop().call_soon(self._say_error)

    # The bounds.

    def timed_out(self) -> None:
        """Give up a head that does not arrive; see :class:`nimbed_server.limits.TimeLimit`."""
        self._transport.close()

    def _count_head(self, size: int) -> None:
        self._head_time.start(self)
        self._head_bytes += size
        if self._head_bytes > _MAX_HEAD:
            asyncio.get_running_loop().call_soon(self._check_head)

    def _check_head(self) -> None:
        # A request that has started by now, whose body these bytes were, has set them to 0.
        if self._head_bytes > _MAX_HEAD:
            self._end(HttpError(431, f"the request's head is larger than {_MAX_HEAD} bytes"))

    def _end(self, error: HttpError) -> None:
        """Read no more; requests that arrived whole before are answered first."""
        if self._error is None:
            self._error = error
            asyncio.get_running_loop().call_soon(self._say_error)

    def _say_error(self) -> None:
        error = self._error
        if error is None or self._transport.is_closing():
            return
        if self._under_way and not self.receiving_body:
            return  # it comes back when that request is finished
        request_id = new_request_id()
        body = render_error(error, request_id=request_id, strict_nim=self._settings.strict_nim)
        head = (
            f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        self._transport.close()


def guarded(settings: Settings) -> type[asyncio.Protocol]:
    """Return the protocol of a server's connections, for ``uvicorn.Config(http=...)``."""
    head_time = TimeLimit(settings.body_timeout_s)

    class Guarded(_Connection):
        def __init__(self, **given: Any) -> None:
            super().__init__(settings, head_time, **given)

    return Guarded


def bind(settings: Settings) -> socket.socket:
    """Bind the address.

    Raises:
        ConfigurationError: If it cannot be bound; the message says why.
    """
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


def run(app: App, settings: Settings) -> None:
    """Serve until a signal comes; return when everything accepted has been answered.

    If a model is still being read then, the process ends here, with exit code 0.
    """
    _raise_file_limit()
    with bind(settings) as bound:
        host, port = bound.getsockname()[:2]
        scheme = "https" if settings.tls_cert else "http"
        at = f"[{host}]" if ":" in host else host
        names = ", ".join(model.name for model in app.state.models)
        LOG.info("serving %s on %s://%s:%d", names, scheme, at, port)
        if settings.open_to_all:
            LOG.warning("everybody on the network may use this server; give it an --api-key")
        Server(app, settings).run(sockets=[bound])
    if app.loading:
        # A thread within a library can neither be stopped nor, at Python's own end, be survived.
        LOG.info("ending before the model was read")
        logging.shutdown()
        os._exit(0)


def _raise_file_limit() -> None:
    """Allow as many connections as the machine does: idle strangers must not fill the table."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
