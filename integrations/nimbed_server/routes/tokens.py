"""``POST /tokenize``: a text's tokens, for splitters that are far from the model.

Two servers have this path: text-embeddings-inference takes ``inputs`` and answers every token
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
from nimbed_server.wire.errors import HttpError
from nimbed_server.wire.fields import TOKENIZE_FIELDS, parse_object, read_fields

__all__ = ["tokenize"]

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
