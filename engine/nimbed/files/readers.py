"""Readers of files of texts: text formats, tables, Arrow's files and folders become rows.

Nothing is read ahead, and of a text format one record is in memory at a time. A folder of documents
(.txt, .md, .html) is a text a file.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from nimbed.errors import ConfigurationError, InputError, name_rows
from nimbed.files.arrow import RESERVED
from nimbed.files.delimited import csv_rows, xlsx_rows
from nimbed.files.ipc import open_ipc
from nimbed.files.parquet import arrow_rows, open_parquet
from nimbed.files.sources import (
    NUMBERED,
    Kind,
    Source,
    check_encoding,
    files_of,
    kind_of,
    lines,
    name_of,
    opened,
)
from nimbed.rows import BLANK, BadRow, RecordReader, Row, TextFields, text_fault

__all__ = ["RowReader", "folder_rows", "read_rows"]

_BLOCK = 2**20
_LONGEST_RECORD = 2**26


def read_rows(
    source: Source,
    *,
    text_field: str | Sequence[str] = "text",
    id_field: str | None = None,
    kind: str | None = None,
    carry: bool = True,
    template: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> Iterator[Row | BadRow]:
    """Yield every record of a file, the bad ones with their reason, without reading ahead.

    Args:
        source: A path, a pattern such as ``data/*.jsonl``, a folder of texts, a folder that Hugging
            Face's datasets saved, ``s3://bucket/path``, ``-`` for standard input, or an open binary
            stream.
        text_field: Field or column that holds the text, or several that are joined by an empty
            line; ``txt`` has none.
        id_field: Field or column that holds a string or an integer, if any.
        kind: The format (see :data:`nimbed.files.sources.Kind`); None tells it from the suffix,
            and takes a stream for ``txt``.
        carry: False leaves ``Row.columns`` empty and does not read the other columns.
        template: How text fields are joined, such as ``{title}: {body}``; goes before text_field.
        encoding: Of a text format; None for UTF-8, or what a byte order mark says.
        delimiter: Of ``csv``; None takes the one by which the header names the fields.

    Raises:
        ConfigurationError: If the format is unknown, or a column does not exist.
        InputError: If the file is missing or damaged as a whole.
        MissingExtraError: If a library is needed and absent.
    """
    found = kind_of(source, kind)
    if delimiter is not None and found != "csv":
        raise ConfigurationError(f"a delimiter is one of csv; {name_of(source)} is {found}")
    if encoding is not None and found in ("parquet", "feather", "xlsx"):
        raise ConfigurationError(f"{found} says its encoding itself; leave the encoding out")
    if found in ("txt", "folder") and (id_field is not None or template is not None):
        lack = f"field {id_field!r}" if id_field is not None else "fields for a template"
        holds = "a .txt file holds one text a line" if found == "txt" else "a folder one a file"
        raise ConfigurationError(
            f"{holds} and has no {lack}; leave that out, or use jsonl, csv or parquet"
        )
    text = TextFields.of(text_field, template)
    if id_field in text.names and found not in ("txt", "folder"):
        raise ConfigurationError(f"{id_field!r} cannot be both the text and the id")
    records = RecordReader(text, id_field, carry)
    files = files_of(source)
    if files is not None:
        return _each(files, found, records, encoding, delimiter)
    return _rows(source, found, records, encoding, delimiter)


def _rows(
    source: Source,
    kind: Kind,
    records: RecordReader,
    encoding: str | None,
    delimiter: str | None,
) -> Iterator[Row | BadRow]:
    if kind == "txt":
        return _txt_rows(source, encoding)
    if kind == "jsonl":
        return _jsonl_rows(source, records, encoding)
    if kind == "json":
        return _json_rows(source, records, encoding)
    if kind in ("csv", "tsv"):
        told = "\t" if kind == "tsv" else delimiter
        return csv_rows(source, records, encoding=encoding, delimiter=told)
    if kind == "xlsx":
        return xlsx_rows(source, records)
    if kind == "folder":
        return folder_rows(source, encoding)
    return arrow_rows(source, records, open_ipc if kind == "feather" else open_parquet)


def _each(
    files: Sequence[Path],
    kind: Kind,
    records: RecordReader,
    encoding: str | None,
    delimiter: str | None,
) -> Iterator[Row | BadRow]:
    """Yield the rows of several files; one without an id is called by its file and number.

    Where two files have one name, all are called by their paths.
    """
    several = len({path.name for path in files}) < len(files)
    number = 0
    for path in files:
        name = path.as_posix() if several else path.name
        for row in _rows(path, kind, records, encoding, delimiter):
            number += 1
            if isinstance(row, BadRow):
                unit = "row" if kind in NUMBERED else "line"
                yield BadRow(number, f"{unit} {row.number} of {path}: {row.reason}")
            else:
                called = f"{name}:{row.number}" if row.id is None else row.id
                yield dataclasses.replace(row, number=number, id=called)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """A source of rows that can be read more than once, and names its rows for messages.

    Attributes:
        source: A path, ``-`` or a stream.
        kind: Its format.
        text: Fields of the text.
        id_field: Field of the id, if any.
        carry: Whether the other fields are read too.
        encoding: Of a text format.
        delimiter: Of csv.
    """

    source: Source
    kind: Kind
    text: TextFields
    id_field: str | None
    carry: bool
    encoding: str | None = None
    delimiter: str | None = None

    @property
    def typeless(self) -> bool:
        """Whether the columns' types are inferred from values: no format says what is joined."""
        typed = self.kind in ("parquet", "feather") and not self.text.joined
        return not typed or files_of(self.source) is not None

    def rows(self, *, carry: bool | None = None) -> Iterator[Row | BadRow]:
        """Read the source from its start.

        Raises:
            ConfigurationError: If a row has a field whose name the output needs.
        """
        rows = read_rows(
            self.source,
            text_field=self.text.names,
            id_field=self.id_field,
            kind=self.kind,
            carry=self.carry if carry is None else carry,
            template=self.text.template,
            encoding=self.encoding,
            delimiter=self.delimiter,
        )
        own = (*RESERVED, self.text.name) if self.text.joined else RESERVED
        for row in rows:
            if isinstance(row, Row) and row.columns:
                taken = next((name for name in own if name in row.columns), None)
                if taken is not None:
                    raise ConfigurationError(
                        f"{self.where([row.number])} has a field {taken!r} already, and the "
                        f"output needs that name; rename it, or write .npy"
                    )
            yield row

    def where(self, numbers: Sequence[int]) -> str:
        """Return ``line 3 of corpus.jsonl`` for a message."""
        return f"{self.places(numbers)} of {name_of(self.source)}"

    def places(self, numbers: Sequence[int]) -> str:
        """Return ``line 3`` or ``rows 3, 5`` for a message."""
        named, counted = name_rows(numbers), self.kind in NUMBERED
        return named if counted or files_of(self.source) else named.replace("row", "line", 1)


def _txt_rows(source: Source, encoding: str | None) -> Iterator[Row | BadRow]:
    """Yield a row a line. Blank lines are bad, except the ones that end the file."""
    first_blank = 0
    for number, line in lines(source, encoding):
        text, fault = _decoded(line)
        fault = fault or text_fault(text)
        if fault == BLANK:
            first_blank = first_blank or number
            continue
        if first_blank:
            yield from (BadRow(blank, BLANK) for blank in range(first_blank, number))
            first_blank = 0
        yield BadRow(number, fault) if fault else Row(number, text)


def _jsonl_rows(
    source: Source, records: RecordReader, encoding: str | None
) -> Iterator[Row | BadRow]:
    """Yield a row a JSON object. Blank lines are passed over, as every reader of JSONL does."""
    for number, line in lines(source, encoding):
        if line.strip():
            yield _jsonl_row(number, line, records)


def _jsonl_row(number: int, line: bytes, records: RecordReader) -> Row | BadRow:
    source, fault = _decoded(line)
    if fault is not None:
        return BadRow(number, fault)
    try:
        parsed: Any = json.loads(source, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return BadRow(number, f"not valid JSON: {error}")
    return _of_json(number, parsed, "line", records, escaped="\\u" in source)


def _of_json(
    number: int, parsed: Any, unit: str, records: RecordReader, *, escaped: bool
) -> Row | BadRow:
    if not isinstance(parsed, dict):
        return BadRow(number, f"the {unit} holds JSON {type(parsed).__name__}, expected an object")
    record = cast(dict[str, Any], parsed)
    missing = records.missing(record)
    if missing is not None:
        return BadRow(number, f"no field {missing!r}; it has {_listed(record)}")
    return records.row(number, record, escaped=escaped)


def _json_rows(
    source: Source, records: RecordReader, encoding: str | None
) -> Iterator[Row | BadRow]:
    """Yield a row an element of a JSON array of objects.

    Raises:
        InputError: If the file is no array, or broken: what follows cannot be told apart then.
    """
    check_encoding(encoding)
    with opened(source) as stream:
        for number, parsed in enumerate(_elements(stream, name_of(source), encoding), 1):
            yield _of_json(number, parsed, "element", records, escaped=True)


def _elements(stream: IO[bytes], name: str, encoding: str | None) -> Iterator[Any]:
    """Yield the elements of an array, of which one at a time is held."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    start = stream.read(_BLOCK)
    told = "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    read = codecs.getincrementaldecoder(encoding or told)()
    number, over = 1, False

    def more() -> str:
        nonlocal start, over
        block, start = start or stream.read(_BLOCK), b""
        over = not block
        return read.decode(block, final=over)

    try:
        text = ""
        while not over and not text.lstrip():
            text = more()
        text = text.lstrip()
        if not text.startswith("["):
            like = "; a record a line is jsonl: say so" if text.startswith("{") else ""
            raise InputError(f"{name} holds no JSON array of objects{like}")
        at, between = 1, "["
        while True:
            at = _past_blanks(text, at)
            if at == len(text) and not over:
                text, at = more(), 0
                continue
            if text[at : at + 1] == "]" and between in "[e":
                return
            if between == "e":
                if text[at : at + 1] != ",":
                    raise ValueError("expected a comma or the end of the array")
                at, between = at + 1, ","
                continue
            try:
                element, end = decoder.raw_decode(text, at)
                if end == len(text) and not over:  # a number may go on
                    raise ValueError
            except (ValueError, RecursionError):
                if over or len(text) - at > _LONGEST_RECORD:
                    raise
                # As much again as there is, so that a long element is not begun for each block.
                parts, size = [text[at:]], 0
                while size <= len(parts[0]) and not over:
                    parts.append(more())
                    size += len(parts[-1])
                text, at = "".join(parts), 0
                continue
            yield element
            number += 1
            at, between = end, "e"
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"element {number} of {name} is not valid JSON: {error}") from error


def _past_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


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


def _listed(record: dict[str, Any]) -> str:
    names = [repr(name) for name in record]
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "") or "none"


_PLAIN = (".txt", ".md", ".markdown", ".rst")
_HTML = (".html", ".htm")
_LONGEST = 2**28
# Whose content is no text of the page, and those that end a line.
_UNSEEN = frozenset({"script", "style", "template", "noscript", "head"})
_LINES = frozenset({"br", "dd", "dt", "li", "td", "th", "tr"})
_PARAGRAPHS = frozenset(
    {"address", "article", "aside", "blockquote", "div", "dl", "figcaption", "figure", "footer"}
    | {"form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "main", "nav", "ol", "p", "pre"}
    | {"section", "table", "title", "ul"}
)


def folder_rows(source: Source, encoding: str | None) -> Iterator[Row | BadRow]:
    """Yield a row a file, in the order of their paths, which are their ids.

    Hidden files and folders are passed over. A file of another kind is a bad row, which says so.

    Raises:
        InputError: If the folder holds no file at all, or holds data rather than documents.
    """
    check_encoding(encoding)
    folder = Path(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else Path()
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        raise InputError(
            f"{str(folder)!r} holds the splits {', '.join(splits)} of a dataset; give one of them, "
            f"such as {str(folder / (splits or ['train'])[0])!r}"
        )
    number = 0
    for path in _files(folder):
        number += 1
        name = path.relative_to(folder).as_posix()
        text, fault = _text(path, encoding)
        fault = fault or text_fault(text)
        yield BadRow(number, f"{name}: {fault}") if fault else Row(number, text, name)
    if not number:
        raise InputError(f"the folder {str(folder)!r} holds no files")


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(place, name)


def _text(path: Path, encoding: str | None) -> tuple[str, str | None]:
    suffix = path.suffix.lower()
    if suffix not in (*_PLAIN, *_HTML):
        return "", (
            f"no document is read from {suffix or 'a file without a suffix'}; turn it into .txt, "
            f".md or .html (pdftotext, pandoc), and load data by a pattern, such as '*.jsonl'"
        )
    try:
        if path.stat().st_size > _LONGEST:
            return "", "it is longer than 256 MiB"
        raw = path.read_bytes()
    except OSError as error:
        return "", error.strerror or str(error)
    marked = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    told = encoding or ("utf-16" if marked else "utf-8-sig")
    try:
        text = raw.decode(told)
    except UnicodeDecodeError as error:
        return "", f"not valid {told.removesuffix('-sig')} at byte {error.start}"
    return (_of_html(text) if suffix in _HTML else text), None


def _of_html(page: str) -> str:
    reader = _Page()
    reader.feed(page)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.parts).split("\n"))
    kept: list[str] = []
    for line in lines:
        if line or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept).strip()


class _Page(HTMLParser):
    """Collects what a reader of a page sees."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unseen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag in _UNSEEN:
            self._unseen.append(tag)
        elif tag == "body":
            self._unseen.clear()  # the end of a head may be left out
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._unseen:
            while self._unseen.pop() != tag:
                pass
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.parts.append(data.replace("\n", " "))

    def _break(self, tag: str) -> None:
        if tag in _LINES or tag in _PARAGRAPHS:
            self.parts.append("\n\n" if tag in _PARAGRAPHS else "\n")
