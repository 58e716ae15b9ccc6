import pytest

from nimbed.errors import ConfigurationError
from nimbed.rows import BadRow, Row, as_rows, row_id


def test_tuples_are_numbered_by_their_place_and_rows_keep_their_own():
    own, bad = Row(40, "c", 7, {"page": 1}), BadRow(41, "not JSON")
    given = [("a", "one"), own, bad, (5, "two", {"page": 2})]
    assert list(as_rows(given)) == [
        Row(1, "one", "a", {}),
        own,
        bad,
        Row(4, "two", 5, {"page": 2}),
    ]


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ("a text alone", "item 2 is str"),
        (("a",), "item 2 is tuple"),
        (("a", "b", {}, 1), "item 2 is tuple"),
        ((None, "b"), "item 2 has no id"),
    ],
)
def test_what_is_no_item_is_named_by_its_place(item, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        list(as_rows([("a", "one"), item]))


def test_a_row_without_an_id_is_called_by_its_source_and_number():
    assert row_id(Row(12, "a"), "file.txt") == "file.txt:12"
    assert row_id(Row(12, "a", 0), "file.txt") == 0
