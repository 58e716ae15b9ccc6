"""Small pictures, and files of them."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]
LOSSLESS = {"WEBP": {"lossless": True}}


def drawing(width=24, height=16, mode="RGB", seed=0):
    """Return a picture that no turn or flip leaves as it is."""
    shades = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    shades[0, 0], shades[0, -1] = (255, 0, 0), (0, 255, 0)
    return PIL.Image.fromarray(shades).resize((width, height), 0).convert(mode)


def picture(size, seed=0):
    """Return a picture of noise, of a (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    return PIL.Image.fromarray(noise)


def encoded(picture, kind="PNG", **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def pixels(image):
    return np.asarray(image.rgb())
