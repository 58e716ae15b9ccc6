from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from nimbed_tradeoff.measurement import gains_by_place, ndcgs, recalls

PASSAGES = 50
K = 10


@pytest.fixture(params=range(5))
def task(request):
    """Random results, and random grades of 1 to 30 passages of each query."""
    pick = np.random.default_rng(request.param)
    found = np.stack([pick.permutation(PASSAGES)[:K] for _ in range(20)])
    gains = [
        {int(row): float(pick.integers(1, 4)) for row in pick.permutation(PASSAGES)[:count]}
        for count in pick.integers(1, 30, len(found))
    ]
    return found, gains


def dense(found, gains):
    """Return (relevance, scores) of every passage, as scikit-learn wants them."""
    relevance = np.zeros((len(found), PASSAGES))
    scores = np.zeros((len(found), PASSAGES))
    for query, (line, relevant) in enumerate(zip(found, gains, strict=True)):
        scores[query, line] = np.arange(found.shape[1], 0, -1)
        for row, gain in relevant.items():
            relevance[query, row] = gain
    return relevance, scores


def test_ndcg_is_that_of_scikit_learn(task):
    found, gains = task
    relevance, scores = dense(found, gains)
    assert ndcgs(found, gains).mean() == pytest.approx(ndcg_score(relevance, scores, k=K))
    one_by_one = [ndcg_score(relevance[[q]], scores[[q]], k=K) for q in range(len(found))]
    np.testing.assert_allclose(ndcgs(found, gains), one_by_one)


def test_recall_is_the_share_of_relevant_passages_that_were_found(task):
    found, gains = task
    wanted = [len({*line} & {*relevant}) / len(relevant) for line, relevant in zip(found, gains)]  # noqa: B905
    np.testing.assert_allclose(recalls(found, gains), wanted)


def test_the_order_that_gave_the_gains_is_ideal_and_its_reverse_is_not():
    rows = np.array([[4, 2, 7], [1, 0, 9]])
    gains = gains_by_place(rows)
    assert gains[0] == {4: 3.0, 2: 2.0, 7: 1.0}
    np.testing.assert_allclose(ndcgs(rows, gains), 1)
    assert (ndcgs(rows[:, ::-1], gains) < 1).all()
    np.testing.assert_allclose(recalls(rows[:, ::-1], gains), 1)


def test_finding_nothing_is_worth_nothing():
    found, gains = np.array([[1, 2]]), [{5: 2.0}]
    assert recalls(found, gains).tolist() == ndcgs(found, gains).tolist() == [0.0]
