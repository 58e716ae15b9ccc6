"""The ASGI application: a path in, a route called, every failure an answer.

A path may stand behind the name of a model, ``/NAME/v1/embeddings``: Weaviate's older clients
choose by their base URL what they cannot choose by a field. Slashes doubled and a ``/v1`` said
twice are what its documentation makes of base URLs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping

import orjson

from nimbed.embedder import Embedder
from nimbed.errors import NimbedError
from nimbed_server.exchange import Disconnected, Exchange, Receive, Scope, Send
from nimbed_server.logs import LOG
from nimbed_server.memory import watch_memory
from nimbed_server.routes import about, embeddings, health, transformers
from nimbed_server.served import Choice
from nimbed_server.settings import Settings
from nimbed_server.state import State
from nimbed_server.wire.refusal import Refusal, refusal_of, render

__all__ = ["App", "create_app"]

Route = Callable[[State, Exchange, Choice | None], Awaitable[None]]

# The last part of a path, its verb and its route; whatever stands before it names a model.
_ROUTES: dict[str, tuple[str, Route]] = {
    "/v1/embeddings": ("POST", embeddings.embeddings),
    "/v1/models": ("GET", about.models),
    "/v1/health/live": ("GET", health.live),
    "/v1/health/ready": ("GET", health.ready),
    "/v1/metrics": ("GET", about.metrics),
    "/metrics": ("GET", about.metrics),
    "/v1/metadata": ("GET", about.metadata),
    "/v1/manifest": ("GET", about.manifest),
    "/v1/license": ("GET", about.licence),
    "/v1/version": ("GET", about.version),
    "/openapi.json": ("GET", about.openapi),
    "/vectors": ("POST", transformers.vectors),
    "/meta": ("GET", transformers.meta),
    "/.well-known/live": ("GET", health.well_known_live),
    "/.well-known/ready": ("GET", health.well_known_ready),
}
# Longest first, so that /v1/metrics is not taken for /metrics behind a model called v1.
_ENDINGS = sorted(_ROUTES, key=len, reverse=True)
_OPEN = (health.live, health.ready, health.well_known_live, health.well_known_ready)


class App:
    """One server as an ASGI 3 application.

    Attributes:
        state: What its routes share.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self._loader: threading.Thread | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's event, as ASGI wants it."""
        if scope["type"] == "http":
            await self._serve(Exchange(scope, receive, send, ending=self.state.ending))
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    async def _serve(self, exchange: Exchange) -> None:
        begin = time.perf_counter()
        ending = ""
        try:
            ending, prefix = _parted(exchange.path)
            route = self._admitted(exchange, ending)  # before a name is looked up for strangers
            await route(self.state, exchange, self._named(prefix) if prefix else None)
        except Disconnected:
            self.state.metrics.tally.refused("disconnected")
            return
        except (Refusal, NimbedError) as error:
            await self._refuse(exchange, refusal_of(error), ending)
        except Exception as error:
            LOG.exception("a request failed", extra={"facts": {"id": exchange.request_id}})
            await self._refuse(exchange, refusal_of(error), ending)
        seconds = time.perf_counter() - begin
        self.state.metrics.tally.answered(ending or "unknown", exchange.answered, seconds)
        self._log(exchange, seconds)

    def _admitted(self, exchange: Exchange, ending: str) -> Route:
        """Return the route of a request that may come in."""
        verb, route = _ROUTES.get(ending, ("", None))
        if route not in _OPEN:
            self.state.gate.check(exchange.header(b"authorization"))
        if route is None:
            raise Refusal(
                404,
                f"there is no {exchange.path[:200]!r}; embeddings are made by POST "
                f"/v1/embeddings, /openapi.json lists the rest",
                code="unknown_path",
            )
        if exchange.method != verb and not (verb == "GET" and exchange.method == "HEAD"):
            allow = "GET, HEAD" if verb == "GET" else verb
            raise Refusal(
                405,
                f"{ending} takes {allow}; got {exchange.method}",
                headers=((b"allow", allow.encode()),),
            )
        return route

    def _named(self, prefix: str) -> Choice | None:
        """Return what the part of a path before its route names, if it names anything."""
        name = f"{prefix.removesuffix('/v1')}/".removeprefix("/t2v/").strip("/")
        return self.state.served.find(name) if name else None

    async def _refuse(self, exchange: Exchange, refusal: Refusal, ending: str) -> None:
        self.state.metrics.tally.refused(refusal.type)
        if exchange.answered:
            return
        if ending == "/vectors":
            body = orjson.dumps({"error": refusal.message})
        else:
            body = render(
                refusal,
                request_id=exchange.request_id,
                strict_nim=self.state.settings.strict_nim,
            )
        await exchange.answer(refusal.status, body, headers=refusal.all_headers())

    def _log(self, exchange: Exchange, seconds: float) -> None:
        status = exchange.answered
        level = 30 if status >= 500 else 20 if status >= 400 else 10
        if not LOG.isEnabledFor(level):
            return
        facts = {
            "status": status,
            "ms": round(seconds * 1000, 1),
            "client": exchange.client,
            "id": exchange.request_id,
        }
        # Escaped: a path may hold line breaks, which would forge lines of the log.
        path = exchange.path[:200].encode("unicode_escape").decode()
        LOG.log(level, "%s %s", exchange.method, path, extra={"facts": facts})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                # In the background: probes must be answered while gigabytes are read.
                self._loader = threading.Thread(target=self.load, daemon=True)
                self._loader.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def load(self) -> None:
        """Read every model; what fails is said by the readiness probe and in the log."""
        for name, lane in self.state.served.lanes.items():
            begin = time.perf_counter()
            try:
                lane.start()
            except Exception as error:
                self.state.failure = f"{name} cannot be loaded: {error}"
                LOG.error(self.state.failure)
                return
            facts = {"seconds": round(time.perf_counter() - begin, 2)}
            LOG.info("%s is ready", name, extra={"facts": facts})
        watch_memory(self.state.metrics)

    @property
    def loading(self) -> bool:
        """Whether a model is being read now."""
        return self._loader is not None and self._loader.is_alive()

    async def close(self) -> None:
        """Finish what waits and release the models; one that is still being read is left."""
        self.state.draining = True
        for lane in self.state.served.lanes.values():
            if lane.ready:
                await asyncio.to_thread(lane.close)


def create_app(embedders: Mapping[str, Embedder], settings: Settings | None = None) -> App:
    """Return the ASGI application for some embedders.

    Args:
        embedders: Served names and their embedders; the first is the default.
        settings: How the server behaves; None for the defaults.

    Raises:
        ConfigurationError: If names or aliases contradict each other.
    """
    return App(State(embedders, settings or Settings()))


def _parted(path: str) -> tuple[str, str]:
    """Return the route of a path, empty if there is none, and what stands before it."""
    path = path.rstrip("/")
    if path in _ROUTES:
        return path, ""
    for ending in _ENDINGS:
        if path.endswith(ending):
            return ending, path.removesuffix(ending)
    return "", ""
