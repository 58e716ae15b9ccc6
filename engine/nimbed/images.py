"""Images as inputs: read from a path, bytes, a data URL or a PIL image, and decoded to RGB.

The format is recognised by the bytes, never by a file name or a label.

A model sees an image as a viewer shows it: turned as its EXIF data says, transparency over white,
16-bit samples by their high byte. NVIDIA's reference code ignores EXIF and transparency, so that
a photograph may lie on its side and a transparent logo turn black; for images with neither, the
pixels are the same.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import hashlib
import importlib
import io
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from nimbed.errors import InputError, NimbedError, missing_extra

if TYPE_CHECKING:  # Pillow is imported when an image is decoded, not before
    import PIL.Image

    ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | PIL.Image.Image

__all__ = ["MAX_BYTES", "MAX_LONG_SIDE", "MAX_SHORT_SIDE", "Image"]

#: NIM's limits (nim-api-reference, image input limitations), kept locally too.
MAX_BYTES: Final = 25 * 2**20
MAX_SHORT_SIDE: Final = 8192
MAX_LONG_SIDE: Final = 16384

# Pixels that all threads together decode at once: as many as the largest image has, which takes up
# to 16 bytes each where it is transparent, 2 GB in all; half a megabyte of PNG may hold so many.
_DECODED_AT_ONCE = MAX_SHORT_SIDE * MAX_LONG_SIDE
_PIXELS = "pixels"  # raw RGB, from a PIL image; every other kind is a file format
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"BM": "bmp",
}
_UNSUPPORTED = {
    b"%PDF": " (it is a PDF: render its pages first)",
    b"<svg": " (it is an SVG drawing: render it first)",
    b"<?xml": " (it is XML: an SVG drawing must be rendered first)",
}
# Readers are chosen one by one: PIL.Image.open would guess among all formats, and it reports a
# large image by a warning, which is global state that threads cannot switch off safely.
_READERS = {
    "png": ("PIL.PngImagePlugin", "PngImageFile"),
    "jpeg": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "webp": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "gif": ("PIL.GifImagePlugin", "GifImageFile"),
    "bmp": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "tiff": ("PIL.TiffImagePlugin", "TiffImageFile"),
}
_ORIENTATION_TAG = 0x0112
# EXIF orientation -> what makes it upright (EXIF 2.32, 4.6.4); 1 is upright.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
# An image without any of these in its bytes has no orientation.
_ORIENTATION_MARKS = (b"Exif\0\0", b"eXIf", b"tiff:Orientation")


class Image:
    """One image to embed.

    Args:
        source: A path, the bytes of a file, a data URL, or a PIL image (of an animated one, the
            current frame). A path is read now, so the value does not change with the file. An
            http address is refused: nimbed never fetches one.

    Raises:
        InputError: If it cannot be read, is larger than 25 MiB, or is not PNG, JPEG, WebP, GIF,
            BMP or TIFF. Other damage is found when it is decoded.
    """

    __slots__ = ("_data", "_digest", "_kind", "_name", "_size")

    def __init__(self, source: ImageSource) -> None:
        self._name = ""
        self._digest: str | None = None
        self._size: tuple[int, int] | None = None
        if _is_pil(source):
            with _named_errors("image"):
                rgb = _to_rgb(source)
            self._kind, self._size, self._data = _PIXELS, rgb.size, rgb.tobytes()
            return
        if isinstance(source, (bytes, bytearray, memoryview)):
            self._data = bytes(source)
        elif isinstance(source, str) and source[:5].lower() == "data:":
            self._data = _decode_data_url(source)
        elif isinstance(source, (str, os.PathLike)):
            self._name = str(os.fspath(source))
            self._data = _read_file(self._name)
        else:
            raise InputError(
                f"an image is made from a path, bytes, a data URL or a PIL image; got "
                f"{type(source).__name__}"
            )
        self._kind = _format_of(self._data, self._label)

    @classmethod
    def from_data_url(cls, url: str) -> Image:
        """Read a data URL and nothing else: for untrusted text, which must not name a file.

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
            with _named_errors(self._label):
                file = _open(self._kind, self._data)
                width, height = file.size
                self._size = (height, width) if _orientation(file) >= 5 else (width, height)
        return self._size

    def rgb(self) -> PIL.Image.Image:
        """Decode to a PIL image of mode RGB: upright, over white, 8 bits a channel.

        Raises:
            InputError: As for :attr:`size`; or the file is damaged, cut short, or holds samples
                without a defined white.
            MissingExtraError: If Pillow is not installed.
        """
        with _named_errors(self._label):
            if self._kind == _PIXELS:
                _require_pillow()
                from PIL import Image as pil

                return pil.frombytes("RGB", self.size, self._data)
            file = _open(self._kind, self._data)
            with _decoding().room(file.width * file.height):
                return _to_rgb(file)

    def data_url(self) -> str:
        """Return a base64 data URL for a server.

        A plain PNG or JPEG is sent unchanged. An image that a server might show differently
        (turned by EXIF, transparent, deeper than 8 bits, another format) is rewritten first: a
        JPEG as a JPEG of quality 95 without colour subsampling, the rest as PNG.

        Raises:
            InputError: If it must be rewritten and is damaged, or is larger than 25 MiB then.
            MissingExtraError: If it must be decoded and Pillow is not installed.
        """
        data, kind = self._data, self._kind
        if not self._is_plain():
            kind = "jpeg" if kind == "jpeg" else "png"
            options: dict[str, Any] = {"quality": 95, "subsampling": 0} if kind == "jpeg" else {}
            out = io.BytesIO()
            self.rgb().save(out, kind, **options)
            data = out.getvalue()
            _check_bytes(len(data), f"{self._label}, rewritten as {kind.upper()},")
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

    @property
    def _label(self) -> str:
        return f"image {self._name!r}" if self._name else "image"

    def _is_plain(self) -> bool:
        """Whether every server shows it as nimbed does."""
        data, marked = self._data, any(mark in self._data for mark in _ORIENTATION_MARKS)
        if self._kind == "jpeg":
            if not marked:
                return True
            with _named_errors(self._label):
                return _orientation(_open("jpeg", data)) == 1
        if self._kind != "png" or len(data) < 26 or marked:
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


class _Decoding:
    """The pixels that are being decoded in all threads; whoever wants too many more waits."""

    def __init__(self) -> None:
        self._pixels = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def room(self, pixels: int) -> Generator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._pixels + pixels <= _DECODED_AT_ONCE)
            self._pixels += pixels
        try:
            yield
        finally:
            with self._changed:
                self._pixels -= pixels
                self._changed.notify_all()


_decoding = functools.cache(_Decoding)
if hasattr(os, "register_at_fork"):  # what a parent's threads decode, a child never finishes
    os.register_at_fork(after_in_child=_decoding.cache_clear)


@contextlib.contextmanager
def _named_errors(label: str) -> Generator[None]:
    """Turn whatever damaged bytes provoke into an InputError that names the image."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{label} {error}") from error
    except (NimbedError, MemoryError):
        raise
    except Exception as error:
        # Pillow's readers raise anything: OSError, SyntaxError, struct.error, TypeError.
        reason = str(error) or type(error).__name__
        raise InputError(f"{label} is damaged or cut short: {reason}") from error


def _read_file(path: str) -> bytes:
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path)
    if scheme:
        raise InputError(
            f"an image is never fetched from an address ({scheme[0]}...); download it, and pass "
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


def _decode_data_url(url: str) -> bytes:
    label, comma, body = url.partition(",")
    if not comma or not label.lower().endswith(";base64"):
        raise InputError("a data URL must be data:image/...;base64, followed by the base64 bytes")
    _check_bytes(len(body) * 3 // 4 - 2, "the image in a data URL")
    try:
        return binascii.a2b_base64("".join(body.split()), strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"a data URL holds invalid base64: {str(error).lower()}") from error


def _check_bytes(count: int, label: str) -> None:
    if count > MAX_BYTES:
        raise InputError(
            f"{label} is {count / 2**20:.1f} MiB; at most 25 MiB are possible; make it smaller"
        )


def _format_of(data: bytes, label: str) -> str:
    _check_bytes(len(data), label)
    if not data:
        raise InputError(f"{label} holds no bytes")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    for magic, kind in _MAGIC.items():
        if data.startswith(magic):
            return kind
    hint = next((hint for magic, hint in _UNSUPPORTED.items() if data.startswith(magic)), "")
    raise InputError(
        f"{label} begins with {data[:12]!r}, which is not PNG, JPEG, WebP, GIF, BMP or TIFF{hint}"
    )


def _is_pil(source: object) -> TypeGuard[PIL.Image.Image]:
    """Whether it is a PIL image; imports nothing, since nobody has one without Pillow."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(source, module.Image)


def _require_pillow() -> None:
    try:
        importlib.import_module("PIL.Image")
    except ImportError as error:
        raise missing_extra("images", needs="pillow") from error


def _open(kind: str, data: bytes) -> PIL.Image.Image:
    """Open the bytes of a file; only the header is read.

    Raises:
        InputError: If a side is too long, or it holds several pictures.
        MissingExtraError: If Pillow is not installed.
        Exception: Whatever Pillow raises at damaged bytes.
    """
    _require_pillow()
    module, reader = _READERS[kind]
    image: PIL.Image.Image = getattr(importlib.import_module(module), reader)(io.BytesIO(data))
    _check_size(image.size)
    # A second picture in a JPEG is a preview or a depth map, which its reader does not count.
    if getattr(image, "is_animated", False):
        raise InputError(
            "holds several frames or pages; embed each: [nimbed.Image(frame) for frame in "
            "PIL.ImageSequence.Iterator(PIL.Image.open(path))]"
        )
    return image


def _check_size(size: tuple[int, int]) -> None:
    """Refuse what NIM refuses; this also bounds the cost of decoding."""
    if min(size) > MAX_SHORT_SIDE or max(size) > MAX_LONG_SIDE:
        raise InputError(
            f"is {size[0]}x{size[1]} pixels; at most {MAX_SHORT_SIDE}x{MAX_LONG_SIDE} or "
            f"{MAX_LONG_SIDE}x{MAX_SHORT_SIDE} are possible; make it smaller"
        )


def _orientation(image: PIL.Image.Image) -> int:
    """Return the EXIF orientation of an opened file, from 1 (upright) to 8."""
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        # Viewers ignore damaged EXIF data, at which Pillow raises anything.
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Decode to RGB as a viewer shows it: upright, over white, 8 bits.

    Raises:
        InputError: If its samples have no defined white, or it is too large.
        Exception: Whatever Pillow raises at damaged bytes.
    """
    from PIL import Image, ImageFile

    _check_size(image.size)
    # Only the picture of a file lies as its EXIF data says; a copy that the caller has turned may
    # still carry the old EXIF data.
    turn = _UPRIGHT.get(_orientation(image)) if isinstance(image, ImageFile.ImageFile) else None
    image.load()
    flat = _flatten(image)
    return flat if turn is None else flat.transpose(Image.Transpose[turn])


def _flatten(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return 8 bits of red, green and blue, with transparent parts over white."""
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        # Pillow would clip at 255, which turns nearly everything white.
        import numpy as np

        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InputError(
            f"holds {'integer' if image.mode == 'I' else 'floating-point'} samples of 32 bits, "
            f"whose white is not defined; convert it to 8 bits a channel"
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    if layer.getchannel("A").getextrema() == (255, 255):
        return layer.convert("RGB")
    ground = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(ground, layer).convert("RGB")
