"""Prometheus metrics of the server: our own, and those of Triton that dashboards expect.

Dashboards made for NIM read Triton's names.
No label holds anything that a client can choose freely.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric

from nimbed.spec import Kind

__all__ = ["Histogram", "Metrics", "ModelMetrics"]

_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_ITEMS = tuple(2.0**power for power in range(13))
_TOKENS = tuple(2.0**power for power in range(3, 18))

# Of each model. Triton's names are spelt as in its metrics.cc; their durations are microseconds.
# They only ever grow, but stand as gauges: prometheus-client would append _total to a counter's.
_GAUGES = {
    "nimbed_queue_items": "Inputs that wait.",
    "nimbed_queue_tokens": "Tokens that wait.",
    "nimbed_ready": "Whether the model is loaded.",
    "nv_inference_request_success": "Successful requests.",
    "nv_inference_request_failure": "Failed requests.",
    "nv_inference_count": "Inputs embedded.",
    "nv_inference_exec_count": "Batches run.",
    "nv_inference_request_duration_us": "Requests, end to end, in sum.",
    "nv_inference_queue_duration_us": "Waits of inputs, in sum.",
    "nv_inference_compute_infer_duration_us": "Runs of batches, in sum.",
    "nv_inference_pending_request_count": "Inputs that wait, as Triton counts.",
}
_HISTOGRAMS = {
    "nimbed_tokenize_seconds": ("Tokenizing one request.", _SECONDS),
    "nimbed_queue_seconds": ("Longest wait in a batch.", _SECONDS),
    "nimbed_infer_seconds": ("Running one batch.", _SECONDS),
    "nimbed_batch_items": ("Inputs of a batch.", _ITEMS),
    "nimbed_batch_tokens": ("Tokens of a batch.", _TOKENS),
}


class Histogram:
    """Values counted between bounds; without a lock of its own.

    Args:
        bounds: The largest value of each bucket, ascending; what is larger has one more.

    Attributes:
        counts: Values of each bucket.
        total: Their sum.
    """

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = _SECONDS) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @contextlib.contextmanager
    def time(self) -> Generator[None]:
        """Count the seconds that a ``with`` takes."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.observe(time.perf_counter() - begin)

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Say the values as Prometheus wants them, which counts from the bottom to each bound."""
        bounds = [*map(str, self._bounds), "+Inf"]
        counted = list(zip(bounds, accumulate(self.counts), strict=True))
        family.add_metric(labels, counted, self.total)


class Metrics:
    """Every metric of one server; used from its event loop, except where a method says more.

    What a request or a batch counts is added up plainly and handed to prometheus-client when the
    metrics are read: its counters and histograms lock at every step, and those of one request took
    a tenth of all that the server does for it.

    Attributes:
        serialize_seconds: Writing vectors into JSON.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        counter = functools.partial(Counter, registry=registry)
        gauge = functools.partial(Gauge, registry=registry)
        self._requests = counter("nimbed_requests", "Requests answered.", ["endpoint", "status"])
        self._failures = counter("nimbed_failures", "Requests refused or failed.", ["type"])
        self.serialize_seconds = Histogram()
        self._memory = gauge(
            "nimbed_device_memory_bytes", "Memory of the process on the device.", ["device"]
        )
        self._of_model: dict[str, Any] = {
            "nimbed_items": counter("nimbed_items", "Inputs embedded.", ["model", "input_type"]),
            "nimbed_kinds": counter(
                "nimbed_kinds", "Inputs embedded as each kind of vector.", ["model", "kind"]
            ),
            "nimbed_tokens": counter("nimbed_tokens", "Tokens read by the model.", ["model"]),
            "nimbed_truncated": counter(
                "nimbed_truncated", "Inputs cut to the model's length.", ["model"]
            ),
            **{name: gauge(name, text, ["model"]) for name, text in _GAUGES.items()},
        }
        self._models: dict[str, ModelMetrics] = {}
        self._answered: dict[tuple[str, int], int] = {}
        self._request_seconds: dict[str, Histogram] = {}

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a response."""
        key = endpoint, status
        self._answered[key] = self._answered.get(key, 0) + 1
        histogram = self._request_seconds.get(endpoint)
        if histogram is None:
            histogram = self._request_seconds[endpoint] = Histogram()
        histogram.observe(seconds)

    def failed(self, kind: str) -> None:
        """Count a request that was refused or failed, by its type."""
        self._failures.labels(kind).inc()

    def of_model(self, model: str) -> ModelMetrics:
        """Return the metrics of one model."""
        metrics = self._models[model] = ModelMetrics(model, self._of_model)
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
        for name, read in (
            ("nimbed_queue_items", items),
            ("nv_inference_pending_request_count", items),
            ("nimbed_queue_tokens", tokens),
            ("nimbed_ready", ready),
        ):
            self._of_model[name].labels(model).set_function(read)

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
        for model in self._models.values():
            model.hand_over()
        for metric in self._registry.collect():
            metric.samples = [each for each in metric.samples if not each.name.endswith("_created")]
            yield metric
        yield from self._histograms()

    def _histograms(self) -> Iterator[HistogramMetricFamily]:
        seconds = HistogramMetricFamily(
            "nimbed_request_seconds", "From the first byte to the answer.", labels=["endpoint"]
        )
        for endpoint, histogram in self._request_seconds.items():
            histogram.add_to(seconds, [endpoint])
        yield seconds
        writing = HistogramMetricFamily(
            "nimbed_serialize_seconds", "Writing vectors into JSON.", labels=[]
        )
        self.serialize_seconds.add_to(writing, [])
        yield writing
        for name, (text, _) in _HISTOGRAMS.items():
            family = HistogramMetricFamily(name, text, labels=["model"])
            for model, metrics in self._models.items():
                metrics.histograms[name].add_to(family, [model])
            yield family


class ModelMetrics:
    """What was done with one model; an observer of its scheduler.

    Args:
        model: The served name.
        families: The metrics of all models, by name.

    Attributes:
        histograms: Those of the model, by name.
    """

    def __init__(self, model: str, families: Mapping[str, Any]) -> None:
        self._items = {"query": 0, "passage": 0}
        self._kinds = dict.fromkeys(get_args(Kind), 0)
        self._tokens = self._truncated = self._succeeded = self._failed = 0
        self._request_seconds = self._waited = 0.0
        items = families["nimbed_items"]
        self._item_counters = {role: items.labels(model, role) for role in self._items}
        of_kind = families["nimbed_kinds"]
        self._kind_counters = {kind: of_kind.labels(model, kind) for kind in self._kinds}
        # Bound to the model here, since to look a label up takes four times what counting does.
        bound = {
            name: each.labels(model)
            for name, each in families.items()
            if each is not items and each is not of_kind
        }
        self._token_counter: Counter = bound["nimbed_tokens"]
        self._truncated_counter: Counter = bound["nimbed_truncated"]
        self.histograms = {name: Histogram(bounds) for name, (_, bounds) in _HISTOGRAMS.items()}
        self._tokenize_seconds = self.histograms["nimbed_tokenize_seconds"]
        self._queue_seconds = self.histograms["nimbed_queue_seconds"]
        self._infer_seconds = infer = self.histograms["nimbed_infer_seconds"]
        self._batch_items = batch = self.histograms["nimbed_batch_items"]
        self._batch_tokens = self.histograms["nimbed_batch_tokens"]
        # Texts are tokenized in any thread, and each device has its own.
        self._lock = threading.Lock()
        for name, read in (
            ("request_success", lambda: self._succeeded),
            ("request_failure", lambda: self._failed),
            ("request_duration_us", lambda: 1e6 * self._request_seconds),
            ("count", lambda: batch.total),
            ("exec_count", lambda: sum(infer.counts)),
            ("queue_duration_us", lambda: 1e6 * self._waited),
            ("compute_infer_duration_us", lambda: 1e6 * infer.total),
        ):
            bound[f"nv_inference_{name}"].set_function(read)

    def tokenized(self, seconds: float) -> None:
        """Note how long the inputs of one request took to tokenize; from any thread."""
        with self._lock:
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
        with self._lock:
            self._batch_items.observe(items)
            self._batch_tokens.observe(tokens)
            self._queue_seconds.observe(longest)
            self._infer_seconds.observe(seconds)
            self._waited += waited

    def embedded(
        self,
        role: str,
        *,
        items: int,
        tokens: int,
        truncated: int,
        kinds: Sequence[Kind] = ("dense",),
    ) -> None:
        """Count what one request had embedded in one role."""
        self._items[role] += items
        for kind in kinds:
            self._kinds[kind] += items
        self._tokens += tokens
        self._truncated += truncated

    def request(self) -> _RequestTime:
        """Return a ``with`` that counts a request for this model, from its body to its answer."""
        return _RequestTime(self)

    def request_finished(self, seconds: float, *, failed: bool) -> None:
        """Count a request; see :meth:`request`."""
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
        for kind, count in self._kinds.items():
            self._kind_counters[kind].inc(count)
            self._kinds[kind] = 0
        self._token_counter.inc(self._tokens)
        self._truncated_counter.inc(self._truncated)
        self._tokens = self._truncated = 0


class _RequestTime:
    """Counts one request, whether it ends well or not."""

    __slots__ = ("_begin", "_metrics")

    def __init__(self, metrics: ModelMetrics) -> None:
        self._metrics = metrics
        self._begin = time.perf_counter()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._metrics.request_finished(time.perf_counter() - self._begin, failed=kind is not None)


def _resident_bytes() -> float:
    """Return the resident memory of this process; 0 where the system has no /proc."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return float(pages * os.sysconf("SC_PAGE_SIZE"))
    return 0.0
