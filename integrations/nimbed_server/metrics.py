"""What can be seen from outside, in Prometheus' format.

The names are ours; beside them stand the counters of Triton that dashboards made for NIM read.
No label holds anything that a client can choose freely.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric

__all__ = ["Metrics", "ModelMetrics"]

_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_ITEMS = tuple(2.0**power for power in range(13))
_TOKENS = tuple(2.0**power for power in range(3, 18))

# Triton's names, as its metrics.cc spells them; durations are microseconds. They only ever grow,
# but stand as gauges: prometheus-client would append _total to the name of a counter.
_TRITON = {
    "request_success": "Successful requests.",
    "request_failure": "Failed requests.",
    "count": "Inputs embedded.",
    "exec_count": "Batches run.",
    "request_duration_us": "Requests, end to end, in sum.",
    "queue_duration_us": "Waits of inputs, in sum.",
    "compute_infer_duration_us": "Runs of batches, in sum.",
    "pending_request_count": "Inputs that wait, as Triton counts.",
}


class Metrics:
    """Every metric of one server; used from its event loop, except where a method says more.

    What a request counts is added up plainly and handed to prometheus-client when the metrics are
    read: its counters lock at every step, ten of which take 3 us, and a request takes 70.

    Attributes:
        serialize_seconds: Writing vectors into JSON.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = functools.partial(Counter, registry=self._registry)
        gauge = functools.partial(Gauge, labelnames=["model"], registry=self._registry)
        histogram = functools.partial(Histogram, registry=self._registry)
        of_model = functools.partial(histogram, labelnames=["model"])
        self._requests = counter("nimbed_requests", "Requests answered.", ["endpoint", "status"])
        self._request_seconds = histogram(
            "nimbed_request_seconds",
            "From the first byte to the answer.",
            ["endpoint"],
            buckets=_SECONDS,
        )
        self._failures = counter("nimbed_failures", "Requests refused or failed.", ["type"])
        self.serialize_seconds = histogram(
            "nimbed_serialize_seconds", "Writing vectors into JSON.", buckets=_SECONDS
        )
        self._items = counter("nimbed_items", "Inputs embedded.", ["model", "input_type"])
        self._tokens = counter("nimbed_tokens", "Tokens read by the model.", ["model"])
        self._truncated = counter(
            "nimbed_truncated", "Inputs cut to the model's length.", ["model"]
        )
        self._triton = {name: gauge(f"nv_inference_{name}", text) for name, text in _TRITON.items()}
        self._histograms = {
            name: of_model(f"nimbed_{name}", text, buckets=buckets)
            for name, text, buckets in (
                ("tokenize_seconds", "Tokenizing one request.", _SECONDS),
                ("queue_seconds", "Longest wait in a batch.", _SECONDS),
                ("infer_seconds", "Running one batch.", _SECONDS),
                ("batch_items", "Inputs of a batch.", _ITEMS),
                ("batch_tokens", "Tokens of a batch.", _TOKENS),
            )
        }
        self._queue_items = gauge("nimbed_queue_items", "Inputs that wait.")
        self._queue_tokens = gauge("nimbed_queue_tokens", "Tokens that wait.")
        self._ready = gauge("nimbed_ready", "Whether the model is loaded.")
        self._memory = Gauge(
            "nimbed_device_memory_bytes",
            "Memory of the process on the device.",
            ["device"],
            registry=self._registry,
        )
        self._models: list[ModelMetrics] = []
        self._answered: dict[tuple[str, int], int] = {}
        self._request_seconds_of: dict[str, Histogram] = {}

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a response."""
        key = endpoint, status
        self._answered[key] = self._answered.get(key, 0) + 1
        histogram = self._request_seconds_of.get(endpoint)
        if histogram is None:
            histogram = self._request_seconds.labels(endpoint)
            self._request_seconds_of[endpoint] = histogram
        histogram.observe(seconds)

    def failed(self, kind: str) -> None:
        """Count a request that was refused or failed, by its type."""
        self._failures.labels(kind).inc()

    def of_model(self, model: str) -> ModelMetrics:
        """Return the metrics of one model."""
        metrics = ModelMetrics(
            model,
            items=self._items,
            tokens=self._tokens,
            truncated=self._truncated,
            triton=self._triton,
            histograms=self._histograms,
        )
        self._models.append(metrics)
        return metrics

    def watch_queue(
        self,
        model: str,
        *,
        items: Callable[[], float],
        tokens: Callable[[], float],
        ready: Callable[[], float],
    ) -> None:
        """Read a model's queue whenever the metrics are read."""
        self._queue_items.labels(model).set_function(items)
        self._triton["pending_request_count"].labels(model).set_function(items)
        self._queue_tokens.labels(model).set_function(tokens)
        self._ready.labels(model).set_function(ready)

    def watch_memory(self) -> None:
        """Read the memory of the process and of each CUDA device whenever the metrics are read."""
        self._memory.labels("cpu").set_function(_resident_bytes)
        torch = sys.modules.get("torch")  # a server that only forwards never imports it
        if torch is None or not torch.cuda.is_available():
            return
        for number in range(torch.cuda.device_count()):
            read = functools.partial(torch.cuda.memory_reserved, number)
            self._memory.labels(f"cuda:{number}").set_function(read)

    def exposition(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self)

    def collect(self) -> Iterable[Metric]:
        """Yield every metric, without the times at which prometheus-client made them."""
        for (endpoint, status), count in self._answered.items():
            self._requests.labels(endpoint, status).inc(count)
        self._answered.clear()
        for model in self._models:
            model.hand_over()
        for metric in self._registry.collect():
            metric.samples = [each for each in metric.samples if not each.name.endswith("_created")]
            yield metric


class ModelMetrics:
    """What was done with one model; an observer of its scheduler.

    Args:
        model: The served name.
        items: Inputs embedded, by model and role.
        tokens: Tokens read.
        truncated: Inputs cut.
        triton: Triton's gauges, by the end of their names.
        histograms: Ours, by the end of their names.
    """

    def __init__(
        self,
        model: str,
        *,
        items: Counter,
        tokens: Counter,
        truncated: Counter,
        triton: dict[str, Gauge],
        histograms: dict[str, Histogram],
    ) -> None:
        self._item_counters = {role: items.labels(model, role) for role in ("query", "passage")}
        self._token_counter = tokens.labels(model)
        self._truncated_counter = truncated.labels(model)
        self._items = dict.fromkeys(self._item_counters, 0)
        self._tokens = self._truncated = self._succeeded = self._failed = 0
        self._request_seconds = 0.0
        gauges = {name: gauge.labels(model) for name, gauge in triton.items()}
        gauges["request_success"].set_function(lambda: self._succeeded)
        gauges["request_failure"].set_function(lambda: self._failed)
        gauges["request_duration_us"].set_function(lambda: 1e6 * self._request_seconds)
        self._inputs, self._batches = gauges["count"], gauges["exec_count"]
        self._queue_us = gauges["queue_duration_us"]
        self._infer_us = gauges["compute_infer_duration_us"]
        bound = {name: histogram.labels(model) for name, histogram in histograms.items()}
        self._tokenize_seconds = bound["tokenize_seconds"]
        self._queue_seconds = bound["queue_seconds"]
        self._infer_seconds = bound["infer_seconds"]
        self._batch_items, self._batch_tokens = bound["batch_items"], bound["batch_tokens"]

    def tokenized(self, seconds: float) -> None:
        """Note how long the inputs of one request took to tokenize; from any thread."""
        self._tokenize_seconds.observe(seconds)

    def ran(
        self, *, items: int, tokens: int, waited: float, longest: float, seconds: float
    ) -> None:
        """Note a batch, from any thread.

        Args:
            items: Its inputs.
            tokens: Its tokens.
            waited: Waits of its inputs, in sum.
            longest: The longest of them.
            seconds: How long it ran.
        """
        self._batch_items.observe(items)
        self._batch_tokens.observe(tokens)
        self._queue_seconds.observe(longest)
        self._infer_seconds.observe(seconds)
        self._inputs.inc(items)
        self._batches.inc()
        self._queue_us.inc(1e6 * waited)
        self._infer_us.inc(1e6 * seconds)

    def embedded(self, role: str, *, items: int, tokens: int, truncated: int) -> None:
        """Count what one request had embedded in one role."""
        self._items[role] += items
        self._tokens += tokens
        self._truncated += truncated

    def request_finished(self, seconds: float, *, failed: bool) -> None:
        """Count a request for this model, from its first byte to its answer."""
        if failed:
            self._failed += 1
        else:
            self._succeeded += 1
        self._request_seconds += seconds

    def hand_over(self) -> None:
        """Give prometheus-client what was counted since the last time."""
        for role, count in self._items.items():
            self._item_counters[role].inc(count)
            self._items[role] = 0
        self._token_counter.inc(self._tokens)
        self._truncated_counter.inc(self._truncated)
        self._tokens = self._truncated = 0


def _resident_bytes() -> float:
    """Return the resident memory of this process; 0 where the system has no /proc."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return float(pages * os.sysconf("SC_PAGE_SIZE"))
    return 0.0
