"""The API of Weaviate's text2vec-transformers container, on the same port.

It sends one text a request, no Content-Type and no key; an error is ``{"error": "a string"}``.
"""

from __future__ import annotations

from typing import Any

import orjson

from nimbed.spec import InputType
from nimbed_server.http import Request
from nimbed_server.models import ServedModel
from nimbed_server.state import State
from nimbed_server.wire.embeddings import resolve
from nimbed_server.wire.errors import HttpError
from nimbed_server.wire.fields import RequestFields, parse_object

__all__ = ["meta", "vectors"]

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
