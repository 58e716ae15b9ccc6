"""Sources of rows: paths, patterns, folders, ``-``, streams; their formats and their lines."""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import io
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args

from nimbed.errors import ConfigurationError, InputError

__all__ = [
    "NUMBERED",
    "Kind",
    "Source",
    "check_encoding",
    "check_exists",
    "files_of",
    "is_rereadable",
    "is_source",
    "kind_of",
    "lines",
    "name_of",
    "opened",
    "random_access",
]

Kind = Literal["txt", "jsonl", "json", "csv", "tsv", "xlsx", "parquet", "feather", "folder"]
#: Formats whose records have numbers; the others have lines.
NUMBERED = ("json", "xlsx", "parquet", "feather", "folder")
Source = str | os.PathLike[str] | IO[bytes]

_SUFFIXES: dict[str, Kind] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".xlsx": "xlsx",
    ".parquet": "parquet",
    ".feather": "feather",
    ".arrow": "feather",
}
_PACKED: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: _zstandard(path),
}
# Read as a whole, from wherever their own index says.
_WHOLE = ("parquet", "feather", "xlsx")
_UTF8 = ("utf-8", "utf-8-sig")
_STDIN = "-"
_LONGEST_LINE = 2**26
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PACKERS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard"}


def files_of(source: Source) -> list[Path] | None:
    """Return the files that a pattern such as ``data/*.jsonl`` names, sorted; None for no pattern.

    Raises:
        InputError: If there are none.
    """
    if not isinstance(source, (str, os.PathLike)) or _remote(source):
        return None
    pattern = os.fspath(source)
    if not glob.has_magic(pattern) or os.path.exists(pattern):
        return None
    found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    files = [path for path in found if path.is_file()]
    if not files:
        raise InputError(f"no file is called as {pattern!r} says")
    return files


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
    files = files_of(source)
    if files is not None:
        kinds: set[Kind] = {kind_of(path) for path in files}
        if len(kinds) > 1:
            raise ConfigurationError(
                f"{str(source)!r} names files of several formats, {', '.join(sorted(kinds))}; load "
                f"one after the other"
            )
        return kinds.pop()
    path = Path(source)
    if not _remote(source) and path.is_dir():
        return "feather" if (path / "state.json").is_file() else "folder"
    packed = path.suffix.lower() in _PACKED
    suffix = Path(path.stem).suffix if packed else path.suffix
    found = _SUFFIXES.get(suffix.lower())
    if found is None or (packed and found in _WHOLE):
        raise ConfigurationError(
            f"the name {path.name!r} does not tell a format; rename it to "
            f"{', '.join(_SUFFIXES)} (text formats also with {', '.join(_PACKED)}), or say which "
            f"of {', '.join(offered)} it is; unpack a .zip, and turn other documents into text"
        )
    return found


def _check_plain_text() -> None:
    """Refuse records on standard input that would be embedded as they stand, braces and all."""
    peek = getattr(sys.stdin.buffer, "peek", None)
    start: bytes = peek(1) if peek is not None else b""
    like = "parquet" if start.startswith(b"PAR1") else "jsonl"
    if like == "parquet" or re.match(rb'\s*\{\s*"', start.removeprefix(codecs.BOM_UTF8)):
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
    if not isinstance(source, (str, os.PathLike)) or source == _STDIN:
        return False
    return _remote(source) or files_of(source) is not None or _is_regular(Path(source))


def _is_regular(path: Path) -> bool:
    return path.is_file() or path.is_dir()


def check_exists(source: Source) -> None:
    """Raise InputError if a path or a pattern names nothing."""
    if not isinstance(source, (str, os.PathLike)) or source == _STDIN or _remote(source):
        return
    if files_of(source) is None and not Path(source).exists():
        raise InputError(f"there is no file {str(source)!r}")


def is_source(target: Path, sources: Iterable[Source | None]) -> bool:
    """Return whether a path is one of the files that are read.

    It may have another name there, or be redirected to standard input.
    """
    every: list[Source] = []
    for each in sources:
        if each is not None:
            every += files_of(each) or [each]
    named = [Path(each) for each in every if isinstance(each, (str, os.PathLike))]
    if target.resolve() in (path.resolve() for path in named):
        return True
    read = filter(None, map(_facts, every))
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


def _remote(source: Source) -> bool:
    """Return whether a source is the address of an object in a store.

    Raises:
        ConfigurationError: If its scheme is none of a store, or it holds a secret.
    """
    scheme, found, rest = str(source).partition("://")
    if not found or not isinstance(source, str):
        return False
    if scheme.lower() in ("http", "https", "ftp"):
        raise ConfigurationError(f"{scheme}:// is not read; download the file first")
    if "@" in rest.partition("/")[0]:
        raise ConfigurationError(
            "the address of a file must not hold a secret; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or what your store reads"
        )
    return True


def random_access(source: Source) -> Any:
    """Return what Arrow reads a whole file from: its path, or an open object of a store.

    Raises:
        InputError: If the source is a stream, or there is no such file.
        MissingExtraError: If the source is in a store and pyarrow is not installed.
    """
    if isinstance(source, str) and _remote(source):
        return _of_store(source, "open_input_file")
    check_exists(source)
    if not isinstance(source, (str, os.PathLike)) or not is_rereadable(source):
        raise InputError(
            f"{name_of(source)} is a stream; this format is read from its end, so save it first"
        )
    if Path(source).is_dir():
        raise InputError(f"{str(source)!r} is a folder, expected a file")
    return Path(source)


def _of_store(address: str, how: str) -> Any:
    """Open an object by pyarrow, which finds credentials and region as the store's own tools do."""
    from nimbed.files.arrow import file_systems

    fs = file_systems()
    try:
        system, path = fs.FileSystem.from_uri(address)
        return getattr(system, how)(path)
    except FileNotFoundError:
        raise InputError(f"there is no object {address}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {address}: {error}") from error


def _zstandard(path: Any) -> IO[bytes]:
    from nimbed.files.arrow import arrow

    return cast(IO[bytes], io.BufferedReader(arrow().input_stream(path, compression="zstd")))


@contextmanager
def opened(source: Source) -> Generator[IO[bytes]]:
    """Open a source for reading, unpacked if its name says that it is packed.

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
        if not _remote(source) and path.is_dir():
            raise InputError(f"{str(path)!r} is a folder, expected a file")
        unpack = _PACKED.get(path.suffix.lower())
        place: Any = path
        if isinstance(source, str) and _remote(source):
            place = _of_store(source, "open_input_stream")
        try:
            with unpack(place) if unpack else path.open("rb") if place is path else place as stream:
                yield cast(IO[bytes], stream)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if not unpack and place is path:
                raise
            whole = f"not a whole {_PACKERS[path.suffix.lower()]} file" if unpack else "unreadable"
            raise InputError(f"{name_of(source)} is {whole}: {error}") from error


def check_encoding(encoding: str | None) -> None:
    """Raise ConfigurationError if Python knows no such encoding of text."""
    try:
        "".encode(encoding or "utf-8")
    except LookupError:
        raise ConfigurationError(
            f"there is no encoding {encoding!r}; usual ones are utf-8, utf-16, cp1252, latin-1, "
            f"shift_jis, gb18030"
        ) from None


def lines(source: Source, encoding: str | None = None) -> Iterator[tuple[int, bytes]]:
    r"""Yield (number from 1, line in UTF-8 with its end) for every line, ended by ``\n`` alone.

    Other line separators of Unicode may stand inside a text. A byte order mark is dropped, and
    says what the encoding is.

    Args:
        source: What to read.
        encoding: Its encoding; None for UTF-8, or what a byte order mark says.

    Raises:
        InputError: If the file is missing or damaged, is not of that encoding, or a line is longer
            than 64 MiB.
    """
    check_encoding(encoding)
    with opened(source) as stream:
        number = 0
        while True:
            line = stream.readline(_LONGEST_LINE + 1)
            if not line:
                return
            number += 1
            if len(line) > _LONGEST_LINE:
                raise InputError(
                    f"line {number} of {name_of(source)} is longer than 64 MiB; a record a line "
                    f"is expected"
                )
            if number == 1:
                mark, told = next((each for each in _BOMS if line.startswith(each[0])), (b"", None))
                other = "utf-16" if told == "utf-16" else encoding
                if other is not None and codecs.lookup(other).name not in _UTF8:
                    yield from _decoded_lines(source, stream, line, other)
                    return
                line = line.removeprefix(mark)
            yield number, line


def _decoded_lines(
    source: Source, stream: IO[bytes], start: bytes, encoding: str
) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of another encoding in UTF-8; ``start`` was read before."""
    decoder = codecs.getincrementaldecoder(encoding)()
    number, left, block = 1, "", start
    try:
        while True:
            left += decoder.decode(block, final=not block)
            *whole, left = left.split("\n")
            for line in whole:
                yield number, f"{line}\n".encode()
                number += 1
            if not block:
                break
            if len(left) > _LONGEST_LINE:
                raise InputError(f"line {number} of {name_of(source)} is longer than 64 MiB")
            block = stream.read(2**16)
    except UnicodeError as error:
        raise InputError(
            f"line {number} of {name_of(source)}, or one soon after it, is not valid {encoding}: "
            f"{error}"
        ) from error
    if left:
        yield number, left.encode()
