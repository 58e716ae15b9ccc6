"""A role and what a server understands, to how the role reaches the model.

Knows nothing about HTTP. The one rule: an asymmetric model's role is never dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

from nimbed.cards import ModelCard
from nimbed.errors import ConfigurationError
from nimbed.remote.dialects import RoleMode
from nimbed.spec import InputType

__all__ = ["Carriage", "carry"]


@dataclass(frozen=True, slots=True)
class Carriage:
    """How one role reaches the model.

    Attributes:
        model: The model's name as it is sent.
        field: Value of ``input_type``, or None to leave the field out.
        prefix: Text put before every input.
    """

    model: str
    field: InputType | None = None
    prefix: str = ""


def carry(input_type: InputType, *, mode: RoleMode, model: str, card: ModelCard | None) -> Carriage:
    """Return how a role travels to a model.

    Raises:
        ConfigurationError: If the model is asymmetric and nothing can tell it the role.
    """
    if mode == "field":
        return Carriage(model, field=input_type)
    if mode == "suffix":
        return Carriage(f"{model}-{input_type}")
    if card is None:
        return Carriage(model)
    if card.asymmetric and card.query_prompt == card.passage_prompt:
        raise ConfigurationError(
            f"{card.id} treats queries and passages differently, but this server has no field "
            f"for the role and the card no prompts; pass dialect='nim', or a ModelCard with "
            f"query_prompt and passage_prompt"
        )
    return Carriage(model, prefix=card.prompt(input_type))
