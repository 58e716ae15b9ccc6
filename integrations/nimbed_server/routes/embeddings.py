"""``POST /v1/embeddings``: NIM's contract, and OpenAI's within it."""

from __future__ import annotations

import time

from nimbed.inputs import Input
from nimbed.spec import InputType
from nimbed_server.backends import Embedded
from nimbed_server.http import Request
from nimbed_server.logging import LOG, printable
from nimbed_server.models import ServedModel
from nimbed_server.state import LARGE_ANSWER, LARGE_BODY, State, aside
from nimbed_server.wire.embeddings import ParsedRequest, Resolved, read_inputs, render
from nimbed_server.wire.fields import TokenIds

__all__ = ["embeddings", "tell_role"]

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
    body = await state.body(request)
    large = len(body) > LARGE_BODY
    if large:
        given, parsed = await aside(large, state.reader.read, body, in_path)
    else:  # as it would itself, without the microsecond that it takes
        given, parsed = state.reader.read(body, in_path)
    model = parsed.model
    with model.backend.metrics.request():
        resolved = parsed.resolve(from_sdk=request.header(b"x-stainless-lang") is not None)
        if isinstance(given, TokenIds):
            texts = await state.detokenize(model, given, resolved)
        else:
            texts = given
        inputs: list[str] | list[Input] = texts
        roles: list[InputType] | None = None
        role_header = resolved.role_header
        if parsed.may_show:
            inputs = await aside(large, _inputs, state, texts, parsed)
            shown = [not isinstance(item, str) for item in inputs]
            roles, role_header = parsed.assign_roles(resolved, shown)
        if role_header is not None:
            tell_role(state, request, resolved, role_header)
        embedded = await state.embed(request, model, inputs, resolved, roles=roles)
        writing = time.perf_counter()
        if embedded.vectors.size > LARGE_ANSWER:
            answer = await aside(True, _rendered, embedded, model, resolved)
        else:
            answer = _rendered(embedded, model, resolved)
        state.metrics.serialize_seconds.observe(time.perf_counter() - writing)
        await request.respond(200, answer)


def _inputs(state: State, texts: list[str], parsed: ParsedRequest) -> list[Input]:
    return read_inputs(
        texts,
        parsed.fields.modality,
        has_images="image" in parsed.model.card.modalities,
        max_image_bytes=state.settings.max_image_bytes,
    )


def tell_role(state: State, request: Request, resolved: Resolved, role: str) -> None:
    """Say which role texts took that came without one; log it once for each client."""
    request.add_header(b"x-nimbed-input-type", role)
    if resolved.role_from != "default":
        return
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
