import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbed import FakeEmbedder
from nimbed.files.arrow import FileContract
from nimbed.files.writers import InferredColumns
from nimbed.rows import Row

CONTRACT = FileContract(spec=FakeEmbedder().spec(), input_type="passage")


def learned(*values):
    columns = InferredColumns(CONTRACT)
    rows = [Row(number, "text", None, {"a": value}) for number, value in enumerate(values, 1)]
    for row in rows:
        columns.learn(row)
    return columns, columns.table(rows)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 2], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([1, 2**60 + 1], pa.int64()),
        ([True, None], pa.bool_()),
        (["a", "b"], pa.string()),
        ([None, None], pa.string()),
        ([["a"], [], None], pa.list_(pa.string())),
        ([[], [1], [1.5]], pa.list_(pa.float64())),
        ([[None], [True]], pa.list_(pa.bool_())),
    ],
)
def test_scalars_and_lists_of_scalars_keep_their_type(values, kind):
    _, table = learned(*values)
    assert table.schema.field("a").type == kind
    assert table.column("a").to_pylist() == values


@pytest.mark.parametrize(
    "values",
    [
        [1, "b"],
        [True, 1],
        [{"x": 1}],
        [[{"x": 1}]],
        [[1], 1],
        [2**63],
        [2**60 + 1, 0.5],
        [[1, "b"]],
        [{}],
    ],
)
def test_everything_else_becomes_json_text(values):
    _, table = learned(*values)
    assert table.schema.field("a").type == pa.string()
    texts = table.column("a").to_pylist()
    assert [
        text if isinstance(value, str) else json.loads(text)
        for text, value in zip(texts, values, strict=True)
    ] == values


def test_columns_stand_in_order_of_appearance_behind_the_id_and_the_text():
    contract = FileContract(
        spec=CONTRACT.spec, input_type="query", text_field="body", id_field="key"
    )
    columns = InferredColumns(contract)
    rows = [Row(1, "a", 5, {"z": 1}), Row(2, "b", 6, {"b": "x", "z": 2})]
    for row in rows:
        columns.learn(row)
    assert columns.table(rows).to_pylist() == [
        {"key": 5, "body": "a", "z": 1, "b": None},
        {"key": 6, "body": "b", "z": 2, "b": "x"},
    ]


def test_a_row_that_does_not_fit_what_was_learned_says_which_field():
    columns, _ = learned(1, 2)
    assert columns.fault(Row(3, "text", None, {"a": None})) is None
    assert columns.fault(Row(3, "text")) is None
    assert "'a' has another type" in columns.fault(Row(3, "text", None, {"a": "x"}))
    assert "'b' did not occur" in columns.fault(Row(3, "text", None, {"b": 1}))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), values), min_size=1, max_size=6))
def test_any_json_records_make_a_table_that_every_one_of_them_fits(records):
    columns = InferredColumns(CONTRACT)
    rows = [Row(number, "text", None, record) for number, record in enumerate(records, 1)]
    for row in rows:
        columns.learn(row)
    assert [columns.fault(row) for row in rows] == [None] * len(rows)
    table = columns.table(rows)
    for record, stored in zip(records, table.to_pylist(), strict=True):
        for name, value in record.items():
            kept = stored[name]
            assert kept == value or json.loads(kept) == value
