"""The ASGI application: finds the route of a path, and turns every failure into a response.

A path may stand behind the name of a model, ``/NAME/v1/embeddings``: Weaviate's older clients
choose by their base URL what they cannot choose by a field. Doubled slashes and a repeated ``/v1``
are what its documentation makes of base URLs.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson

from nimbed.embedder import Embedder
from nimbed.errors import ConfigurationError, NimbedError, TooLongError
from nimbed_server.http import ClientDisconnected, Receive, Request, Scope, Send
from nimbed_server.logging import LOG, printable
from nimbed_server.models import ServedModel
from nimbed_server.routes import about, cohere, embeddings, kinds, other_servers
from nimbed_server.settings import PREFIX, Settings
from nimbed_server.state import State
from nimbed_server.wire.errors import HttpError, http_error, render_error

__all__ = ["App", "create_app"]

Route = Callable[[State, Request, ServedModel | None], Awaitable[None]]

# The last part of a path, its verb and its route; whatever stands before it names a model.
_ROUTES: dict[str, tuple[str, Route]] = {
    "/v1/embeddings": ("POST", embeddings.embeddings),
    "/v1/embeddings/kinds": ("POST", kinds.embeddings_of_kinds),
    "/embed_sparse": ("POST", kinds.embed_sparse),
    "/embed_all": ("POST", kinds.embed_all),
    "/v1/embed": ("POST", cohere.embed_v1),
    "/v2/embed": ("POST", cohere.embed_v2),
    "/v1/models": ("GET", about.models),
    "/v1/models/{id}": ("GET", about.model),
    "/health": ("GET", about.ready),
    "/v1/health/live": ("GET", about.live),
    "/v1/health/ready": ("GET", about.ready),
    "/v1/metrics": ("GET", about.metrics),
    "/metrics": ("GET", about.metrics),
    "/v1/metadata": ("GET", about.metadata),
    "/v1/manifest": ("GET", about.manifest),
    "/v1/license": ("GET", about.licence),
    "/v1/version": ("GET", about.version),
    "/info": ("GET", about.info),
    "/openapi.json": ("GET", about.openapi),
    "/docs": ("GET", about.docs),
    "/": ("GET", about.docs),
    "/tokenize": ("POST", other_servers.tokenize),
    "/vectors": ("POST", other_servers.vectors),
    "/meta": ("GET", other_servers.meta),
    "/.well-known/live": ("GET", about.well_known_live),
    "/.well-known/ready": ("GET", about.well_known_ready),
}
# Longest first, so that /v1/metrics is not taken for /metrics behind a model called v1.
_ENDPOINTS = sorted(_ROUTES.keys() - {"/"}, key=len, reverse=True)
_OPEN = (about.live, about.ready, about.well_known_live, about.well_known_ready, about.docs)


class App:
    """One server as an ASGI 3 application.

    Attributes:
        state: What its routes share.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self._under_way = 0
        self._loader: threading.Thread | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's event, as ASGI defines it."""
        if scope["type"] == "http":
            self._under_way += 1
            try:
                await self._serve(Request(scope, receive, send, stopping=self._stopping))
            finally:
                self._under_way -= 1
        elif scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._under_way > 0

    def _stopping(self) -> bool:
        return self.state.draining

    async def _serve(self, request: Request) -> None:
        begin = time.perf_counter()
        endpoint = reason = ""
        try:
            request.check_head()
            request.strip(self.state.settings.base_path, PREFIX)
            if self.state.settings.allow_origins and self.state.origins.admit(request):
                await request.respond(204)
                return
            endpoint, prefix = _split(request.path)
            route = self._route(request, endpoint)  # before a name is looked up for strangers
            model = self._model_in(prefix, request, route) if prefix else None
            await route(self.state, request, model)
        except ClientDisconnected:
            self.state.metrics.failed("disconnected")
            return
        except (HttpError, NimbedError) as error:
            # An error of the engine, or of a server behind this one, may quote a text.
            reason = type(error).__name__
            if isinstance(error, (HttpError, TooLongError)):
                reason = http_error(error).reason
            await self._respond_error(request, http_error(error), endpoint)
        except Exception as error:
            LOG.exception("a request failed", extra={"facts": {"id": request.request_id}})
            await self._respond_error(request, http_error(error), endpoint)
        seconds = time.perf_counter() - begin
        self.state.metrics.answered(endpoint or "unknown", request.status, seconds)
        self._log(request, seconds, reason)

    def _route(self, request: Request, endpoint: str) -> Route:
        """Return the route of a request that may come in."""
        verb, route = _ROUTES.get(endpoint, ("", None))
        metrics = route is about.metrics
        if (
            self.state.auth.needed
            and route not in _OPEN
            and not (metrics and self.state.settings.open_metrics)
        ):
            bare = request.header(b"api-key") or request.header(b"x-api-key")
            self.state.auth.check(request.header(b"authorization"), bare, metrics=metrics)
        if route is None:
            raise _unknown(request)
        if request.method != verb and not (verb == "GET" and request.method == "HEAD"):
            allow = "GET, HEAD" if verb == "GET" else verb
            raise HttpError(
                405,
                f"{endpoint} takes {allow}; got {request.method}",
                headers=((b"allow", allow.encode()),),
            )
        return route

    def _model_in(self, prefix: str, request: Request, route: Route) -> ServedModel | None:
        """Return what the part of a path before its route names, if it names anything."""
        name = f"{prefix.removesuffix('/v1')}/".removeprefix("/t2v/").strip("/")
        if not name:
            return None
        if self.state.auth.needed and route in _OPEN and self.state.models.get(name) is None:
            raise _unknown(request)  # without the names that :meth:`ServedModels.find` lists
        return self.state.models.find(name)

    async def _respond_error(self, request: Request, error: HttpError, endpoint: str) -> None:
        self.state.metrics.failed(error.type)
        if request.status:
            return
        if endpoint == "/vectors":
            body = orjson.dumps({"error": error.message})
        elif endpoint in ("/v1/embed", "/v2/embed"):
            body = orjson.dumps({"message": error.message})
        elif endpoint in ("/embed_sparse", "/embed_all"):
            body = orjson.dumps({"error": error.message, "error_type": error.type})
        else:
            body = render_error(
                error,
                request_id=request.request_id,
                strict_nim=self.state.settings.strict_nim,
            )
        await request.respond(error.status, body, headers=error.all_headers())

    def _log(self, request: Request, seconds: float, reason: str) -> None:
        status = request.status
        level = (
            logging.WARNING if status >= 500 else logging.INFO if status >= 400 else logging.DEBUG
        )
        if not LOG.isEnabledFor(level):
            return
        facts = {
            "status": status,
            "ms": round(seconds * 1000, 1),
            "client": request.client,
            "id": request.request_id,
        }
        if reason:
            facts["reason"] = printable(reason)
        # Escaped: a line break in a path would forge a line of the log, and a blank a fact.
        path = printable(request.path).replace(" ", "%20")
        LOG.log(level, "%s %s", request.method, path, extra={"facts": facts})

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
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
        for name, backend in self.state.models.backends.items():
            begin = time.perf_counter()
            try:
                backend.load()
            except Exception as error:
                self.state.failure = f"{name} cannot be loaded: {error}"
                LOG.error(self.state.failure)
                return
            facts: dict[str, Any] = {"seconds": round(time.perf_counter() - begin, 2)}
            if backend.arithmetic is not None:
                facts["computing"] = f"in {backend.arithmetic}"
            LOG.info("%s is ready", name, extra={"facts": facts})
        try:
            self.state.models.check_kinds()
        except ConfigurationError as error:
            self.state.failure = str(error)
            LOG.error(self.state.failure)
        self.state.metrics.watch_memory()

    @property
    def loading(self) -> bool:
        """Whether a model is being read now."""
        return self._loader is not None and self._loader.is_alive()

    async def close(self) -> None:
        """Finish what waits and release the models; one that is still being read is left."""
        self.state.draining = True
        for backend in self.state.models.backends.values():
            if backend.ready:
                await asyncio.to_thread(backend.close)


def create_app(embedders: Mapping[str, Embedder], settings: Settings | None = None) -> App:
    """Return the ASGI application for some embedders.

    Args:
        embedders: Served names and their embedders; the first is the default.
        settings: How the server behaves; None for the defaults.

    Raises:
        ConfigurationError: If names or aliases contradict each other.
    """
    return App(State(embedders, settings or Settings()))


def _unknown(request: Request) -> HttpError:
    return HttpError(
        404,
        f"there is no {request.path[:200]!r}; embeddings are made by POST /v1/embeddings, "
        f"/openapi.json lists the rest",
        code="unknown_path",
        reason="there is no such path",
    )


def _split(path: str) -> tuple[str, str]:
    """Return the endpoint of a path, empty if there is none, and what stands before it."""
    path = path.rstrip("/") or "/"
    if path in _ROUTES:
        return path, ""
    for endpoint in _ENDPOINTS:
        if path.endswith(endpoint):
            return endpoint, path.removesuffix(endpoint)
    name = path.removeprefix("/v1/models/")
    return ("/v1/models/{id}", name) if name != path else ("", "")
