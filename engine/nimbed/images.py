"""An image as an input: a path, bytes, a data URL or a PIL image becomes one immutable value.

What it holds is told by its bytes, never by a file name or a label. Knows nothing about models.

An image is shown to a model as a viewer shows it to a person: turned as its EXIF data says,
transparency over white, 16-bit samples by their high byte. NVIDIA's reference code ignores EXIF
and transparency, so there a photograph may lie on its side and a transparent logo turn black;
for images with neither, the pixels are the same.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nimbed import raster
from nimbed.errors import InputError, NimbedError

if TYPE_CHECKING:
    import PIL.Image

    ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | PIL.Image.Image

__all__ = ["MAX_BYTES", "Image"]

#: NIM's limit (nim-api-reference, image input limitations), kept locally too.
MAX_BYTES: Final = 25 * 2**20

_PIXELS = "pixels"  # raw RGB, from a PIL image; every other kind is a file format
_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"BM": "bmp",
}
_FOREIGN = {
    b"%PDF": " (it is a PDF: render its pages first)",
    b"<svg": " (it is an SVG drawing: render it first)",
    b"<?xml": " (it is XML: an SVG drawing must be rendered first)",
}
# Without one of these in its bytes an image cannot be turned by a viewer.
_TURNING = (b"Exif\0\0", b"eXIf", b"tiff:Orientation")


class Image:
    """One image to embed.

    Args:
        source: A path, the bytes of a file, a data URL, or a PIL image (of an animated one, the
            frame it stands at). A path is read now, so the value does not change with the file.
            An http address is refused: nimbed never fetches one.

    Raises:
        InputError: If it cannot be read, is larger than 25 MiB, or is not PNG, JPEG, WebP, GIF,
            BMP or TIFF. Damage further inside shows when it is decoded.
    """

    __slots__ = ("_data", "_digest", "_kind", "_name", "_size")

    def __init__(self, source: ImageSource) -> None:
        self._name = ""
        self._digest: str | None = None
        self._size: tuple[int, int] | None = None
        if raster.is_pil(source):
            with _telling("image"):
                flat = raster.shown(source)
            self._kind, self._size, self._data = _PIXELS, flat.size, flat.tobytes()
            return
        if isinstance(source, (bytes, bytearray, memoryview)):
            self._data = bytes(source)
        elif isinstance(source, str) and source[:5].lower() == "data:":
            self._data = _payload(source)
        elif isinstance(source, (str, os.PathLike)):
            self._name = str(os.fspath(source))
            self._data = _file_bytes(self._name)
        else:
            raise InputError(
                f"an image is made from a path, bytes, a data URL or a PIL image; got "
                f"{type(source).__name__}"
            )
        self._kind = _sniff(self._data, self._named)

    @classmethod
    def from_data_url(cls, url: str) -> Image:
        """Read a data URL and nothing else: for text from strangers, who must not name files.

        Raises:
            InputError: If it is not a data URL, or as for :class:`Image`.
        """
        if url[:5].lower() != "data:":
            raise InputError("expected a data URL such as data:image/png;base64,...")
        return cls(url)

    @property
    def kind(self) -> str:
        """What the bytes are: png, jpeg, webp, gif, bmp, tiff, or pixels (of a PIL image)."""
        return self._kind

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal."""
        if self._digest is None:
            shape = self._size if self._kind == _PIXELS else ""
            hashed = hashlib.sha256(f"{self._kind} {shape}:".encode())
            hashed.update(self._data)
            self._digest = hashed.hexdigest()
        return self._digest

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels as shown; only the header is read.

        Raises:
            InputError: If the header is damaged, the image is animated, or a side is too long
                (more than 8192x16384 either way).
            MissingExtraError: If Pillow is not installed.
        """
        if self._size is None:
            with _telling(self._named):
                opened = raster.opened(self._kind, self._data)
                width, height = opened.size
                across = raster.orientation(opened) >= 5
                self._size = (height, width) if across else (width, height)
        return self._size

    def rgb(self) -> PIL.Image.Image:
        """Decode to a PIL image of mode RGB, as shown; see the module's first lines.

        Raises:
            InputError: As for :attr:`size`; or the file is damaged, cut short, or holds samples
                without a defined white.
            MissingExtraError: If Pillow is not installed.
        """
        with _telling(self._named):
            if self._kind == _PIXELS:
                return raster.from_pixels(self.size, self._data)
            return raster.shown(raster.opened(self._kind, self._data))

    def data_url(self) -> str:
        """Return a base64 data URL for a server.

        A plain PNG or JPEG goes as it is. What a server might show otherwise than nimbed does
        (turned by EXIF, transparent, deeper than 8 bits, another format) is first rewritten:
        JPEG as JPEG of quality 95, the rest as PNG.

        Raises:
            InputError: If it must be rewritten and is damaged, or is larger than 25 MiB then.
            MissingExtraError: If it must be looked into and Pillow is not installed.
        """
        data, kind = self._data, self._kind
        if not self._plain():
            kind = "jpeg" if kind == "jpeg" else "png"
            data = raster.save(self.rgb(), kind)
            _check_bytes(len(data), f"{self._named}, rewritten as {kind.upper()},")
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

    @property
    def _named(self) -> str:
        return f"image {self._name!r}" if self._name else "image"

    def _plain(self) -> bool:
        data, turning = self._data, any(mark in self._data for mark in _TURNING)
        if self._kind == "jpeg":
            if not turning:
                return True
            with _telling(self._named):
                return raster.orientation(raster.opened("jpeg", data)) == 1
        if self._kind != "png" or len(data) < 26 or turning:
            return False
        depth, colour = data[24], data[25]  # of the header chunk; colours 4 and 6 have alpha
        return depth <= 8 and colour in (0, 2, 3) and b"tRNS" not in data and b"acTL" not in data

    def __repr__(self) -> str:
        name = f"{self._name!r}, " if self._name else ""
        return f"Image({name}{self._kind}, {len(self._data):,} bytes)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image):
            return NotImplemented
        same_shape = self._kind != _PIXELS or self._size == other._size
        return self._kind == other._kind and same_shape and self._data == other._data

    def __hash__(self) -> int:
        return hash((self._kind, self._data))

    def __reduce__(self) -> tuple[Callable[..., Image], tuple[Any, ...]]:
        """Pickle the content, so that it opens where the path does not exist."""
        return Image._restored, (self._kind, self._data, self._name, self._size)

    @classmethod
    def _restored(cls, kind: str, data: bytes, name: str, size: tuple[int, int] | None) -> Image:
        image = cls.__new__(cls)
        image._kind, image._data, image._name, image._size = kind, data, name, size
        image._digest = None
        return image


@contextlib.contextmanager
def _telling(named: str) -> Generator[None]:
    """Turn whatever damaged bytes provoke into an InputError that names the image."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{named} {error}") from error
    except (NimbedError, MemoryError):
        raise
    except Exception as error:
        # Pillow's readers raise anything: OSError, SyntaxError, struct.error, TypeError.
        reason = str(error) or type(error).__name__
        raise InputError(f"{named} is damaged or cut short: {reason}") from error


def _file_bytes(path: str) -> bytes:
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path)
    if scheme:
        raise InputError(
            f"an image is never fetched from an address ({scheme[0]}...); download it, and give "
            f"its bytes"
        )
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
            raise InputError(f"image {path!r} is not a file")
        _check_bytes(status.st_size, f"image {path!r}")
        with Path(path).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"image {path[:200]!r} cannot be read: {reason}") from error


def _payload(url: str) -> bytes:
    label, comma, body = url.partition(",")
    if not comma or not label.lower().endswith(";base64"):
        raise InputError("a data URL must be data:image/...;base64, and then base64")
    _check_bytes(len(body) * 3 // 4 - 2, "the image in a data URL")
    try:
        return binascii.a2b_base64("".join(body.split()), strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"a data URL holds invalid base64: {str(error).lower()}") from error


def _check_bytes(count: int, named: str) -> None:
    if count > MAX_BYTES:
        raise InputError(
            f"{named} is {count / 2**20:.1f} MiB; at most 25 MiB are possible; make it smaller"
        )


def _sniff(data: bytes, named: str) -> str:
    _check_bytes(len(data), named)
    if not data:
        raise InputError(f"{named} holds no bytes")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    for beginning, kind in _BEGINNINGS.items():
        if data.startswith(beginning):
            return kind
    foreign = next((hint for mark, hint in _FOREIGN.items() if data.startswith(mark)), "")
    raise InputError(
        f"{named} begins with {data[:12]!r}, which is not PNG, JPEG, WebP, GIF, BMP or "
        f"TIFF{foreign}"
    )
