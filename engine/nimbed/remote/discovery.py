"""What a server says of itself: its dialect and the models it serves.

It is asked only where the address does not tell.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from nimbed import cards
from nimbed.cards import ModelCard
from nimbed.errors import ConfigurationError
from nimbed.remote.address import Address
from nimbed.remote.dialects import DIALECTS, Dialect
from nimbed.spec import VectorSpec

__all__ = [
    "ask_dialect",
    "ask_model",
    "ask_tei",
    "find_card",
    "find_space",
    "list_models",
    "other_model",
    "refuse_fixed_type",
    "unknown_card",
]

#: GETs a URL and returns its body, or None where there is no such page.
Get = Callable[[str], Awaitable[bytes | None]]

_OWNERS = {
    "vllm": "vllm",
    "nvidia": "nim",
    "nimbed": "nim",
    "organization-owner": "nim",  # NIM 1.x
}


async def ask_dialect(address: Address, get: Get, *, model: str | None) -> Dialect:
    """Return the dialect of a server by what it says of itself; ``openai`` if it says nothing.

    The difference matters: vLLM ignores NIM's ``input_type`` without a word, and a NIM that gets
    OpenAI's two fields alone may take a passage for a query.
    """
    models = _models(await get(f"{address.api}/models"))
    entry = next((each for each in models if each.get("id") == model), models[0] if models else {})
    owner = _OWNERS.get(str(entry.get("owned_by")).lower())
    if owner:
        return DIALECTS[owner]
    if _object(await get(f"{address.api}/health/ready")).get("object") == "health.response":
        return DIALECTS["nim"]
    info = _object(await get(address.beside("/info")))
    return _tei(info) if "max_client_batch_size" in info else DIALECTS["openai"]


async def ask_tei(address: Address, get: Get) -> Dialect:
    """Return the dialect of a TEI with the limits that its own page names."""
    return _tei(_object(await get(address.beside("/info"))))


def _tei(info: dict[str, Any]) -> Dialect:
    tei = DIALECTS["tei"]
    most, longest = info.get("max_client_batch_size"), info.get("max_input_length")
    if type(most) is int and most > 0:
        tei = replace(tei, max_items=most)
    if info.get("auto_truncate") is True and type(longest) is int and longest > 0:
        tei = replace(tei, cuts_at=longest)
    return tei


async def ask_model(address: Address, get: Get) -> str:
    """Return the model that a server serves, if it is only one.

    Raises:
        ConfigurationError: If it serves several, or does not say.
    """
    models = await list_models(address, get)
    if len(models) != 1:
        some = ", ".join(map(repr, models[:5])) or "none"
        raise ConfigurationError(
            f"{address.api} lists {len(models)} models ({some}); name the one to use"
        )
    return models[0]


async def list_models(address: Address, get: Get) -> list[str]:
    """Return the names of the models that a server lists, without adapters of theirs."""
    return [
        str(entry["id"])
        for entry in _models(await get(f"{address.api}/models"))
        # An entry with another root is an adapter of that model.
        if entry.get("id") and entry.get("root") in (None, entry["id"])
    ]


async def find_space(address: Address, get: Get, *, model: str) -> VectorSpec | None:
    """Return the contract that a server of nimbed's own states for a name it serves, or None."""
    spaces = _object(await get(f"{address.api}/metadata")).get("spaces")
    try:
        return VectorSpec.from_dict(spaces[model]) if isinstance(spaces, dict) else None
    except (KeyError, TypeError, ValueError):
        return None


def refuse_fixed_type(space: VectorSpec | None, model: str | None) -> None:
    """Refuse a name whose answers are no floats: base64 of its bytes would be taken for some.

    Args:
        space: What nimbed's own server says that the name gives.
        model: The name.

    Raises:
        ConfigurationError: With the model and the type to ask for.
    """
    if space is not None and space.embedding_type != "float":
        raise ConfigurationError(
            f"{model!r} is a name of {space.model!r} that fixes embedding_type="
            f"{space.embedding_type!r}, for clients that cannot ask for it; name the model "
            f"itself, and pass embedding_type={space.embedding_type!r}"
        )


def _models(body: bytes | None) -> list[dict[str, Any]]:
    data = _object(body).get("data")
    return [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []


def _object(body: bytes | None) -> dict[str, Any]:
    try:
        content = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _openai(name: str, dimensions: int, *matryoshka: int) -> ModelCard:
    return ModelCard(
        id=f"openai/{name}",
        aliases=(name,),
        architecture="unknown",
        dimensions=dimensions,
        matryoshka=matryoshka,
        max_tokens=8192,
        # The pooling of a model that never runs here is not public and plays no part.
        pooling="mean",
        asymmetric=False,
        licence="served only",
    )


# Models that exist behind an API alone, so that the catalogue does not list them. Sizes besides
# the full one: those that OpenAI itself publishes results for.
_SERVED_ONLY = {
    name: card
    for card in (
        _openai("text-embedding-3-small", 1536, 512),
        _openai("text-embedding-3-large", 3072, 256, 1024),
        _openai("text-embedding-ada-002", 1536),
    )
    for name in (card.id, *card.aliases)
}


def find_card(name: str) -> ModelCard | None:
    """Return the card of a model by the name a server knows it by, or None."""
    return cards.known(name) or _SERVED_ONLY.get(name.lower())


def other_model(answered: str | None, *, asked: str | None, card: ModelCard | None) -> str | None:
    """Return the id of the model that answered if it is known to be another than was asked.

    TEI ignores the name it is asked for; a gateway may have a default.
    """
    if answered is None or answered == asked or card is None:
        return None
    served = cards.known(answered)
    return None if served is None or served.id == card.id else served.id


def unknown_card(model: str, width: int) -> ModelCard:
    """Return the card of a model of which its server has shown no more than the width."""
    return ModelCard(
        id=model,
        architecture="unknown",
        dimensions=width,
        max_tokens=1_000_000,
        pooling="mean",
        asymmetric=False,
        note="made up from a server's answers: all but the dimensions is unknown",
    )
