"""Model cards: the facts about a model that decide how it runs and what its vectors are.

The catalogue is data (``catalogue.toml``), read on first use. A checkpoint that it does not list
gets its card from its own files; see :mod:`nimbed.local.checkpoint`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nimbed.errors import ConfigurationError, UnknownModelError
from nimbed.inputs import Modality
from nimbed.spec import (
    EmbeddingType,
    InputType,
    Int8Scale,
    Kind,
    Metric,
    VectorSpec,
    check_literal,
)

__all__ = ["DEFAULT_MODEL", "Modality", "ModelCard", "Pooling", "catalogue", "find", "known"]

Pooling = Literal[
    "mean", "cls", "latent", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"
]

#: What ``nimbed.load()`` gives when no model is named.
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

_ALL_TYPES: tuple[EmbeddingType, ...] = get_args(EmbeddingType)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Facts about one model.

    Attributes:
        id: Canonical id.
        architecture: The module of ``nimbed.local.models`` that runs it.
        dimensions: Float dimensions of a full vector; of a model of sparse vectors alone, the
            tokens of its vocabulary.
        max_tokens: Longest input, prompt and special tokens included.
        pooling: How token states become one vector; several ways, if their vectors are joined.
        asymmetric: Whether queries and passages are embedded differently.
        bidirectional: Whether a decoder's attention looks both ways, where only code beside its
            weights says so; None where config.json does.
        query_prompt: Text put before a query.
        passage_prompt: Text put before a passage.
        task_prompts: Name and text of prompts for other tasks, which no role uses; see
            :meth:`with_prompt`.
        metric: How the vectors are compared. By ``cosine`` they have unit length; by ``dot`` and
            ``euclidean`` they keep the length that the model gives them.
        matryoshka: Sizes the publisher offers besides the full one.
        modalities: What it can embed.
        kinds: The kinds of vectors that it gives: one a text, the weights of its tokens, one a
            token.
        aliases: Other names of the same weights.
        weights: Hugging Face id of the checkpoint; empty where none is known to be public.
        served_types: Embedding types that NVIDIA's own server offers for it.
        parameters: Millions of parameters, without embeddings and in all; None where unknown.
        int8_k: Standard deviations that the ``even`` int8 scale covers.
        licence: Licence of the weights, as far as public sources say.
        successor: Id of the model that its publisher's hosted service offers since it retired this
            one; empty if it did not, as far as is known.
        note: What is uncertain about this card.
    """

    id: str
    architecture: str
    dimensions: int
    max_tokens: int
    pooling: Pooling | tuple[Pooling, ...]
    asymmetric: bool
    bidirectional: bool | None = None
    query_prompt: str = ""
    passage_prompt: str = ""
    task_prompts: tuple[tuple[str, str], ...] = ()
    metric: Metric = "cosine"
    matryoshka: tuple[int, ...] = ()
    modalities: tuple[Modality, ...] = ("text",)
    kinds: tuple[Kind, ...] = ("dense",)
    aliases: tuple[str, ...] = ()
    weights: str = ""
    served_types: tuple[EmbeddingType, ...] = _ALL_TYPES
    parameters: tuple[int, int] | None = None
    int8_k: float = 4.0
    licence: str = "unknown"
    successor: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse a card whose facts contradict each other."""
        for mode in (self.pooling,) if isinstance(self.pooling, str) else self.pooling:
            check_literal("pooling", mode, Pooling)
        for kind in self.kinds or ("",):
            check_literal("kinds", kind, Kind)
        if min(self.dimensions, self.max_tokens) < 1:
            raise ConfigurationError(
                f"the card of {self.id} has dimensions {self.dimensions} and max_tokens "
                f"{self.max_tokens}; both must be at least 1"
            )
        if any(not 1 <= size <= self.dimensions for size in self.matryoshka):
            raise ConfigurationError(
                f"the Matryoshka sizes of {self.id} must lie between 1 and its {self.dimensions} "
                f"dimensions; got {self.matryoshka}"
            )
        if not self.asymmetric and self.query_prompt != self.passage_prompt:
            raise ConfigurationError(
                f"the card of {self.id} has different prompts for queries and passages; "
                f"then asymmetric must be True"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Dimensions that may be asked for, ascending."""
        return tuple(sorted({*self.matryoshka, self.dimensions}))

    @property
    def adapted(self) -> bool:
        """Whether queries and passages go through adapters of their own, besides any prompts."""
        return self.architecture == "jina_v3"

    def prompt(self, input_type: InputType) -> str:
        """Return the text that is put before an input of this role."""
        check_literal("input_type", input_type, InputType)
        return self.query_prompt if input_type == "query" else self.passage_prompt

    def with_prompt(self, name: str) -> ModelCard:
        """Return the card with one of its prompts before every text, in either role.

        Args:
            name: Of one of ``task_prompts``, ``query`` or ``passage`` for that role's; empty for
                no prompt at all.

        Raises:
            ConfigurationError: If the model has no such prompt.
        """
        prompts = {"query": self.query_prompt, "passage": self.passage_prompt, "": ""}
        prompts |= dict(self.task_prompts)
        if name not in prompts:
            raise ConfigurationError(
                f"{self.id} has no prompt named {name!r}; prompt_name may be "
                f"{', '.join(map(repr, prompts))}"
            )
        text = prompts[name]
        return dataclasses.replace(self, query_prompt=text, passage_prompt=text, asymmetric=False)

    def spec(
        self,
        *,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        int8_scale: Int8Scale | None = None,
        revision: str | None = None,
    ) -> VectorSpec:
        """Return the contract of this model's vectors, before any model is loaded.

        Raises:
            ConfigurationError: If the model gives no dense vectors, or none of that size, or they
                cannot be packed.
        """
        if "dense" not in self.kinds:
            calls = " and ".join(f"embed_{kind}" for kind in self.kinds)
            raise ConfigurationError(
                f"{self.id} gives {' and '.join(self.kinds)} vectors, not dense ones; call {calls}"
            )
        if dimensions is not None and dimensions not in self.sizes:
            offered = ", ".join(map(str, self.sizes))
            raise ConfigurationError(
                f"{self.id} has no {dimensions!r}-dimension form; it offers {offered}"
            )
        return VectorSpec.of(
            model=self.id,
            dimensions=self.dimensions if dimensions is None else dimensions,
            embedding_type=embedding_type,
            revision=revision,
            int8_scale=int8_scale,
            int8_k=self.int8_k,
            metric=self.metric,
            query_prompt=self.query_prompt,
            passage_prompt=self.passage_prompt,
        )


def find(name: str) -> ModelCard:
    """Return the card of a model by id, alias or old name; case does not matter.

    Raises:
        UnknownModelError: If the catalogue does not list the name.
    """
    card = known(name)
    if card is not None:
        return card
    import difflib

    close = difflib.get_close_matches(name.lower(), _by_name(), n=3)
    hint = f"; close names: {', '.join(_by_name()[key].id for key in close)}" if close else ""
    raise UnknownModelError(f"the catalogue has no model {name!r}{hint}; see: nimbed models")


def known(name: str) -> ModelCard | None:
    """Return the card of a model by id, alias or old name, or None if it is not listed."""
    return _by_name().get(name.lower())


@functools.cache
def catalogue() -> tuple[ModelCard, ...]:
    """Return every built-in card, in the catalogue's order."""
    # Imported with the first look into the catalogue: a tenth of the time of `import nimbed`.
    import tomllib
    from importlib import resources

    text = resources.files("nimbed").joinpath("catalogue.toml").read_text("utf-8")
    return tuple(_card(row) for row in tomllib.loads(text)["card"])


@functools.cache
def _by_name() -> dict[str, ModelCard]:
    return {name.lower(): card for card in catalogue() for name in (*card.aliases, card.id)}


def _card(row: Mapping[str, Any]) -> ModelCard:
    facts: dict[str, Any] = {"weights": row["id"], **row}
    lists: list[str] = [name for name, value in row.items() if isinstance(value, list)]
    for name in lists:
        facts[name] = tuple(row[name])
    facts["task_prompts"] = tuple(row.get("task_prompts", {}).items())
    return ModelCard(**facts)
