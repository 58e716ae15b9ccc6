"""The application on a socket: start, signals, drain, exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
from collections.abc import Generator

import uvicorn

from nimbed.errors import ConfigurationError
from nimbed_server.app import App
from nimbed_server.connection import bounded
from nimbed_server.logs import LOG
from nimbed_server.settings import Settings
from nimbed_server.tracing import traced

__all__ = ["Server", "bind", "run"]


class Server(uvicorn.Server):
    """uvicorn, but a stop is announced, waited for, and ends with exit code 0."""

    def __init__(self, app: App, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                traced(app),
                http=bounded(settings),
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

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Take SIGTERM and SIGINT; uvicorn would raise them again at the end, and die of them."""
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        taken: list[signal.Signals] = []
        for number in before:
            # Not in the main thread, as in tests: then nobody signals it.
            with contextlib.suppress(RuntimeError, ValueError):
                loop.add_signal_handler(number, self.stop)
                taken.append(number)
        try:
            yield
        finally:
            for number in taken:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was taken while whoever still comes is told so, then close the door."""
        end = asyncio.get_running_loop().time() + self._graceful
        taken = set(self.server_state.tasks)
        while taken and not self.force_exit:
            left = end - asyncio.get_running_loop().time()
            if left <= 0:
                break
            _, taken = await asyncio.wait(taken, timeout=min(left, 0.1))
        left = end - asyncio.get_running_loop().time()
        self.config.timeout_graceful_shutdown = max(1, round(left))
        await super().shutdown(sockets)

    def stop(self) -> None:
        """Say that it is not ready any more, finish what was taken, then end; twice: end now."""
        if self._app.state.draining:
            self.force_exit = True
        else:
            LOG.info("stopping; %d s are left for what was taken", self._graceful)
        self._app.state.draining = True
        self.should_exit = True

    @property
    def _graceful(self) -> int:
        return self.config.timeout_graceful_shutdown or 0


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
    """Serve until a signal comes; return when everything taken has been answered.

    If a model is still being read then, the process ends here, with exit code 0.
    """
    _many_files()
    with bind(settings) as bound:
        host, port = bound.getsockname()[:2]
        scheme = "https" if settings.tls_cert else "http"
        at = f"[{host}]" if ":" in host else host
        LOG.info(
            "serving %s on %s://%s:%d",
            ", ".join(choice.name for choice in app.state.served.choices),
            scheme,
            at,
            port,
        )
        if settings.open_to_all:
            LOG.warning("everybody on the network may use this server; give it an --api-key")
        Server(app, settings).run(sockets=[bound])
    if app.loading:
        # A thread within a library can neither be stopped nor, at Python's own end, be survived.
        LOG.info("ending before the model was read")
        logging.shutdown()
        os._exit(0)


def _many_files() -> None:
    """Allow as many connections as the machine does: idle strangers must not fill the table."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
