"""Sources of rows: a path, ``-`` or a stream, its format, and its lines, one at a time."""

from __future__ import annotations

import gzip
import os
import re
import sys
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, cast, get_args

from nimbed.errors import ConfigurationError, InputError

__all__ = [
    "Kind",
    "Source",
    "check_exists",
    "is_rereadable",
    "is_source",
    "kind_of",
    "lines",
    "name_of",
]

Kind = Literal["txt", "jsonl", "csv", "parquet"]
Source = str | os.PathLike[str] | IO[bytes]

_SUFFIXES: dict[str, Kind] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
_STDIN = "-"
_LONGEST_LINE = 2**26
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


def kind_of(source: Source, kind: str | None = None) -> Kind:
    """Return the format of a source: as told, else by suffix, else (for a stream) ``txt``.

    Raises:
        ConfigurationError: If neither tells it, or standard input begins like JSON or parquet.
    """
    offered = get_args(Kind)
    if kind is not None:
        if kind not in offered:
            raise ConfigurationError(f"input is one of {', '.join(offered)}; got {kind!r}")
        return cast(Kind, kind)
    if not isinstance(source, (str, os.PathLike)):
        return "txt"
    if source == _STDIN:
        _check_plain_text()
        return "txt"
    path = Path(source)
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    found = _SUFFIXES.get(suffix.lower())
    if found is None or (found == "parquet" and suffix != path.suffix):
        raise ConfigurationError(
            f"the name {path.name!r} does not tell a format; rename it to "
            f"{', '.join(_SUFFIXES)} (text formats also with .gz), or say which of "
            f"{', '.join(offered)} it is"
        )
    return found


def _check_plain_text() -> None:
    """Refuse records on standard input that would be embedded as they stand, braces and all."""
    peek = getattr(sys.stdin.buffer, "peek", None)
    start: bytes = peek(1) if peek is not None else b""
    like = "parquet" if start.startswith(b"PAR1") else "jsonl"
    if like == "parquet" or re.match(rb'\s*\{\s*"', start.removeprefix(_UTF8_BOM)):
        raise ConfigurationError(
            f"standard input looks like {like}, but its format was not given; say which it is, "
            f"such as --input-format {like} (kind={like!r} in Python), or txt for a text a line"
        )


def name_of(source: Source) -> str:
    """Return what messages call a source."""
    if isinstance(source, (str, os.PathLike)):
        return "standard input" if source == _STDIN else str(source)
    return str(getattr(source, "name", "the stream"))


def is_rereadable(source: Source) -> bool:
    """Return whether the source can be read a second time: a regular file, not a pipe."""
    return isinstance(source, (str, os.PathLike)) and source != _STDIN and Path(source).is_file()


def check_exists(source: Source) -> None:
    """Raise InputError if a path names nothing, or a folder."""
    if isinstance(source, (str, os.PathLike)) and source != _STDIN:
        path = Path(source)
        if path.is_dir():
            raise InputError(f"{str(path)!r} is a folder, expected a file")
        if not path.exists():
            raise InputError(f"there is no file {str(path)!r}")


def is_source(target: Path, sources: Iterable[Source | None]) -> bool:
    """Return whether a path is one of the files that are read.

    It may have another name there, or be redirected to standard input.
    """
    sources = list(sources)
    named = [Path(each) for each in sources if isinstance(each, (str, os.PathLike))]
    if target.resolve() in (path.resolve() for path in named):
        return True
    read = filter(None, map(_facts, sources))
    return target.exists() and any(os.path.samestat(target.stat(), facts) for facts in read)


def _facts(source: Source | None) -> os.stat_result | None:
    """Return what tells a source's file from others, or None if it has none."""
    try:
        if source is None:
            return None
        if isinstance(source, (str, os.PathLike)):
            return os.fstat(sys.stdin.fileno()) if source == _STDIN else os.stat(source)
        return os.fstat(source.fileno())
    except (OSError, ValueError, AttributeError):
        return None


@contextmanager
def _open(source: Source) -> Generator[IO[bytes]]:
    """Open a source for reading, unpacked if its name ends in ``.gz``.

    Raises:
        InputError: If there is no such file, or it is a folder.
    """
    check_exists(source)
    if not isinstance(source, (str, os.PathLike)):
        yield source
    elif source == _STDIN:
        yield sys.stdin.buffer
    else:
        path = Path(source)
        packed = path.suffix.lower() == ".gz"
        with gzip.open(path) if packed else path.open("rb") as stream:
            yield cast(IO[bytes], stream)


def lines(source: Source) -> Iterator[tuple[int, bytes]]:
    r"""Yield (number from 1, line with its end) for every line, ended by ``\n`` alone.

    Other line separators of Unicode may stand inside a text. A UTF-8 byte order mark is dropped.

    Raises:
        InputError: If the file is missing, UTF-16, or a cut gzip file, or a line is longer than
            64 MiB.
    """
    with _open(source) as stream:
        number = 0
        while True:
            try:
                line = stream.readline(_LONGEST_LINE + 1)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise InputError(f"{name_of(source)} is not a whole gzip file: {error}") from error
            if not line:
                return
            number += 1
            if len(line) > _LONGEST_LINE:
                raise InputError(
                    f"line {number} of {name_of(source)} is longer than 64 MiB; a record a line "
                    f"is expected"
                )
            if number == 1:
                if line.startswith(_UTF16_BOMS):
                    raise InputError(
                        f"{name_of(source)} is UTF-16; convert it: iconv -f utf-16 -t utf-8"
                    )
                line = line.removeprefix(_UTF8_BOM)
            yield number, line
