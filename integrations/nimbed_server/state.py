"""What every route of one server shares."""

from __future__ import annotations

from collections.abc import Mapping

from nimbed.embedder import Embedder
from nimbed_server.admission import Admission
from nimbed_server.gate import Gate
from nimbed_server.lanes import Lane, lane_for
from nimbed_server.logs import LOG
from nimbed_server.metrics import Metrics
from nimbed_server.patience import Patience
from nimbed_server.served import Served
from nimbed_server.settings import Settings
from nimbed_server.terms import Desk

__all__ = ["State"]

# Clients that were told once which role their texts took; beyond it the oldest may be told again.
_REMEMBERED = 4096
# Bodies that are just being read may fill so many times the limit of one.
_BODIES = 8
# Seconds below which no client has gone yet, and a watch for it would cost more than the answer.
_UNWATCHED = 0.05


class State:
    """Models, names, counters and settings of one server.

    Args:
        embedders: Served names and their models, the default first.
        settings: How it behaves.

    Raises:
        ConfigurationError: If names or aliases contradict each other.
    """

    def __init__(self, embedders: Mapping[str, Embedder], settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        lanes: dict[str, Lane] = {}
        for name, embedder in embedders.items():
            lanes[name] = lane_for(
                embedder,
                self.metrics.tally.lane(name),
                max_items=settings.max_queue,
                max_tokens=settings.max_queue_tokens,
                max_wait=settings.max_wait_ms / 1000,
            )
            self._watch(name, lanes[name])
        self.served = Served(lanes, settings.aliases)
        self.desk = Desk(self.served, settings)
        self.gate = Gate(settings.api_keys, requests_per_minute=settings.requests_per_minute)
        self.bodies = Admission(_BODIES * settings.max_body_bytes, noun="bytes of requests")
        self.reading = Patience(settings.body_timeout_s)
        self.embedding = Patience(_UNWATCHED)
        self.draining = False
        self.failure: str | None = None
        self._told: dict[tuple[str, bytes], None] = {}

    @property
    def ready(self) -> bool:
        """Whether every model is loaded and the server takes requests."""
        return not self.draining and all(lane.ready for lane in self.served.lanes.values())

    def ending(self) -> bool:
        """Return whether the server stops, so that a connection should end with its answer."""
        return self.draining

    def tell_once(self, client: str, agent: bytes, role: str) -> None:
        """Log, once for each client, that its texts came without a role."""
        if (client, agent) in self._told:
            return
        if len(self._told) >= _REMEMBERED:
            del self._told[next(iter(self._told))]
        self._told[client, agent] = None
        LOG.warning(
            "texts came without input_type; they were embedded as %s. Send input_type, put "
            "-query or -passage behind the model's name, or give the server an alias with "
            "input_type=...",
            role.split(";")[0],
            extra={"facts": {"client": client, "agent": agent.decode("latin-1")[:80]}},
        )

    def _watch(self, name: str, lane: Lane) -> None:
        self.metrics.watch(
            name,
            items=lambda: float(lane.state.items),
            tokens=lambda: float(lane.state.tokens),
            ready=lambda: float(lane.ready),
        )
