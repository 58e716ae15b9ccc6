"""Numbers and choices of a config.json, checked as they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from nimbed.errors import CheckpointError

__all__ = ["first_position", "gate_activation", "heads_fit", "only", "real", "whole"]


def whole(config: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    """Return a positive integer.

    Raises:
        CheckpointError: If it is absent and has no default, or is something else.
    """
    value = config.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"config.json gives {name} {value!r}, expected a positive integer")
    return value


def real(config: Mapping[str, Any], name: str, *, default: float | None = None) -> float:
    """Return a positive finite number.

    Raises:
        CheckpointError: If it is absent and has no default, or is something else.
    """
    value = config.get(name)
    if value is None:
        value = default
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise CheckpointError(f"config.json gives {name} {value!r}, expected a positive number")
    return float(value)


def only(config: Mapping[str, Any], **values: object) -> None:
    """Refuse a configuration that asks for something other than the values given.

    A name that the configuration leaves out is taken to have the value given.

    Raises:
        CheckpointError: If a value differs.
    """
    for name, value in values.items():
        asked = config.get(name, value)
        if asked != value:
            raise CheckpointError(
                f"config.json asks for {name} {asked!r}; this model has {value!r}"
            )


def gate_activation(config: Mapping[str, Any]) -> Literal["gelu", "silu"]:
    """Return what a gated MLP activates its gate with; GELU if the configuration does not say.

    Raises:
        CheckpointError: If it is something else.
    """
    asked = config.get("hidden_act", "gelu")
    if asked not in ("gelu", "silu"):
        raise CheckpointError(
            f"config.json asks for hidden_act {asked!r}; nimbed's gates have gelu and silu"
        )
    return "silu" if asked == "silu" else "gelu"


def heads_fit(width: int, heads: int) -> int:
    """Return width / heads.

    Raises:
        CheckpointError: If the division leaves a remainder.
    """
    if width % heads:
        raise CheckpointError(
            f"config.json divides {width} dimensions among {heads} heads, which leaves a remainder"
        )
    return width // heads


def first_position(config: Mapping[str, Any]) -> int:
    """Return the row of the position table that the first token of an XLM-R or MPNet takes.

    fairseq numbers positions as it numbers tokens, from behind the padding id.

    Raises:
        CheckpointError: If that id is no number.
    """
    padding = config.get("pad_token_id")
    if padding is None:
        return 2
    if not isinstance(padding, int) or padding < 0:
        raise CheckpointError(f"config.json gives pad_token_id {padding!r}, expected a token id")
    return padding + 1
