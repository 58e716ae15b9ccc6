"""Names from requests in, the lane and the fixed options that they stand for out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nimbed import cards
from nimbed.cards import ModelCard
from nimbed.errors import ConfigurationError
from nimbed.spec import InputType
from nimbed_server.aliases import Alias, Fixed
from nimbed_server.lanes import Lane
from nimbed_server.wire.refusal import Refusal

__all__ = ["Choice", "Served"]

# NIM's own way to send a role through a client that has no field for it.
_SUFFIXES: dict[str, InputType] = {"-query": "query", "-passage": "passage"}


@dataclass(frozen=True, slots=True)
class Choice:
    """What a name stands for.

    Attributes:
        name: The served name, which the answer repeats.
        lane: Where its inputs are embedded.
        fixed: The options that the name fixes.
        role: The role that a ``-query`` or ``-passage`` behind the name asks for.
    """

    name: str
    lane: Lane
    fixed: Fixed
    role: InputType | None = None

    @property
    def card(self) -> ModelCard:
        """Facts about the model behind the name."""
        return self.lane.card


class Served:
    """Every name this server answers to.

    Args:
        lanes: Model names and their lanes; the first is what a client takes by default.
        aliases: Names with options fixed.

    Raises:
        ConfigurationError: If two names are the same, an alias names a model that is not served,
            or fixes what its model does not have.
    """

    def __init__(self, lanes: Mapping[str, Lane], aliases: Sequence[Alias] = ()) -> None:
        if not lanes:
            raise ConfigurationError("a server needs at least one model")
        if len({name.lower() for name in lanes}) < len(lanes):
            raise ConfigurationError(f"names differ by more than case; got {', '.join(lanes)}")
        self.lanes = dict(lanes)
        self.created = int(time.time())
        self._choices = {name: Choice(name, lane, Fixed()) for name, lane in lanes.items()}
        # The catalogue's other names of a served model, unless something is called so itself.
        self._by_name: dict[str, Choice] = {}
        for name, lane in lanes.items():
            card = cards.known(name) or lane.card
            for other in (card.id, *card.aliases):
                self._by_name.setdefault(other.lower(), self._choices[name])
        self._by_name |= {name.lower(): choice for name, choice in self._choices.items()}
        for alias in aliases:
            self._add(alias)
        self._by_name |= {name.lower(): choice for name, choice in self._choices.items()}

    @property
    def choices(self) -> list[Choice]:
        """Models first, aliases behind them, in the order given."""
        return list(self._choices.values())

    @property
    def default(self) -> Choice:
        """The first model."""
        return next(iter(self._choices.values()))

    def known(self, name: str) -> Choice | None:
        """Return what a name stands for, or None; an exact name goes before a suffix."""
        key = name.lower()
        choice = self._by_name.get(key)
        if choice is not None:
            return choice
        for suffix, role in _SUFFIXES.items():
            base = self._by_name.get(key.removesuffix(suffix)) if key.endswith(suffix) else None
            if base is not None:
                return Choice(base.name, base.lane, base.fixed, role)
        return None

    def find(self, name: str) -> Choice:
        """Return what a name stands for.

        Raises:
            Refusal: With status 404 and the names there are.
        """
        choice = self.known(name)
        if choice is None:
            listed = ", ".join(map(repr, self._choices))
            raise Refusal(
                404,
                f"model {name[:200]!r} not found; available: {listed}",
                param="model",
                code="model_not_found",
            )
        return choice

    def _add(self, alias: Alias) -> None:
        if alias.name.lower() in map(str.lower, self._choices):
            raise ConfigurationError(f"the name {alias.name!r} is given twice")
        # Aliases are named after all are made, so none stands for another.
        base = self._by_name.get(alias.model.lower())
        if base is None:
            raise ConfigurationError(
                f"alias {alias.name!r} stands for {alias.model!r}, which is not served; "
                f"served are {', '.join(self.lanes)}"
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
        self._choices[alias.name] = Choice(alias.name, base.lane, fixed)
