"""Cohere's embed API, versions 1 and 2, for its SDKs and Weaviate's module.

Weaviate's text2vec-cohere sends 96 texts a request, as many at once as it has, where its NVIDIA
module sends ten. An error is ``{"message": "a string"}`` at any status.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from nimbed.batch import quantize
from nimbed.images import Image
from nimbed.inputs import Input
from nimbed.spec import EmbeddingType, InputType, Truncate, VectorSpec
from nimbed_server.http import Request
from nimbed_server.models import ServedModel, ServedModels
from nimbed_server.settings import Settings
from nimbed_server.state import LARGE_ANSWER, LARGE_BODY, State, aside
from nimbed_server.wire.embeddings import Resolved, as_base64, as_lists, read_image, resolve
from nimbed_server.wire.errors import HttpError
from nimbed_server.wire.fields import (
    Field,
    RequestFields,
    bounded,
    one_of,
    parse_object,
    positive,
    read_fields,
    string,
    strings,
)

__all__ = [
    "COHERE_FIELDS",
    "CohereRequest",
    "Version",
    "embed_v1",
    "embed_v2",
    "read_cohere",
    "render_cohere",
]

Version = Literal["1", "2"]
Kind = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]

_KINDS: tuple[Kind, ...] = get_args(Kind)
_ROLES: dict[str, InputType] = {
    "search_query": "query",
    "search_document": "passage",
    "image": "passage",
}
# Where inputs stand: exactly one of these.
_SOURCES = ("texts", "images", "inputs")


def _input_type(name: str, value: Any) -> str:
    if value in ("classification", "clustering"):
        raise HttpError(
            400,
            f"{name}={value!r} is not offered: the models served here know queries and passages; "
            f"send 'search_document', or 'search_query' for questions",
            param=name,
        )
    return cast("str", one_of(tuple(_ROLES))(name, value))


def _kinds(name: str, value: Any) -> tuple[Kind, ...]:
    if not isinstance(value, list) or not value:
        raise HttpError(400, f"{name} must be an array of types", param=name)
    return tuple(dict.fromkeys(one_of(_KINDS)(name, each) for each in value))


def _array(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise HttpError(400, f"{name} must be an array that is not empty", param=name)
    return value


def _max_tokens(name: str, value: Any) -> Any:
    raise HttpError(
        400, f"{name} is not offered: the model's limit holds; truncate cuts at it", param=name
    )


def _priority(name: str, value: Any) -> int:
    if value == 0 and not isinstance(value, bool):
        return 0
    found = positive(name, value)
    if found > 999:
        raise HttpError(400, f"{name} must be from 0 to 999; got {found}", param=name)
    return found


def _texts(name: str, value: Any) -> list[str]:
    return strings(name, _array(name, value))


_TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
COHERE_FIELDS = (
    Field("model", string, {"type": "string"}, required=True),
    Field("texts", _texts, _TEXTS, free=True),
    Field("images", _array, {**_TEXTS, "description": "Data URLs."}, free=True),
    Field(
        "inputs",
        _array,
        {
            "type": "array",
            "minItems": 1,
            "items": {"type": "object"},
            "description": 'Each {"content": [...]} of one text, one image_url, or both.',
        },
        free=True,
    ),
    Field(
        "input_type",
        _input_type,
        {"type": "string", "enum": list(_ROLES), "description": "The role."},
    ),
    Field(
        "embedding_types",
        _kinds,
        {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "enum": list(_KINDS)},
            "description": "base64 is of little-endian float32.",
        },
    ),
    Field(
        "truncate",
        one_of(get_args(Truncate)),
        {"type": "string", "enum": list(get_args(Truncate)), "default": "END"},
    ),
    Field("output_dimension", positive, {"type": "integer", "minimum": 1}),
    Field("max_tokens", _max_tokens, None),
    Field(
        "priority",
        _priority,
        {
            "type": "integer",
            "minimum": 0,
            "maximum": 999,
            "description": "Beyond 0, short queries have no right of way.",
        },
    ),
)


@dataclass(frozen=True, slots=True)
class CohereRequest:
    """A request of Cohere's API.

    Attributes:
        model: What the model's name stands for.
        resolved: What it comes to.
        inputs: Its inputs.
        kinds: The types that it wants, in their order, each with the spec by which it is made of
            floats; None where the vectors are embedded as they are answered.
        by_type: Whether the answer has vectors by their type; version 1 answers plain floats to
            those who name none.
        texts: Its texts, which the answer repeats.
        images: How many images it holds.
        patient: Whether it waits its turn, even if it is a short query.
    """

    model: ServedModel
    resolved: Resolved
    inputs: list[Input]
    kinds: Mapping[Kind, VectorSpec | None]
    by_type: bool
    texts: list[str]
    images: int
    patient: bool


def read_cohere(
    body: Mapping[str, Any],
    version: Version,
    models: ServedModels,
    settings: Settings,
    in_path: ServedModel | None,
) -> CohereRequest:
    """Read the body of ``/v1/embed`` or ``/v2/embed``.

    Args:
        body: A parsed object.
        version: That of the path.
        models: The names there are.
        settings: The server's.
        in_path: What the path names, if it names a model.

    Raises:
        HttpError: With status 400, for the first field that is missing or wrong, or 404 if there
            is no such model.
    """
    only = in_path or (models.default if len(models.backends) == 1 else None)
    found = read_fields(COHERE_FIELDS, body, optional="model" if only else None)
    name = found.get("model")
    model = in_path or (models.find(name) if name is not None else models.default)
    inputs = _inputs(found, model, settings)
    images = sum(not isinstance(each, str) for each in inputs)
    role = found.get("input_type")
    if role is None:
        _check_role_known(model, images, len(inputs))
    elif role == "search_query" and images:
        raise HttpError(
            400,
            "an image is a passage, never a query; send input_type='image' or 'search_document'",
            param="input_type",
        )
    elif role == "image" and images < len(inputs):
        raise HttpError(
            400,
            "input_type='image' is for images; texts are 'search_document' or 'search_query'",
            param="input_type",
        )
    kinds: tuple[Kind, ...] = found.get("embedding_types", ("float",))
    fields = RequestFields(
        input_type=_ROLES[role] if role else "passage" if images else None,
        embedding_type=_embedded_as(kinds, model),
        dimensions=found.get("output_dimension"),
        truncate=found.get("truncate", "END"),
    )
    resolved = resolve(fields, model, settings, from_sdk=False)
    return CohereRequest(
        model=model,
        resolved=resolved,
        inputs=inputs,
        kinds={kind: _made_by(kind, resolved, model, settings) for kind in kinds},
        by_type=version == "2" or "embedding_types" in found,
        texts=[each for each in inputs if isinstance(each, str)],
        images=images,
        patient=bool(found.get("priority")),
    )


def _inputs(found: Mapping[str, Any], model: ServedModel, settings: Settings) -> list[Input]:
    given = [name for name in _SOURCES if name in found]
    if len(given) != 1:
        raise HttpError(
            400, f"send one of texts, images and inputs; got {' and '.join(given) or 'none'}"
        )
    (name,) = given
    items = bounded(found[name], settings.max_items, name)
    most = settings.max_image_bytes
    inputs: list[Input]
    if name == "texts":
        return [*items]
    if name == "images":
        inputs = [read_image(string(name, each), row, most) for row, each in enumerate(items)]
    else:
        inputs = [_content(each, row, most) for row, each in enumerate(items)]
    if "image" not in model.card.modalities and any(not isinstance(each, str) for each in inputs):
        raise HttpError(400, f"{model.name} embeds texts alone", param=name)
    return inputs


def _content(item: Any, row: int, most: int) -> Input:
    """Return what an element of ``inputs`` holds: a text, an image, or a text with its image."""
    parts = item.get("content") if isinstance(item, dict) else None
    if isinstance(parts, str):
        parts = [{"type": "text", "text": parts}]
    texts: list[str] = []
    images: list[Image] = []
    for part in parts if isinstance(parts, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts += strings(f"inputs[{row}].text", part.get("text"))
        elif kind == "image_url":
            url = part.get("image_url")
            source = url.get("url") if isinstance(url, dict) else url
            images.append(read_image(string(f"inputs[{row}].image_url", source), row, most))
        else:
            raise HttpError(
                400, f"inputs[{row}]: type must be 'text' or 'image_url'", param="inputs"
            )
    if len(texts) > 1 or len(images) > 1 or not texts + images:
        raise HttpError(
            400,
            f"inputs[{row}].content must hold one text, one image_url, or one of each; got "
            f"{len(texts)} texts and {len(images)} images",
            param="inputs",
        )
    if texts and images:
        return texts[0], images[0]
    return images[0] if images else texts[0]


def _check_role_known(model: ServedModel, images: int, inputs: int) -> None:
    fixed = model.role or model.fixed.input_type
    if model.card.asymmetric and not fixed and images < inputs:
        raise HttpError(
            400,
            "input_type is required: 'search_document' for what is stored, 'search_query' for "
            "what is asked; or let the model be an alias with input_type=...",
            param="input_type",
        )


def _embedded_as(kinds: Sequence[Kind], model: ServedModel) -> EmbeddingType | None:
    """Return the type to embed as, of which all others that are wanted can be made.

    A name that fixes a type gives it to whoever asks for floats: Weaviate can ask for nothing else.
    """
    fixed = model.fixed.embedding_type
    if fixed is not None and fixed != "float":
        if len(kinds) > 1 or kinds[0] not in ("float", fixed):
            raise HttpError(
                400,
                f"{model.name!r} fixes embedding_type={fixed}; ask for it alone, or for 'float'",
                param="embedding_types",
            )
        return None
    (first, *others) = kinds
    return "float" if others or first == "base64" else first


def _made_by(
    kind: Kind, resolved: Resolved, model: ServedModel, settings: Settings
) -> VectorSpec | None:
    """Return the spec that makes a type of floats; None where nothing is left to be done.

    Raises:
        ConfigurationError: If the model cannot give the type.
    """
    if kind == "float" or kind == "base64" or resolved.options.embedding_type != "float":
        return None
    return model.card.spec(
        embedding_type=kind,
        dimensions=resolved.options.dimensions,
        int8_scale=(model.fixed.int8_scale or settings.int8_scale) if "int8" in kind else None,
    )


def render_cohere(
    request: CohereRequest,
    vectors: NDArray[Any],
    version: Version,
    *,
    tokens: int,
    request_id: str,
) -> bytes:
    """Return the body of an answer.

    Args:
        request: What was asked.
        vectors: Array of shape (n, width), embedded as ``request.resolved`` says.
        version: That of the path.
        tokens: What the model read.
        request_id: The request's id.
    """
    answer = b"embeddings_by_type" if request.by_type else b"embeddings_floats"
    units = {"input_tokens": tokens} | ({"images": request.images} if request.images else {})
    meta = {"api_version": {"version": version}, "billed_units": units}
    opening = b'{"id":%b,"response_type":"%b","texts":%b,"meta":%b,"embeddings":' % (
        orjson.dumps(request_id),
        answer,
        orjson.dumps(request.texts),
        orjson.dumps(meta),
    )
    # Each row is copied at once and the answer joined once, as NIM's is: see its renderer.
    pieces: list[bytes] = []
    for place, (kind, spec) in enumerate(request.kinds.items()):
        if request.by_type:
            opening = b'%b%b"%b":' % (opening, b"," if place else b"{", kind.encode())
        opening += b"["
        rows = np.ascontiguousarray(vectors if spec is None else quantize(vectors, spec))
        for row in as_base64(rows) if kind == "base64" else as_lists(rows):
            pieces.append(b"%b%b" % (opening, row))
            opening = b","
        opening = b"]"
    pieces.append(b"]}}" if request.by_type else b"]}")
    return b"".join(pieces)


async def embed_v1(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Answer a request of version 1; see :func:`_embed`."""
    await _embed(state, request, in_path, "1")


async def embed_v2(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Answer a request of version 2; see :func:`_embed`."""
    await _embed(state, request, in_path, "2")


async def _embed(
    state: State, request: Request, in_path: ServedModel | None, version: Version
) -> None:
    """Answer one request.

    Raises:
        HttpError: If the request cannot be met.
        NimbedError: If the engine refuses or fails.
    """
    body = await state.body(request)
    if len(body) > LARGE_BODY:
        asked = await aside(True, _read, state, body, version, in_path)
    else:  # as it would itself, without the microsecond that it takes
        asked = _read(state, body, version, in_path)
    with asked.model.backend.metrics.request():
        embedded = await state.embed(
            request, asked.model, asked.inputs, asked.resolved, patient=asked.patient
        )
        write = functools.partial(
            render_cohere,
            asked,
            embedded.vectors,
            version,
            tokens=embedded.tokens,
            request_id=request.request_id,
        )
        writing = time.perf_counter()
        large = embedded.vectors.size * len(asked.kinds) > LARGE_ANSWER
        answer = await aside(True, write) if large else write()
        state.metrics.serialize_seconds.observe(time.perf_counter() - writing)
        await request.respond(200, answer)


def _read(
    state: State, body: bytes, version: Version, in_path: ServedModel | None
) -> CohereRequest:
    content: dict[str, Any] = parse_object(body)
    return read_cohere(content, version, state.models, state.settings, in_path)
