from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nimbed
from nimbed.errors import BackendError
from nimbed_ray import ERROR_FIELD, EmbedTexts
from nimbed_ray.folder import Folder
from nimbed_ray.parts import Attempts, PartWriter, content_hash

TABLE = pa.table(
    {
        "text": ["one", "two", None, "ünï", ""] * 3,
        "year": pa.array([1, None, 3, None, 5] * 3, pa.int16()),
        "flag": [True, None, False, True, True] * 3,
        "tags": [["a"], [], None, ["b", None], ["c"]] * 3,
    }
)


@given(st.lists(st.integers(0, 15), max_size=4), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_the_digest_is_of_the_rows_not_of_their_layout(cuts, before):
    cuts = sorted(cuts)
    pieces = [
        TABLE.slice(start, stop - start)
        for start, stop in zip([0, *cuts], [*cuts, 15], strict=True)
    ]
    padded = pa.concat_tables([TABLE.slice(0, before), *pieces]).combine_chunks()
    for same in (pa.concat_tables(pieces), padded.slice(before)):
        assert content_hash(same.replace_schema_metadata({"pandas": "{}"})) == content_hash(TABLE)


@pytest.mark.parametrize(
    "other",
    [
        TABLE.slice(1),
        TABLE.take(pa.array([1, 0, *range(2, 15)])),
        TABLE.drop_columns(["flag"]),
        TABLE.rename_columns(["text", "years", "flag", "tags"]),
        TABLE.set_column(1, "year", TABLE["year"].cast(pa.int32())),
        TABLE.set_column(1, "year", pa.array([1, 0, 3, None, 5] * 3, pa.int16())),
    ],
)
def test_other_rows_have_another_content_hash(other):
    assert content_hash(other) != content_hash(TABLE)


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path / "out"))


def writer(folder, **options):
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", **options)
    return PartWriter(embed, folder).write, embed


def test_a_part_is_made_once_and_read_back(folder):
    make, embed = writer(folder, on_error="skip")
    first = asdict(make(TABLE))
    second = asdict(make(TABLE))
    assert (first["made"], first["rows"], first["left_out"]) == (True, 9, 6)
    assert second == {**first, "made": False, "tokens": 0}
    assert len(embed.embedder.calls) == 1
    left_out = pq.read_table(folder.address_of(f"_left_out/{first['name']}"))
    assert left_out["year"].to_pylist() == [3, 5] * 3
    assert left_out[ERROR_FIELD][1].as_py() == "the text is blank"
    part = pq.read_table(folder.address_of(first["name"]))
    assert part["tags"].to_pylist()[:3] == [["a"], [], ["b", None]]
    assert folder.names() == [first["name"]]


def test_a_damaged_part_is_made_again(folder):
    make, _ = writer(folder, on_error="skip")
    name = make(TABLE).name
    whole = folder.read(name)
    folder.write(name, whole[: len(whole) // 2])
    assert make(TABLE).made
    assert folder.read(name) == whole


def test_a_text_that_kills_processes_ends_the_job(folder):
    attempts = Attempts(folder)
    make, embed = writer(folder, on_error="skip")
    name = make(TABLE).name
    folder.delete(name)
    # Begun and never ended, as by processes that died.
    begun = [attempts.attempt(part, rows="rows") for part in ["part-1.parquet"] * 4 + [name] * 4]
    for one in begun:
        one.__enter__()
    assert make(TABLE.slice(1)).made
    with pytest.raises(BackendError, match="4 processes died while they embedded 15 rows"):
        make(TABLE)
    attempts.clear()
    assert make(TABLE).made
    assert len(embed.embedder.calls) == 3


def test_the_vectors_of_a_part_are_the_embedders(folder):
    make, _ = writer(folder, embedding_type="ubinary", dimensions=32)
    rows = pa.table({"text": ["one", "two"]})
    name = make(rows).name
    read = nimbed.files.read_embedded(folder.address_of(name))
    wanted = nimbed.FakeEmbedder().embed(
        ["one", "two"], input_type="passage", embedding_type="ubinary", dimensions=32
    )
    np.testing.assert_array_equal(read.vectors, wanted.vectors)
