"""``POST /v1/embeddings``: NIM's contract, and OpenAI's within it."""

from __future__ import annotations

import asyncio
import functools
import time

from nimbed.inputs import Input
from nimbed.spec import InputType
from nimbed_server.embedding import Embedded, embed
from nimbed_server.exchange import Exchange
from nimbed_server.resolving import Options, assign_roles
from nimbed_server.served import Choice
from nimbed_server.state import State
from nimbed_server.terms import Asked
from nimbed_server.wire.modality import read_inputs
from nimbed_server.wire.reply import render

__all__ = ["embeddings"]

# Beyond these a body is parsed, and an answer written, in a thread.
_LARGE_BODY = 256 * 1024
_LARGE_ANSWER = 128 * 1024


async def embeddings(state: State, exchange: Exchange, named: Choice | None) -> None:
    """Answer one request.

    Args:
        state: The server.
        exchange: The request.
        named: What the path names, if it names a model; the body's ``model`` is then ignored.

    Raises:
        Refusal: If the request cannot be met.
        NimbedError: If the engine refuses or fails.
    """
    body = await exchange.body(
        limit=state.settings.max_body_bytes, patience=state.reading, room=state.bodies
    )
    begin = time.perf_counter()
    large = len(body) > _LARGE_BODY
    if large:
        texts, asked = await asyncio.to_thread(state.desk.read, body, named)
    else:
        texts, asked = state.desk.read(body, named)
    choice = asked.choice
    failed = True
    try:
        terms = asked.terms(from_sdk=exchange.header(b"x-stainless-lang") is not None)
        options, disclosed = terms.options, terms.disclosed
        inputs: list[str] | list[Input] = texts
        roles: InputType | list[InputType] | None = terms.roles
        if roles is None:
            inputs = await _inputs(state, texts, asked, large=large)
            shown = [not isinstance(item, str) for item in inputs]
            roles, disclosed = assign_roles(shown, asked.wish, choice, state.settings)
        if disclosed is not None:
            _disclose_role(state, exchange, disclosed)
        for name, value in options.disclosed:
            exchange.disclose(name, value)
        embedded = await embed(state, exchange, choice, inputs, roles, options)
        if embedded.truncated:
            shown_rows = ",".join(map(str, embedded.truncated[:100]))
            exchange.disclose(b"x-nimbed-truncated", shown_rows)
        writing = time.perf_counter()
        if embedded.vectors.size > _LARGE_ANSWER:
            answer = await asyncio.to_thread(_rendered, embedded, choice, options)
        else:
            answer = _rendered(embedded, choice, options)
        state.metrics.tally.serialize_seconds.note(time.perf_counter() - writing)
        await exchange.answer(200, answer)
        failed = False
    finally:
        choice.lane.tally.finished(time.perf_counter() - begin, failed=failed)


async def _inputs(state: State, texts: list[str], asked: Asked, *, large: bool) -> list[Input]:
    read = functools.partial(
        read_inputs,
        texts,
        asked.wish.modality,
        has_images="image" in asked.choice.card.modalities,
        max_image_bytes=state.settings.max_image_bytes,
    )
    return await asyncio.to_thread(read) if large else read()


def _disclose_role(state: State, exchange: Exchange, disclosed: str) -> None:
    exchange.disclose(b"x-nimbed-input-type", disclosed)
    if disclosed.endswith("default"):
        agent = exchange.header(b"user-agent") or b""
        state.tell_once(exchange.client, agent, disclosed)


def _rendered(embedded: Embedded, choice: Choice, options: Options) -> bytes:
    return render(
        embedded.vectors,
        model=choice.name,
        tokens=embedded.tokens,
        encoding_format=options.encoding_format,
    )
