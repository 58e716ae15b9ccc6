"""Spark: vectors through ``pyspark.ml.functions.predict_batch_udf``.

    udf = predict_batch_udf(
        predictor(embed), return_type=return_type(embed.label.spec), batch_size=1024
    )
    frame.withColumn("embedding", udf("text"))

pyspark is imported only to name its types.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nimbed import VectorSpec
from nimbed.errors import ConfigurationError, MissingExtraError
from nimbed_ray.embed_texts import EmbedTexts

__all__ = ["Predict", "predictor", "return_type"]

#: An array of n texts in, an array of shape (n, width) out.
Predict = Callable[[NDArray[Any]], NDArray[Any]]

# Spark has no unsigned types: bytes travel as the next wider integer.
_WIDENED: dict[str, tuple[str, str]] = {
    "float32": ("float32", "FloatType"),
    "int8": ("int8", "ByteType"),
    "uint8": ("int16", "ShortType"),
}


def return_type(spec: VectorSpec) -> Any:
    """Return the ``pyspark.sql.types.ArrayType`` of such vectors.

    A string does not work: predict_batch_udf accepts ``"array<float>"``, then fails at the first
    row.

    Raises:
        MissingExtraError: If pyspark is not installed.
    """
    try:
        types = importlib.import_module("pyspark.sql.types")
    except ImportError as error:
        raise MissingExtraError("this needs pyspark; run: pip install pyspark") from error
    return types.ArrayType(getattr(types, _WIDENED[spec.dtype][1])(), containsNull=False)


def predictor(embed: EmbedTexts) -> Callable[[], Predict]:
    """Return the function that Spark calls once in each Python worker.

    Raises:
        ConfigurationError: If rows may be left without a vector, for which predict_batch_udf has
            no value.
    """
    if embed.on_error != "raise":
        raise ConfigurationError(
            f"predict_batch_udf cannot leave rows without a vector, as on_error="
            f"{embed.on_error!r} may; use on_error='raise', or DataFrame.mapInArrow with the "
            f"EmbedTexts"
        )
    dtype = _WIDENED[embed.label.spec.dtype][0]

    def make() -> Predict:
        def predict(texts: NDArray[Any]) -> NDArray[Any]:
            vectors = embed.embed_batch(texts.tolist()).vectors
            return vectors.astype(np.dtype(dtype), copy=False)

        return predict

    return make
