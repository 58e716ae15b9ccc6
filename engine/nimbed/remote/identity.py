"""What a server says of itself, to its dialect and the models it serves.

Knows nothing about embeddings. Asked only where the address does not tell.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from nimbed.errors import ConfigurationError
from nimbed.remote.address import Address
from nimbed.remote.dialects import DIALECTS, Dialect

__all__ = ["Get", "ask_dialect", "ask_model"]

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
    models = _list(await get(f"{address.api}/models"))
    entry = next((each for each in models if each.get("id") == model), models[0] if models else {})
    owner = _OWNERS.get(str(entry.get("owned_by")).lower())
    if owner:
        return DIALECTS[owner]
    if _json(await get(f"{address.api}/health/ready")).get("object") == "health.response":
        return DIALECTS["nim"]
    info = _json(await get(address.beside("/info")))
    if "max_client_batch_size" in info:
        tei, most = DIALECTS["tei"], info["max_client_batch_size"]
        return replace(tei, max_items=most) if type(most) is int and most > 0 else tei
    return DIALECTS["openai"]


async def ask_model(address: Address, get: Get) -> str:
    """Return the model that a server serves, if it is only one.

    Raises:
        ConfigurationError: If it serves several, or does not say.
    """
    models = [
        str(entry["id"])
        for entry in _list(await get(f"{address.api}/models"))
        # An entry with another root is an adapter of that model.
        if entry.get("id") and entry.get("root") in (None, entry["id"])
    ]
    if len(models) != 1:
        some = ", ".join(map(repr, models[:5])) or "none"
        raise ConfigurationError(
            f"{address.api} lists {len(models)} models ({some}); name the one to use"
        )
    return models[0]


def _list(body: bytes | None) -> list[dict[str, Any]]:
    data = _json(body).get("data")
    return [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []


def _json(body: bytes | None) -> dict[str, Any]:
    try:
        said = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
