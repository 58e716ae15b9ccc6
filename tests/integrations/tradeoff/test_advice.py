from __future__ import annotations

import pytest

import nimbed
from nimbed_tradeoff import Measured, Way
from nimbed_tradeoff.advice import advise

FAKE = nimbed.FakeEmbedder()


def measured(kind, recall, times=0, size=64):
    spec = FAKE.spec(embedding_type=kind, dimensions=size)
    way = Way(spec=spec, oversampling=times)
    return Measured(
        way=way,
        recall=recall,
        recall_error=0.0,
        ndcg=recall,
        milliseconds=1.0,
        quartiles=(1.0, 1.0),
    )


FLOAT = measured("float", 1.0)
INT8 = measured("int8", 0.99)
UINT8 = measured("uint8", 0.995)
BITS = measured("ubinary", 0.7)
BITS4 = measured("ubinary", 0.94, 4)
BITS8 = measured("ubinary", 0.98, 8)
ALL = [FLOAT, INT8, UINT8, BITS, BITS4, BITS8]


@pytest.mark.parametrize(
    ("keep", "best", "alone"),
    [
        (1.0, FLOAT, FLOAT),
        (0.99, UINT8, UINT8),  # of one size the better
        (0.97, BITS8, UINT8),
        (0.9, BITS4, UINT8),  # of one size the fewer candidates
        (0.6, BITS, BITS),
    ],
)
def test_the_smallest_that_keeps_enough_is_chosen(keep, best, alone):
    advice = advise(ALL, keep=keep, judged=False)
    assert (advice.best, advice.alone, advice.keep) == (best, alone, keep)


def test_judged_recall_is_held_against_floats_own():
    found = [measured("float", 0.5), measured("int8", 0.49), measured("ubinary", 0.4)]
    advice = advise(found, keep=0.97, judged=True)
    assert advice.best is found[1]
    assert "it keeps 98% of float's recall@10" in advice.sentence


def test_a_float_that_finds_nothing_right_still_leads_to_advice():
    advice = advise([measured("float", 0.0), measured("ubinary", 0.0)], keep=0.9, judged=True)
    assert advice.best.way.spec.embedding_type == "ubinary"


@pytest.mark.parametrize(
    ("found", "keep", "sentence"),
    [
        (
            ALL,
            0.97,
            "Store ubinary at 64 dimensions (8 bytes a vector, 32 times smaller than the full "
            "float) and rescore the best 80 by float: it finds 98% of the ten nearest by float; "
            "where no floats are at hand to rescore by, store uint8 at 64 dimensions (64 bytes a "
            "vector, 4 times smaller than the full float): it finds 99.5% of the ten nearest by "
            "float.",
        ),
        (
            ALL,
            0.985,
            "Store uint8 at 64 dimensions (64 bytes a vector, 4 times smaller than the full "
            "float): it finds 99.5% of the ten nearest by float, and nothing smaller keeps 98.5%.",
        ),
        (ALL, 1.0, "Keep float at 64 dimensions: nothing smaller keeps 100% of its recall@10."),
        (
            [FLOAT, BITS8],
            0.97,
            "Store ubinary at 64 dimensions (8 bytes a vector, 32 times smaller than the full "
            "float) and rescore the best 80 by float: it finds 98% of the ten nearest by float; "
            "without rescoring nothing smaller than float keeps 97%.",
        ),
    ],
)
def test_the_sentence_says_what_to_store_and_what_it_keeps(found, keep, sentence):
    assert advise(found, keep=keep, judged=False).sentence == sentence
