"""Routes of other embedding servers: text2vec-transformers' container, and ``/tokenize``.

Weaviate's text2vec-transformers sends one text a request to ``/vectors``, no Content-Type and no
key; an error is ``{"error": "a string"}``.

Two servers have ``/tokenize``: text-embeddings-inference takes ``inputs`` and answers every token
with its place, vLLM takes ``prompt`` and answers ids and their number. The field decides. A prompt
of the model is counted where a role is named: it takes room of every text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from nimbed.embedder import Token
from nimbed.spec import InputType
from nimbed_server.http import Request
from nimbed_server.models import ServedModel
from nimbed_server.state import LARGE_BODY, State, aside
from nimbed_server.wire.embeddings import resolve
from nimbed_server.wire.errors import HttpError
from nimbed_server.wire.fields import TOKENIZE_FIELDS, RequestFields, parse_object, read_fields

__all__ = ["meta", "tokenize", "vectors"]

_ROLES: dict[Any, InputType] = {"query": "query", "passage": "passage"}


async def vectors(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Answer ``POST /vectors``; ``config.task_type`` is the role.

    Raises:
        HttpError: If the request cannot be met.
        NimbedError: If the engine refuses or fails.
    """
    body = parse_object(await state.body(request))
    text, config = body.get("text"), body.get("config")
    config = {} if config is None else config
    if not isinstance(text, str) or not text or text.isspace():
        raise HttpError(400, "text must be a string that is not blank", param="text")
    if not isinstance(config, dict):
        raise HttpError(400, "config must be an object", param="config")
    model = in_path or state.models.default
    task, size = config.get("task_type"), config.get("dimensions")
    if task not in (None, "", *_ROLES):
        raise HttpError(400, "config.task_type must be 'query' or 'passage'", param="config")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
        raise HttpError(400, "config.dimensions must be an integer", param="config")
    # As the reference container: a text without a task is stored, not asked.
    role = model.role or _ROLES.get(task) or model.fixed.input_type or "passage"
    # Weaviate sends 0 where a class sets no size.
    fields = RequestFields(dimensions=size or None, input_type=role)
    resolved = resolve(fields, model, state.settings, from_sdk=False)
    with model.backend.metrics.request():
        embedded = await state.embed(request, model, [text], resolved)
    row = embedded.vectors[0]
    answer = {"text": text, "vector": row, "dim": len(row), "dims": len(row)}
    await request.respond(200, orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))


async def meta(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Answer ``GET /meta``."""
    model = in_path or state.models.default
    width = model.fixed.dimensions or model.card.dimensions
    answer = {
        "model": {"_name_or_path": model.card.id, "hidden_size": width},
        "model_path": model.name,
    }
    await request.respond(200, orjson.dumps(answer))


# Characters of a request: what is answered about each takes 20 times its own room.
_CHARACTERS = 2**20


async def tokenize(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Answer one request.

    Raises:
        HttpError: If the request cannot be met.
        NimbedError: If the tokenizer refuses.
    """
    body = await state.body(request)
    answer = await aside(len(body) > LARGE_BODY // 16, _answer, state, body, in_path)
    await request.respond(200, answer)


def _answer(state: State, body: bytes, in_path: ServedModel | None) -> bytes:
    found = read_fields(TOKENIZE_FIELDS, parse_object(body))
    if ("inputs" in found) == ("prompt" in found):
        raise HttpError(
            400, "send inputs, as text-embeddings-inference takes them, or prompt, as vLLM does"
        )
    texts: list[str] = found["inputs"] if "inputs" in found else [found["prompt"]]
    if sum(map(len, texts)) > _CHARACTERS:
        raise HttpError(400, f"at most {_CHARACTERS} characters are tokenized at once")
    model = in_path
    if model is None and "model" in found:
        model = state.models.find(found["model"])
    model = model or state.models.default
    if not model.backend.ready:
        raise state.unavailable(model)
    role: InputType | None = found.get("input_type") or found.get("prompt_name") or model.role
    read = model.backend.tokenize(
        texts, input_type=role, special=found.get("add_special_tokens", True)
    )
    return orjson.dumps(
        [[_placed(token) for token in tokens] for tokens in read]
        if "inputs" in found
        else _counted(read[0], model, found)
    )


def _placed(token: Token) -> dict[str, Any]:
    start, stop = (None, None) if token.special else (token.start, token.stop)
    return {
        "id": token.id,
        "text": token.text,
        "special": token.special,
        "start": start,
        "stop": stop,
    }


def _counted(tokens: list[Token], model: ServedModel, found: Mapping[str, Any]) -> dict[str, Any]:
    written = [token.text for token in tokens] if found.get("return_token_strs") else None
    return {
        "count": len(tokens),
        "max_model_len": model.card.max_tokens,
        "tokens": [token.id for token in tokens],
        "token_strs": written,
    }
