"""What can be seen from outside, in Prometheus' format.

The names are ours; beside them stand the counters of Triton that dashboards made for NIM read.
No label holds anything a client can choose freely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from nimbed_server.tallies import Buckets, LaneTally, Tally

__all__ = ["Metrics"]

_COUNTERS: tuple[tuple[str, str, Callable[[LaneTally], float]], ...] = (
    ("nimbed_tokens", "Tokens read by the model.", lambda lane: lane.tokens),
    ("nimbed_truncated", "Inputs cut to the model's length.", lambda lane: lane.truncated),
)
# Triton's names, as its metrics.cc spells them; durations are microseconds. They only ever grow,
# but stand as gauges: a counter of this library's would be called ..._total.
_TRITON: tuple[tuple[str, str, Callable[[LaneTally], float]], ...] = (
    ("nv_inference_request_success", "Successful requests.", lambda lane: lane.succeeded),
    ("nv_inference_request_failure", "Failed requests.", lambda lane: lane.failed),
    ("nv_inference_count", "Inputs embedded.", lambda lane: lane.batch_items.total),
    ("nv_inference_exec_count", "Batches run.", lambda lane: sum(lane.infer_seconds.counts)),
    (
        "nv_inference_request_duration_us",
        "Requests, end to end, in sum.",
        lambda lane: 1e6 * lane.request_seconds,
    ),
    (
        "nv_inference_queue_duration_us",
        "Waits of inputs, in sum.",
        lambda lane: 1e6 * lane.waited,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Runs of batches, in sum.",
        lambda lane: 1e6 * lane.infer_seconds.total,
    ),
)
_HISTOGRAMS: tuple[tuple[str, str, Callable[[LaneTally], Buckets]], ...] = (
    ("nimbed_tokenize_seconds", "Tokenizing one request.", lambda lane: lane.tokenize_seconds),
    ("nimbed_queue_seconds", "Longest wait in a batch.", lambda lane: lane.queue_seconds),
    ("nimbed_infer_seconds", "Running one batch.", lambda lane: lane.infer_seconds),
    ("nimbed_batch_items", "Inputs of a batch.", lambda lane: lane.batch_items),
    ("nimbed_batch_tokens", "Tokens of a batch.", lambda lane: lane.batch_tokens),
)


class Metrics:
    """Every metric of one server.

    Attributes:
        tally: The numbers that its parts count.
    """

    def __init__(self) -> None:
        self.tally = Tally()
        self._registry = CollectorRegistry()
        self._registry.register(_Counted(self.tally))
        self._gauges = {
            name: Gauge(name, text, ["model"], registry=self._registry)
            for name, text in (
                ("nimbed_queue_items", "Inputs that wait."),
                ("nimbed_queue_tokens", "Tokens that wait."),
                ("nv_inference_pending_request_count", "Inputs that wait, as Triton counts."),
                ("nimbed_ready", "Whether the model is loaded."),
            )
        }
        self._memory = Gauge(
            "nimbed_device_memory_bytes",
            "Memory of the process on the device.",
            ["device"],
            registry=self._registry,
        )

    def watch(
        self,
        model: str,
        *,
        items: Callable[[], float],
        tokens: Callable[[], float],
        ready: Callable[[], float],
    ) -> None:
        """Read a model's queue whenever the metrics are read."""
        self._gauges["nimbed_queue_items"].labels(model).set_function(items)
        self._gauges["nv_inference_pending_request_count"].labels(model).set_function(items)
        self._gauges["nimbed_queue_tokens"].labels(model).set_function(tokens)
        self._gauges["nimbed_ready"].labels(model).set_function(ready)

    def watch_memory(self, device: str, read: Callable[[], float]) -> None:
        """Read a device's memory whenever the metrics are read."""
        self._memory.labels(device).set_function(read)

    def exposition(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self._registry)


class _Counted(Collector):
    """Says a tally in prometheus-client's words, when it is asked."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family."""
        yield from self._of_the_server()
        yield from self._of_the_lanes()

    def _of_the_server(self) -> Iterator[Metric]:
        tally = self._tally
        requests = CounterMetricFamily(
            "nimbed_requests", "Requests answered.", labels=["endpoint", "status"]
        )
        for (endpoint, status), count in tally.requests.items():
            requests.add_metric([endpoint, str(status)], count)
        yield requests
        seconds = HistogramMetricFamily(
            "nimbed_request_seconds", "From the first byte to the answer.", labels=["endpoint"]
        )
        for endpoint, buckets in tally.request_seconds.items():
            _add(seconds, [endpoint], buckets)
        yield seconds
        failures = CounterMetricFamily(
            "nimbed_failures", "Requests refused or failed.", labels=["type"]
        )
        for kind, count in tally.failures.items():
            failures.add_metric([kind], count)
        yield failures
        serialize = HistogramMetricFamily(
            "nimbed_serialize_seconds", "Writing vectors into JSON.", labels=[]
        )
        _add(serialize, [], tally.serialize_seconds)
        yield serialize

    def _of_the_lanes(self) -> Iterator[Metric]:
        lanes = self._tally.lanes
        items = CounterMetricFamily(
            "nimbed_items", "Inputs embedded.", labels=["model", "input_type"]
        )
        for model, lane in lanes.items():
            for role, count in lane.items.items():
                items.add_metric([model, role], count)
        yield items
        for name, text, read in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["model"])
            for model, lane in lanes.items():
                counter.add_metric([model], read(lane))
            yield counter
        for name, text, read in _TRITON:
            gauge = GaugeMetricFamily(name, text, labels=["model"])
            for model, lane in lanes.items():
                gauge.add_metric([model], read(lane))
            yield gauge
        for name, text, find in _HISTOGRAMS:
            histogram = HistogramMetricFamily(name, text, labels=["model"])
            for model, lane in lanes.items():
                _add(histogram, [model], find(lane))
            yield histogram


def _add(family: HistogramMetricFamily, labels: list[str], buckets: Buckets) -> None:
    """Add a histogram's sample; Prometheus counts from the bottom to each bound."""
    bounds = [*map(str, buckets.bounds), "+Inf"]
    family.add_metric(
        labels, list(zip(bounds, accumulate(buckets.counts), strict=True)), buckets.total
    )
