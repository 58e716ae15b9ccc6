"""pyarrow, imported on demand, and what nimbed keeps in the metadata of an Arrow schema.

pyarrow ships no types, so its objects are ``Any`` here, under names that say what they are.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from nimbed.errors import ConfigurationError, missing_extra
from nimbed.spec import InputType, VectorSpec, check_literal

__all__ = [
    "RESERVED",
    "TOKENS_FIELD",
    "TRUNCATED_FIELD",
    "VECTOR_FIELD",
    "Column",
    "FileContract",
    "ParquetFile",
    "RecordBatch",
    "Schema",
    "Table",
    "arrow",
    "file_systems",
    "parquet",
]

Column: TypeAlias = Any
ParquetFile: TypeAlias = Any
RecordBatch: TypeAlias = Any
Schema: TypeAlias = Any
Table: TypeAlias = Any

VECTOR_FIELD = "embedding"
TOKENS_FIELD = "embedding_tokens"
TRUNCATED_FIELD = "embedding_truncated"
#: Names that a file of vectors gives to columns of its own.
RESERVED = (VECTOR_FIELD, TOKENS_FIELD, TRUNCATED_FIELD)


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


def file_systems() -> Any:
    """Return the module ``pyarrow.fs``.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return _imported("pyarrow.fs")


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_extra("parquet", needs="pyarrow") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class FileContract:
    """The contract of the vectors in a file, and the names of the columns they belong to.

    Attributes:
        spec: The contract of every vector.
        input_type: The role that all of them were embedded for.
        text_field: Name of the column of texts.
        id_field: Name of the column of ids, if there is one.
    """

    spec: VectorSpec
    input_type: InputType
    text_field: str = "text"
    id_field: str | None = None

    def to_metadata(self) -> dict[bytes, bytes]:
        """Return the contract as the key-value metadata of an Arrow schema."""
        facts = {
            "nimbed.spec": self.spec.to_json(),
            "nimbed.input_type": self.input_type,
            "nimbed.text_field": self.text_field,
        }
        if self.id_field is not None:
            facts["nimbed.id_field"] = self.id_field
        return {key.encode(): value.encode() for key, value in facts.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes], *, source: str) -> FileContract:
        """Rebuild a contract from :meth:`to_metadata`; other keys may stand beside its own.

        Raises:
            ConfigurationError: If the metadata has no spec, or an altered one.
        """
        try:
            spec = VectorSpec.from_json(metadata[b"nimbed.spec"])
            input_type = metadata[b"nimbed.input_type"].decode()
            text_field = metadata[b"nimbed.text_field"].decode()
        except KeyError as error:
            raise ConfigurationError(
                f"{source} was not written by nimbed: its schema metadata lacks "
                f"{error.args[0].decode()}"
            ) from None
        check_literal("input_type", input_type, InputType)
        identity = metadata.get(b"nimbed.id_field")
        return cls(
            spec=spec,
            input_type=cast(InputType, input_type),
            text_field=text_field,
            id_field=None if identity is None else identity.decode(),
        )
