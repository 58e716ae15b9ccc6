import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nimbed.errors import ConfigurationError, InputError
from nimbed.files import embed_file, open_embedded, read_embedded
from nimbed.spec import EmbeddingType

RECORDS = [{"key": f"x{n}", "body": f"text {n}", "n": n} for n in range(9000)]


@pytest.fixture
def embedded(counting_embedder, write_jsonl, tmp_path):
    path = tmp_path / "embedded.parquet"
    embed_file(
        counting_embedder,
        write_jsonl(RECORDS),
        path,
        input_type="passage",
        text_field="body",
        id_field="key",
        embedding_type="ubinary",
    )
    return path


@pytest.mark.parametrize("embedding_type", EmbeddingType.__args__)
def test_what_was_embedded_comes_back_as_the_same_batch(
    embedder, write_jsonl, tmp_path, embedding_type
):
    texts = ["one", "two " * 600, "three"]
    options = {"input_type": "query", "embedding_type": embedding_type, "truncate": "START"}
    path = tmp_path / "out.parquet"
    embed_file(embedder, write_jsonl({"text": text} for text in texts), path, **options)
    batch, wanted = read_embedded(path), embedder.embed(texts, **options)
    assert (batch.spec, batch.input_type) == (wanted.spec, "query")
    assert batch.truncated == wanted.truncated == (1,)
    np.testing.assert_array_equal(batch.vectors, wanted.vectors)
    np.testing.assert_array_equal(batch.token_counts, wanted.token_counts)
    assert batch.vectors.dtype == wanted.vectors.dtype


def test_rows_and_vectors_come_in_parts(embedded):
    numbers, ids, sizes = [], [], []
    with open_embedded(embedded) as file:
        assert (file.count, file.contract.id_field) == (9000, "key")
        for rows, batch in file.parts():
            assert len(rows) == len(batch)
            sizes.append(len(rows))
            numbers += [row.number for row in rows]
            ids += [row.id for row in rows]
            assert dict(rows[0].columns) == {"n": rows[0].number - 1}
    assert numbers == list(range(1, 9001))
    assert ids == [record["key"] for record in RECORDS]
    assert max(sizes) <= 4096


def test_an_empty_file_comes_back_as_an_empty_batch(embedder, tmp_path):
    (tmp_path / "in.txt").touch()
    embed_file(embedder, tmp_path / "in.txt", tmp_path / "out.parquet", input_type="query")
    batch = read_embedded(tmp_path / "out.parquet")
    assert batch.vectors.shape == (0, 64)


def test_a_parquet_file_of_somebody_else_is_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigurationError, match=r"was not written by nimbed.*nimbed\.spec"):
        read_embedded(tmp_path / "other.parquet")


def test_an_altered_spec_is_refused(embedded):
    table = pq.read_table(embedded)
    metadata = dict(table.schema.metadata)
    facts = json.loads(metadata[b"nimbed.spec"])
    metadata[b"nimbed.spec"] = json.dumps({**facts, "model": "another"}).encode()
    pq.write_table(table.replace_schema_metadata(metadata), embedded)
    with pytest.raises(ConfigurationError, match="was edited"):
        read_embedded(embedded)


def test_a_lost_column_is_named(embedded):
    pq.write_table(pq.read_table(embedded).drop_columns(["embedding"]), embedded)
    with pytest.raises(InputError, match="has lost its columns embedding"):
        read_embedded(embedded)


def test_vectors_of_another_width_are_refused(embedded):
    table = pq.read_table(embedded)
    other = pa.array([[1, 2, 3]] * len(RECORDS), pa.list_(pa.uint8(), 3))
    place = table.column_names.index("embedding")
    pq.write_table(table.set_column(place, "embedding", other), embedded)
    with pytest.raises(InputError, match="not 8 wide"):
        read_embedded(embedded)


def test_a_filtered_and_sorted_file_still_says_what_it_is(embedded):
    table = pq.read_table(embedded)
    pq.write_table(
        table.filter(pa.compute.field("n") > 8000).sort_by([("n", "descending")]), embedded
    )
    with open_embedded(embedded) as file:
        rows = [row for part, _ in file.parts() for row in part]
    assert [row.columns["n"] for row in rows] == list(range(8999, 8000, -1))
