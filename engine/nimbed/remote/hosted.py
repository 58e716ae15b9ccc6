"""A model's name to its card, for models that exist behind an API alone too.

Knows nothing about servers; the catalogue's models are in ``nimbed.cards``.
"""

from __future__ import annotations

from nimbed import cards
from nimbed.cards import ModelCard

__all__ = ["card_of", "shown"]


def _openai(name: str, dimensions: int, *matryoshka: int) -> ModelCard:
    return ModelCard(
        id=f"openai/{name}",
        aliases=(name,),
        architecture="unknown",
        dimensions=dimensions,
        matryoshka=matryoshka,
        max_tokens=8192,
        # The pooling of a model that never runs here is not public and plays no part.
        pooling="mean",
        asymmetric=False,
        licence="served only",
    )


# Sizes besides the full one: those that OpenAI itself publishes results for.
_HOSTED = {
    name: card
    for card in (
        _openai("text-embedding-3-small", 1536, 512),
        _openai("text-embedding-3-large", 3072, 256, 1024),
        _openai("text-embedding-ada-002", 1536),
    )
    for name in (card.id, *card.aliases)
}


def card_of(name: str) -> ModelCard | None:
    """Return the card of a model by the name a server knows it by, or None."""
    return cards.known(name) or _HOSTED.get(name.lower())


def shown(model: str, width: int) -> ModelCard:
    """Return the card of a model of which its server has shown no more than the width."""
    return ModelCard(
        id=model,
        architecture="unknown",
        dimensions=width,
        max_tokens=1_000_000,
        pooling="mean",
        asymmetric=False,
        note="made up from a server's answers: all but the dimensions is unknown",
    )
