"""What the routes of one server share."""

from __future__ import annotations

from collections.abc import Mapping

from nimbed.embedder import Embedder
from nimbed_server.auth import Authenticator
from nimbed_server.backends import Backend, backend_for
from nimbed_server.limits import CapacityLimit, TimeLimit
from nimbed_server.metrics import Metrics
from nimbed_server.models import ServedModel, ServedModels
from nimbed_server.settings import Settings
from nimbed_server.wire.errors import HttpError
from nimbed_server.wire.request import RequestReader

__all__ = ["State"]

# Bodies that are just being read may fill so many times the limit of one.
_BODIES = 8
# Seconds below which no client has gone yet, and a watch for it would cost more than the answer.
_UNWATCHED = 0.05


class State:
    """Models, settings, limits and metrics of one server.

    Args:
        embedders: Served names and their models, the default first.
        settings: How it behaves.

    Attributes:
        models: Every name it answers to.
        reader: Reads embeddings requests.
        auth: Who may send them.
        metrics: What it did.
        body_room: Bytes of bodies that may be in memory at once.
        body_time: How long a body may take to arrive.
        unwatched: For how long nobody looks whether a client has gone.
        warned: Clients that were told once that they send no role.
        draining: Whether it is stopping.
        failure: Why a model could not be loaded.

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
            )
            self._watch(name, backends[name])
        self.models = ServedModels(backends, settings.aliases, sources=settings.models)
        self.reader = RequestReader(self.models, settings)
        self.auth = Authenticator(
            settings.api_keys, requests_per_minute=settings.requests_per_minute
        )
        self.body_room = CapacityLimit(_BODIES * settings.max_body_bytes, noun="bytes of requests")
        self.body_time = TimeLimit(settings.body_timeout_s)
        self.unwatched = TimeLimit(_UNWATCHED)
        self.warned: dict[tuple[str, bytes], None] = {}
        self.draining = False
        self.failure: str | None = None

    @property
    def ready(self) -> bool:
        """Whether every model is loaded and the server takes requests."""
        return not self.draining and all(backend.ready for backend in self.models.backends.values())

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
