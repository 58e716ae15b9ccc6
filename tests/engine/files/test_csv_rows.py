import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbed.errors import ConfigurationError, InputError
from nimbed.files import BadRow, Row, read_rows


def rows_of(data, **options):
    return list(read_rows(io.BytesIO(data), kind="csv", **options))


def test_a_record_gives_its_text_its_id_and_the_other_columns_as_strings():
    data = b'id,text,year\nx1,"hello, world",1999\n'
    assert rows_of(data, id_field="id") == [Row(2, "hello, world", "x1", {"year": "1999"})]


def test_a_record_over_several_lines_is_named_by_its_first():
    rows = rows_of(b'text,n\n"one\ntwo\nthree",1\nlast,2\n')
    assert rows == [
        Row(2, "one\ntwo\nthree", None, {"n": "1"}),
        Row(5, "last", None, {"n": "2"}),
    ]


def test_a_byte_order_mark_windows_line_ends_and_empty_lines_do_no_harm():
    assert rows_of(b"\xef\xbb\xbftext\r\n\r\none\r\n\r\n") == [Row(3, "one")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"a,b,c", "3 fields, the header names 2"),
        (b"a", "1 fields, the header names 2"),
        (b" ,b", "the text is blank"),
        (b"a\xff,b", "not valid UTF-8"),
        (b"a,\xe9", "not valid UTF-8"),
        (b'"a"b,c', "not valid CSV"),
    ],
)
def test_a_bad_record_spoils_itself_alone(line, reason):
    rows = rows_of(b"text,n\nfine,1\n" + line + b"\nfine,2\n")
    assert [row.number for row in rows] == [2, 3, 4]
    assert isinstance(rows[1], BadRow)
    assert reason in rows[1].reason
    assert isinstance(rows[0], Row)
    assert isinstance(rows[2], Row)


def test_a_quote_that_is_never_closed_is_named_by_the_line_that_opens_it():
    rows = rows_of(b'text\nfine\n"open\nmore\nmore\n')
    assert rows[1] == BadRow(3, "not valid CSV: unexpected end of data")


def test_a_field_longer_than_the_csv_module_allows_by_default_is_read():
    (row,) = rows_of(b"text\n" + b"x" * 2**20)
    assert len(row.text) == 2**20


@pytest.mark.parametrize("options", [{"text_field": "body"}, {"id_field": "key"}])
def test_a_column_that_the_header_lacks_is_misuse(options):
    with pytest.raises(ConfigurationError, match="its header names text, n"):
        rows_of(b"text,n\na,1\n", **options)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"text,text\n", "names the column 'text' twice"),
        (b"text,\xff\n", "not valid UTF-8"),
        (b'"text\n', "not valid CSV"),
    ],
)
def test_a_header_that_cannot_be_used_is_an_input_error(data, reason):
    with pytest.raises(InputError, match=reason):
        rows_of(data)


cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=20)


@given(st.lists(st.tuples(cells.filter(lambda text: text and not text.isspace()), cells)))
def test_whatever_the_csv_module_writes_is_read_back(records):
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(("text", "other"))
    writer.writerows(records)
    rows = rows_of(stream.getvalue().encode())
    assert [(row.text, row.columns["other"]) for row in rows] == records
