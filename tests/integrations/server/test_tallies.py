"""The server's plain numbers, as Prometheus' own client would have counted and said them."""

from __future__ import annotations

import threading

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nimbed_server.metrics import Metrics
from nimbed_server.tallies import Buckets


def samples(text, name):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name.startswith(name) and not sample.name.endswith("_created")
    }


def test_a_histogram_is_said_as_prometheus_client_says_its_own():
    values = [0.0, 0.001, 0.0011, 0.3, 0.5, 59.9, 60.0, 61.0, 1e9]
    ours = Metrics()
    registry = CollectorRegistry()
    theirs = Histogram(
        "nimbed_serialize_seconds", "The same.", buckets=Buckets().bounds, registry=registry
    )
    for value in values:
        ours.tally.serialize_seconds.note(value)
        theirs.observe(value)
    expected = samples(generate_latest(registry), "nimbed_serialize_seconds")
    assert samples(ours.exposition(), "nimbed_serialize_seconds") == pytest.approx(expected)
    assert len(expected) == len(Buckets().bounds) + 3  # +Inf, count, sum


def test_a_counter_is_said_as_prometheus_client_says_its_own():
    ours = Metrics()
    registry = CollectorRegistry()
    theirs = Counter("nimbed_requests", "The same.", ["endpoint", "status"], registry=registry)
    for endpoint, status in (("/v1/embeddings", 200), ("/v1/embeddings", 503), ("/meta", 200)) * 2:
        ours.tally.answered(endpoint, status, 0.1)
        theirs.labels(endpoint, str(status)).inc()
    assert samples(ours.exposition(), "nimbed_requests") == samples(
        generate_latest(registry), "nimbed_requests"
    )


def test_no_batch_of_any_device_is_lost():
    lane = Metrics().tally.lane("m")

    def device():
        for _ in range(5000):
            lane.ran(items=3, tokens=10, waited=0.5, longest=0.25, seconds=0.125)
            lane.tokenized(0.5)

    devices = [threading.Thread(target=device) for _ in range(4)]
    for each in devices:
        each.start()
    for each in devices:
        each.join()
    assert sum(lane.infer_seconds.counts) == sum(lane.tokenize_seconds.counts) == 20_000
    assert lane.batch_items.total == 60_000
    assert lane.infer_seconds.total == 2500.0
    assert lane.waited == 10_000.0
