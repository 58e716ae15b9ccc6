"""Sparse vectors and multi-vectors: ``POST /v1/embeddings/kinds``, and TEI's two routes.

``/embed_sparse`` and ``/embed_all`` take and answer what text-embeddings-inference does; the third
is OpenAI's shape with more in it, and gives all kinds of one forward pass, each with its contract.
"""

from __future__ import annotations

import functools
import sys
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.kinds import EmbeddingKinds, MultiVectorBatch, SparseBatch
from nimbed.options import KindOptions
from nimbed.spec import Kind, TokenType
from nimbed_server.http import Request
from nimbed_server.kinds import count_numbers
from nimbed_server.models import ServedModel, ServedModels
from nimbed_server.routes.embeddings import tell_role
from nimbed_server.settings import Settings
from nimbed_server.state import LARGE_ANSWER, LARGE_BODY, State, aside
from nimbed_server.wire.embeddings import ParsedRequest, agreed, as_base64, as_lists
from nimbed_server.wire.errors import HttpError
from nimbed_server.wire.fields import (
    FIELDS,
    Field,
    RequestFields,
    bounded,
    flag,
    one_of,
    parse_object,
    positive,
    read_fields,
    string,
    strings,
    take_foreign_roles,
)

__all__ = [
    "KINDS_FIELDS",
    "TEI_FIELDS",
    "KindsRequest",
    "embed_all",
    "embed_sparse",
    "embeddings_of_kinds",
    "read_kinds",
    "read_tei",
    "render_kinds",
    "render_token_vectors",
    "render_weights",
]

_KINDS: tuple[Kind, ...] = get_args(Kind)
_MOST = 2**31 - 1
_one_kind = one_of(_KINDS)


def _kinds(name: str, value: Any) -> tuple[Kind, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed:
        raise HttpError(400, f"{name} must be an array of {', '.join(_KINDS)}", param=name)
    return tuple(dict.fromkeys(_one_kind(name, each) for each in listed))


def _size(name: str, value: Any) -> int:
    size = positive(name, value)
    if size > _MOST:  # it stands in the contract, and JSON of 64 bits has to hold it
        raise HttpError(400, f"{name} must be at most {_MOST}; got {size}", param=name)
    return size


_SHARED = {field.name: field for field in FIELDS}
_TEXTS = {"description": "A text, or an array of texts."}

#: The body of ``/v1/embeddings/kinds``.
KINDS_FIELDS = (
    _SHARED["model"],
    Field("input", strings, _TEXTS, required=True),
    _SHARED["input_type"],
    Field(
        "kinds",
        _kinds,
        {
            "type": "array",
            "items": {"type": "string", "enum": list(_KINDS)},
            "minItems": 1,
            "description": "Default: all that the model gives.",
        },
    ),
    _SHARED["embedding_type"],
    _SHARED["dimensions"],
    Field(
        "max_active",
        _size,
        {
            "type": "integer",
            "minimum": 1,
            "maximum": _MOST,
            "description": "Tokens that a sparse vector keeps, those of the largest weights.",
        },
    ),
    Field(
        "token_type",
        one_of(get_args(TokenType)),
        {
            "type": "string",
            "enum": list(get_args(TokenType)),
            "default": "float",
            "description": "How a dimension of a token's vector is stored.",
        },
    ),
    Field(
        "pool_factor",
        _size,
        {
            "type": "integer",
            "minimum": 1,
            "maximum": _MOST,
            "default": 1,
            "description": "About how many tokens of a passage become one vector.",
        },
    ),
    Field(
        "encoding_format",
        _SHARED["encoding_format"].check,
        {
            "type": "string",
            "enum": ["float", "base64"],
            "default": "float",
            "description": "base64 of the stored numbers, little-endian: int32 ids and float32 "
            "weights, and the tokens' vectors end to end.",
        },
    ),
    _SHARED["truncate"],
    *(_SHARED[name] for name in ("prompt_name", "task", "normalize", "user")),
)

#: The body of ``/embed_sparse`` and ``/embed_all``.
TEI_FIELDS = (
    Field("inputs", strings, _TEXTS, required=True),
    Field("model", string, {"type": "string"}),
    _SHARED["input_type"],
    _SHARED["prompt_name"],
    Field("truncate", flag, {"type": "boolean", "default": False}),
    Field(
        "truncation_direction",
        one_of(("left", "right", "Left", "Right")),
        {"type": "string", "enum": ["left", "right", "Left", "Right"], "default": "right"},
    ),
)


@dataclass(frozen=True, slots=True)
class KindsRequest:
    """What a request asks for.

    Attributes:
        texts: Its texts.
        parsed: What it says of the model, the role and dense vectors.
        asked: What it says of kinds.
        encoding_format: How arrays are written into JSON.
    """

    texts: list[str]
    parsed: ParsedRequest
    asked: KindOptions
    encoding_format: Literal["float", "base64"] = "float"


def read_kinds(
    raw: bytes, models: ServedModels, settings: Settings, in_path: ServedModel | None
) -> KindsRequest:
    """Read the body of ``/v1/embeddings/kinds``.

    Args:
        raw: UTF-8 JSON.
        models: The names there are.
        settings: How the server behaves.
        in_path: What the path names, if it names a model.

    Raises:
        HttpError: With status 400, or 404 if there is no such model.
    """
    lone = in_path is not None or len(models.backends) == 1
    found = read_fields(KINDS_FIELDS, parse_object(raw), optional="model" if lone else None)
    texts = bounded(found.pop("input"), settings.max_items)
    take_foreign_roles(found)
    for name in ("user", "normalize"):
        found.pop(name, None)
    model = _model_of(found, models, in_path)
    encoding = found.pop("encoding_format", "float")
    kinds = found.pop("kinds", None)
    fixed = model.fixed
    if kinds is not None and set(kinds) == set(fixed.kinds or ()):
        kinds = fixed.kinds
    asked = KindOptions(
        kinds=agreed("kinds", kinds, fixed.kinds, model),
        max_active=agreed("max_active", found.pop("max_active", None), fixed.max_active, model),
        token_type=agreed("token_type", found.pop("token_type", None), fixed.token_type, model)
        or "float",
        pool_factor=agreed("pool_factor", found.pop("pool_factor", None), fixed.pool_factor, model)
        or 1,
    )
    fields = RequestFields(modality="text", **found)
    return KindsRequest(texts, ParsedRequest(fields, model, settings), asked, encoding)


def read_tei(
    raw: bytes, kind: Kind, models: ServedModels, settings: Settings, in_path: ServedModel | None
) -> KindsRequest:
    """Read the body of ``/embed_sparse`` or ``/embed_all``; see :func:`read_kinds`.

    Args:
        raw: UTF-8 JSON.
        kind: What the path asks for.
        models: The names there are; the default needs no name.
        settings: How the server behaves.
        in_path: What the path names, if it names a model.
    """
    found = read_fields(TEI_FIELDS, parse_object(raw))
    texts = bounded(found["inputs"], settings.max_items, "inputs")
    take_foreign_roles(found)
    model = _model_of(found, models, in_path)
    if model.fixed.kinds is not None and kind not in model.fixed.kinds:
        given = " and ".join(model.fixed.kinds)
        raise HttpError(400, f"{model.name!r} gives {given} vectors alone", param="model")
    left = found.get("truncation_direction", "right").lower() == "left"
    truncate: Literal["START", "END"] = "START" if left else "END"
    fields = RequestFields(
        input_type=found.get("input_type"),
        truncate=truncate if found.get("truncate") else None,
        modality="text",
    )
    fixed = model.kind_options
    asked = KindOptions(
        kinds=(kind,),
        max_active=fixed.max_active,
        token_type=fixed.token_type,
        pool_factor=fixed.pool_factor,
    )
    return KindsRequest(texts, ParsedRequest(fields, model, settings), asked)


def _model_of(
    found: Mapping[str, Any], models: ServedModels, in_path: ServedModel | None
) -> ServedModel:
    if in_path is not None:
        return in_path
    return models.find(found["model"]) if "model" in found else models.default


def render_kinds(
    found: EmbeddingKinds,
    *,
    model: str,
    encoding_format: Literal["float", "base64"],
    signs: bool = False,
) -> bytes:
    """Return the body of an answer of ``/v1/embeddings/kinds``.

    Args:
        found: What the model gave.
        model: The served name.
        encoding_format: ``base64`` writes the stored bytes of an array, little-endian.
        signs: Whether packed bits of dense vectors are answered as +1 and -1.
    """
    base64 = encoding_format == "base64"
    columns: dict[bytes, Iterable[bytes]] = {}
    batches: dict[str, EmbeddingBatch | SparseBatch | MultiVectorBatch] = {}
    if found.dense is not None:
        batches["dense"] = found.dense
        vectors = np.ascontiguousarray(found.dense.signs() if signs else found.dense.vectors)
        columns[b"embedding"] = as_base64(vectors) if base64 else as_lists(vectors)
    if found.sparse is not None:
        batches["sparse"] = found.sparse
        columns[b"sparse_embedding"] = [
            b'{"indices":%b,"values":%b}' % (_written(ids, base64), _written(weights, base64))
            for ids, weights in found.sparse.rows()
        ]
    if found.multi is not None:
        batches["multi"] = found.multi
        columns[b"token_embeddings"] = [_written(rows, base64) for rows in found.multi.rows()]
    first = next(iter(batches.values()))
    counts = first.token_counts.tolist()
    columns[b"tokens"] = [b"%d" % count for count in counts]
    data = [
        b'{"object":"embedding","index":%d,%b}'
        % (row, b",".join(b'"%b":%b' % each for each in zip(columns, cells, strict=True)))
        for row, cells in enumerate(zip(*columns.values(), strict=True))
    ]
    tokens = sum(counts)
    rest = {
        "model": model,
        "input_type": first.input_type,
        "specs": {kind: batch.spec.to_dict() for kind, batch in batches.items()},
        "truncated": list(first.truncated),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return b'{"object":"list","data":[%b],%b' % (b",".join(data), orjson.dumps(rest)[1:])


def render_weights(batch: SparseBatch) -> bytes:
    """Return sparse vectors as text-embeddings-inference does: an object for every token."""
    texts = [
        b",".join(
            b'{"index":%d,"value":%b}' % each
            for each in zip(ids.tolist(), _numbers(weights), strict=True)
        )
        for ids, weights in batch.rows()
    ]
    return b"[%b]" % b",".join(b"[%b]" % text for text in texts)


def render_token_vectors(batch: MultiVectorBatch) -> bytes:
    """Return multi-vectors as text-embeddings-inference does: a list of numbers for every token."""
    floats = batch.floats()
    ends = zip(batch.offsets[:-1], batch.offsets[1:], strict=True)
    return b"[%b]" % b",".join(_written(floats[start:stop], False) for start, stop in ends)


def _numbers(weights: NDArray[np.float32]) -> list[bytes]:
    written = orjson.dumps(weights, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    return written.split(b",") if written else []


def _written(array: NDArray[Any], base64: bool) -> bytes:
    if base64:
        little = array if sys.byteorder == "little" else array.byteswap()
        return b'"%b"' % b2a_base64(little.tobytes(), newline=False)
    if array.dtype == np.float16:
        array = array.astype(np.float32)  # which holds it exactly
    return orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)


_Read = Callable[[bytes], KindsRequest]
_Write = Callable[[KindsRequest, EmbeddingKinds], bytes]


async def embeddings_of_kinds(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Answer one request for some or all kinds; see :func:`_answer`."""
    read = functools.partial(
        read_kinds, models=state.models, settings=state.settings, in_path=in_path
    )
    await _answer(state, request, read, _all_kinds)


async def embed_sparse(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Answer one request of text-embeddings-inference's for sparse vectors."""
    read = functools.partial(
        read_tei, kind="sparse", models=state.models, settings=state.settings, in_path=in_path
    )
    await _answer(state, request, read, _weights)


async def embed_all(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Answer one request of text-embeddings-inference's for a vector a token."""
    read = functools.partial(
        read_tei, kind="multi", models=state.models, settings=state.settings, in_path=in_path
    )
    await _answer(state, request, read, _token_vectors)


async def _answer(state: State, request: Request, read: _Read, write: _Write) -> None:
    """Answer one request.

    Raises:
        HttpError: If the request cannot be met.
        NimbedError: If the model does not give a kind, or the engine refuses or fails.
    """
    body = await state.body(request)
    asked = await aside(len(body) > LARGE_BODY, read, body)
    parsed = asked.parsed
    with parsed.model.backend.metrics.request():
        resolved = parsed.resolve(from_sdk=False)
        if resolved.role_header is not None:
            tell_role(state, request, resolved, resolved.role_header)
        found = await state.embed_kinds(request, parsed.model, asked.texts, resolved, asked.asked)
        with state.metrics.serialize_seconds.time():
            answer = await aside(count_numbers(found) > LARGE_ANSWER, write, asked, found)
        await request.respond(200, answer)


def _all_kinds(asked: KindsRequest, found: EmbeddingKinds) -> bytes:
    return render_kinds(
        found,
        model=asked.parsed.model.name,
        encoding_format=asked.encoding_format,
        signs=asked.parsed.model.fixed.as_ == "signs",
    )


def _weights(asked: KindsRequest, found: EmbeddingKinds) -> bytes:
    assert found.sparse is not None  # it was asked for
    return render_weights(found.sparse)


def _token_vectors(asked: KindsRequest, found: EmbeddingKinds) -> bytes:
    assert found.multi is not None  # it was asked for
    return render_token_vectors(found.multi)
