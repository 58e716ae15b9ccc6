"""Types of columns, inferred from the values of records whose format has none.

JSON and CSV do not say what a field holds. Scalars and lists of scalars keep their types,
everything else (objects, fields of mixed types) is kept as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nimbed.files.arrow import FileContract, Schema, Table, arrow
from nimbed.rows import Row

__all__ = ["InferredColumns"]

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
