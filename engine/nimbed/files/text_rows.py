"""Rows of plain text and JSON lines.

A line is a record; memory holds one of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn, cast

from nimbed.files.rows import BLANK, BadRow, Row, id_fault, text_fault
from nimbed.files.sources import Source, lines

__all__ = ["jsonl_rows", "txt_rows"]


def txt_rows(source: Source) -> Iterator[Row | BadRow]:
    """Yield a row a line. Blank lines are bad, except the ones that end the file."""
    first_blank = 0
    for number, line in lines(source):
        text, fault = _decoded(line)
        fault = fault or text_fault(text)
        if fault == BLANK:
            first_blank = first_blank or number
            continue
        if first_blank:
            yield from (BadRow(blank, BLANK) for blank in range(first_blank, number))
            first_blank = 0
        yield BadRow(number, fault) if fault else Row(number, text)


def jsonl_rows(
    source: Source, *, text_field: str, id_field: str | None, carry: bool
) -> Iterator[Row | BadRow]:
    """Yield a row a JSON object. Blank lines are passed over, as every reader of JSONL does."""
    for number, line in lines(source):
        if line.strip():
            yield _row(number, line, text_field, id_field, carry)


def _row(
    number: int, line: bytes, text_field: str, id_field: str | None, carry: bool
) -> Row | BadRow:
    source, fault = _decoded(line)
    if fault is not None:
        return BadRow(number, fault)
    try:
        parsed: Any = json.loads(source, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return BadRow(number, f"not valid JSON: {error}")
    if not isinstance(parsed, dict):
        return BadRow(number, f"the line holds JSON {type(parsed).__name__}, expected an object")
    record = cast(dict[str, Any], parsed)
    for name in (text_field, id_field):
        if name is not None and name not in record:
            return BadRow(number, f"no field {name!r}; it has {_listed(record)}")
    text = record.pop(text_field)
    identity = None if id_field is None else record.pop(id_field)
    fault = text_fault(text) or (id_fault(identity) if id_field is not None else None)
    if fault is None and "\\u" in source and not _encodable_record(record):
        fault = "a field is not valid Unicode"
    return BadRow(number, fault) if fault else Row(number, text, identity, record if carry else {})


def _decoded(line: bytes) -> tuple[str, str | None]:
    """Return (text, None), or an empty text and what is wrong with the bytes."""
    ending = b"\r\n" if line.endswith(b"\r\n") else b"\n"
    try:
        return line.removesuffix(ending).decode(), None
    except UnicodeDecodeError as error:
        place = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        return "", f"not valid UTF-8 ({place})"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _encodable_record(record: dict[str, Any]) -> bool:
    # Only an escape can smuggle half a character past the UTF-8 decoder.
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed(record: dict[str, Any]) -> str:
    names = [repr(name) for name in record]
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "") or "none"
