"""Writers of files of vectors, and the staging by which files appear complete or not at all.

A parquet file carries its spec in its metadata; beside a ``.jsonl`` or ``.npy`` file it stands in
``NAME.spec.json``. JSON and CSV do not say what a field holds, so the types of columns are inferred
from records: scalars and lists of scalars keep their types, everything else (objects, fields of
mixed types) is kept as JSON text.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.lib import format as npy

from nimbed.batch import EmbeddingBatch
from nimbed.errors import ConfigurationError
from nimbed.files.arrow import VECTOR_FIELD, FileContract, Schema, Table, arrow
from nimbed.files.parquet import Carried, ParquetWriter
from nimbed.rows import Row, without_nan

__all__ = [
    "InferredColumns",
    "JsonlWriter",
    "NpyWriter",
    "Staging",
    "VectorWriter",
    "check_output",
    "open_writer",
    "spec_beside",
]

if sys.platform != "win32":
    import fcntl


_SUFFIXES = (".parquet", ".jsonl", ".npy")


class VectorWriter(Protocol):
    """Appends vectors to a file; a context manager that completes the file."""

    def write(self, rows: Sequence[Row], batch: EmbeddingBatch) -> None:
        """Append rows with their vectors, one a row, in order."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, /, *rest: object) -> None: ...


def check_output(target: Path) -> str:
    """Return the suffix of a path, if a file of vectors can be written there.

    Raises:
        ConfigurationError: If its suffix is not one of the formats, or its folder is missing.
        MissingExtraError: If pyarrow is needed and absent.
    """
    suffix = target.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ConfigurationError(
            f"the name {target.name!r} does not tell a format; end it in {', '.join(_SUFFIXES)}"
        )
    if target.is_dir():
        raise ConfigurationError(f"{str(target)!r} is a folder; give the name of a file")
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no folder {str(target.parent)!r}; create it first")
    if suffix == ".parquet":
        arrow()
    return suffix


def open_writer(
    target: Path, *, contract: FileContract, carried: Carried, staging: Staging
) -> VectorWriter:
    """Start a file of vectors in a staging.

    Args:
        target: Where the file will be; its suffix tells the format.
        contract: What the file says about itself.
        carried: The source's columns, for formats that have types.
        staging: Moves the finished files into place.

    Raises:
        ConfigurationError: As :func:`check_output`.
        MissingExtraError: As :func:`check_output`.
    """
    suffix = check_output(target)
    place = staging.place(target)
    if suffix == ".parquet":
        return ParquetWriter(place, contract, carried)
    facts = json.dumps(contract.spec.to_dict(), ensure_ascii=False, indent=2)
    staging.place(spec_beside(target)).write_text(facts + "\n", encoding="utf-8")
    return JsonlWriter(place, contract) if suffix == ".jsonl" else NpyWriter(place, contract)


def spec_beside(target: Path) -> Path:
    """Return the path of the spec of a file whose format has no place for it."""
    return target.with_name(f"{target.name}.spec.json")


class JsonlWriter:
    """Writes JSON lines: the source's fields, then ``embedding``; memory holds one line.

    Args:
        path: Where to write.
        contract: The spec, and the names of the text and id fields.
    """

    def __init__(self, path: Path, contract: FileContract) -> None:
        self._contract = contract
        # Nine digits bring every float32 back exactly, and are half as many as json.dumps
        # prints for the float64 of the same value.
        number = "%.9g" if contract.spec.dtype == "float32" else "%d"
        self._template = f', "{VECTOR_FIELD}": [{", ".join([number] * contract.spec.width)}]}}\n'
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
        own = {} if self._contract.id_field is None else {self._contract.id_field: row.id}
        return {**own, self._contract.text_field: row.text, **row.columns}


def _dumps(record: dict[str, Any]) -> str:
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:  # NaN or infinity, which parquet has and JSON has not
        return json.dumps(without_nan(record), ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    """Return what JSON can say of a parquet value: dates in ISO form, bytes in base64."""
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    isoformat = getattr(value, "isoformat", None)
    return str(value) if isoformat is None else isoformat()


class NpyWriter:
    """Writes the vectors alone as one ``.npy`` array of shape (rows, width).

    Args:
        path: Where to write.
        contract: Gives the dtype and the width.
    """

    def __init__(self, path: Path, contract: FileContract) -> None:
        self._dtype = np.dtype(contract.spec.dtype).newbyteorder("<")
        self._width = contract.spec.width
        self._rows = 0
        self._file = path.open("wb")
        self._write_header()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._write_header()

    def write(self, rows: Sequence[Row], batch: EmbeddingBatch) -> None:
        """Append the vectors; the rows' own fields have no place in an array."""
        del rows
        self._file.write(np.ascontiguousarray(batch.vectors, dtype=self._dtype).tobytes())
        self._rows += len(batch)

    def _write_header(self) -> None:
        # numpy pads the header for a first axis of 21 digits, so that the one of an empty array
        # can be written over by the true one.
        npy.write_array_header_1_0(
            self._file,
            {
                "descr": npy.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self._rows, self._width),
            },
        )


class Staging:
    """Temporary names beside their targets, which take the targets' places at the end.

    A context manager: leaving it by an error, Ctrl-C included, removes every temporary file and
    leaves the targets as they were. What a killed process has left, the next one for the same
    target removes: a temporary file is locked as long as it is written.

    Args:
        main: The target that appears last, when everything that describes it is there.
    """

    def __init__(self, main: Path) -> None:
        self._main = main
        self._places: dict[Path, Path] = {}
        self._locks: list[int] = []
        self._obsolete: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                for target in sorted(self._places, key=lambda target: target == self._main):
                    os.replace(self._places[target], target)
                for target in self._obsolete:
                    if target not in self._places:
                        target.unlink(missing_ok=True)
        finally:
            for place in self._places.values():
                with contextlib.suppress(OSError):
                    place.unlink(missing_ok=True)
            for lock in self._locks:
                os.close(lock)

    def place(self, target: Path) -> Path:
        """Return the path to write instead of ``target``."""
        _remove_abandoned(target)
        # In the same folder, since a rename across file systems is a copy.
        place = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        self._places[target] = place
        if sys.platform != "win32":  # where a file that is open cannot be removed anyway
            self._locks.append(os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        return place

    def drop(self, target: Path) -> None:
        """Remove an earlier run's file at the end, unless this run writes one."""
        _remove_abandoned(target)
        self._obsolete.append(target)


def _remove_abandoned(target: Path) -> None:
    """Remove the temporary files of a target that no process writes any more."""
    left = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{8}\.partial")
    with contextlib.suppress(OSError):
        for name in filter(left.fullmatch, os.listdir(target.parent)):
            with contextlib.suppress(OSError):
                _remove_unlocked(target.with_name(name))


def _remove_unlocked(path: Path) -> None:
    if sys.platform == "win32":
        path.unlink()
        return
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(file)


# A long is an integer that float64 cannot hold exactly.
_Scalar = Literal["null", "bool", "int", "long", "float", "text", "mixed"]


@dataclass(frozen=True, slots=True)
class _Type:
    scalar: _Scalar
    is_list: bool = False


_NULL, _MIXED = _Type("null"), _Type("mixed")
_SCALARS: dict[type, _Type] = {
    type(None): _NULL,
    bool: _Type("bool"),
    int: _Type("int"),
    float: _Type("float"),
    str: _Type("text"),
}
_WIDER: dict[frozenset[_Scalar], _Scalar] = {
    frozenset({"int", "long"}): "long",
    frozenset({"int", "float"}): "float",
}
_EXACT = range(-(2**53), 2**53 + 1)
_INT64 = range(-(2**63), 2**63)


class InferredColumns:
    """The columns of records whose format has no types, in order of appearance."""

    def __init__(self, contract: FileContract) -> None:
        self._contract = contract
        own = () if contract.id_field is None else (contract.id_field,)
        self._types: dict[str, _Type] = dict.fromkeys((*own, contract.text_field), _NULL)

    def learn(self, row: Row) -> None:
        """Widen the types so that the row fits."""
        for name, value in self._fields(row):
            self._types[name] = _wider(self._types.get(name, _NULL), _type_of(value))

    def fault(self, row: Row) -> str | None:
        """Return why a row does not fit what was learned, or None if it does."""
        for name, value in self._fields(row):
            known = self._types.get(name)
            if known is None:
                return f"the field {name!r} did not occur in the first rows of the stream"
            if known != _NULL and _wider(known, _type_of(value)) != known:
                return f"the field {name!r} has another type than in the first rows of the stream"
        return None

    def schema(self) -> Schema:
        """Return the Arrow schema: the id, the text, the other columns."""
        pa = arrow()
        scalars = {
            "bool": pa.bool_(),
            "int": pa.int64(),
            "long": pa.int64(),
            "float": pa.float64(),
        }
        fields: list[Any] = []
        for name, known in self._types.items():
            kind = scalars.get(known.scalar, pa.string())
            fields.append(pa.field(name, pa.list_(kind) if known.is_list else kind))
        return pa.schema(fields)

    def table(self, rows: Sequence[Row]) -> Table:
        """Return the rows as a table of :meth:`schema`; a field that a row lacks is null."""
        records = [dict(self._fields(row)) for row in rows]
        schema = self.schema()
        columns: list[Any] = []
        for field in schema:
            values = [record.get(field.name) for record in records]
            if self._types[field.name] in (_NULL, _MIXED):
                values = [_as_text(value) for value in values]
            columns.append(arrow().array(values, field.type))
        return arrow().Table.from_arrays(columns, schema=schema)

    def _fields(self, row: Row) -> Iterator[tuple[str, Any]]:
        if self._contract.id_field is not None:
            yield self._contract.id_field, row.id
        yield self._contract.text_field, row.text
        yield from row.columns.items()


def _type_of(value: object) -> _Type:
    if isinstance(value, list):
        inner = _NULL
        elements: list[Any] = value
        for element in elements:
            inner = _wider(inner, _type_of(element))
        # Beyond a list of one type of scalars, Arrow's types would be guesses.
        return _MIXED if inner.is_list or inner == _MIXED else _Type(inner.scalar, is_list=True)
    if isinstance(value, int) and value not in _EXACT:
        return _Type("long") if value in _INT64 else _MIXED
    return _SCALARS.get(type(value), _MIXED)


def _wider(known: _Type, other: _Type) -> _Type:
    if known == other or other == _NULL:
        return known
    if known == _NULL:
        return other
    if known.is_list and other.is_list:
        inner = _wider(_Type(known.scalar), _Type(other.scalar))
        return _MIXED if inner == _MIXED else _Type(inner.scalar, is_list=True)
    if known.is_list or other.is_list:
        return _MIXED
    return _Type(_WIDER.get(frozenset({known.scalar, other.scalar}), "mixed"))


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
