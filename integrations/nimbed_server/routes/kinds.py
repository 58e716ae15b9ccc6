"""Sparse vectors and multi-vectors: ``POST /v1/embeddings/kinds``, and TEI's two routes.

``/embed_sparse`` and ``/embed_all`` take and answer what text-embeddings-inference does; the third
gives all kinds of one forward pass, with the contract of each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from nimbed.kinds import EmbeddingKinds
from nimbed_server.http import Request
from nimbed_server.kinds import count_numbers
from nimbed_server.models import ServedModel
from nimbed_server.routes.embeddings import tell_role
from nimbed_server.state import LARGE_ANSWER, LARGE_BODY, State, aside
from nimbed_server.wire.kinds import (
    KindsRequest,
    read_kinds,
    read_tei,
    render_kinds,
    render_token_vectors,
    render_weights,
)

__all__ = ["embed_all", "embed_sparse", "embeddings_of_kinds"]

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
