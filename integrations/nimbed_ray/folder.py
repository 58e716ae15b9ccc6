"""A folder on a disk or in an object store, in which a file is complete or absent."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from nimbed.errors import ConfigurationError, InputError, missing_extra

__all__ = ["Folder", "matching", "opened"]

_WILDCARDS = frozenset("*[")
# Readers of folders (Arrow, Ray, Spark) skip names that start with a dot.
_HIDDEN = "."
_UNFINISHED = ".partial"
# Arrow's names for the file systems in which a file is visible before it is complete, and can be
# renamed.
_RENAMING = ("local", "hdfs")
# Characters that stay as they are in a URI; all others that people type are encoded for them.
_URI = "%/:@?&=+,;!$'()*[]~"


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, by its path or URI.

    A pickle holds only the address; each machine finds its own credentials.

    Attributes:
        address: A local path, or ``s3://bucket/path`` and the like.
    """

    address: str

    def __post_init__(self) -> None:
        """Refuse an address that holds a secret: addresses stand in logs and messages."""
        if _holds_secret(self.address):
            raise ConfigurationError(
                "the address of a folder must not hold a secret; leave it out and set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what your store reads"
            )

    @classmethod
    def at(cls, address: str) -> Folder:
        """Return the folder at a URI, or at a path that may be relative."""
        local = "://" not in address
        return cls(str(Path(address).resolve()) if local else quote(address, safe=_URI))

    def make(self) -> None:
        """Create the folder if it does not exist."""
        system, path = self._opened()
        system.create_dir(path, recursive=True)

    def is_file(self) -> bool:
        """Whether the address is that of a file."""
        system, path = self._opened()
        return bool(system.get_file_info(path).is_file)

    def names(self) -> list[str]:
        """Return the names of its files, sorted."""
        system, path = self._opened()
        found = system.get_file_info(_filesystems().FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.is_file)

    def address_of(self, name: str) -> str:
        """Return the path or URI of a file."""
        if "://" not in self.address:
            return f"{self.address.rstrip('/')}/{name}"
        head, query, options = self.address.partition("?")
        return f"{head.rstrip('/')}/{quote(name)}{query}{options}"

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if there is none."""
        system, path = self._opened()
        if not system.get_file_info(f"{path}/{name}").is_file:
            return None
        with system.open_input_stream(f"{path}/{name}") as stream:
            content: bytes = stream.read()
        return content

    def open(self, name: str) -> Any:
        """Open a file for random access, or return None if there is none."""
        system, path = self._opened()
        if not system.get_file_info(f"{path}/{name}").is_file:
            return None
        return system.open_input_file(f"{path}/{name}")

    def write(self, name: str, content: Any) -> None:
        """Write a file, which appears when it is complete; one of that name is replaced.

        Args:
            name: Its name; with a slash, that of a file in a folder below this one.
            content: Bytes, or an Arrow buffer.
        """
        system, path = self._opened()
        # Before anything is opened: closing a stream creates an object from what it was given.
        content = importlib.import_module("pyarrow").py_buffer(content)
        if system.type_name not in _RENAMING:
            # An object appears when all of it was sent.
            with system.open_output_stream(f"{path}/{name}") as stream:
                stream.write(content)
            return
        folder, _, base = f"{path}/{name}".rpartition("/")
        system.create_dir(folder, recursive=True)
        place = f"{folder}/{_HIDDEN}{base}.{secrets.token_hex(4)}{_UNFINISHED}"
        try:
            with system.open_output_stream(place) as stream:
                stream.write(content)
            system.move(place, f"{folder}/{base}")
        except BaseException:
            if system.get_file_info(place).is_file:
                system.delete_file(place)
            raise

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""
        system, path = self._opened()
        if system.get_file_info(f"{path}/{name}").is_file:
            system.delete_file(f"{path}/{name}")

    def sweep(self) -> None:
        """Delete the unfinished files of processes that were killed."""
        for name in self.names():
            if name.startswith(_HIDDEN) and name.endswith(_UNFINISHED):
                self.delete(name)

    def _opened(self) -> tuple[Any, str]:
        return _opened(self.address)


def matching(pattern: str) -> list[str]:
    """Return the addresses of the parquet files that match a pattern, sorted.

    Args:
        pattern: A file, a folder, or ``folder/*.parquet``, as a path or a URI.

    Raises:
        InputError: If none does.
    """
    uri = "://" in pattern
    head, query, options = pattern.partition("?") if uri else (pattern, "", "")
    folder, slash, last = head.rpartition("/")
    if not _WILDCARDS.intersection(last):
        whole = Folder.at(pattern)
        if whole.is_file():
            return [whole.address]
        folder, slash, last = head.rstrip("/"), "/", "*.parquet"
    home = Folder.at(f"{folder or slash or '.'}{query}{options}")
    if _WILDCARDS.intersection(folder):
        raise InputError(f"{pattern!r}: only the last part of a path may contain * or [")
    last = unquote(last) if uri else last
    names = [name for name in home.names() if fnmatchcase(name, last) and name[0] not in "._"]
    if not names:
        raise InputError(f"{pattern!r} matches no parquet file")
    return [home.address_of(name) for name in names]


def opened(addresses: Sequence[str]) -> tuple[Any, list[str]]:
    """Return the file system that some files share, and their paths on it.

    For readers that take both: of a list of URIs, Ray decodes only the first.

    Raises:
        ConfigurationError: If Arrow cannot open one.
    """
    found = [_opened(address) for address in addresses]
    return found[0][0], [path for _, path in found]


def _holds_secret(address: str) -> bool:
    if "://" not in address:
        return False
    parts = urlsplit(address)
    if any(word in parts.query.lower() for word in ("secret", "token", "password")):
        return True
    # A secret with a slash ends the host, and so stands where a port would.
    beside = parts.netloc.rpartition("@")[2].partition(":")[2]
    return parts.password is not None or not (beside.isdigit() or beside == "")


def _opened(address: str) -> tuple[Any, str]:
    local = "://" not in address
    try:
        system, path = _filesystems().FileSystem.from_uri(
            str(Path(address).resolve()) if local else address
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"Arrow cannot open the folder {address!r}: {error}") from None
    return system, path.rstrip("/") or "/"


def _filesystems() -> Any:
    try:
        return importlib.import_module("pyarrow.fs")
    except ImportError as error:
        raise missing_extra("ray", needs="pyarrow") from error
