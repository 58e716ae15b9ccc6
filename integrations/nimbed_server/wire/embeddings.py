"""The JSON of ``/v1/embeddings``: what a request comes to, its images, and the answer.

Every rule about what may be combined stands here, with its model's alias and the server's settings;
nothing here touches a model.
"""

from __future__ import annotations

import base64
import re
import sys
from binascii import b2a_base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from nimbed.errors import InputError
from nimbed.images import Image
from nimbed.inputs import Input, Modality
from nimbed.options import EmbedOptions
from nimbed.spec import EmbeddingType, InputType
from nimbed_server.models import ServedModel, ServedModels
from nimbed_server.settings import Settings
from nimbed_server.wire.errors import HttpError
from nimbed_server.wire.fields import (
    Inputs,
    RequestFields,
    parse_object,
    read_request,
    read_texts,
    signature,
)

__all__ = [
    "ParsedRequest",
    "RequestReader",
    "Resolved",
    "agreed",
    "as_base64",
    "as_lists",
    "read_image",
    "read_inputs",
    "render",
    "resolve",
]

T = TypeVar("T")

# Requests that are remembered; a client may spell a model's name in many cases.
_MOST = 1024


@dataclass(frozen=True, slots=True)
class Resolved:
    """How the inputs of a request are embedded and answered.

    Attributes:
        options: What is asked of the engine; its role is that of texts.
        signs: Whether packed bits are answered as +1 and -1.
        encoding_format: How vectors are written into JSON.
        headers: Headers of the answer that say what the client did not ask for.
        role_from: Where a role came from that the client did not send; None if it sent one.
        role_header: What to say about the role of texts, where the model has two.
    """

    options: EmbedOptions
    signs: bool
    encoding_format: Literal["float", "base64"]
    headers: tuple[tuple[bytes, str], ...]
    role_from: Literal["alias", "default"] | None
    role_header: str | None = None


def resolve(
    fields: RequestFields, model: ServedModel, settings: Settings, *, from_sdk: bool
) -> Resolved:
    """Return what a request comes to.

    Args:
        fields: What the client asked for.
        model: What its model's name stands for.
        settings: The server's.
        from_sdk: Whether an OpenAI SDK sent it, which adds ``base64`` by itself and decodes it as
            float32 whatever the type: 2048 int8 bytes would become 512 floats of garbage.

    Raises:
        HttpError: With status 400.
    """
    fixed = model.fixed
    dimensions: int | None = agreed("dimensions", fields.dimensions, fixed.dimensions, model)
    asked_type: EmbeddingType | None = agreed(
        "embedding_type", fields.embedding_type, fixed.embedding_type, model
    )
    kind: EmbeddingType = asked_type or "float"
    if (
        settings.strict_nim
        and fields.embedding_type not in (None, "float")
        and fields.dimensions is not None
    ):
        raise HttpError(
            400, "dimensions cannot be used in combination with embedding_type", param="dimensions"
        )
    _check_dimensions(dimensions, kind, model, settings)
    headers: list[tuple[bytes, str]] = []
    truncate = fields.truncate or "NONE"
    override = fixed.truncate or settings.truncate
    if truncate == "NONE" and override not in (None, "NONE"):
        truncate = override
        source = "alias" if fixed.truncate else "server"
        headers.append((b"x-nimbed-truncate", f"{override}; source={source}"))
    encoding = fields.encoding_format
    signs = fixed.as_ == "signs"
    if encoding == "base64" and from_sdk and kind != "float" and not signs:
        encoding = "float"
        headers.append((b"x-nimbed-encoding-format", "float; source=sdk"))
    role = _role_asked_for(fields, model)
    options = EmbedOptions(
        input_type=role or fixed.input_type or settings.input_type,
        embedding_type=kind,
        dimensions=dimensions,
        truncate=truncate,
        int8_scale=(fixed.int8_scale or settings.int8_scale) if kind in ("int8", "uint8") else None,
    )
    source_of_role: Literal["alias", "default"] = "alias" if fixed.input_type else "default"
    return Resolved(options, signs, encoding, tuple(headers), None if role else source_of_role)


class ParsedRequest:
    """All that a request says beside its inputs.

    Attributes:
        fields: What the client asked for.
        model: What the model's name stands for.
        may_show: Whether an input may be an image.
    """

    __slots__ = ("_resolved", "_settings", "fields", "may_show", "model")

    def __init__(self, fields: RequestFields, model: ServedModel, settings: Settings) -> None:
        self.fields = fields
        self.model = model
        self.may_show = (
            "image" in model.card.modalities
            if fields.modality is None
            else fields.modality != "text"
        )
        self._settings = settings
        self._resolved: dict[bool, Resolved] = {}

    def resolve(self, *, from_sdk: bool) -> Resolved:
        """Return what it comes to, as far as that does not depend on which inputs are images.

        Args:
            from_sdk: See :func:`resolve`.

        Raises:
            HttpError: With status 400.
        """
        resolved = self._resolved.get(from_sdk)
        if resolved is None:
            resolved = resolve(self.fields, self.model, self._settings, from_sdk=from_sdk)
            if not self.may_show:
                resolved = self._for_texts(resolved)
            self._resolved[from_sdk] = resolved
        return resolved

    def assign_roles(
        self, resolved: Resolved, shown: Sequence[bool]
    ) -> tuple[list[InputType] | None, str | None]:
        """Return the role of each input, None if that of the options is everyone's, and the header.

        Args:
            resolved: What the request comes to.
            shown: Whether each input shows an image.

        Raises:
            HttpError: With status 400, if an image would be a query, or a role is required.
        """
        if not any(shown):
            return None, self._for_texts(resolved).role_header
        role = resolved.options.input_type
        if resolved.role_from is None:
            if role == "query":
                raise HttpError(
                    400,
                    'input_type="query" is not supported with images; the VLM model processes '
                    'images as passages only. Use input_type="passage" or omit input_type.',
                    param="input_type",
                )
            return None, None
        if not all(shown):
            self._check_role_required(resolved)
        roles: list[InputType] = ["passage" if image else role for image in shown]
        words = "mixed" if "query" in roles else "passage"
        return roles, f"{words}; source={resolved.role_from}"

    def _for_texts(self, resolved: Resolved) -> Resolved:
        """Return what a request of texts alone comes to."""
        self._check_role_required(resolved)
        if resolved.role_from is None or not self.model.card.asymmetric:
            return resolved
        header = f"{resolved.options.input_type}; source={resolved.role_from}"
        return replace(resolved, role_header=header)

    def _check_role_required(self, resolved: Resolved) -> None:
        if (
            resolved.role_from == "default"
            and self._settings.require_input_type
            and self.model.card.asymmetric
        ):
            raise HttpError(
                400, "'input_type' parameter is required for asymmetric models", param="input_type"
            )


class RequestReader:
    """Reads requests, and remembers what the same few fields came to.

    Clients say the same things about ever new inputs: all rules but those about the inputs are then
    one look into a dictionary.

    Args:
        models: The names there are.
        settings: How the server behaves.
    """

    def __init__(self, models: ServedModels, settings: Settings) -> None:
        self._models = models
        self._settings = settings
        self._known: dict[tuple[object, ...], ParsedRequest] = {}

    def read(self, raw: bytes, in_path: ServedModel | None) -> tuple[Inputs, ParsedRequest]:
        """Return a body's inputs as they came, and the rest of it; from any thread.

        Args:
            raw: UTF-8 JSON.
            in_path: What the path names, if it names a model; the body's ``model`` is then ignored.

        Raises:
            HttpError: With status 400, or 404 if there is no such model.
        """
        body = parse_object(raw)
        most = self._settings.max_items
        if in_path is not None:
            texts, fields = read_request(body, max_items=most, model_in_path=True)
            return texts, ParsedRequest(fields, in_path, self._settings)
        key = signature(body)
        parsed = self._known.get(key) if key is not None else None
        if parsed is not None:
            return read_texts(body, max_items=most), parsed
        only = self._models.default if len(self._models.backends) == 1 else None
        texts, fields = read_request(body, max_items=most, model_in_path=only is not None)
        model = only if only and fields.model is None else self._models.find(fields.model or "")
        parsed = ParsedRequest(fields, model, self._settings)
        if key is not None:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[key] = parsed
        return texts, parsed


def _role_asked_for(fields: RequestFields, model: ServedModel) -> InputType | None:
    if model.role is not None and fields.input_type not in (None, model.role):
        raise HttpError(
            400,
            f"the model's suffix asks for {model.role!r}, input_type for {fields.input_type!r}; "
            f"send one of them",
            param="input_type",
        )
    return model.role or fields.input_type


def agreed(name: str, asked: T | None, fixed: T | None, model: ServedModel) -> T | None:
    """Return what is asked for and what the model's name fixes, which must not differ.

    Raises:
        HttpError: With status 400.
    """
    if fixed is None:
        return asked
    if asked not in (None, fixed):
        raise HttpError(400, f"{model.name!r} fixes {name}={fixed}; got {asked}", param=name)
    return fixed


def _check_dimensions(
    dimensions: int | None, kind: EmbeddingType, model: ServedModel, settings: Settings
) -> None:
    card = model.card
    if dimensions is not None and (
        dimensions not in card.sizes or (settings.strict_nim and len(card.sizes) == 1)
    ):
        if len(card.sizes) == 1:
            raise HttpError(
                400,
                f"This model does not support 'dimensions', but a value of '{dimensions}' was "
                f"provided.",
                param="dimensions",
            )
        offered = ", ".join(map(str, card.sizes))
        raise HttpError(
            400, f"dimensions must be one of {offered}; got {dimensions}", param="dimensions"
        )
    width = dimensions or card.dimensions
    if kind in ("binary", "ubinary") and width % 8:
        raise HttpError(
            400,
            f"{kind} packs 8 dimensions into a byte; {width} is not a multiple of 8",
            param="embedding_type",
        )


# A data URL, and an img tag or a data URL. Possessive throughout: whatever strangers write, no
# part of it is read twice.
_DATA_URL = re.compile(r"data:image/[\w.+-]++;base64,[A-Za-z0-9+/=%_-]*+", re.IGNORECASE)
_IMAGE = re.compile(rf"<img\b[^<>]*+>|{_DATA_URL.pattern}", re.IGNORECASE)


def read_inputs(
    texts: list[str],
    modality: Modality | list[Modality] | None,
    *,
    has_images: bool,
    max_image_bytes: int,
) -> list[Input]:
    """Return what the strings stand for, by NIM's rule.

    An input that is a data URL of an image, bare or in an ``img`` tag, is an image; one that holds
    such a URL among other words is a text with its image; the rest is text. A client that says
    ``modality`` is believed. The type that a data URL declares is not: Weaviate calls every image a
    PNG.

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
        _read_input(text, kind, row, max_image_bytes)
        for row, (text, kind) in enumerate(zip(texts, kinds, strict=True))
    ]


def _read_input(text: str, kind: Modality | None, row: int, most: int) -> Input:
    if kind == "text" or (kind is None and "data:image/" not in text.lower()):
        return text
    found = [
        (place, url[0])
        for place in _IMAGE.finditer(text)
        if (url := _DATA_URL.search(place[0])) is not None
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


def render(
    vectors: NDArray[Any],
    *,
    model: str,
    tokens: int,
    encoding_format: Literal["float", "base64"],
) -> bytes:
    """Return the body of an answer.

    Rows are written one by one, so that a thread that renders a large answer lets the event loop in
    between them.

    Args:
        vectors: Array of shape (n, width), n at least 1, of float32, int8 or uint8.
        model: The served name.
        tokens: What the model read, prompts and special tokens included.
        encoding_format: ``base64`` writes the bytes of a row: little-endian float32, or raw
            int8 or uint8.
    """
    rows = np.ascontiguousarray(vectors)
    written = as_base64(rows) if encoding_format == "base64" else as_lists(rows)
    # A row is copied at once, since orjson leaves it in a buffer of twice its size; the answer,
    # which may be 700 kB, is joined once. Fresh pages of memory cost more than the digits.
    opening = b'{"object":"list","data":['
    pieces = []
    for index, row in enumerate(written):
        pieces.append(b'%b{"object":"embedding","index":%d,"embedding":%b' % (opening, index, row))
        opening = b"},"
    pieces.append(
        b'}],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
        % (orjson.dumps(model), tokens, tokens)
    )
    return b"".join(pieces)


def as_lists(rows: NDArray[Any]) -> Iterator[bytes]:
    """Give each row as a JSON list."""
    return (orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in rows)


def as_base64(rows: NDArray[Any]) -> Iterator[bytes]:
    """Give each row's bytes, little-endian, as a JSON string of base64."""
    little = rows if sys.byteorder == "little" else rows.byteswap()
    return (b'"%b"' % b2a_base64(row, newline=False) for row in little)
