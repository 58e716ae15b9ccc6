import sys

import numpy as np
import pytest

import nimbed
from nimbed.errors import ConfigurationError, InputError
from nimbed_ray import EmbedTexts
from nimbed_ray.spark import predictor, return_type

TEXTS = ["one", "two", "three"]


@pytest.mark.parametrize(
    ("embedding_type", "dtype"),
    [
        ("float", "float32"),
        ("int8", "int8"),
        ("uint8", "int16"),
        ("binary", "int8"),
        ("ubinary", "int16"),
    ],
)
def test_the_function_gives_arrays_that_spark_has_types_for(embedding_type, dtype):
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", embedding_type=embedding_type)
    vectors = predictor(embed)()(np.array(TEXTS, object))
    wanted = nimbed.FakeEmbedder().embed(TEXTS, input_type="passage", embedding_type=embedding_type)
    assert vectors.dtype == dtype
    np.testing.assert_array_equal(vectors, wanted.vectors)


def test_a_missing_text_is_an_error_that_names_its_row():
    predict = predictor(EmbedTexts(nimbed.FakeEmbedder(), input_type="query"))()
    with pytest.raises(InputError, match="row 1"):
        predict(np.array(["one", None], object))


def test_rows_without_a_vector_are_refused_beforehand():
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="query", on_error="null")
    with pytest.raises(ConfigurationError, match="mapInArrow"):
        predictor(embed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:PySpark does not yet:FutureWarning")
@pytest.mark.parametrize("embedding_type", ["float", "int8", "ubinary"])
def test_real_spark_gives_the_embedders_vectors(session, embedding_type):
    functions = pytest.importorskip("pyspark.ml.functions")
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="query", embedding_type=embedding_type)
    udf = functions.predict_batch_udf(
        predictor(embed), return_type=return_type(embed.label.spec), batch_size=2
    )
    frame = session.createDataFrame([(text,) for text in TEXTS], "text string")
    rows = frame.withColumn("embedding", udf("text")).collect()
    wanted = nimbed.FakeEmbedder().embed(TEXTS, input_type="query", embedding_type=embedding_type)
    assert {row.text: row.embedding for row in rows} == dict(
        zip(TEXTS, wanted.vectors.tolist(), strict=True)
    )


@pytest.fixture(scope="module")
def session():
    sql = pytest.importorskip("pyspark.sql")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        made = (
            sql.SparkSession.builder.master("local[1]")
            .config("spark.ui.enabled", "false")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.driver.host", "127.0.0.1")
            .getOrCreate()
        )
        yield made
        made.stop()
