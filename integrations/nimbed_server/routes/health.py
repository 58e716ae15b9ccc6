"""Whether the server lives, and whether it takes requests; open to everybody."""

from __future__ import annotations

import orjson

from nimbed_server.exchange import Exchange
from nimbed_server.served import Choice
from nimbed_server.state import State

__all__ = ["live", "ready", "well_known_live", "well_known_ready"]

_LIVE = orjson.dumps({"object": "health.response", "message": "live", "live": True})
_READY = orjson.dumps({"object": "health.response", "message": "ready", "ready": True})


async def live(state: State, exchange: Exchange, named: Choice | None) -> None:
    """Answer NIM's liveness probe."""
    await exchange.answer(200, _LIVE)


async def ready(state: State, exchange: Exchange, named: Choice | None) -> None:
    """Answer NIM's readiness probe: 503 while models load and while the server stops."""
    if state.ready:
        await exchange.answer(200, _READY)
        return
    answer = {
        "object": "health.response",
        "message": state.failure or ("stopping" if state.draining else "not ready"),
        "ready": False,
        "status": "not_ready",
    }
    await exchange.answer(503, orjson.dumps(answer))


async def well_known_live(state: State, exchange: Exchange, named: Choice | None) -> None:
    """Answer the text2vec-transformers container's liveness probe."""
    await exchange.answer(204)


async def well_known_ready(state: State, exchange: Exchange, named: Choice | None) -> None:
    """Answer the text2vec-transformers container's readiness probe."""
    await exchange.answer(204 if state.ready else 503)
