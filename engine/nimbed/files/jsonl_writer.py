"""Vectors into JSON lines: the source's fields, then ``embedding``.

The spec stands beside the file, in ``NAME.spec.json``. Memory holds one line.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

from nimbed.batch import EmbeddingBatch
from nimbed.files.label import VECTOR_FIELD, Label
from nimbed.files.rows import Row

__all__ = ["JsonlWriter"]


class JsonlWriter:
    """Writes one file of JSON lines.

    Args:
        path: Where to write.
        label: Names of the text and id fields, and the spec.
    """

    def __init__(self, path: Path, label: Label) -> None:
        self._label = label
        # Nine digits bring every float32 back exactly, and are half as many as json.dumps
        # prints for the float64 of the same value.
        number = "%.9g" if label.spec.dtype == "float32" else "%d"
        self._template = f', "{VECTOR_FIELD}": [{", ".join([number] * label.spec.width)}]}}\n'
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, rows: Sequence[Row], batch: EmbeddingBatch) -> None:
        """Append rows with their vectors."""
        for row, vector in zip(rows, batch.vectors, strict=True):
            record = _dumps(self._record(row))
            self._file.write(record[:-1] + self._template % tuple(vector.tolist()))

    def _record(self, row: Row) -> dict[str, Any]:
        own = {} if self._label.id_field is None else {self._label.id_field: row.id}
        return {**own, self._label.text_field: row.text, **row.columns}


def _dumps(record: dict[str, Any]) -> str:
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:  # NaN or infinity, which parquet has and JSON has not
        return json.dumps(_finite(record), ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    """Return what JSON can say of a parquet value: dates in ISO form, bytes in base64."""
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    isoformat = getattr(value, "isoformat", None)
    return str(value) if isoformat is None else isoformat()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in cast(dict[str, Any], value).items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in cast(list[Any], value)]
    return value
