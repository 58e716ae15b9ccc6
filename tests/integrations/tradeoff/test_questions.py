from __future__ import annotations

import pytest

from nimbed.errors import InputError
from nimbed_tradeoff.texts import first_sentences

REST = "Then come eight more words, so this one serves."


@pytest.mark.parametrize(
    ("passage", "asked", "left"),
    [
        (f"One two three four. {REST}", "One two three four.", REST),
        (f"Does this ask something? {REST}", "Does this ask something?", REST),
        (f"A heading of words\n\n{REST}", "A heading of words", REST),
        (f"Costs 3.50 a piece today. {REST}", "Costs 3.50 a piece today.", REST),
        (
            "图书馆保存了许多古老的手稿。它们每天都由馆员仔细地整理并且放回原来的书架上面。",
            "图书馆保存了许多古老的手稿。",
            "它们每天都由馆员仔细地整理并且放回原来的书架上面。",
        ),
    ],
)
def test_the_first_sentence_asks_for_the_rest(passage, asked, left):
    made = first_sentences([passage, "whole"])
    assert (made.texts, made.passages, made.places) == ((asked,), (left, "whole"), (0,))


@pytest.mark.parametrize(
    "passage",
    ["One sentence alone, however long it may be.", f"Short. {REST}", "A b c d. Too short."],
)
def test_a_passage_without_both_stays_whole(passage):
    made = first_sentences([passage, f"One two three four. {REST}"])
    assert made.places == (1,)
    assert made.passages[0] == passage


def test_no_more_than_wanted_are_made_spread_over_the_file():
    passages = [f"Number {n} is here. {REST}" for n in range(100)]
    made = first_sentences(passages, most=5)
    assert made.places == (0, 20, 40, 60, 80)
    assert made.passages[1] == passages[1]
    assert made.passages[20] == REST


def test_titles_alone_make_no_queries_and_the_message_says_what_to_do():
    with pytest.raises(InputError, match="none of the 2 passages .* --queries"):
        first_sentences(["A title", "Another title"])
