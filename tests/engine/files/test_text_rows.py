import gzip
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbed.errors import ConfigurationError, InputError
from nimbed.files import BadRow, Row, read_rows


def rows_of(data, **options):
    return list(read_rows(io.BytesIO(data), **options))


def reasons(rows):
    return {row.number: row.reason for row in rows if isinstance(row, BadRow)}


def test_a_line_of_text_is_a_row_with_its_number():
    assert rows_of(b"one\ntwo\nthree") == [Row(1, "one"), Row(2, "two"), Row(3, "three")]


def test_windows_line_ends_and_a_byte_order_mark_are_no_part_of_the_text():
    assert rows_of(b"\xef\xbb\xbfone\r\ntwo\r\n") == [Row(1, "one"), Row(2, "two")]


def test_only_a_newline_ends_a_line():
    text = "a\u2028b\u0085c\x0bd\x0ce\x1cf\rg"
    assert rows_of(text.encode() + b"\n") == [Row(1, text)]


def test_blank_lines_are_bad_but_those_that_end_the_file_are_not_rows():
    rows = rows_of("one\n\n \u3000\t\ntwo\n\n\n".encode())
    assert [row.number for row in rows] == [1, 2, 3, 4]
    assert reasons(rows) == {2: "the text is blank", 3: "the text is blank"}


def test_bytes_that_are_no_utf8_spoil_their_line_alone():
    rows = rows_of(b"one\ncaf\xe9\nthree\n")
    assert reasons(rows) == {2: "not valid UTF-8 (byte 0xe9 at column 4)"}
    assert rows[2] == Row(3, "three")


def test_a_nul_is_a_character_like_any_other():
    assert rows_of(b"a\0b\n") == [Row(1, "a\0b")]


def test_an_empty_file_has_no_rows():
    assert rows_of(b"") == rows_of(b"\n\n") == []


def test_a_text_of_a_megabyte_is_one_row():
    (row,) = rows_of(b"x" * 2**20)
    assert len(row.text) == 2**20


def test_a_plain_text_file_has_no_ids():
    with pytest.raises(ConfigurationError, match="one text a line and has no field 'id'"):
        rows_of(b"one\n", id_field="id")


def test_a_packed_file_reads_like_an_unpacked_one(tmp_path):
    path = tmp_path / "texts.txt.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\n"))
    assert list(read_rows(path)) == [Row(1, "one"), Row(2, "two")]


def test_a_cut_packed_file_is_an_input_error(tmp_path):
    path = tmp_path / "texts.txt.gz"
    path.write_bytes(gzip.compress(b"one\n" * 100_000)[:-20])
    with pytest.raises(InputError, match="not a whole gzip file"):
        list(read_rows(path))


def test_a_json_record_gives_its_text_its_id_and_the_other_fields():
    line = json.dumps({"key": 7, "body": "hello", "tags": ["a"], "nested": {"x": None}})
    (row,) = rows_of(line.encode(), kind="jsonl", text_field="body", id_field="key")
    assert row == Row(1, "hello", 7, {"tags": ["a"], "nested": {"x": None}})


def test_the_other_fields_are_left_out_on_request():
    (row,) = rows_of(b'{"text": "a", "b": 1}', kind="jsonl", carry=False)
    assert row == Row(1, "a")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ('{"text": "a"', "not valid JSON"),
        ("[1]", "holds JSON list, expected an object"),
        ('"text"', "holds JSON str, expected an object"),
        ('{"body": "a"}', "no field 'text'; it has 'body'"),
        ("{}", "no field 'text'; it has none"),
        ('{"text": 5}', "the text is int, expected a string"),
        ('{"text": null}', "the text is null, expected a string"),
        ('{"text": ["a"]}', "the text is list, expected a string"),
        ('{"text": ""}', "the text is blank"),
        ('{"text": " \\u00a0 "}', "the text is blank"),
        ('{"text": "\\ud800"}', "not valid Unicode"),
        ('{"text": "a", "b": "\\udfff"}', "a field is not valid Unicode"),
        ('{"text": "a", "b": {"\\ud800": 1}}', "a field is not valid Unicode"),
        ('{"text": "a", "b": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_bad_json_line_comes_out_with_its_number_and_reason(line, reason):
    rows = rows_of(b'{"text": "fine"}\n' + line.encode() + b'\n{"text": "fine"}', kind="jsonl")
    assert [row.number for row in rows] == [1, 2, 3]
    assert list(reasons(rows)) == [2]
    assert reason in reasons(rows)[2]


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        ("null", "the id is null"),
        ("true", "the id is bool"),
        ("1.5", "the id is float"),
        ('""', "the id is empty"),
        (str(2**63), "does not fit 64 bits"),
        ('"\\ud800"', "the id is not valid Unicode"),
    ],
)
def test_an_id_is_a_string_or_a_64_bit_integer(identity, reason):
    rows = rows_of(b'{"text": "a", "id": %s}' % identity.encode(), kind="jsonl", id_field="id")
    assert reason in reasons(rows)[1]


def test_a_missing_id_is_a_bad_row_only_if_ids_were_asked_for():
    line = b'{"text": "a"}'
    assert rows_of(line, kind="jsonl") == [Row(1, "a")]
    assert "no field 'id'" in reasons(rows_of(line, kind="jsonl", id_field="id"))[1]


def test_blank_lines_between_json_records_count_but_are_no_rows():
    rows = rows_of(b'{"text": "a"}\n\n   \r\n{"text": "b"}\n\n', kind="jsonl")
    assert rows == [Row(1, "a"), Row(4, "b")]


def test_an_escaped_pair_of_surrogates_is_one_valid_character():
    (row,) = rows_of(b'{"text": "\\ud83d\\ude00"}', kind="jsonl")
    assert row.text == "\N{GRINNING FACE}"


records = st.dictionaries(
    st.text(max_size=5),
    st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(), max_size=3),
    max_size=4,
)


@given(st.lists(st.tuples(records, st.text(min_size=1).filter(lambda text: not text.isspace()))))
def test_whatever_json_writes_is_read_back(pairs):
    wanted = [{**record, "text": text} for record, text in pairs]
    lines = [json.dumps(record, ensure_ascii=place % 2 == 0) for place, record in enumerate(wanted)]
    rows = rows_of("\n".join(lines).encode(), kind="jsonl")
    assert [{**row.columns, "text": row.text} for row in rows] == wanted
    assert [row.number for row in rows] == list(range(1, len(wanted) + 1))
