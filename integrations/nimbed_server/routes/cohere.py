"""``POST /v1/embed`` and ``/v2/embed``: Cohere's contract, for its SDKs and Weaviate's module."""

from __future__ import annotations

import functools
from typing import Any

from nimbed_server.http import Request
from nimbed_server.models import ServedModel
from nimbed_server.state import LARGE_ANSWER, LARGE_BODY, State, aside
from nimbed_server.wire.cohere import CohereRequest, Version, read_cohere, render_cohere
from nimbed_server.wire.fields import parse_object

__all__ = ["embed_v1", "embed_v2"]


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
    asked = await aside(len(body) > LARGE_BODY, _read, state, body, version, in_path)
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
        with state.metrics.serialize_seconds.time():
            size = embedded.vectors.size * len(asked.kinds)
            answer: bytes = await aside(size > LARGE_ANSWER, write)
        await request.respond(200, answer)


def _read(
    state: State, body: bytes, version: Version, in_path: ServedModel | None
) -> CohereRequest:
    content: dict[str, Any] = parse_object(body)
    return read_cohere(content, version, state.models, state.settings, in_path)
