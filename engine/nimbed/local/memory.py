"""Memory that has been freed, back to the operating system.

Knows nothing about tensors.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

__all__ = ["give_back"]


def give_back() -> None:
    """Return the C heap's free pages to the system, where its library can.

    Loading converts one weight after another. glibc cannot put the next aligned block into the
    hole that the last one left, so without this the holes add up to half the model again.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None  # not glibc: musl, macOS, Windows
    return trim
