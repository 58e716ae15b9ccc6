"""What a caller wants of each text, to an ask that one server understands and can be held to.

Knows nothing about HTTP, rows or retries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nimbed import cards
from nimbed.cards import Modality, ModelCard
from nimbed.errors import ConfigurationError
from nimbed.remote.capabilities import Capabilities
from nimbed.remote.decode import Answer
from nimbed.remote.dialects import Dialect
from nimbed.remote.payload import Ask, compose
from nimbed.remote.roles import carry
from nimbed.spec import InputType, Truncate

__all__ = ["Wish", "stranger", "translate", "widths_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is wanted of each text of a call.

    Attributes:
        input_type: The role.
        truncate: What shall happen to a text that is too long.
        dimensions: The size to ask the server for; None for the full vector.
        packed: Whether packed bits of the full vector are wanted, if the server has them.
        modality: What the inputs of a request are, for a model that sees: all of them, or each.
    """

    input_type: InputType
    truncate: Truncate = "NONE"
    dimensions: int | None = None
    packed: bool = False
    modality: Modality | tuple[Modality, ...] | None = None


def translate(
    wish: Wish,
    *,
    dialect: Dialect,
    known: Capabilities,
    model: str,
    card: ModelCard | None,
    encoding: Literal["base64", "float"] | None,
) -> Ask:
    """Return the ask that fulfils a wish at a server.

    Raises:
        ConfigurationError: If the role cannot reach an asymmetric model, or an image the server.
    """
    mode = known.role or dialect.role
    if wish.modality not in (None, "text") and not (dialect.images and mode == "field"):
        raise ConfigurationError(
            f"a server that speaks {dialect.name} takes no images; leave them out, or pass "
            f"dialect='nim' if it is a NIM"
        )
    return compose(
        dialect=dialect,
        capabilities=known,
        carriage=carry(wish.input_type, mode=mode, model=model, card=card),
        dimensions=wish.dimensions,
        truncate=wish.truncate,
        packed=wish.packed,
        encoding=encoding,
        modality=wish.modality,
    )


def widths_of(ask: Ask, *, card: ModelCard | None, learnt: int | None) -> set[int]:
    """Return the widths that an answer may have; empty if nothing was promised yet.

    Args:
        ask: What was asked.
        card: Facts about the model, if it is known.
        learnt: Width of an unknown model's first full answer.
    """
    full = card.dimensions if card else learnt
    if ask.packed:
        return {full // 8} if full else set()
    if card and ask.dimensions:
        return {ask.dimensions, card.dimensions}  # a server may ignore the field
    promised = ask.dimensions or full
    return {promised} if promised else set()


def stranger(answer: Answer, card: ModelCard | None) -> str | None:
    """Return the id of the model that answered if it is known to be another than was asked.

    TEI ignores the name it is asked for; a gateway may have a default.
    """
    served = cards.known(answer.model) if answer.model else None
    if served is None or card is None or served.id == card.id:
        return None
    return served.id
