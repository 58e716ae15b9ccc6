import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.engine.local.checkpoints import tiny_bert

import nimbed
from nimbed.errors import ConfigurationError, InputError, SpaceMismatchError
from nimbed.files.arrow import FileContract
from nimbed_ray import ERROR_FIELD, EmbedTexts

TEXTS = ["one", "two words", "three more words"]


@pytest.fixture
def table():
    return pa.table({"id": ["a", "b", "c"], "text": TEXTS}, metadata={"mine": "kept"})


def texts_with(*more):
    return pa.table({"id": list(range(3 + len(more))), "text": [*TEXTS, *more]})


@pytest.mark.parametrize(
    ("embedding_type", "element", "width"),
    [
        ("float", pa.float32(), 64),
        ("int8", pa.int8(), 64),
        ("uint8", pa.uint8(), 64),
        ("binary", pa.int8(), 8),
        ("ubinary", pa.uint8(), 8),
    ],
)
def test_the_schema_is_known_before_and_the_vectors_are_the_embedders(
    table, embedding_type, element, width
):
    embed = EmbedTexts(
        nimbed.FakeEmbedder(), input_type="passage", embedding_type=embedding_type, id_field="id"
    )
    promised = embed.schema(table.schema)
    assert promised.field("embedding").type == pa.list_(element, width)
    assert promised.names == ["id", "text", "embedding", "embedding_tokens", "embedding_truncated"]
    made = embed(table)
    assert made.schema.equals(promised, check_metadata=True)
    wanted = nimbed.FakeEmbedder().embed(TEXTS, input_type="passage", embedding_type=embedding_type)
    vectors = made["embedding"].combine_chunks().flatten().to_numpy().reshape(3, width)
    np.testing.assert_array_equal(vectors, wanted.vectors)
    assert made["embedding_tokens"].to_pylist() == wanted.token_counts.tolist()
    assert made.select(["id", "text"]).equals(table)


def test_the_contract_stands_beside_the_metadata_that_was_there(table):
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="query", dimensions=32, id_field="id")
    metadata = embed(table).schema.metadata
    assert metadata[b"mine"] == b"kept"
    label = FileContract.from_metadata(metadata, source="the table")
    assert label.spec == nimbed.FakeEmbedder().spec(dimensions=32)
    assert (label.input_type, label.text_field, label.id_field) == ("query", "text", "id")


def test_the_roles_differ(table):
    made = [
        EmbedTexts(nimbed.FakeEmbedder(), input_type=role)(table)["embedding"].to_pylist()
        for role in ("query", "passage")
    ]
    assert made[0][0] != made[1][0]


def test_a_read_only_table_from_shared_memory_is_embedded(table, tmp_path):
    with (
        pa.OSFile(str(tmp_path / "t.arrow"), "wb") as file,
        pa.ipc.new_file(file, table.schema) as w,
    ):
        w.write_table(table)
    with pa.memory_map(str(tmp_path / "t.arrow")) as file:
        mapped = pa.ipc.open_file(file).read_all()
        assert not mapped["text"].chunk(0).buffers()[2].is_mutable
        made = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage")(mapped)
        assert made.num_rows == 3


@pytest.mark.parametrize(
    "column",
    [
        pa.chunked_array([["one"], [], ["two words", "three more words"]]),
        pa.array(["zero", *TEXTS])[1:],
        pa.array(TEXTS).dictionary_encode(),
        pa.array(TEXTS, pa.large_string()),
    ],
    ids=["chunks", "a slice", "a dictionary", "large strings"],
)
def test_how_arrow_holds_the_texts_does_not_matter(table, column):
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage")
    given = pa.table({"text": column})
    assert embed(given)["embedding"].to_pylist() == embed(table)["embedding"].to_pylist()


def test_an_empty_table_keeps_the_schema(table):
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", embedding_type="ubinary")
    made = embed(table.slice(0, 0))
    assert made.num_rows == 0
    assert made.schema.equals(embed.schema(table.schema), check_metadata=True)


LONG = "word " * 600


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "the text is null"),
        ("  ", "the text is blank"),
        (LONG, "exceeds maximum allowed token size 512"),
    ],
)
def test_a_bad_text_stops_the_job_and_names_its_row(bad, reason):
    given = texts_with(bad, "good")
    with pytest.raises(InputError, match=reason) as caught:
        EmbedTexts(nimbed.FakeEmbedder(), input_type="passage")(given)
    assert caught.value.rows == (3,)
    assert "row 3 of a block of 5" in str(caught.value)
    with pytest.raises(InputError, match="the row with id 3: "):
        EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", id_field="id")(given)


def test_null_keeps_bad_rows_with_a_reason():
    given = texts_with(None, LONG, "good", "word " * 700)
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", on_error="null")
    made = embed(given)
    assert made.schema.equals(embed.schema(given.schema), check_metadata=True)
    assert made["id"].to_pylist() == [0, 1, 2, 3, 4, 5, 6]
    for name in ("embedding", "embedding_tokens", "embedding_truncated"):
        assert [value is None for value in made[name].to_pylist()] == [
            *(False, False, False),
            *(True, True, False, True),
        ]
    reasons = made[ERROR_FIELD].to_pylist()
    assert reasons[:4] == [None, None, None, "the text is null, expected a string"]
    assert reasons[4].startswith("input length 601 exceeds")
    assert reasons[6].startswith("input length 701 exceeds")
    assert "row" not in reasons[4]
    wanted = nimbed.FakeEmbedder().embed(["good"], input_type="passage").vectors[0]
    assert made["embedding"][5].as_py() == wanted.tolist()


def test_skip_leaves_bad_rows_out_and_can_say_which(caplog):
    given = texts_with(LONG, "good", "")
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", on_error="skip")
    made = embed(given)
    assert made["id"].to_pylist() == [0, 1, 2, 4]
    assert made.schema.equals(embed.schema(given.schema), check_metadata=True)
    assert "rows left out: 2; the first because input length 601" in caplog.text
    rejected = embed.embed(given).rejected
    assert rejected["id"].to_pylist() == [3, 5]
    assert rejected[ERROR_FIELD][1].as_py() == "the text is blank"


def test_a_table_of_nothing_but_bad_rows():
    given = pa.table({"text": [None, ""]}, schema=pa.schema([("text", pa.string())]))
    nulls = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", on_error="null")(given)
    assert nulls["embedding"].null_count == 2
    skipped = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", on_error="skip")(given)
    assert skipped.num_rows == 0


def test_truncated_rows_are_marked():
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", truncate="END")
    made = embed(texts_with(LONG))
    assert made["embedding_truncated"].to_pylist() == [False, False, False, True]


def test_columns_are_checked_before_anything_is_embedded(table):
    embedder = nimbed.FakeEmbedder()
    embed = EmbedTexts(embedder, input_type="passage", text_field="body")
    with pytest.raises(ConfigurationError, match="no column 'body'; it has id, text"):
        embed(table)
    taken = table.append_column("embedding", pa.array([1, 2, 3]))
    with pytest.raises(ConfigurationError, match="a column 'embedding' already"):
        EmbedTexts(embedder, input_type="passage")(taken)
    with pytest.raises(ConfigurationError, match="batch_format='pyarrow'"):
        EmbedTexts(embedder, input_type="passage")({"text": np.array(TEXTS)})
    assert embedder.calls == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"input_type": "document"}, "input_type must be one of 'query', 'passage'"),
        ({"input_type": "query", "on_error": "ignore"}, "on_error must be one of"),
        ({"input_type": "query", "threads": 0}, "threads must be at least 1"),
        ({"input_type": "query", "dimensions": 63}, "63"),
    ],
)
def test_wrong_options_are_refused_when_it_is_made(options, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        EmbedTexts(nimbed.FakeEmbedder(), **options)


def test_a_pickle_holds_no_weights_and_gives_the_same_vectors(tmp_path, table):
    folder = tiny_bert(tmp_path / "model")
    embed = EmbedTexts(str(folder), input_type="passage", embedding_type="int8", threads=1)
    made = embed(table)
    travelled = pickle.dumps(embed)
    assert len(travelled) < 4096
    assert pickle.loads(travelled)(table).equals(made)


def test_another_model_under_the_same_name_is_refused(tmp_path, table):
    folder = tiny_bert(tmp_path / "model")
    travelled = pickle.dumps(EmbedTexts(str(folder), input_type="passage"))
    tiny_bert(folder, seed=1)
    with pytest.raises(SpaceMismatchError, match="put into one dataset.*revision"):
        pickle.loads(travelled)(table)


def test_making_one_loads_no_weights_and_no_ray(tmp_path):
    folder = tiny_bert(tmp_path / "model")
    script = (
        "import sys, pyarrow\n"
        "import nimbed_ray.spark, nimbed_ray.dask\n"
        f"embed = nimbed_ray.EmbedTexts({str(folder)!r}, input_type='query')\n"
        "given = pyarrow.schema([('text', pyarrow.string())])\n"
        "print(embed.schema(given).field('embedding').type)\n"
        "print(sorted({'torch', 'ray', 'pyspark', 'dask', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["fixed_size_list<item: float>[32]", "[]"]


def test_a_table_of_vectors_is_what_the_file_reader_reads(table, tmp_path):
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", embedding_type="binary")
    pq.write_table(embed(table), tmp_path / "part.parquet")
    read = nimbed.files.read_embedded(tmp_path / "part.parquet")
    wanted = nimbed.FakeEmbedder().embed(TEXTS, input_type="passage", embedding_type="binary")
    np.testing.assert_array_equal(read.bits(), wanted.bits())
