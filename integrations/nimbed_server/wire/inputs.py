"""Turns the strings of a request into texts and images.

NIM's rule: an input that is a data URL of an image, bare or in an ``img`` tag, is an image; one
that holds such a URL among other words is a text with its image; the rest is text. A client that
says ``modality`` is believed. The type that a data URL declares is not: Weaviate calls every
image a PNG.
"""

from __future__ import annotations

import base64
import re

from nimbed.errors import InputError
from nimbed.images import Image
from nimbed.inputs import Input, Modality
from nimbed_server.wire.errors import HttpError

__all__ = ["read_image", "read_inputs"]

# A data URL, and an img tag or a data URL. Possessive throughout: whatever strangers write, no
# part of it is read twice.
_URL = re.compile(r"data:image/[\w.+-]++;base64,[A-Za-z0-9+/=%_-]*+", re.IGNORECASE)
_IMAGE = re.compile(rf"<img\b[^<>]*+>|{_URL.pattern}", re.IGNORECASE)


def read_inputs(
    texts: list[str],
    modality: Modality | list[Modality] | None,
    *,
    has_images: bool,
    max_image_bytes: int,
) -> list[Input]:
    """Return what the strings stand for.

    Args:
        texts: Non-blank strings.
        modality: What they are: one word for all, one a row, or None to infer it.
        has_images: Whether the model reads images; for one that does not, nothing is inferred.
        max_image_bytes: Decoded bytes of the largest image.

    Raises:
        HttpError: With status 400, naming the input.
    """
    if modality == "text" or (modality is None and not has_images):
        return list(texts)
    kinds: list[Modality | None] = (
        [*modality] if isinstance(modality, list) else [modality] * len(texts)
    )
    return [
        _read(text, kind, row, max_image_bytes)
        for row, (text, kind) in enumerate(zip(texts, kinds, strict=True))
    ]


def _read(text: str, kind: Modality | None, row: int, most: int) -> Input:
    if kind == "text" or (kind is None and "data:image/" not in text.lower()):
        return text
    found = [
        (place, url[0])
        for place in _IMAGE.finditer(text)
        if (url := _URL.search(place[0])) is not None
    ]
    if not found:
        if kind == "image":
            return read_image(text.strip(), row, most)
        if kind is None:
            return text
        raise _refused(row, "modality is text_image, but it holds no data:image/...;base64, URL")
    if len(found) > 1:
        raise _refused(row, f"it holds {len(found)} images; one an input is possible")
    ((place, source),) = found
    rest = f"{text[: place.start()].rstrip()} {text[place.end() :].lstrip()}".strip()
    if kind == "image" and rest:
        raise _refused(row, "modality is image, but it holds words too; use text_image")
    if kind == "text_image" and not rest:
        raise _refused(row, "modality is text_image, but it holds an image alone; use image")
    image = read_image(source, row, most)
    return (rest, image) if rest else image


def read_image(source: str, row: int, most: int) -> Image:
    """Return the image of a data URL, or of base64 alone.

    Args:
        source: What a client sent; never opened, never fetched.
        row: Its position, for messages.
        most: Decoded bytes that it may hold.

    Raises:
        HttpError: With status 400.
    """
    encoded = source[source.find(",") + 1 :]
    if len(encoded) * 3 // 4 - encoded.count("=", -2) > most:
        raise _refused(row, f"its image is larger than {most} bytes")
    try:
        if source[:5].lower() == "data:":
            return Image.from_data_url(source)
        return Image(base64.b64decode(source, validate=True))
    except InputError as error:
        raise _refused(row, str(error)) from error
    except ValueError:
        raise _refused(
            row, "an image is a data:image/...;base64, URL; paths and addresses are not read"
        ) from None


def _refused(row: int, reason: str) -> HttpError:
    return HttpError(400, f"input[{row}]: {reason}", param="input")
