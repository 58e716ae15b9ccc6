"""What can be seen from outside, in Prometheus' format.

The names are ours; beside them stand the counters of Triton that dashboards made for NIM read.
No label holds anything a client can choose freely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["LaneMetrics", "Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ITEMS = tuple(2.0**power for power in range(13))
_TOKENS = tuple(2.0**power for power in range(3, 18))

_COUNTERS = (
    ("nimbed_tokens", "Tokens read by the model."),
    ("nimbed_truncated", "Inputs cut to the model's length."),
)
# Triton's names, as its metrics.cc spells them; durations are microseconds. They only ever grow,
# but stand as gauges: a counter of this library's would be called ..._total.
_TRITON = (
    ("nv_inference_request_success", "Successful requests."),
    ("nv_inference_request_failure", "Failed requests."),
    ("nv_inference_count", "Inputs embedded."),
    ("nv_inference_exec_count", "Batches run."),
    ("nv_inference_request_duration_us", "Requests, end to end, in sum."),
    ("nv_inference_queue_duration_us", "Waits of inputs, in sum."),
    ("nv_inference_compute_infer_duration_us", "Runs of batches, in sum."),
)
_HISTOGRAMS = (
    ("nimbed_tokenize_seconds", "Tokenizing one request.", _SECONDS),
    ("nimbed_queue_seconds", "Longest wait in a batch.", _SECONDS),
    ("nimbed_infer_seconds", "Running one batch.", _SECONDS),
    ("nimbed_batch_items", "Inputs of a batch.", _ITEMS),
    ("nimbed_batch_tokens", "Tokens of a batch.", _TOKENS),
)


class Metrics:
    """Every metric of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter(
            "nimbed_requests", "Requests answered.", "endpoint", "status"
        )
        self._request_seconds = self._histogram(
            "nimbed_request_seconds", "From the first byte to the answer.", _SECONDS, "endpoint"
        )
        self._failures = self._counter("nimbed_failures", "Requests refused or failed.", "type")
        self._serialize = self._histogram(
            "nimbed_serialize_seconds", "Writing vectors into JSON.", _SECONDS
        )
        self._items = self._counter("nimbed_items", "Inputs embedded.", "model", "input_type")
        self._counters = {name: self._counter(name, text, "model") for name, text in _COUNTERS}
        self._triton = {
            name: Gauge(name, text, ["model"], registry=self._registry) for name, text in _TRITON
        }
        self._histograms = {
            name: self._histogram(name, text, buckets, "model")
            for name, text, buckets in _HISTOGRAMS
        }
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
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answer."""
        found = self._children.get((endpoint, status))
        if found is None:
            found = (
                self._requests.labels(endpoint, str(status)),
                self._request_seconds.labels(endpoint),
            )
            self._children[endpoint, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def failed(self, kind: str) -> None:
        """Count a refusal by its type."""
        self._failures.labels(kind).inc()

    def serialized(self, seconds: float) -> None:
        """Note how long writing an answer took."""
        self._serialize.observe(seconds)

    def for_lane(self, model: str) -> LaneMetrics:
        """Return the metrics of one model."""
        return LaneMetrics(model, self._items, self._counters, self._triton, self._histograms)

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

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)


class LaneMetrics:
    """The metrics of one model; safe from any thread."""

    def __init__(
        self,
        model: str,
        items: Counter,
        counters: Mapping[str, Counter],
        triton: Mapping[str, Gauge],
        histograms: Mapping[str, Histogram],
    ) -> None:
        self._items = {role: items.labels(model, role) for role in ("query", "passage")}
        self._counters = {name: metric.labels(model) for name, metric in counters.items()}
        self._triton = {name: metric.labels(model) for name, metric in triton.items()}
        self._histograms = {name: metric.labels(model) for name, metric in histograms.items()}

    def tokenized(self, seconds: float) -> None:
        """Note how long the inputs of one request took to tokenize."""
        self._histograms["nimbed_tokenize_seconds"].observe(seconds)

    def ran(
        self, *, items: int, tokens: int, waited: float, longest: float, seconds: float
    ) -> None:
        """Note a batch: its size, the waits of its rows in sum and at most, its run; in seconds."""
        self._histograms["nimbed_batch_items"].observe(items)
        self._histograms["nimbed_batch_tokens"].observe(tokens)
        self._histograms["nimbed_queue_seconds"].observe(longest)
        self._histograms["nimbed_infer_seconds"].observe(seconds)
        self._triton["nv_inference_count"].inc(items)
        self._triton["nv_inference_exec_count"].inc()
        self._triton["nv_inference_queue_duration_us"].inc(waited * 1e6)
        self._triton["nv_inference_compute_infer_duration_us"].inc(seconds * 1e6)

    def embedded(self, role: str, *, items: int, tokens: int, truncated: int) -> None:
        """Count what one request had embedded in one role."""
        self._items[role].inc(items)
        self._counters["nimbed_tokens"].inc(tokens)
        if truncated:
            self._counters["nimbed_truncated"].inc(truncated)

    def finished(self, seconds: float, *, failed: bool) -> None:
        """Count a request for this model, from its first byte to its answer."""
        outcome = "failure" if failed else "success"
        self._triton[f"nv_inference_request_{outcome}"].inc()
        self._triton["nv_inference_request_duration_us"].inc(seconds * 1e6)
