"""Aliases: options fixed by a name, for clients that can send nothing but a model's name.

Weaviate sends no dimensions, no type and no truncation, and its multi2vec module no role either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from nimbed.errors import ConfigurationError
from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate, check_literal

__all__ = ["Alias", "Fixed", "View", "parse_alias"]

View = Literal["packed", "signs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """What a name fixes; None leaves it to the request.

    Attributes:
        dimensions: Size of a vector.
        embedding_type: How a dimension is stored.
        as_: ``signs`` answers a packed type as +1 and -1, a number a dimension, so that a store
            that only knows floats still ranks by Hamming distance.
        int8_scale: ``nim`` or ``even``.
        input_type: The role where the request names none.
        truncate: What happens to an input that is too long where the request says NONE.
    """

    dimensions: int | None = None
    embedding_type: EmbeddingType | None = None
    as_: View | None = None
    int8_scale: Int8Scale | None = None
    input_type: InputType | None = None
    truncate: Truncate | None = None

    def __post_init__(self) -> None:
        """Refuse words that mean nothing."""
        for name, allowed in _WORDS.items():
            value = getattr(self, name)
            if value is not None:
                check_literal(name.rstrip("_"), value, allowed)
        if self.as_ is not None and self.embedding_type not in ("binary", "ubinary"):
            raise ConfigurationError("as=signs and as=packed belong to embedding_type=binary")


_WORDS: dict[str, Any] = {
    "embedding_type": EmbeddingType,
    "as_": View,
    "int8_scale": Int8Scale,
    "input_type": InputType,
    "truncate": Truncate,
}


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for a model with some options fixed."""

    name: str
    model: str
    fixed: Fixed


def parse_alias(text: str) -> Alias:
    """Read ``NAME=MODEL,option=value,...``.

    Raises:
        ConfigurationError: If it has another form, or an option that there is not.
    """
    name, _, rest = text.partition("=")
    model, *options = rest.split(",")
    if not name.strip() or not model.strip() or "=" in model:
        raise ConfigurationError(f"an alias has the form NAME=MODEL,option=value,...; got {text!r}")
    facts: dict[str, Any] = {}
    for option in options:
        key, equals, value = (part.strip() for part in option.partition("="))
        if not equals or key not in _READERS or key in facts:
            raise ConfigurationError(
                f"alias {name.strip()!r}: an option is one of {', '.join(_READERS)}, once, as "
                f"option=value; got {option.strip()!r}"
            )
        facts[key] = _READERS[key](value)
    if "as" in facts:
        facts["as_"] = facts.pop("as")
    return Alias(name.strip(), model.strip(), Fixed(**facts))


def _size(value: str) -> int:
    if not value.isdigit():
        raise ConfigurationError(f"dimensions must be a number; got {value!r}")
    return int(value)


_READERS: dict[str, Callable[[str], Any]] = {
    "dimensions": _size,
    "embedding_type": str,
    "as": str,
    "int8_scale": str,
    "input_type": str,
    "truncate": str,
}
