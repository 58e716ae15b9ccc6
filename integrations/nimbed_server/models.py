"""The names of a server: models, and aliases that fix options.

An alias serves clients that can send nothing but a model's name: Weaviate sends no dimensions, no
type and no truncation, and its multi2vec module no role either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nimbed import cards
from nimbed.cards import ModelCard
from nimbed.errors import ConfigurationError
from nimbed.options import KindOptions
from nimbed.spec import (
    EmbeddingType,
    InputType,
    Int8Scale,
    Kind,
    TokenType,
    Truncate,
    check_literal,
)
from nimbed_server.backends import Backend
from nimbed_server.wire.errors import HttpError

__all__ = ["Alias", "Fixed", "ServedModel", "ServedModels", "View", "parse_alias"]

View = Literal["packed", "signs"]

# NIM's own way to send a role through a client that has no field for it.
_SUFFIXES: dict[str, InputType] = {"-query": "query", "-passage": "passage"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """The options that a name fixes; None leaves one to the request.

    Attributes:
        dimensions: Size of a vector.
        embedding_type: How a dimension is stored.
        as_: ``signs`` answers a packed type as +1 and -1, a number a dimension, so that a store
            that only knows floats still ranks by Hamming distance.
        int8_scale: ``nim`` or ``even``.
        input_type: The role where the request names none.
        truncate: What happens to an input that is too long where the request says NONE.
        kinds: The kinds of vectors.
        max_active: The most tokens of a sparse vector.
        token_type: How a dimension of a token's vector is stored.
        pool_factor: About how many tokens of a passage become one vector.
    """

    dimensions: int | None = None
    embedding_type: EmbeddingType | None = None
    as_: View | None = None
    int8_scale: Int8Scale | None = None
    input_type: InputType | None = None
    truncate: Truncate | None = None
    kinds: tuple[Kind, ...] | None = None
    max_active: int | None = None
    token_type: TokenType | None = None
    pool_factor: int | None = None

    def __post_init__(self) -> None:
        """Refuse words that mean nothing."""
        KindOptions(
            kinds=self.kinds,
            max_active=self.max_active,
            token_type=self.token_type or "float",
            pool_factor=self.pool_factor or 1,
        )
        for name, allowed in _LITERALS.items():
            value = getattr(self, name)
            if value is not None:
                check_literal(name.rstrip("_"), value, allowed)
        if self.as_ is not None and self.embedding_type not in ("binary", "ubinary"):
            raise ConfigurationError(
                f"as={self.as_} needs embedding_type=binary or embedding_type=ubinary"
            )


_LITERALS: dict[str, Any] = {
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
        ConfigurationError: If it has another form, or an option that does not exist.
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


def _number(name: str) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not value.isdecimal() or not 0 < int(value[:11]) < 2**31:
            raise ConfigurationError(
                f"{name} must be a number from 1 to {2**31 - 1}; got {value!r}"
            )
        return int(value)

    return read


def _kinds(value: str) -> tuple[str, ...]:
    return tuple(value.split("+"))


_READERS: dict[str, Callable[[str], Any]] = {
    "dimensions": _number("dimensions"),
    "embedding_type": str,
    "as": str,
    "int8_scale": str,
    "input_type": str,
    "truncate": str,
    "kinds": _kinds,
    "max_active": _number("max_active"),
    "token_type": str,
    "pool_factor": _number("pool_factor"),
}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a name stands for.

    Attributes:
        name: The served name, which the answer repeats.
        backend: Where its inputs are embedded.
        fixed: The options that the name fixes.
        role: The role that a ``-query`` or ``-passage`` behind the name asks for.
    """

    name: str
    backend: Backend
    fixed: Fixed
    role: InputType | None = None

    @property
    def card(self) -> ModelCard:
        """Facts about the model behind the name."""
        return self.backend.card

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors that the name gives."""
        return self.fixed.kinds or self.backend.kinds

    @property
    def kind_options(self) -> KindOptions:
        """What a client gets who asks for none of the options of kinds."""
        fixed = self.fixed
        return KindOptions(
            kinds=fixed.kinds,
            max_active=fixed.max_active,
            token_type=fixed.token_type or "float",
            pool_factor=fixed.pool_factor or 1,
        )


class ServedModels:
    """Every name that a server answers to; iterates over models first, then aliases.

    Args:
        backends: Model names and their backends; the first is what a client takes by default.
        aliases: Names with options fixed.
        sources: What each model was loaded from, which an alias may name instead: a folder.

    Raises:
        ConfigurationError: If two names are the same, or an alias names a model that is not served
            or fixes what its model does not have.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        aliases: Sequence[Alias] = (),
        *,
        sources: Sequence[str] = (),
    ) -> None:
        if not backends:
            raise ConfigurationError("a server needs at least one model")
        if len({name.lower() for name in backends}) < len(backends):
            raise ConfigurationError(
                f"two models have the same name, which is read without regard to case; got "
                f"{', '.join(backends)}"
            )
        self.backends = dict(backends)
        self.created = int(time.time())
        self._served = {
            name: ServedModel(name, backend, Fixed()) for name, backend in backends.items()
        }
        # The catalogue's other names of a served model, unless something is called so itself.
        self._by_name: dict[str, ServedModel] = {}
        for name, backend in backends.items():
            card = cards.known(name) or backend.card
            for other in (card.id, *card.aliases):
                self._by_name.setdefault(other.lower(), self._served[name])
        self._by_name |= {name.lower(): model for name, model in self._served.items()}
        by_source = {
            Path(source).absolute(): self._served[name]
            for source, name in zip(sources, backends, strict=False)
        }
        for alias in aliases:
            self._add(alias, by_source)
        # Only now, so that no alias stands for another.
        self._by_name |= {name.lower(): model for name, model in self._served.items()}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._served.values())

    @property
    def default(self) -> ServedModel:
        """The first model."""
        return next(iter(self))

    def get(self, name: str) -> ServedModel | None:
        """Return what a name stands for, or None; an exact name goes before a suffix."""
        key = name.lower()
        model = self._by_name.get(key)
        if model is not None:
            return model
        for suffix, role in _SUFFIXES.items():
            base = self._by_name.get(key.removesuffix(suffix)) if key.endswith(suffix) else None
            if base is not None:
                return ServedModel(base.name, base.backend, base.fixed, role)
        return None

    def find(self, name: str) -> ServedModel:
        """Return what a name stands for.

        Raises:
            HttpError: With status 404 and the names there are.
        """
        model = self.get(name)
        if model is None:
            listed = ", ".join(map(repr, self._served))
            raise HttpError(
                404,
                f"model {name[:200]!r} not found; available: {listed}",
                param="model",
                code="model_not_found",
            )
        return model

    def check_kinds(self) -> None:
        """Refuse names that fix a kind of vector which their model does not give, once it is known.

        Raises:
            ConfigurationError: Naming the alias.
        """
        for name, model in self._served.items():
            try:
                model.kind_options.chosen(model.backend.kinds, model.card.id)
            except ConfigurationError as error:
                raise ConfigurationError(f"alias {name!r}: {error}") from error

    def _add(self, alias: Alias, by_source: Mapping[Path, ServedModel]) -> None:
        if alias.name.lower() in map(str.lower, self._served):
            raise ConfigurationError(f"the name {alias.name!r} is given twice")
        base = self._by_name.get(alias.model.lower())
        base = base or by_source.get(Path(alias.model).absolute())
        if base is None:
            raise ConfigurationError(
                f"alias {alias.name!r} stands for {alias.model!r}, which is not served; "
                f"served are {', '.join(self.backends)}"
            )
        fixed = alias.fixed
        # A name that fixes the scale alone leaves it to the client to ask for int8.
        kind = fixed.embedding_type or ("int8" if fixed.int8_scale else "float")
        try:
            base.card.spec(
                embedding_type=kind, dimensions=fixed.dimensions, int8_scale=fixed.int8_scale
            )
        except ConfigurationError as error:
            raise ConfigurationError(f"alias {alias.name!r}: {error}") from error
        self._served[alias.name] = ServedModel(alias.name, base.backend, fixed)
