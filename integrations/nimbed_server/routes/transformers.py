"""The container that Weaviate's text2vec-transformers talks to, on the same port.

It sends one text a request, no Content-Type and no key; an error is ``{"error": "a string"}``.
"""

from __future__ import annotations

from typing import Any

import orjson

from nimbed.spec import InputType
from nimbed_server.embedding import embed
from nimbed_server.exchange import Exchange
from nimbed_server.resolving import resolve
from nimbed_server.served import Choice
from nimbed_server.state import State
from nimbed_server.wire.refusal import Refusal
from nimbed_server.wire.request import Wish, parse_object

__all__ = ["meta", "vectors"]

_ROLES: dict[Any, InputType] = {"query": "query", "passage": "passage"}


async def vectors(state: State, exchange: Exchange, named: Choice | None) -> None:
    """Answer ``POST /vectors``; ``config.task_type`` is the role.

    Raises:
        Refusal: If the request cannot be met.
        NimbedError: If the engine refuses or fails.
    """
    settings = state.settings
    body = parse_object(
        await exchange.body(
            limit=settings.max_body_bytes, patience=state.reading, room=state.bodies
        )
    )
    text, config = body.get("text"), body.get("config")
    config = {} if config is None else config
    if not isinstance(text, str) or not text or text.isspace():
        raise Refusal(400, "text must be a string that is not blank", param="text")
    if not isinstance(config, dict):
        raise Refusal(400, "config must be an object", param="config")
    choice = named or state.served.default
    task, size = config.get("task_type"), config.get("dimensions")
    if task not in (None, "", *_ROLES):
        raise Refusal(400, "config.task_type must be 'query' or 'passage'", param="config")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
        raise Refusal(400, "config.dimensions must be an integer", param="config")
    # Weaviate sends 0 where a class sets none.
    wish = Wish(dimensions=size or None)
    options = resolve(wish, choice, settings, from_sdk=False)
    # As the reference container: a text without a task is stored, not asked.
    role = choice.role or _ROLES.get(task) or choice.fixed.input_type or "passage"
    embedded = await embed(state, exchange, choice, [text], role, options)
    row = embedded.vectors[0]
    answer = {"text": text, "vector": row, "dim": len(row), "dims": len(row)}
    for name, value in options.disclosed:
        exchange.disclose(name, value)
    await exchange.answer(200, orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))


async def meta(state: State, exchange: Exchange, named: Choice | None) -> None:
    """Answer ``GET /meta``."""
    choice = named or state.served.default
    width = choice.fixed.dimensions or choice.card.dimensions
    answer = {
        "model": {"_name_or_path": choice.card.id, "hidden_size": width},
        "model_path": choice.name,
    }
    await exchange.answer(200, orjson.dumps(answer))
