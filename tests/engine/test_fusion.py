"""Rankings are fused as plain Python fuses them, whatever is missing from them."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError
from nimbed.fusion import Fusion, fuse, with_shared_tokens
from nimbed.search import Neighbours, nearest

Ranking = list[tuple[int, float]]


def neighbours(*queries: Ranking) -> Neighbours:
    """Make rankings of different lengths into arrays, as a store that found fewer would."""
    width = max(map(len, queries))
    rows = np.zeros((len(queries), width), np.intp)
    distances = np.full((len(queries), width), np.inf)
    for query, ranking in enumerate(queries):
        for place, (row, distance) in enumerate(ranking):
            rows[query, place], distances[query, place] = row, distance
    return Neighbours(rows, distances)


def oracle(rankings: list[Ranking], by: str, weights: list[float], damping: int) -> Ranking:
    scores: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for place, (row, distance) in enumerate(ranking, 1):
            if by == "rrf":
                score = 1 / (damping + place)
            else:
                best, worst = ranking[0][1], ranking[-1][1]
                score = 1.0 if best == worst else (worst - distance) / (worst - best)
            scores[row] = scores.get(row, 0.0) + weight * score
    return sorted(((row, -score) for row, score in scores.items()), key=lambda hit: (hit[1], hit))


@pytest.mark.parametrize("by", get_args(Fusion))
@pytest.mark.parametrize("weights", [None, [0.3, 2.0, 0.0]])
def test_rankings_are_fused_as_plain_python_does(by: Fusion, weights: list[float] | None) -> None:
    rng = np.random.default_rng(6)

    def draw() -> Ranking:
        length = int(rng.integers(0, 12))
        rows = rng.choice(20, length, replace=False).tolist()
        # Few values, so that some are equal.
        return list(zip(rows, sorted(rng.integers(0, 6, length).tolist()), strict=True))

    queries = [[draw() for _ in range(3)] for _ in range(60)]
    rankings = [neighbours(*each, [(1, 0.5)]) for each in zip(*queries, strict=True)]
    found = fuse(rankings, by=by, weights=weights, damping=7)
    queries.append([[(1, 0.5)]] * 3)
    for query, lists in enumerate(queries):
        expected = oracle(lists, by, weights or [1.0, 1.0, 1.0], 7)[: found.rows.shape[1]]
        got = found.distances[query]
        assert np.isfinite(got).sum() == len(expected)
        np.testing.assert_allclose(got[: len(expected)], [hit[1] for hit in expected], rtol=1e-12)
        # Scores that are equal but for their last bit may change places.
        scores = dict(oracle(lists, by, weights or [1.0, 1.0, 1.0], 7))
        hits = found.rows[query, : len(expected)].tolist()
        assert [scores[row] for row in hits] == pytest.approx(got[: len(expected)], rel=1e-12)


def test_the_published_constant_is_the_default_and_ties_go_to_the_lower_row() -> None:
    first, second = neighbours([(5, 0.1), (2, 0.2)]), neighbours([(2, -9.0), (5, -1.0), (7, 0.0)])
    found = fuse([first, second])
    assert found.rows.tolist() == [[2, 5, 7]]
    np.testing.assert_allclose(found.distances, [[-(1 / 61 + 1 / 62)] * 2 + [-1 / 63]])
    assert fuse([first, second], k=2).rows.tolist() == [[2, 5]]
    assert fuse([first, second], weights=[1, 0]).rows.tolist() == [[5, 2, 7]]
    found = fuse([first, second], by="sum")
    assert found.rows.tolist() == [[5, 2, 7]]
    np.testing.assert_allclose(found.distances, [[-10 / 9, -1, 0]])


def test_one_ranking_stays_as_it_is() -> None:
    alone = neighbours([(5, 0.1), (2, 0.2)], [(1, 0.0)])
    found = fuse([alone], k=9)
    assert found.rows.tolist() == [[5, 2], [1, 0]]
    assert np.isinf(found.distances).tolist() == [[False, False], [False, True]]


def test_passages_that_share_no_token_are_no_hits() -> None:
    fake = FakeEmbedder()
    texts = ["of other words", "nothing alike", "dog cat", "a third"]
    passages = fake.embed_sparse(texts, input_type="passage")
    query = fake.embed_sparse(["cat dog"], input_type="query")
    assert nearest(query, passages, 2).rows.tolist() == [[2, 0]]
    found = fuse([with_shared_tokens(nearest(query, passages, 2))])
    assert found.rows[np.isfinite(found.distances)].tolist() == [2]


@pytest.mark.parametrize(
    ("rankings", "options", "message"),
    [
        ([], {}, "no rankings"),
        ([[(1, 0.0)]], {"by": "max"}, "by must be one of 'rrf', 'sum'"),
        ([[(1, 0.0)]], {"damping": 0}, "damping must be at least 1"),
        ([[(1, 0.0)]], {"k": 0}, "k must be at least 1"),
        ([[(1, 0.0)]], {"weights": [1.0, 2.0]}, "1 rankings take as many weights; got 2"),
        ([[(1, 0.0)]], {"weights": [0.0]}, "weights must not be negative, nor all 0; got 0.0"),
        ([[(1, 0.0)]], {"weights": [float("nan")]}, "weights must not be negative"),
        ([[(1, 0.9), (2, 0.5)]], {}, "not closest first"),
        ([[(1, float("nan"))]], {}, "not closest first"),
        ([[(1, 0.1), (1, 0.5)]], {}, "names a passage twice"),
    ],
)
def test_what_cannot_be_fused_is_refused(
    rankings: list[Ranking], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fuse([neighbours(each) for each in rankings], **options)


def test_rankings_of_different_queries_are_not_fused() -> None:
    with pytest.raises(ConfigurationError, match="of the same 1 queries"):
        fuse([neighbours([(1, 0.0)]), neighbours([(1, 0.0)], [(2, 0.0)])])
