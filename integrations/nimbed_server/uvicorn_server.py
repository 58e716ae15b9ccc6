"""The application under uvicorn: socket, signals, drain, exit code."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import stat
import sys
import time
from types import FrameType

import uvicorn

from nimbed.errors import ConfigurationError
from nimbed_server.app import App
from nimbed_server.http_connection import guarded
from nimbed_server.logging import LOG, traced
from nimbed_server.settings import Settings

if sys.platform != "win32":
    import resource

__all__ = ["Server", "bind", "run"]


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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what was accepted, and tell whoever comes that it stops; then close the door."""
        while self._app.busy and not self.force_exit and time.monotonic() < self._drain_end:
            await self.on_tick(0)  # which keeps the date
            await asyncio.sleep(0.1)
        left = self._drain_end - time.monotonic()
        self.config.timeout_graceful_shutdown = max(1, round(left))
        await super().shutdown(sockets)


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
