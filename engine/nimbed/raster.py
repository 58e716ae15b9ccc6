"""From the bytes of an image file to upright RGB pixels, through Pillow.

Pillow is imported at the first call. Knows nothing about where the bytes come from, about limits
in bytes, or about models.
"""

from __future__ import annotations

import importlib
import io
import sys
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from nimbed.errors import InputError, missing_extra

if TYPE_CHECKING:
    import PIL.Image

__all__ = [
    "MAX_LONG_SIDE",
    "MAX_SHORT_SIDE",
    "from_pixels",
    "is_pil",
    "opened",
    "orientation",
    "save",
    "shown",
]

#: NIM's limits (nim-api-reference, image input limitations), kept locally too.
MAX_SHORT_SIDE: Final = 8192
MAX_LONG_SIDE: Final = 16384

# Readers are taken one by one: PIL.Image.open would guess among all formats, and it tells of a
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


def opened(kind: str, data: bytes) -> PIL.Image.Image:
    """Open a file's bytes; only the header is read.

    Args:
        kind: png, jpeg, webp, gif, bmp or tiff.
        data: The whole file.

    Raises:
        InputError: If a side is too long, or it holds several pictures.
        MissingExtraError: If Pillow is not installed.
        Exception: Whatever Pillow raises at damaged bytes.
    """
    _need_pillow()
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


def from_pixels(size: tuple[int, int], data: bytes) -> PIL.Image.Image:
    """Return the RGB picture of raw pixels, row by row.

    Raises:
        MissingExtraError: If Pillow is not installed.
    """
    _need_pillow()
    from PIL import Image

    return Image.frombytes("RGB", size, data)


def orientation(image: PIL.Image.Image) -> int:
    """Return how an opened file must be turned: EXIF's 1 (it is upright) to 8."""
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    try:
        turned = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        # A viewer shows a picture with damaged EXIF data as it lies; Pillow raises anything.
        return 1
    return turned if turned in _UPRIGHT else 1


def shown(image: PIL.Image.Image) -> PIL.Image.Image:
    """Decode to RGB as a viewer shows it: upright, over white, 8 bits.

    Raises:
        InputError: If its samples have no defined white, or it is too large.
        Exception: Whatever Pillow raises at damaged bytes.
    """
    from PIL import Image, ImageFile

    _check_size(image.size)
    # Only what still is the file's own picture lies as EXIF says; a copy that the caller turned
    # may carry the old EXIF data along.
    turn = _UPRIGHT.get(orientation(image)) if isinstance(image, ImageFile.ImageFile) else None
    image.load()
    flat = _rgb(image)
    return flat if turn is None else flat.transpose(Image.Transpose[turn])


def save(image: PIL.Image.Image, kind: str) -> bytes:
    """Write an RGB picture as png, or as jpeg of quality 95 without colour subsampling."""
    out = io.BytesIO()
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if kind == "jpeg" else {}
    image.save(out, kind, **options)
    return out.getvalue()


def is_pil(source: object) -> TypeGuard[PIL.Image.Image]:
    """Whether something is a PIL image; imports nothing, since nobody has one without Pillow."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(source, module.Image)


def _check_size(size: tuple[int, int]) -> None:
    """Refuse what NIM refuses; it also bounds what decoding may cost."""
    if min(size) > MAX_SHORT_SIDE or max(size) > MAX_LONG_SIDE:
        raise InputError(
            f"is {size[0]}x{size[1]} pixels; at most {MAX_SHORT_SIDE}x{MAX_LONG_SIDE} or "
            f"{MAX_LONG_SIDE}x{MAX_SHORT_SIDE} are possible; make it smaller"
        )


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        # Pillow would clip at 255, so that nearly everything turns white.
        import numpy as np

        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InputError(
            f"holds {'integer' if image.mode == 'I' else 'floating-point'} samples of 32 bits, "
            f"whose white is not defined; convert it to 8 bits a channel"
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    if layer.getchannel("A").getextrema() == (255, 255):
        return layer.convert("RGB")
    ground = Image.new("RGBA", layer.size, "white")
    ground.alpha_composite(layer)
    return ground.convert("RGB")


def _need_pillow() -> None:
    try:
        importlib.import_module("PIL.Image")
    except ImportError as error:
        raise missing_extra("images", needs="pillow") from error
