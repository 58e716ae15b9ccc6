"""Marks for tests that NVIDIA's adapters fail, and what they share with ours.

The fixture ``make`` of a test module gives an adapter on the strict NIM: ``nimbed`` or ``nvidia``.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from typing import Any

import pytest
from tests.engine.remote.double import Double
from tests.engine.remote.players import E5

from nimbed import cards

MATRYOSHKA = replace(cards.find(E5), matryoshka=(64,))
_NVIDIA = "nvidia"


def is_nvidias(request: pytest.FixtureRequest) -> bool:
    return getattr(request, "param", None) == _NVIDIA


def both() -> Any:
    """Run with both: that NVIDIA's passes shows that its failures are not the server's."""
    return _parametrized()


def but_nvidias(why: str, raises: type[Exception]) -> Any:
    """Run with both, and expect NVIDIA's to fail in that way alone."""
    return _parametrized(pytest.mark.xfail(strict=True, reason=why, raises=raises))


def forget() -> None:
    """Drop what NVIDIA's adapter has left open while its warnings are not yet errors again.

    An expected failure keeps its frames, and they their sockets, until the next test begins.
    """
    sys.last_value = sys.last_traceback = None
    if sys.version_info >= (3, 12):
        sys.last_exc = None
    gc.collect()


def sent(server: Double, field: str) -> list[Any]:
    return [request.json.get(field) for request in server.posts]


def _parametrized(*marks: Any) -> Any:
    # Its warnings are none of ours.
    theirs = pytest.param(_NVIDIA, marks=[pytest.mark.filterwarnings("ignore"), *marks])
    return pytest.mark.parametrize("make", ["nimbed", theirs], indirect=True)
