"""``POST /v1/embeddings``: NIM's contract, and OpenAI's within it."""

from __future__ import annotations

import asyncio
import functools
import time

from nimbed_server.embedding import Embedded, embed
from nimbed_server.exchange import Exchange
from nimbed_server.resolving import Options, assign_roles, resolve
from nimbed_server.served import Choice
from nimbed_server.state import State
from nimbed_server.wire.modality import read_inputs
from nimbed_server.wire.reply import render
from nimbed_server.wire.request import EmbeddingsRequest, parse

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
    settings = state.settings
    body = await exchange.body(
        limit=settings.max_body_bytes, seconds=settings.body_timeout_s, room=state.bodies
    )
    begin = time.perf_counter()
    if len(body) > _LARGE_BODY:
        request = await asyncio.to_thread(_parsed, state, body, named)
    else:
        request = _parsed(state, body, named)
    choice = named or state.served.find(request.model or "")
    failed = True
    try:
        await _answer(state, exchange, request, choice, large=len(body) > _LARGE_BODY)
        failed = False
    finally:
        choice.lane.metrics.finished(time.perf_counter() - begin, failed=failed)


async def _answer(
    state: State, exchange: Exchange, request: EmbeddingsRequest, choice: Choice, *, large: bool
) -> None:
    options = resolve(
        request,
        choice,
        state.settings,
        from_sdk=exchange.header(b"x-stainless-lang") is not None,
    )
    read = functools.partial(
        read_inputs,
        request.texts,
        request.modality,
        has_images="image" in choice.card.modalities,
        max_image_bytes=state.settings.max_image_bytes,
    )
    inputs = await asyncio.to_thread(read) if large else read()
    roles, disclosed = assign_roles(inputs, request, choice, state.settings)
    if disclosed is not None:
        exchange.disclose(b"x-nimbed-input-type", disclosed)
        if disclosed.endswith("default"):
            agent = exchange.header(b"user-agent") or b""
            state.tell_once(exchange.client, agent, disclosed)
    for name, value in options.disclosed:
        exchange.disclose(name, value)
    embedded = await embed(state, exchange, choice, inputs, roles, options)
    if embedded.truncated:
        shown = ",".join(map(str, embedded.truncated[:100]))
        exchange.disclose(b"x-nimbed-truncated", shown)
    await exchange.answer(200, await _rendered(state, embedded, choice, options))


def _parsed(state: State, body: bytes, named: Choice | None) -> EmbeddingsRequest:
    return parse(body, max_items=state.settings.max_items, model_in_path=named is not None)


async def _rendered(state: State, embedded: Embedded, choice: Choice, options: Options) -> bytes:
    def write() -> bytes:
        return render(
            embedded.vectors,
            model=choice.name,
            tokens=embedded.tokens,
            encoding_format=options.encoding_format,
        )

    begin = time.perf_counter()
    large = embedded.vectors.size > _LARGE_ANSWER
    body = await asyncio.to_thread(write) if large else write()
    state.metrics.serialized(time.perf_counter() - begin)
    return body
