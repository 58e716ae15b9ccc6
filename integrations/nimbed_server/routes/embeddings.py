"""``POST /v1/embeddings``: NIM's contract, and OpenAI's within it."""

from __future__ import annotations

import asyncio
import functools
import time

from nimbed.inputs import Input
from nimbed.spec import InputType
from nimbed_server.backends import Embedded
from nimbed_server.http import Request
from nimbed_server.logging import LOG, printable
from nimbed_server.models import ServedModel
from nimbed_server.state import State
from nimbed_server.wire.inputs import read_inputs
from nimbed_server.wire.request import ParsedRequest, Resolved
from nimbed_server.wire.response import render

__all__ = ["embeddings"]

# Beyond these a body is parsed, and an answer written, in a thread.
_LARGE_BODY = 256 * 1024
_LARGE_ANSWER = 128 * 1024
# Clients that were told once which role their texts took; beyond it the oldest may be told again.
_WARNED = 4096
# Bytes of a User-Agent by which it is known: strangers may send 64 kB.
_AGENT = 80


async def embeddings(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Answer one request.

    Args:
        state: The server.
        request: The request.
        in_path: What the path names, if it names a model; the body's ``model`` is then ignored.

    Raises:
        HttpError: If the request cannot be met.
        NimbedError: If the engine refuses or fails.
    """
    settings = state.settings
    body = await request.body(
        limit=settings.max_body_bytes, timeout=state.body_time, room=state.body_room
    )
    begin = time.perf_counter()
    large = len(body) > _LARGE_BODY
    if large:
        texts, parsed = await asyncio.to_thread(state.reader.read, body, in_path)
    else:
        texts, parsed = state.reader.read(body, in_path)
    model = parsed.model
    failed = True
    try:
        resolved = parsed.resolve(from_sdk=request.header(b"x-stainless-lang") is not None)
        inputs: list[str] | list[Input] = texts
        roles: list[InputType] | None = None
        role_header = resolved.role_header
        if parsed.may_show:
            inputs = await _inputs(state, texts, parsed, large=large)
            shown = [not isinstance(item, str) for item in inputs]
            roles, role_header = parsed.assign_roles(resolved, shown)
        if role_header is not None:
            request.add_header(b"x-nimbed-input-type", role_header)
            if resolved.role_from == "default":
                _warn_once(state, request, role_header)
        for name, value in resolved.headers:
            request.add_header(name, value)
        if state.draining or not model.backend.ready:
            raise state.unavailable(model)
        embedded = await model.backend.embed_request(
            request,
            inputs,
            resolved.options,
            roles=roles,
            signs=resolved.signs,
            timeout=settings.request_timeout_s,
            unwatched=state.unwatched,
        )
        if embedded.truncated:
            rows = ",".join(map(str, embedded.truncated[:100]))
            request.add_header(b"x-nimbed-truncated", rows)
        writing = time.perf_counter()
        if embedded.vectors.size > _LARGE_ANSWER:
            answer = await asyncio.to_thread(_rendered, embedded, model, resolved)
        else:
            answer = _rendered(embedded, model, resolved)
        state.metrics.serialize_seconds.observe(time.perf_counter() - writing)
        await request.respond(200, answer)
        failed = False
    finally:
        model.backend.metrics.request_finished(time.perf_counter() - begin, failed=failed)


async def _inputs(
    state: State, texts: list[str], parsed: ParsedRequest, *, large: bool
) -> list[Input]:
    read = functools.partial(
        read_inputs,
        texts,
        parsed.fields.modality,
        has_images="image" in parsed.model.card.modalities,
        max_image_bytes=state.settings.max_image_bytes,
    )
    return await asyncio.to_thread(read) if large else read()


def _warn_once(state: State, request: Request, role: str) -> None:
    """Log, once for each client, that its texts came without a role."""
    agent = (request.header(b"user-agent") or b"")[:_AGENT]
    client = request.client, agent
    if client in state.warned:
        return
    if len(state.warned) >= _WARNED:
        del state.warned[next(iter(state.warned))]
    state.warned[client] = None
    LOG.warning(
        "texts came without input_type; they were embedded as %s. Send input_type, put "
        "-query or -passage behind the model's name, or give the server an alias with "
        "input_type=...",
        role.split(";")[0],
        extra={"facts": {"client": request.client, "agent": printable(agent.decode("latin-1"))}},
    )


def _rendered(embedded: Embedded, model: ServedModel, resolved: Resolved) -> bytes:
    return render(
        embedded.vectors,
        model=model.name,
        tokens=embedded.tokens,
        encoding_format=resolved.encoding_format,
    )
