"""What the server is and what it serves: models, metadata, manifest, licence, version, metrics."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import orjson

from nimbed.spec import Int8Scale, VectorSpec
from nimbed.version import __version__
from nimbed_server.exchange import Exchange
from nimbed_server.served import Choice
from nimbed_server.state import State
from nimbed_server.wire.openapi import document

__all__ = ["licence", "manifest", "metadata", "metrics", "models", "openapi", "version"]

_API = "1.0"
_APACHE = "https://www.apache.org/licenses/LICENSE-2.0"


async def models(state: State, exchange: Exchange, named: Choice | None) -> None:
    """List the served names; NVIDIA's clients take the first as their default."""
    data = [
        {
            "id": choice.name,
            "object": "model",
            "created": state.served.created,
            "owned_by": "nvidia" if choice.name.startswith("nvidia/") else "nimbed",
            "root": choice.name,
        }
        for choice in state.served.choices
    ]
    await _json(exchange, {"object": "list", "data": data})


async def metadata(state: State, exchange: Exchange, named: Choice | None) -> None:
    """Return what nv-ingest reads: a version and a short name for each model."""
    cards = [lane.card for lane in state.served.lanes.values()]
    answer = {
        "version": __version__,
        "modelInfo": [
            {"shortName": name, "modelUrl": f"https://huggingface.co/{card.weights or card.id}"}
            for name, card in zip(state.served.lanes, cards, strict=True)
        ],
        "assetInfo": [card.id for card in cards],
        "licenseInfo": _licence(state),
        "repository_override": "",
        "selectedModelProfileId": "",
        "spaces": {
            choice.name: _space(choice, state.settings.int8_scale).to_dict()
            for choice in state.served.choices
        },
    }
    await _json(exchange, answer)


def _space(choice: Choice, int8_scale: Int8Scale) -> VectorSpec:
    """Return the contract of what a name gives to a client that sends nothing but the name."""
    fixed = choice.fixed
    kind = fixed.embedding_type or "float"
    scale = (fixed.int8_scale or int8_scale) if kind in ("int8", "uint8") else None
    return choice.card.spec(embedding_type=kind, dimensions=fixed.dimensions, int8_scale=scale)


async def manifest(state: State, exchange: Exchange, named: Choice | None) -> None:
    """Return the served models as the text of a YAML file."""
    lines = ["models:"]
    for name, lane in state.served.lanes.items():
        card = lane.card
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
    await _json(exchange, {"manifest_file": "\n".join(lines) + "\n", "repository": "nimbed"})


async def licence(state: State, exchange: Exchange, named: Choice | None) -> None:
    """Return the licences of the server and of the models."""
    await _json(exchange, _licence(state))


async def version(state: State, exchange: Exchange, named: Choice | None) -> None:
    """Return the version of the server and of its API."""
    await _json(exchange, {"release": __version__, "api": _API})


async def metrics(state: State, exchange: Exchange, named: Choice | None) -> None:
    """Return what Prometheus reads."""
    kind = b"text/plain; version=0.0.4; charset=utf-8"
    await exchange.answer(200, state.metrics.exposition(), kind=kind)


async def openapi(state: State, exchange: Exchange, named: Choice | None) -> None:
    """Return the OpenAPI document of this very server."""
    await exchange.answer(200, _document(state))


@functools.lru_cache(maxsize=4)
def _document(state: State) -> bytes:
    return orjson.dumps(document(state.served, state.settings))


def _licence(state: State) -> dict[str, Any]:
    lines = ["nimbed: Apache-2.0"]
    lines += [f"{lane.card.id}: {lane.card.licence}" for lane in state.served.lanes.values()]
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


async def _json(exchange: Exchange, answer: object) -> None:
    await exchange.answer(200, orjson.dumps(answer))
