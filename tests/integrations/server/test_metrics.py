"""The server's metrics, as dashboards read them."""

from __future__ import annotations

import threading

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nimbed_server.metrics import Metrics

SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


def samples(text, name, *, created=False):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name.startswith(name) and (created or not sample.name.endswith("_created"))
    }


def test_a_histogram_is_said_as_prometheus_client_says_its_own():
    values = [0.0, 0.001, 0.0011, 0.3, 0.5, 59.9, 60.0, 61.0, 1e9]
    ours = Metrics()
    registry = CollectorRegistry()
    theirs = Histogram("nimbed_serialize_seconds", "The same.", buckets=SECONDS, registry=registry)
    for value in values:
        ours.serialize_seconds.observe(value)
        theirs.observe(value)
    expected = samples(generate_latest(registry), "nimbed_serialize_seconds")
    said = samples(ours.exposition(), "nimbed_serialize_seconds", created=True)
    assert said == pytest.approx(expected)
    assert len(expected) == len(SECONDS) + 3  # +Inf, count, sum


def test_a_counter_is_said_as_prometheus_client_says_its_own():
    ours = Metrics()
    registry = CollectorRegistry()
    theirs = Counter("nimbed_requests", "The same.", ["endpoint", "status"], registry=registry)
    for endpoint, status in (("/v1/embeddings", 200), ("/v1/embeddings", 503), ("/meta", 200)) * 2:
        ours.answered(endpoint, status, 0.1)
        theirs.labels(endpoint, str(status)).inc()
    assert samples(ours.exposition(), "nimbed_requests", created=True) == samples(
        generate_latest(registry), "nimbed_requests"
    )


def test_no_batch_of_any_device_is_lost():
    metrics = Metrics()
    model = metrics.of_model("m")

    def device():
        for _ in range(5000):
            model.ran(items=3, tokens=10, waited=0.5, longest=0.25, seconds=0.125)
            model.tokenized(0.5)

    devices = [threading.Thread(target=device) for _ in range(4)]
    for each in devices:
        each.start()
    for each in devices:
        each.join()
    said = {name: value for (name, _), value in samples(metrics.exposition(), "n").items()}
    assert said["nimbed_infer_seconds_count"] == said["nimbed_tokenize_seconds_count"] == 20_000
    assert said["nimbed_batch_items_sum"] == said["nv_inference_count"] == 60_000
    assert said["nimbed_infer_seconds_sum"] == 2500.0
    assert said["nv_inference_queue_duration_us"] == 10_000.0 * 1e6


def test_names_labels_and_buckets_are_those_of_the_dashboards():
    """Names as they were scraped before prometheus-client counted them."""
    metrics = Metrics()
    metrics.of_model("m")
    metrics.watch_queue("m", items=float, tokens=float, ready=float)
    metrics.watch_memory()
    metrics.answered("/meta", 200, 0.1)
    metrics.failed("overloaded_error")
    found = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        bounds = [sample.labels["le"] for sample in family.samples if "le" in sample.labels]
        found[family.name] = family.type, sorted(labels), len(bounds)
    assert found == {
        **{f"nimbed_{name}": ("counter", labels, 0) for name, labels in COUNTERS.items()},
        **{f"nimbed_{name}": ("gauge", labels, 0) for name, labels in GAUGES.items()},
        **{f"nv_inference_{name}": ("gauge", ["model"], 0) for name in TRITON},
        **{
            f"nimbed_{name}": ("histogram", labels, bounds)
            for name, (labels, bounds) in HISTOGRAMS.items()
        },
    }


COUNTERS = {
    "requests": ["endpoint", "status"],
    "failures": ["type"],
    "items": ["input_type", "model"],
    "kinds": ["kind", "model"],
    "tokens": ["model"],
    "truncated": ["model"],
}
GAUGES = {
    "queue_items": ["model"],
    "queue_tokens": ["model"],
    "ready": ["model"],
    "device_memory_bytes": ["device"],
}
TRITON = [
    "request_success",
    "request_failure",
    "count",
    "exec_count",
    "request_duration_us",
    "queue_duration_us",
    "compute_infer_duration_us",
    "pending_request_count",
]
HISTOGRAMS = {
    "request_seconds": (["endpoint"], 16),
    "serialize_seconds": ([], 16),
    "tokenize_seconds": (["model"], 16),
    "queue_seconds": (["model"], 16),
    "infer_seconds": (["model"], 16),
    "batch_items": (["model"], 14),
    "batch_tokens": (["model"], 16),
}
