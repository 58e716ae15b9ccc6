"""What the routes of one server share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from nimbed.embedder import Embedder
from nimbed.inputs import Input
from nimbed.kinds import EmbeddingKinds
from nimbed.options import KindOptions
from nimbed.scheduling import Timings
from nimbed.spec import InputType
from nimbed_server.auth import Authenticator, Origins
from nimbed_server.backends import Backend, Embedded, backend_for
from nimbed_server.http import CapacityLimit, Request, TimeLimit
from nimbed_server.kinds import first
from nimbed_server.metrics import Metrics
from nimbed_server.models import ServedModel, ServedModels
from nimbed_server.settings import Settings
from nimbed_server.wire.embeddings import RequestReader, Resolved
from nimbed_server.wire.errors import HttpError

__all__ = ["LARGE_ANSWER", "LARGE_BODY", "State", "aside"]

T = TypeVar("T")

#: Bytes beyond which a body is parsed in a thread.
LARGE_BODY = 256 * 1024
#: Numbers beyond which an answer is written in a thread.
LARGE_ANSWER = 128 * 1024

# Bodies that are just being read may fill so many times the limit of one.
_BODIES = 8
# Seconds below which no client has gone yet, and a watch for it would cost more than the answer.
_UNWATCHED = 0.05

_TIMING = "tokenize;dur=%.2f, queue;dur=%.2f, inference;dur=%.2f"


class State:
    """Models, settings, limits and metrics of one server.

    Args:
        embedders: Served names and their models, the default first.
        settings: How it behaves.

    Attributes:
        models: Every name it answers to.
        reader: Reads embeddings requests.
        auth: Who may send them.
        origins: From which web pages.
        metrics: What it did.
        body_room: Bytes of bodies that may be in memory at once.
        body_time: How long a body may take to arrive.
        unwatched: For how long nobody looks whether a client has gone.
        warned: Clients that were told once that they send no role.
        draining: Whether it is stopping.
        failure: Why a model could not be loaded, or does not give what an alias fixes.

    Raises:
        ConfigurationError: If names or aliases contradict each other.
    """

    def __init__(self, embedders: Mapping[str, Embedder], settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        backends: dict[str, Backend] = {}
        for name, embedder in embedders.items():
            backends[name] = backend_for(
                embedder,
                self.metrics.of_model(name),
                max_items=settings.max_queue,
                max_tokens=settings.max_queue_tokens,
                max_wait=settings.max_wait_ms / 1000,
                queries_first=settings.queries_first,
            )
            self._watch(name, backends[name])
        self.models = ServedModels(backends, settings.aliases, sources=settings.models)
        self.reader = RequestReader(self.models, settings)
        self.auth = Authenticator(
            settings.api_keys,
            requests_per_minute=settings.requests_per_minute,
            metrics_key=settings.metrics_key,
        )
        self.origins = Origins(settings.allow_origins)
        self.body_room = CapacityLimit(_BODIES * settings.max_body_bytes, noun="bytes of requests")
        self.body_time = TimeLimit(settings.body_timeout_s)
        self.unwatched = TimeLimit(_UNWATCHED)
        self.warned: dict[tuple[str, bytes], None] = {}
        self.draining = False
        self.failure: str | None = None

    @property
    def ready(self) -> bool:
        """Whether every model is loaded and the server takes requests."""
        loaded = all(backend.ready for backend in self.models.backends.values())
        return loaded and not self.draining and self.failure is None

    async def body(self, request: Request) -> bytes:
        """Read a request's body within the limits; see :meth:`nimbed_server.http.Request.body`."""
        return await request.body(
            limit=self.settings.max_body_bytes, timeout=self.body_time, room=self.body_room
        )

    async def detokenize(
        self, model: ServedModel, ids: Sequence[Sequence[int]], resolved: Resolved
    ) -> list[str]:
        """Return the texts whose token ids a request holds; see :meth:`Backend.detokenize`.

        Raises:
            HttpError: 400 where they are another tokenizer's, 503 where the model takes nothing.
        """
        if self.draining or not model.backend.ready:
            raise self.unavailable(model)
        role = resolved.options.input_type
        return await aside(True, model.backend.detokenize, ids, role)

    async def embed(
        self,
        request: Request,
        model: ServedModel,
        inputs: Sequence[Input],
        resolved: Resolved,
        *,
        roles: Sequence[InputType] | None = None,
        patient: bool = False,
    ) -> Embedded:
        """Embed the inputs of one request, and add what it should know to its headers.

        Args:
            request: The request.
            model: What its model's name stands for.
            inputs: Its inputs.
            resolved: What it comes to.
            roles: The role of each input, where they differ from that of the options.
            patient: Whether the request waits its turn although it is a short query.

        Raises:
            HttpError: 503 where the model takes nothing now.
            ClientDisconnected: If the client goes first.
            NimbedError: If the engine refuses or fails.
        """
        self._begin(request, model, resolved)
        if "dense" not in (model.fixed.kinds or model.backend.kinds):
            raise HttpError(
                400,
                f"{model.name!r} gives {' and '.join(model.kinds)} vectors alone, by POST "
                f"/v1/embeddings/kinds",
                param="model",
            )
        embedded = await model.backend.embed_request(
            request,
            inputs,
            resolved.options,
            roles=roles,
            signs=resolved.signs,
            timeout=self.settings.request_timeout_s,
            unwatched=self.unwatched,
            patient=patient,
        )
        _tell(request, embedded.timings, embedded.truncated)
        return embedded

    async def embed_kinds(
        self,
        request: Request,
        model: ServedModel,
        texts: Sequence[str],
        resolved: Resolved,
        asked: KindOptions,
    ) -> EmbeddingKinds:
        """Embed the texts of one request as several kinds of vectors; see :meth:`embed`.

        Args:
            request: The request.
            model: What its model's name stands for.
            texts: Its texts.
            resolved: What it comes to.
            asked: What it asks of kinds.
        """
        self._begin(request, model, resolved)
        found, timings = await model.backend.embed_kinds_request(
            request,
            texts,
            resolved.options,
            asked,
            timeout=self.settings.request_timeout_s,
            unwatched=self.unwatched,
        )
        _tell(request, timings if timings.inference else None, first(found).truncated)
        return found

    def _begin(self, request: Request, model: ServedModel, resolved: Resolved) -> None:
        for name, value in resolved.headers:
            request.add_header(name, value)
        if self.draining or not model.backend.ready:
            raise self.unavailable(model)

    def unavailable(self, model: ServedModel) -> HttpError:
        """Return why a model takes no inputs now."""
        if self.draining:
            return HttpError(503, "the server is stopping", code="stopping", retry_after=1.0)
        return HttpError(
            503,
            self.failure or f"{model.name} is still being loaded",
            code="not_ready",
            retry_after=1.0,
        )

    def _watch(self, name: str, backend: Backend) -> None:
        self.metrics.watch_queue(
            name,
            items=lambda: float(backend.queue.items),
            tokens=lambda: float(backend.queue.tokens),
            ready=lambda: float(backend.ready),
        )


def _tell(request: Request, spent: Timings | None, truncated: Sequence[int]) -> None:
    """Say in headers of the answer where its time went, and which inputs were cut."""
    if spent is not None:
        milliseconds = 1e3 * spent.tokenizing, 1e3 * spent.queueing, 1e3 * spent.inference
        request.add_header(b"server-timing", _TIMING % milliseconds)
    if truncated:
        request.add_header(b"x-nimbed-truncated", ",".join(map(str, truncated[:100])))


async def aside(large: bool, function: Callable[..., T], *args: object) -> T:
    """Call a function: what is large in a thread, so that others have their turn."""
    return await asyncio.to_thread(function, *args) if large else function(*args)
