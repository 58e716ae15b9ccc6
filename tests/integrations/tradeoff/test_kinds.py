"""What kinds find, alone and fused, against scikit-learn's nDCG of plain Python's rankings."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

import nimbed
from nimbed.errors import ConfigurationError
from nimbed_tradeoff import page, tradeoff

KINDS = ("dense", "sparse", "multi")
WORDS = [f"word{n}" for n in range(40)]


@pytest.fixture(scope="module")
def corpus():
    """Passages of ten words, and queries of three words of one of them."""
    rng = np.random.default_rng(8)
    passages = [" ".join(rng.choice(WORDS, 10, replace=False)) for _ in range(90)]
    sources = rng.choice(90, 20, replace=False).tolist()
    queries = [" ".join(rng.permutation(passages[row].split())[:3]) for row in sources]
    grades = [
        {row: 2.0, int(other): 1.0}
        for row, other in zip(sources, rng.integers(0, 90, 20), strict=True)
    ]
    return passages, queries, grades


@pytest.fixture(scope="module")
def files(corpus, tmp_path_factory):
    passages, queries, grades = corpus
    folder = tmp_path_factory.mktemp("judged")
    (folder / "passages.txt").write_text("\n".join(passages))
    (folder / "queries.txt").write_text("\n".join(queries))
    lines = [
        f"{query + 1}\t{row + 1}\t{grade}"
        for query, relevant in enumerate(grades)
        for row, grade in relevant.items()
    ]
    (folder / "qrels.tsv").write_text("\n".join(lines))
    return folder


def study(files, **options):
    return tradeoff(
        nimbed.FakeEmbedder(),
        files / "passages.txt",
        queries=files / "queries.txt",
        judgements=files / "qrels.tsv",
        dimensions=[64],
        **options,
    )


@pytest.fixture(scope="module")
def compared(files):
    return study(files, kinds=KINDS)


def rankings(corpus):
    """Return for each kind the scores of every pair by numpy, of shape (queries, passages)."""
    passages, queries, _ = corpus
    fake = nimbed.FakeEmbedder()
    asked = fake.embed_kinds(queries, input_type="query")
    stored = fake.embed_kinds(passages, input_type="passage")

    def whole(batch):
        out = np.zeros((len(batch), batch.spec.dimensions))
        for row, (ids, weights) in enumerate(batch.rows()):
            out[row, ids] = weights
        return out

    late = [[(q @ p.T).max(axis=1).sum() for p in stored.multi.rows()] for q in asked.multi.rows()]
    return {
        "dense": asked.dense.vectors @ stored.dense.vectors.T,
        "sparse": whole(asked.sparse) @ whole(stored.sparse).T,
        "multi": np.array(late),
    }


def fused(scores, kinds, by, weights):
    """Fuse the best 50 of each kind in plain Python; return scores of every passage."""
    total = np.zeros(scores["dense"].shape)
    for kind in kinds:
        for query, line in enumerate(scores[kind]):
            best = [row for row in np.argsort(-line, kind="stable")[:50]]
            if kind == "sparse":
                best = [row for row in best if line[row] > 0]
            for place, row in enumerate(best, 1):
                if by == "rrf":
                    score = 1 / (60 + place)
                else:
                    top, low = line[best[0]], line[best[-1]]
                    score = (line[row] - low) / (top - low) if top > low else 1.0
                total[query, row] += weights[kind] * score
    return total


def ndcg(scores, grades, decimals):
    relevance = np.zeros(scores.shape)
    for query, relevant in enumerate(grades):
        for row, grade in relevant.items():
            relevance[query, row] = grade
    # What is not among the ten counts for nothing, and scores that are equal are apart: the lower
    # row comes first.
    order = np.argsort(-np.round(scores, decimals), axis=1, kind="stable")[:, :10]
    apart = np.zeros(scores.shape)
    np.put_along_axis(apart, order, np.broadcast_to(np.arange(10, 0, -1.0), order.shape), 1)
    apart[scores <= 0] = 0
    return ndcg_score(relevance, apart, k=10, ignore_ties=True)


@pytest.mark.parametrize(("weights", "fused_kinds"), [(None, 4), ([1.0, 0.3], 1)])
def test_ndcg_is_that_of_scikit_learn(files, compared, corpus, weights, fused_kinds):
    scores = rankings(corpus)
    found = compared if weights is None else study(files, kinds=KINDS[:2], weights=weights)
    counted = dict(zip(KINDS, weights or [1.0, 1.0, 1.0], strict=False))
    checked = 0
    for each in found.measured_kinds:
        if each.fused_by is not None:
            expected = fused(scores, each.kinds, each.fused_by, counted)
        elif each.label in KINDS:
            expected = scores[each.label]
        else:
            continue
        # Places make sums that are equal to the last bit. Scores of float32 do not, and many a
        # MaxSim is the same but for its last bits, so that the places behind it may change.
        right = ndcg(expected, corpus[2], 12 if each.fused_by == "rrf" else 6)
        exact = each.fused_by is None or (each.fused_by == "rrf" and "multi" not in each.kinds)
        tolerance = 1e-9 if exact else 0.02
        assert each.quality.ndcg == pytest.approx(right, abs=tolerance), each
        checked += 1
    assert checked == len(counted) + 2 * fused_kinds


def test_each_kind_stands_with_its_bytes(compared, corpus):
    fake = nimbed.FakeEmbedder()
    stored = fake.embed_kinds(corpus[0], input_type="passage")
    by_label = {(each.label, each.fused_by): each for each in compared.measured_kinds}
    tokens = len(stored.multi.vectors) / 90
    sparse = 8 * len(stored.sparse.ids) / 90
    expected = {
        "dense": 256,
        "sparse": sparse,
        "multi": 256 * tokens,
        "multi, half": 128 * tokens,
        "multi, int8": 64 * tokens,
        "multi, ubinary": 8 * tokens,
        "multi, as MUVERA": 4 * 16 * 16 * 10,
    }
    for label, size in expected.items():
        assert by_label[label, None].bytes_per_passage == pytest.approx(size)
    assert by_label["multi, float, 2 pooled", None].bytes_per_passage < 0.65 * 256 * tokens
    both = by_label["dense + sparse", "rrf"]
    assert both.bytes_per_passage == pytest.approx(256 + sparse)
    assert all(each.quality.milliseconds > 0 for each in compared.measured_kinds)
    # Words in common are what this corpus is about: the fake's dense vectors know nothing of them.
    assert by_label["sparse", None].quality.ndcg > by_label["dense", None].quality.ndcg + 0.2
    again = by_label["  rescored 50 by MaxSim", None].quality
    assert again.recall >= by_label["multi, as MUVERA", None].quality.recall
    assert "best by nDCG@10" in compared.kinds_sentence


def test_the_best_is_named_with_what_it_costs(compared):
    best = max(compared.measured_kinds, key=lambda each: each.quality.ndcg)
    sentence = compared.kinds_sentence
    assert f"{best.quality.ndcg:.3f} against" in sentence
    assert f"{best.bytes_per_passage:,.0f} bytes a passage instead of 256" in sentence


def test_the_numbers_travel_as_json_and_stand_on_the_page(compared):
    told = compared.to_dict()["kinds"]
    assert [each["label"] for each in told][:3] == ["dense", "sparse", "multi"]
    assert told[-1]["fused_by"] == "sum"
    assert {"ndcg", "recall", "bytes_per_passage", "milliseconds"} <= told[0].keys()
    pytest.importorskip("matplotlib")
    html = page(compared)
    assert compared.kinds_sentence in html
    assert "dense + sparse + multi" in html


def test_everything_is_embedded_once(files):
    class Once(nimbed.FakeEmbedder):
        embedded: list[str]

        def embed_kinds(self, inputs, **options):
            self.embedded = [*getattr(self, "embedded", []), options["input_type"]]
            assert tuple(options["kinds"]) == ("dense", "sparse")
            return super().embed_kinds(inputs, **options)

    once = Once()
    found = tradeoff(
        once,
        files / "passages.txt",
        queries=files / "queries.txt",
        judgements=files / "qrels.tsv",
        kinds=["dense", "sparse"],
    )
    assert once.embedded == ["passage", "query"]
    assert {each.label for each in found.measured_kinds} == {"dense", "sparse", "dense + sparse"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["sparse", "multi"]}, "kinds are compared with dense vectors; give 'dense'"),
        ({"kinds": ["dense"]}, "give 'dense' and others, got 'dense'"),
        ({"kinds": ["dense", "spares"]}, "kinds must be one of"),
        ({"kinds": ["dense", "sparse"], "weights": [1.0]}, "2 rankings take as many weights"),
        ({"kinds": ["dense", "sparse"], "weights": [-1.0, 1.0]}, "must not be negative"),
        ({"weights": [1.0]}, "give kinds too"),
        ({"kinds": ["dense", "sparse"], "judgements": None}, "only judgements say which"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_embedded(files, options, message):
    fake = nimbed.FakeEmbedder()
    given = {"queries": files / "queries.txt", "judgements": files / "qrels.tsv", **options}
    with pytest.raises(ConfigurationError, match=message):
        tradeoff(fake, files / "passages.txt", **given)
    assert fake.calls == []


def test_a_model_of_dense_vectors_alone_is_said_to_be_one(files):
    class Dense(nimbed.FakeEmbedder):
        kinds = ("dense",)

    with pytest.raises(ConfigurationError, match="gives no sparse vectors; it gives dense"):
        tradeoff(
            Dense(),
            files / "passages.txt",
            queries=files / "queries.txt",
            judgements=files / "qrels.tsv",
            kinds=["dense", "sparse"],
        )
