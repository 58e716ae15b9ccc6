import numpy as np
import pyarrow as pa
import pytest

import nimbed
from nimbed.errors import ConfigurationError, InputError
from nimbed_ray import EmbedTexts
from nimbed_ray.dask import embed_partition, partition_meta

pd = pytest.importorskip("pandas")

TEXTS = ["one", "two", "three", "four"]


@pytest.fixture
def frame():
    return pd.DataFrame({"year": [1999, 2000, 2001, 2002], "text": TEXTS}, index=list("wxyz"))


def vectors(frame):
    return np.array(frame["embedding"].tolist())


def test_a_partition_keeps_its_index_and_columns(frame):
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", embedding_type="int8")
    made = embed_partition(frame, embed)
    pd.testing.assert_frame_equal(made[["year", "text"]], frame)
    assert made["embedding"].dtype == pd.ArrowDtype(pa.list_(pa.int8(), 64))
    wanted = nimbed.FakeEmbedder().embed(TEXTS, input_type="passage", embedding_type="int8")
    np.testing.assert_array_equal(vectors(made), wanted.vectors)
    assert list(frame.columns) == ["year", "text"]


@pytest.mark.parametrize("on_error", ["null", "skip"])
def test_the_meta_has_the_columns_and_types_of_a_partition(frame, on_error):
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", on_error=on_error)
    frame.loc["x", "text"] = None
    made, meta = embed_partition(frame, embed), partition_meta(frame, embed)
    assert list(meta.columns) == list(made.columns)
    assert meta.dtypes.equals(made.dtypes)
    assert len(meta) == 0
    assert list(made.index) == (list("wxyz") if on_error == "null" else list("wyz"))


def test_bad_rows_and_taken_names_are_errors(frame):
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="query", id_field="year")
    with pytest.raises(InputError, match="the row with year 2000: the text is blank"):
        embed_partition(frame.replace("two", " "), embed)
    with pytest.raises(ConfigurationError, match="a column 'embedding' already"):
        embed_partition(frame.assign(embedding=1), embed)


def test_real_dask_gives_the_embedders_vectors(frame):
    dataframe = pytest.importorskip("dask.dataframe")
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="query", embedding_type="ubinary")
    lazy = dataframe.from_pandas(frame, npartitions=2)
    made = lazy.map_partitions(embed_partition, embed, meta=partition_meta(lazy._meta, embed))
    assert made.dtypes["embedding"] == pd.ArrowDtype(pa.list_(pa.uint8(), 8))
    wanted = nimbed.FakeEmbedder().embed(TEXTS, input_type="query", embedding_type="ubinary")
    np.testing.assert_array_equal(vectors(made.compute(scheduler="synchronous")), wanted.vectors)
