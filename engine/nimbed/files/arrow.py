"""pyarrow, imported when it is needed.

It ships no types, so its objects are ``Any`` here, under names that say what they are.
"""

from __future__ import annotations

import importlib
from typing import Any, TypeAlias

from nimbed.errors import missing_extra

__all__ = ["Column", "ParquetFile", "RecordBatch", "Schema", "Table", "arrow", "parquet"]

Column: TypeAlias = Any
ParquetFile: TypeAlias = Any
RecordBatch: TypeAlias = Any
Schema: TypeAlias = Any
Table: TypeAlias = Any


def arrow() -> Any:
    """Return the module ``pyarrow``.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return _imported("pyarrow")


def parquet() -> Any:
    """Return the module ``pyarrow.parquet``.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return _imported("pyarrow.parquet")


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_extra("parquet", needs="pyarrow") from error
