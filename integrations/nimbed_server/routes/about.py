"""What the server says about itself: health, models, metadata, licences, version, metrics."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from nimbed.spec import Int8Scale, VectorSpec
from nimbed.version import __version__
from nimbed_server.http import Request
from nimbed_server.models import ServedModel
from nimbed_server.openapi import docs_page, document
from nimbed_server.settings import Settings
from nimbed_server.state import State

__all__ = [
    "docs",
    "info",
    "licence",
    "live",
    "manifest",
    "metadata",
    "metrics",
    "model",
    "models",
    "openapi",
    "ready",
    "version",
    "well_known_live",
    "well_known_ready",
]

_API = "1.0"
_APACHE = "https://www.apache.org/licenses/LICENSE-2.0"
_LIVE = orjson.dumps({"object": "health.response", "message": "live", "live": True})
_READY = orjson.dumps({"object": "health.response", "message": "ready", "ready": True})


async def live(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Answer NIM's liveness probe."""
    await request.respond(200, _LIVE)


async def ready(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Answer NIM's readiness probe: 503 while models load and while the server stops."""
    if state.ready:
        await request.respond(200, _READY)
        return
    answer = {
        "object": "health.response",
        "message": state.failure or ("stopping" if state.draining else "not ready"),
        "ready": False,
        "status": "not_ready",
    }
    await request.respond(503, orjson.dumps(answer))


async def well_known_live(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Answer the text2vec-transformers container's liveness probe."""
    await request.respond(204)


async def well_known_ready(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Answer the text2vec-transformers container's readiness probe."""
    await request.respond(204 if state.ready else 503)


async def models(state: State, request: Request, in_path: ServedModel | None) -> None:
    """List the served names; NVIDIA's clients take the first as their default."""
    data = [_described(state, model) for model in state.models]
    await _json(request, {"object": "list", "data": data})


async def model(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Describe one served name.

    Raises:
        HttpError: With status 404, if the path names none.
    """
    await _json(request, _described(state, in_path or state.models.find("")))


def _described(state: State, model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": state.models.created,
        "owned_by": "nvidia" if model.name.startswith("nvidia/") else "nimbed",
        "root": model.name,
    }


async def metadata(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Return what nv-ingest reads, what runs each model, and the contracts of each name."""
    cards = [backend.card for backend in state.models.backends.values()]
    answer = {
        "version": __version__,
        "modelInfo": [
            {"shortName": name, "modelUrl": f"https://huggingface.co/{card.weights or card.id}"}
            for name, card in zip(state.models.backends, cards, strict=True)
        ],
        "assetInfo": [card.id for card in cards],
        "licenseInfo": _licence(state),
        "repository_override": "",
        "selectedModelProfileId": "",
        "computedIn": {name: each.arithmetic for name, each in state.models.backends.items()},
        "spaces": {
            model.name: _space(model, state.settings.int8_scale).to_dict()
            for model in state.models
            if "dense" in model.kinds
        },
        # What is still being loaded has not said yet what it gives.
        "kinds": {
            model.name: _contracts(model, state.settings)
            for model in state.models
            if model.backend.ready
        },
    }
    await _json(request, answer)


def _space(model: ServedModel, int8_scale: Int8Scale) -> VectorSpec:
    """Return the contract of what a name gives to a client that sends nothing but the name."""
    fixed = model.fixed
    kind = fixed.embedding_type or "float"
    scale = (fixed.int8_scale or int8_scale) if kind in ("int8", "uint8") else None
    return model.backend.spec(embedding_type=kind, dimensions=fixed.dimensions, int8_scale=scale)


def _contracts(model: ServedModel, settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the contract of every kind of vector that a name gives to such a client."""
    contracts = dict(model.backend.contracts)
    if "dense" in model.kinds:
        contracts["dense"] = _space(model, settings.int8_scale)
    asked = model.kind_options
    return {kind: asked.applied_to(contracts[kind]).to_dict() for kind in model.kinds}


async def info(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Return the page by which clients of text-embeddings-inference size their requests."""
    model = in_path or state.models.default
    card, settings = model.card, state.settings
    truncate = model.fixed.truncate or settings.truncate
    answer = {
        "model_id": model.name,
        "model_sha": None,
        "fingerprint": _contracts(model, settings)[model.kinds[0]]["fingerprint"],
        "model_dtype": (model.backend.arithmetic or "unknown").partition(" ")[0],
        "computed_in": model.backend.arithmetic,
        "model_type": {"embedding": {"pooling": card.pooling}},
        "dimensions": model.fixed.dimensions or card.dimensions,
        "max_input_length": card.max_tokens,
        "max_client_batch_size": settings.max_items,
        "max_concurrent_requests": settings.max_queue,
        "max_batch_tokens": settings.max_queue_tokens,
        "auto_truncate": truncate in ("END", "START"),
        "modalities": list(card.modalities),
        "kinds": list(model.kinds) if model.backend.ready else None,
        "served": [each.name for each in state.models],
        "version": __version__,
    }
    await _json(request, answer)


async def docs(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Return a page that says what can be asked; it fetches nothing, and names no model."""
    page = docs_page(document(state.models, state.settings, base=request.base), state.settings)
    headers = ((b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),)
    kind = b"text/html; charset=utf-8"
    await request.respond(200, page, content_type=kind, headers=headers)


async def manifest(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Return the served models as the text of a YAML file."""
    lines = ["models:"]
    for name, backend in state.models.backends.items():
        card = backend.card
        facts: dict[str, Any] = {
            "name": name,
            "model": card.id,
            "dimensions": card.dimensions,
            "max_tokens": card.max_tokens,
            "licence": card.licence,
        }
        # A JSON string is a YAML string.
        written = [f"{key}: {orjson.dumps(value).decode()}" for key, value in facts.items()]
        lines += [f"  - {written[0]}", *(f"    {line}" for line in written[1:])]
    await _json(request, {"manifest_file": "\n".join(lines) + "\n", "repository": "nimbed"})


async def licence(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Return the licences of the server and of the models."""
    await _json(request, _licence(state))


async def version(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Return the version of the server and of its API."""
    await _json(request, {"release": __version__, "api": _API})


async def metrics(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Return what Prometheus reads."""
    kind = b"text/plain; version=0.0.4; charset=utf-8"
    await request.respond(200, state.metrics.exposition(), content_type=kind)


async def openapi(state: State, request: Request, in_path: ServedModel | None) -> None:
    """Return the OpenAPI document of this very server."""
    answer = document(state.models, state.settings, base=request.base)
    await request.respond(200, orjson.dumps(answer))


def _licence(state: State) -> dict[str, Any]:
    lines = ["nimbed: Apache-2.0"]
    lines += [
        f"{backend.card.id}: {backend.card.licence}" for backend in state.models.backends.values()
    ]
    content = "\n".join(lines) + "\n"
    return {
        "name": "Apache-2.0",
        "path": "LICENSE",
        "sha": hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest(),
        "size": len(content),
        "url": _APACHE,
        "type": "file",
        "content": content,
    }


async def _json(request: Request, answer: object) -> None:
    await request.respond(200, orjson.dumps(answer))
