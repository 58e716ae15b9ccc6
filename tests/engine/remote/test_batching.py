from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbed.remote.request import (
    RequestLimits,
    RequestPlanner,
    TextBatch,
    TokenEstimator,
    apportion,
    size_of,
)

TEXTS = st.lists(st.text(min_size=1, max_size=30), max_size=60)
LIMITS = st.builds(RequestLimits, st.integers(1, 9), st.integers(1, 60), st.integers(1, 120))


def batches_of(planner, limits):
    while (batch := planner.take(limits)) is not None:
        yield batch


@given(TEXTS, LIMITS)
def test_every_text_is_sent_once_in_order_and_within_the_limits(texts, limits):
    estimator = TokenEstimator()
    batches = list(batches_of(RequestPlanner(texts, range(len(texts)), estimator), limits))
    assert [row for batch in batches for row in batch.rows] == list(range(len(texts)))
    assert [text for batch in batches for text in batch.texts] == texts
    for batch in batches:
        assert batch.sizes == tuple(len(text.encode()) for text in batch.texts)
        assert len(batch) <= limits.items
        assert len(batch) == 1 or sum(batch.sizes) <= limits.bytes
        assert len(batch) == 1 or sum(map(estimator.estimate, batch.sizes)) <= limits.tokens


@given(TEXTS, LIMITS, LIMITS)
def test_what_is_put_back_is_handed_out_again_under_the_new_limits(texts, before, after):
    planner = RequestPlanner(texts, range(len(texts)), TokenEstimator())
    first = planner.take(before)
    if first is None:
        return
    planner.put_back(first)
    batches = list(batches_of(planner, after))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(texts)))
    assert max(map(len, batches)) <= after.items


def test_rows_left_out_are_not_sent():
    planner = RequestPlanner(["a", "", "c"], [0, 2], TokenEstimator())
    assert planner.take(RequestLimits(9, 99, 99)) == TextBatch((0, 2), ("a", "c"), (1, 1))
    assert planner.take(RequestLimits(9, 99, 99)) is None


def test_a_batch_splits_into_halves_or_around_a_suspect():
    batch = TextBatch((4, 5, 6, 7), tuple("abcd"), (1,) * 4)
    assert [part.rows for part in batch.split()] == [(4, 5), (6, 7)]
    assert [part.rows for part in batch.split(2)] == [(4, 5), (6,), (7,)]
    assert [part.rows for part in batch.split(0)] == [(4,), (5, 6, 7)]
    assert [part.rows for part in batch.split(9)] == [(4, 5), (6, 7)]


def test_the_estimator_learns_how_many_tokens_a_byte_is():
    estimator = TokenEstimator()
    for _ in range(30):
        estimator.observe(tokens=250, size=1000)
    assert estimator.estimate(1000) == pytest.approx(252, abs=1)


@given(
    st.integers(0, 5000),
    st.lists(st.floats(1, 900), min_size=1, max_size=20),
    st.none() | st.integers(1, 600),
)
def test_shares_are_whole_and_sum_to_the_whole(total, weights, most):
    counts = apportion(total, weights, most=most)
    assert counts.sum() == total
    assert counts.min() >= 0
    if most is not None and total <= most * len(weights):
        assert counts.max() <= most + 1


def test_shares_follow_the_weights_and_one_text_gets_everything():
    np.testing.assert_array_equal(apportion(60, [1, 2, 3]), [10, 20, 30])
    np.testing.assert_array_equal(apportion(7, [123.4]), [7])
    np.testing.assert_array_equal(apportion(612, [5000, 100], most=512), [512, 100])


def test_a_size_is_in_bytes():
    assert size_of("aé€") == 6
