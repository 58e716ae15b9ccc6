"""Handlers for the double: servers of each dialect, strict where the real ones are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .double import Handler, Request, Response, answer, as_json, error, vectors

E5 = "nvidia/nv-embedqa-e5-v5"
DIMENSIONS = 1024
ROLES = {"query": "query: ", "passage": "passage: "}

_NIM_FIELDS = {
    "model",
    "input",
    "input_type",
    "encoding_format",
    "truncate",
    "dimensions",
    "user",
}


def listing(*models: str, owner: str = "nvidia") -> Response:
    return as_json(
        {
            "object": "list",
            "data": [{"id": model, "object": "model", "owned_by": owner} for model in models],
        }
    )


def plain(dimensions: int = DIMENSIONS, *, model: str = "m") -> Handler:
    """A server that embeds what it is sent, and asks no questions."""

    def handle(request: Request) -> Response:
        if request.method == "GET":
            return Response(404)
        rows = vectors(request.texts, dimensions)
        return answer(
            rows,
            encoding=request.json.get("encoding_format"),
            model=model,
            tokens=_tokens(request.texts),
        )

    return handle


def nim(
    model: str = E5,
    dimensions: int = DIMENSIONS,
    *,
    longest: int = 10**9,
    matryoshka: bool = False,
    types: Iterable[str] = ("float",),
    forbids: Iterable[str] = (),
    reverse_bits: bool = False,
    hosted: bool = False,
) -> Handler:
    """A NIM: puts the role's prompt before each text, refuses what it does not know.

    Words stand for tokens.
    """

    def refuse(message: str) -> Response:
        return as_json({"error": message}, 400) if hosted else error(message)

    def handle(request: Request) -> Response:
        if request.path == "/v1/models":
            return listing(model)
        if request.path == "/v1/health/ready":
            return as_json({"object": "health.response", "message": "ready", "ready": True})
        if request.path != "/v1/embeddings":
            return Response(404)
        asked = request.json
        if asked["model"] != model:
            return error(f"model '{asked['model']}' not found; available: '{model}'", 404)
        for name in asked:
            known = _NIM_FIELDS | ({"modality", "embedding_type"} if not hosted else set())
            if name in forbids or name not in known:
                return refuse(
                    "Your request cannot be validated, it is incorrect. detail={'type': "
                    f"'extra_forbidden', 'loc': ('body', '{name}'), 'msg': 'Extra inputs are "
                    "not permitted'}"
                )
        if asked.get("input_type") not in ROLES:
            return refuse("'input_type' parameter is required for asymmetric models")
        if "dimensions" in asked and not matryoshka:
            value = asked["dimensions"]
            return refuse(
                f"This model does not support 'dimensions', but a value of '{value}' was provided."
            )
        prompt = ROLES[asked["input_type"]]
        texts, tokens = [], 0
        for position, text in enumerate(request.texts):
            words = text.split(" ")
            if not text.strip():
                return refuse(f"input[{position}] must not be blank or empty")
            if len(words) > longest:
                if asked.get("truncate", "NONE") == "NONE":
                    return refuse(
                        f"Input length {len(words)} exceeds maximum allowed token size {longest}"
                    )
                words = words[:longest] if asked["truncate"] == "END" else words[-longest:]
            tokens += len(words)
            texts.append(prompt + " ".join(words))
        rows: Any = vectors(texts, dimensions)[:, : asked.get("dimensions", dimensions)]
        kind = asked.get("embedding_type", "float")
        if kind not in types:
            return refuse("Input should be 'float', 'binary', 'ubinary', 'int8' or 'uint8'")
        if kind == "ubinary":
            order = "little" if reverse_bits else "big"
            rows = np.packbits(rows > 0, axis=1, bitorder=order)
        encoding = asked.get("encoding_format", "float")
        return answer(rows, encoding=encoding, model=model, tokens=tokens)

    return handle


def openai(
    model: str, dimensions: int, *, knows: Iterable[str] = (), longest: int = 8192
) -> Handler:
    """An OpenAI-compatible gateway that refuses every field it does not know."""

    def handle(request: Request) -> Response:
        if request.path != "/v1/embeddings":
            return Response(404)
        asked = request.json
        for name in asked.keys() - {"model", "input", *knows}:
            return _openai_error(f"Unrecognized request argument supplied: {name}")
        if any(not text for text in request.texts):
            return _openai_error("'input' cannot be an empty string.")
        for position, text in enumerate(request.texts):
            if len(text.split()) > longest:
                return _openai_error(
                    f"Invalid 'input[{position}]': maximum input length is {longest} tokens."
                )
        rows = vectors(request.texts, dimensions)[:, : asked.get("dimensions", dimensions)]
        encoding = asked.get("encoding_format")
        return answer(rows, encoding=encoding, model=model, tokens=_tokens(request.texts))

    return handle


def vllm(model: str, dimensions: int) -> Handler:
    """vLLM: ignores what it does not know."""
    embed = plain(dimensions, model=model)

    def handle(request: Request) -> Response:
        if request.path == "/v1/models":
            return listing(model, owner="vllm")
        return embed(request) if request.path == "/v1/embeddings" else Response(404)

    return handle


def tei(model: str, dimensions: int, *, most: int = 32) -> Handler:
    """TEI: 422 for a batch that is too large, and a page that says what it serves."""
    embed = plain(dimensions, model=model)

    def handle(request: Request) -> Response:
        if request.path == "/info":
            return as_json({"model_id": model, "max_client_batch_size": most})
        if request.path != "/v1/embeddings":
            return Response(404)
        if len(request.texts) > most:
            message = f"batch size {len(request.texts)} > maximum allowed batch size {most}"
            return as_json({"message": message, "code": 422, "type": "Validation"}, 422)
        return embed(request)

    return handle


def _tokens(texts: list[str]) -> int:
    return sum(len(text.split()) for text in texts)


def _openai_error(message: str) -> Response:
    inner = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return as_json({"error": inner}, 400)
