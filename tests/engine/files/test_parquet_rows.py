import datetime
import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nimbed.errors import ConfigurationError, InputError
from nimbed.files import BadRow, Row, read_rows


@pytest.fixture
def write(tmp_path):
    def written(table, **options):
        path = tmp_path / "table.parquet"
        pq.write_table(pa.table(table), path, **options)
        return path

    return written


def test_a_record_gives_its_text_its_id_and_the_other_columns(write):
    when = datetime.datetime(2020, 2, 29, 12, 30)
    path = write({"when": [when], "text": ["hello"], "id": [7], "price": [decimal.Decimal("1.50")]})
    (row,) = read_rows(path, id_field="id")
    assert (row.number, row.text, row.id) == (1, "hello", 7)
    assert dict(row.columns) == {"when": when, "price": decimal.Decimal("1.50")}


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
)
def test_every_kind_of_string_column_is_text(write, kind):
    path = write({"text": pa.array(["a", "b", "a"]).cast(kind)})
    assert [row.text for row in read_rows(path)] == ["a", "b", "a"]


def test_numbers_go_on_over_stretches_and_row_groups(write):
    texts = [f"text {number}" for number in range(1, 5001)]
    path = write({"text": texts}, row_group_size=1700)
    rows = list(read_rows(path))
    assert [(row.number, row.text) for row in rows] == list(enumerate(texts, start=1))


def test_bad_rows_come_out_with_their_number_and_reason(write):
    path = write({"text": ["a", None, " ", "d"], "id": [1, 2, 3, None]})
    rows = list(read_rows(path, id_field="id"))
    assert isinstance(rows[0], Row)
    assert rows[1:] == [
        BadRow(2, "the text is null, expected a string"),
        BadRow(3, "the text is blank"),
        BadRow(4, "the id is null, expected a string or an integer"),
    ]


def test_a_string_that_is_no_utf8_spoils_its_row_alone(write):
    broken = pa.array([b"fine", b"caf\xe9", b"fine"]).view(pa.string())
    rows = list(read_rows(write({"text": broken})))
    assert [isinstance(row, Row) for row in rows] == [True, False, True]
    assert rows[1] == BadRow(2, "the text is not valid Unicode")


def test_the_other_columns_are_not_read_on_request(write):
    (row,) = read_rows(write({"text": ["a"], "b": [1]}), carry=False)
    assert dict(row.columns) == {}


@pytest.mark.parametrize(
    ("kind", "exact", "finer"),
    [
        (
            pa.timestamp("ns"),
            datetime.datetime(1970, 1, 1, microsecond=1),
            "1970-01-01 00:00:00.000001001",
        ),
        (
            pa.timestamp("ns", tz="UTC"),
            datetime.datetime(1970, 1, 1, microsecond=1, tzinfo=datetime.UTC),
            "1970-01-01 00:00:00.000001001Z",
        ),
        (pa.time64("ns"), datetime.time(microsecond=1), "00:00:00.000001001"),
        (pa.duration("ns"), datetime.timedelta(microseconds=1), "1001"),
    ],
    ids=str,
)
def test_nanoseconds_come_out_as_text_since_python_has_none(write, kind, exact, finer):
    """The same with pandas installed, whose types pyarrow would give."""
    path = write(
        {"text": ["a", "b", "c"], "at": pa.array([1000, 1001, None], pa.int64()).cast(kind)}
    )
    values = [row.columns["at"] for row in read_rows(path)]
    assert values == [exact, finer, None]
    assert [type(value) for value in values] == [type(exact), str, type(None)]


def test_a_column_that_is_absent_or_no_text_is_misuse(write):
    path = write({"body": ["a"], "n": [1]})
    with pytest.raises(ConfigurationError, match="no column 'text'; it has body, n"):
        list(read_rows(path))
    with pytest.raises(ConfigurationError, match="'n' .* is int64, expected text"):
        list(read_rows(path, text_field="n"))
    with pytest.raises(ConfigurationError, match="no column 'id'"):
        list(read_rows(path, text_field="body", id_field="id"))


def test_a_damaged_file_is_an_input_error(write):
    path = write({"text": [f"text {number}" for number in range(1000)]})
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="not a whole parquet file"):
        list(read_rows(path))
    path.write_bytes(b"no parquet at all")
    with pytest.raises(InputError, match="not a whole parquet file"):
        list(read_rows(path))
    path.write_bytes(whole[:100] + bytes(500) + whole[600:])
    with pytest.raises(InputError, match="is damaged"):
        list(read_rows(path))


def test_parquet_cannot_come_from_a_pipe():
    with pytest.raises(InputError, match="standard input is a stream"):
        list(read_rows("-", kind="parquet"))
