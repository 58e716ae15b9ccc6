from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import nimbed
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.fake import FAKE_CARD
from nimbed.search import distances, nearest, rescore

FAKE = nimbed.FakeEmbedder()
TEXTS = [f"passage {n}" for n in range(200)]
ASKED = [f"question {n}" for n in range(7)]


def pair(kind):
    return (
        FAKE.embed(ASKED, input_type="query", embedding_type=kind),
        FAKE.embed(TEXTS, input_type="passage", embedding_type=kind),
    )


def test_float_and_int8_distances_are_cosine():
    for kind in ("float", "int8"):
        queries, passages = pair(kind)
        left, right = queries.vectors.astype(float), passages.vectors.astype(float)
        norms = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
        np.testing.assert_allclose(
            distances(queries, passages), 1 - left @ right.T / norms, atol=1e-5
        )


def test_uint8_distances_are_euclidean():
    queries, passages = pair("uint8")
    left, right = queries.vectors.astype(float), passages.vectors.astype(float)
    expected = np.linalg.norm(left[:, None] - right[None], axis=2) * queries.spec.int8_step
    np.testing.assert_allclose(distances(queries, passages), expected, atol=1e-4)


@pytest.mark.parametrize("dimensions", [16, 64])
def test_packed_distances_count_bits(dimensions):
    queries = FAKE.embed(ASKED, input_type="query", embedding_type="binary", dimensions=dimensions)
    passages = FAKE.embed(
        TEXTS, input_type="passage", embedding_type="binary", dimensions=dimensions
    )
    bits = np.unpackbits(queries.bits()[:, None] ^ passages.bits()[None], axis=2)
    np.testing.assert_array_equal(distances(queries, passages), bits.sum(2))


@pytest.mark.parametrize("kind", ["float", "int8", "uint8", "ubinary"])
@pytest.mark.parametrize("k", [1, 10, 200, 500])
def test_nearest_equals_a_full_stable_sort(kind, k):
    queries, passages = pair(kind)
    matrix = distances(queries, passages)
    found = nearest(queries, passages, k)
    np.testing.assert_array_equal(found.rows, np.argsort(matrix, axis=1, kind="stable")[:, :k])
    np.testing.assert_array_equal(found.distances, np.take_along_axis(matrix, found.rows, axis=1))


def test_rescoring_all_candidates_gives_the_exact_order():
    queries, passages = pair("float")
    candidates = nearest(*pair("ubinary"), 200).rows
    again = rescore(queries, passages, candidates, 10)
    exact = nearest(queries, passages, 10)
    np.testing.assert_allclose(again.distances, exact.distances, atol=1e-6)


def test_two_spaces_are_not_compared():
    queries, _ = pair("float")
    _, passages = pair("ubinary")
    with pytest.raises(SpaceMismatchError, match="cannot compare"):
        distances(queries, passages)
    with pytest.raises(ConfigurationError, match="at least 1"):
        nearest(*pair("float"), 0)


def test_nothing_is_found_among_no_passages():
    queries, _ = pair("float")
    assert nearest(queries, FAKE.embed([], input_type="passage"), 3).rows.shape == (7, 0)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_vectors_that_lie_equally_far_are_seen_to(kind):
    queries, passages = pair(kind)
    twice = nimbed.batch.concatenate([passages, passages])
    whole = twice.vectors.astype(np.int64)
    asked = queries.vectors.astype(np.int64)
    found = distances(queries, twice)
    np.testing.assert_array_equal(found[:, :200], found[:, 200:])
    if kind == "uint8":
        exact = ((asked[:, None] - whole[None]) ** 2).sum(axis=2)
        assert len(np.unique(found)) == len(np.unique(exact))
        rows = np.argsort(exact, axis=1, kind="stable")[:, :50]
        np.testing.assert_array_equal(nearest(queries, twice, 50).rows, rows)


@pytest.mark.parametrize("passages", [0, 1, 70_000])
def test_bits_of_many_passages_are_counted_block_by_block(passages):
    spec = FAKE.spec(embedding_type="ubinary")
    bits = np.random.default_rng(0).integers(0, 256, (passages + 2, 8), dtype=np.uint8)
    queries, stored = (
        nimbed.EmbeddingBatch(
            vectors=rows, spec=spec, input_type=role, token_counts=np.ones(len(rows), np.int32)
        )
        for rows, role in ((bits[:2], "query"), (bits[2:], "passage"))
    )
    expected = [np.unpackbits(bits[2:] ^ one, axis=1).sum(1) for one in bits[:2]]
    np.testing.assert_array_equal(distances(queries, stored), expected)


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_floats_that_keep_their_length_are_compared_by_the_models_metric(metric):
    embedder = nimbed.FakeEmbedder(dataclasses.replace(FAKE_CARD, metric=metric))
    queries = embedder.embed(["a", "b"], input_type="query", dimensions=32)
    passages = embedder.embed([str(n) for n in range(40)], input_type="passage", dimensions=32)
    assert np.linalg.norm(passages.vectors, axis=1).std() > 0.1
    left, right = queries.vectors.astype(np.float64), passages.vectors.astype(np.float64)
    exact = -left @ right.T
    if metric == "euclidean":
        exact = np.linalg.norm(left[:, None] - right, axis=2)
    np.testing.assert_allclose(distances(queries, passages), exact, rtol=1e-5, atol=1e-5)
