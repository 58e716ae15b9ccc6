"""The study's numbers against numpy, scipy and scikit-learn, which compute them all again."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import ndcg_score

import nimbed
from nimbed_cli.quickstart import standard_library_passages
from nimbed_tradeoff import OVERSAMPLING, TOP, every_way, measure
from nimbed_tradeoff.texts import first_sentences

FAKE = nimbed.FakeEmbedder()


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def far(kind, size, queries, passages):
    """Return the distances of every pair of float vectors, stored as a type."""
    left, right = (unit(each.astype(np.float64)[:, :size]) for each in (queries, passages))
    if kind == "ubinary":
        return cdist(left > 0, right > 0, "hamming")
    if kind != "float":
        step = 4 / (127 * math.sqrt(size))
        left, right = (np.clip(np.rint(each / step), -127, 127) for each in (left, right))
    if kind == "uint8":
        return cdist(left + 128, right + 128)
    return cdist(left, right, "cosine")


def ordered(distances, count):
    return np.argsort(np.round(distances, 9), axis=1, kind="stable")[:, :count]


def expected(kind, size, times, queries, passages):
    """Return (recall@10, nDCG@10) against the order of the full floats."""
    exact = far("float", queries.shape[1], queries, passages)
    right = ordered(exact, TOP)
    found = ordered(far(kind, size, queries, passages), TOP * max(1, times))
    if times:
        again = np.argsort(np.take_along_axis(exact, found, 1), axis=1, kind="stable")[:, :TOP]
        found = np.take_along_axis(found, again, 1)
    recall = np.mean([np.isin(ours, best).mean() for ours, best in zip(found, right, strict=True)])
    relevance, scores = np.zeros(exact.shape), np.zeros(exact.shape)
    places = np.arange(TOP, 0, -1)
    np.put_along_axis(relevance, right, np.broadcast_to(places, right.shape), 1)
    np.put_along_axis(scores, found, np.broadcast_to(places, found.shape), 1)
    return recall, ndcg_score(relevance, scores, k=TOP)


def test_every_number_on_the_quickstarts_corpus_is_numpys(real_study, recording):
    texts = [each.text.partition(": ")[2] for each in standard_library_passages(200)]
    made = first_sentences(list(dict.fromkeys(texts)))
    embedded = {role: tuple(texts) for role, texts in recording.inputs.items()}
    assert embedded == {"query": made.texts, "passage": made.passages}
    queries, passages = recording.batches["query"], recording.batches["passage"]
    assert real_study.queries == len(queries) > 50
    assert real_study.passages == len(passages)
    assert len(real_study.measured) == 10
    for each in real_study.measured:
        kind, size = each.way.spec.embedding_type, each.way.spec.dimensions
        recall, ndcg = expected(
            kind, size, each.way.oversampling, queries.vectors, passages.vectors
        )
        assert each.recall == pytest.approx(recall, abs=1e-9), each.way.label
        assert each.ndcg == pytest.approx(ndcg, abs=1e-9), each.way.label
        assert each.bytes_per_vector == {"float": 4 * size, "ubinary": size // 8}.get(kind, size)
        assert each.milliseconds > 0


def test_shorter_vectors_are_numpys_too():
    queries, passages = (
        FAKE.embed([f"{name} {n}" for n in range(count)], input_type=role)
        for name, count, role in (("question", 40, "query"), ("text", 300, "passage"))
    )
    for each in measure(queries, passages, every_way(FAKE)):
        spec = each.way.spec
        recall, ndcg = expected(
            spec.embedding_type,
            spec.dimensions,
            each.way.oversampling,
            queries.vectors,
            passages.vectors,
        )
        assert (each.recall, each.ndcg) == pytest.approx((recall, ndcg), abs=1e-9), each.way.label


def test_the_quickstarts_corpus_keeps_what_the_design_says(real_study):
    by_way = {(m.way.spec.embedding_type, m.way.oversampling): m for m in real_study.measured}
    assert by_way["float", 0].recall == by_way["float", 0].ndcg == 1
    assert by_way["int8", 0].recall >= 0.99
    plain, four, eight = (by_way["ubinary", times].recall for times in (0, *OVERSAMPLING))
    assert 0.5 < plain < four < eight < 1


def test_judged_gains_take_the_place_of_floats_order():
    queries = FAKE.embed(["a", "b", "c"], input_type="query")
    passages = FAKE.embed([f"text {n}" for n in range(30)], input_type="passage")
    order = np.argsort(-(queries.vectors @ passages.vectors.T), axis=1)
    # The nearest is right; the nearest and the farthest are; only the farthest is.
    gains = [{int(order[0, 0]): 1.0}, {int(order[1, 0]): 1.0, int(order[1, -1]): 1.0}]
    gains.append({int(order[2, -1]): 2.0})
    full = measure(queries, passages, every_way(FAKE)[:1], gains)[0]
    assert full.recall == pytest.approx((1 + 0.5 + 0) / 3)
    assert full.ndcg == pytest.approx((1 + 1 / (1 + 1 / math.log2(3)) + 0) / 3)
    assert full.recall_error == pytest.approx(np.std([1, 0.5, 0], ddof=1) / math.sqrt(3))


@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_any_number_of_queries_is_searched_whole(count):
    queries = FAKE.embed([f"q {n}" for n in range(count)], input_type="query")
    passages = FAKE.embed([f"text {n}" for n in range(60)], input_type="passage")
    for each in measure(queries, passages, every_way(FAKE, [64])):
        recall, _ = expected(
            each.way.spec.embedding_type,
            64,
            each.way.oversampling,
            queries.vectors,
            passages.vectors,
        )
        assert each.recall == pytest.approx(recall, abs=1e-9)


def test_the_time_is_the_median_of_the_rounds_without_the_first(monkeypatch):
    spent = [1, 2, 3, 4, 100, 2, 3, 4, 200]
    clock = iter(itertools.accumulate([0, 500, *(tick for each in spent for tick in (each, 0))]))
    stopped = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr("nimbed_tradeoff.measurement.time", stopped)
    queries = FAKE.embed(["a", "b", "c", "d"], input_type="query")
    passages = FAKE.embed([f"text {n}" for n in range(30)], input_type="passage")
    (full,) = measure(queries, passages, every_way(FAKE)[:1])
    assert full.milliseconds == pytest.approx(1000 * 3 / 4)
    low, high = np.percentile(spent, [25, 75])
    assert full.quartiles == pytest.approx((1000 * low / 4, 1000 * high / 4))
