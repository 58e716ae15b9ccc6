"""Folders of documents: a text a file, from .txt, .md and .html."""

from __future__ import annotations

import os
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from nimbed.errors import InputError
from nimbed.files.sources import Source, check_encoding
from nimbed.rows import BadRow, Row, text_fault

__all__ = ["folder_rows"]

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
