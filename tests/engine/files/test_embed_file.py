import csv
import datetime
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nimbed import VectorSpec
from nimbed.chunks import LateSplitter, Splitter
from nimbed.files import embed_file
from nimbed.spec import EmbeddingType

TYPES = EmbeddingType.__args__


@pytest.mark.parametrize("embedding_type", TYPES)
def test_parquet_holds_the_vectors_of_embed_as_fixed_size_lists(
    embedder, write_jsonl, tmp_path, embedding_type
):
    texts = [f"text number {number}" for number in range(50)]
    source = write_jsonl({"text": text} for text in texts)
    report = embed_file(
        embedder,
        source,
        tmp_path / "out.parquet",
        input_type="query",
        embedding_type=embedding_type,
        dimensions=32,
    )
    wanted = embedder.embed(texts, input_type="query", embedding_type=embedding_type, dimensions=32)
    table = pq.read_table(tmp_path / "out.parquet")
    kind = table.schema.field("embedding").type
    assert kind == pa.list_(pa.from_numpy_dtype(wanted.spec.dtype), wanted.spec.width)
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist()), wanted.vectors)
    assert table["embedding_tokens"].to_pylist() == wanted.token_counts.tolist()
    assert VectorSpec.from_json(table.schema.metadata[b"nimbed.spec"]) == wanted.spec
    assert table.schema.metadata[b"nimbed.input_type"] == b"query"
    assert (report.rows, report.spec) == (50, wanted.spec)
    assert report.tokens == wanted.token_counts.sum()


def test_ids_texts_and_other_columns_are_carried_along(embedder, write_jsonl, tmp_path):
    records = [
        {"key": number, "body": f"text {number}", "tags": ["a", "b"], "more": {"deep": number}}
        for number in range(5)
    ]
    embed_file(
        embedder,
        write_jsonl(records),
        tmp_path / "out.parquet",
        input_type="passage",
        text_field="body",
        id_field="key",
    )
    table = pq.read_table(tmp_path / "out.parquet").select(["key", "body", "tags", "more"])
    wanted = [{**record, "more": json.dumps(record["more"])} for record in records]
    assert table.to_pylist() == wanted


def test_parquet_columns_keep_their_exact_types_order_and_metadata(embedder, tmp_path):
    source = pa.table(
        {
            "at": pa.array([1, 2, 3], pa.timestamp("ns", "UTC")),
            "text": pa.array(["a", "b", "a"]).dictionary_encode(),
            "price": pa.array([1, 2, 3]).cast(pa.decimal128(21, 2)),
            "nested": [{"x": [1]}, {"x": None}, None],
            "small": pa.array([1, 2, None], pa.uint8()),
        }
    ).replace_schema_metadata({"made_by": "somebody"})
    pq.write_table(source, tmp_path / "in.parquet", row_group_size=2)
    embed_file(embedder, tmp_path / "in.parquet", tmp_path / "out.parquet", input_type="passage")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names[:5] == source.column_names
    assert table.select(source.column_names).equals(source)
    assert table.schema.metadata[b"made_by"] == b"somebody"


def test_csv_columns_are_carried_along_as_strings(embedder, tmp_path):
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text", "year"), ("a", "one, two\nthree", "1999")])
    embed_file(
        embedder, tmp_path / "in.csv", tmp_path / "o.parquet", input_type="passage", id_field="id"
    )
    (row,) = pq.read_table(tmp_path / "o.parquet", columns=["id", "text", "year"]).to_pylist()
    assert row == {"id": "a", "text": "one, two\nthree", "year": "1999"}


@pytest.mark.parametrize("embedding_type", TYPES)
def test_npy_is_an_ordinary_array_with_its_spec_beside_it(embedder, tmp_path, embedding_type):
    texts = [f"text {number}" for number in range(100)]
    (tmp_path / "in.txt").write_text("\n".join(texts))
    embed_file(
        embedder,
        tmp_path / "in.txt",
        tmp_path / "out.npy",
        input_type="passage",
        embedding_type=embedding_type,
    )
    wanted = embedder.embed(texts, input_type="passage", embedding_type=embedding_type)
    for mode in (None, "r"):
        stored = np.load(tmp_path / "out.npy", mmap_mode=mode)
        assert stored.dtype == wanted.vectors.dtype
        np.testing.assert_array_equal(stored, wanted.vectors)
    assert VectorSpec.from_json((tmp_path / "out.npy.spec.json").read_text()) == wanted.spec


@pytest.mark.parametrize("embedding_type", TYPES)
def test_json_lines_give_every_float_back_exactly(embedder, write_jsonl, tmp_path, embedding_type):
    records = [{"id": f"x{number}", "text": f"é {number}", "n": None} for number in range(20)]
    embed_file(
        embedder,
        write_jsonl(records),
        tmp_path / "out.jsonl",
        input_type="passage",
        id_field="id",
        embedding_type=embedding_type,
    )
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    wanted = embedder.embed(
        [record["text"] for record in records],
        input_type="passage",
        embedding_type=embedding_type,
    )
    stored = np.array([line.pop("embedding") for line in lines]).astype(wanted.spec.dtype)
    np.testing.assert_array_equal(stored, wanted.vectors)
    assert lines == records
    assert VectorSpec.from_json((tmp_path / "out.jsonl.spec.json").read_text()) == wanted.spec


def test_parquet_values_that_json_lacks_are_written_as_what_json_has(embedder, tmp_path):
    table = pa.table(
        {
            "text": ["a"],
            "day": [datetime.date(2020, 2, 29)],
            "raw": [b"\0\xff"],
            "nan": [float("nan")],
            "deep": [[{"x": float("inf")}]],
            "at": pa.array([1], pa.timestamp("ns")),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    embed_file(embedder, tmp_path / "in.parquet", tmp_path / "out.jsonl", input_type="passage")
    line = json.loads((tmp_path / "out.jsonl").read_text(), parse_constant=pytest.fail)
    del line["embedding"]
    assert line == {
        "text": "a",
        "day": "2020-02-29",
        "raw": "AP8=",
        "nan": None,
        "deep": [{"x": None}],
        "at": "1970-01-01 00:00:00.000000001",
    }


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
def test_an_empty_file_becomes_an_empty_file_with_a_spec(embedder, tmp_path, name):
    (tmp_path / "in.txt").touch()
    report = embed_file(embedder, tmp_path / "in.txt", tmp_path / name, input_type="query")
    assert report.rows == 0
    if name == "out.npy":
        assert np.load(tmp_path / name).shape == (0, 64)
    if name == "out.parquet":
        assert pq.read_table(tmp_path / name).num_rows == 0
        assert VectorSpec.from_json(pq.read_schema(tmp_path / name).metadata[b"nimbed.spec"])


def test_the_role_reaches_the_embedder(embedder, tmp_path):
    (tmp_path / "in.txt").write_text("one\n")
    embed_file(embedder, tmp_path / "in.txt", tmp_path / "q.npy", input_type="query")
    embed_file(embedder, tmp_path / "in.txt", tmp_path / "p.npy", input_type="passage")
    assert embedder.calls == [("query", ("one",)), ("passage", ("one",))]
    assert not np.array_equal(np.load(tmp_path / "q.npy"), np.load(tmp_path / "p.npy"))


def test_truncated_rows_are_marked_and_counted(embedder, write_jsonl, tmp_path):
    source = write_jsonl([{"text": "short"}, {"text": "word " * 600}, {"text": "short"}])
    report = embed_file(
        embedder, source, tmp_path / "out.parquet", input_type="passage", truncate="END"
    )
    assert report.truncated == 1
    marks = pq.read_table(tmp_path / "out.parquet")["embedding_truncated"].to_pylist()
    assert marks == [False, True, False]


def test_progress_is_told_in_rows_of_the_whole_file(embedder, write_jsonl, tmp_path):
    told = []
    source = write_jsonl({"text": f"text {number}"} for number in range(30))
    embed_file(
        embedder,
        source,
        tmp_path / "out.npy",
        input_type="passage",
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (30, 30)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("out", [".parquet", ".jsonl", ".npy"])
@pytest.mark.parametrize("kind", [Splitter, LateSplitter])
def test_texts_are_embedded_in_chunks(embedder, tmp_path, suffix, out, kind):
    texts = [f"Document {n} begins here and goes on. " * (1 + 30 * (n % 3)) for n in range(6)]
    when = datetime.date(2026, 1, 2)
    table = pa.table({"key": range(6), "text": texts, "day": [when] * 6})
    if suffix == ".parquet":
        pq.write_table(table, tmp_path / "in.parquet")
    else:
        lines = [json.dumps({"key": n, "text": text}) for n, text in enumerate(texts)]
        (tmp_path / "in.jsonl").write_text("\n".join(lines))
    splitter = kind(embedder, tokens=60, overlap=10)
    report = embed_file(
        embedder,
        tmp_path / f"in{suffix}",
        tmp_path / f"out{out}",
        input_type="passage",
        id_field="key",
        splitter=splitter,
    )
    chunks = [(n, chunk) for n, text in enumerate(texts) for chunk in splitter.split(text)]
    assert report.rows == len(chunks) > 12
    wanted = embedder.embed([chunk.text for _, chunk in chunks], input_type="passage").vectors
    if out == ".npy":
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)
        return
    if out == ".jsonl":
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    else:
        rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    for (n, chunk), row in zip(chunks, rows, strict=True):
        assert (row["key"], row["text"]) == (f"{n}#{chunk.number}", str(chunk.text))
        assert (row["chunk_of"], row["chunk"]) == (n, chunk.number)
        assert ("chunk_context" in row) == (kind is LateSplitter)
        assert texts[n][row["chunk_start"] : row["chunk_stop"]] == row["text"]
        if suffix == out == ".parquet":
            assert row["day"] == when
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], "f4"), wanted)
