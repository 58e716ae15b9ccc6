"""The options of one embedding call, checked once and carried as one value, and its signatures."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypedDict, TypeVar, cast, get_args

from nimbed.batch import EmbeddingBatch
from nimbed.errors import ConfigurationError
from nimbed.inputs import Input, Modality
from nimbed.reports import Progress
from nimbed.spec import (
    Contract,
    EmbeddingType,
    InputType,
    Int8Scale,
    Kind,
    MultiVectorSpec,
    SparseSpec,
    TokenType,
    Truncate,
    VectorSpec,
    check_literal,
    check_size,
)

__all__ = [
    "EmbedBase",
    "EmbedKeywords",
    "EmbedOptions",
    "KindOptions",
    "SpecOptions",
    "cached_options",
]

C = TypeVar("C", bound=Contract)

# Name, Literal and values of each option: compared here, since most calls are right.
_CHOICES: tuple[tuple[str, Any, tuple[object, ...]], ...] = (
    ("input_type", InputType, get_args(InputType)),
    ("embedding_type", EmbeddingType, get_args(EmbeddingType)),
    ("truncate", Truncate, get_args(Truncate)),
    ("int8_scale", Int8Scale, (None, *get_args(Int8Scale))),
    ("modality", Modality, (None, *get_args(Modality))),
)


class SpecOptions(TypedDict):
    """The options that decide a spec, as the keyword arguments of ``Embedder.spec``."""

    embedding_type: EmbeddingType
    dimensions: int | None
    int8_scale: Int8Scale | None


class EmbedKeywords(TypedDict, total=False):
    """The options of a call as keyword arguments."""

    input_type: InputType
    embedding_type: EmbeddingType
    dimensions: int | None
    truncate: Truncate
    int8_scale: Int8Scale | None
    modality: Modality | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """What a caller asks of every input of one call; hashable, so that it can key a cache.

    The attributes are the keyword arguments of :meth:`nimbed.embedder.Embedder.embed`, which
    describes them. Whether a model can give such vectors is for its card to say.

    Raises:
        ConfigurationError: If an option has a value that no model knows.
    """

    input_type: InputType
    embedding_type: EmbeddingType = "float"
    dimensions: int | None = None
    truncate: Truncate = "NONE"
    int8_scale: Int8Scale | None = None
    modality: Modality | None = None

    def __post_init__(self) -> None:
        """Refuse a value that no model knows."""
        for name, literal, choices in _CHOICES:
            value = getattr(self, name)
            if value not in choices:
                check_literal(name, value, literal)
        size = self.dimensions
        if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
            raise ConfigurationError(f"dimensions must be an integer; got {size!r}")

    @classmethod
    def given(cls, options: EmbedOptions | None, keywords: EmbedKeywords) -> EmbedOptions:
        """Return the options of a call that takes them as one value or by name, not both."""
        if options is None:
            return cls(**keywords)
        if keywords:
            raise ConfigurationError(
                f"options are given twice: as one value, and {', '.join(keywords)} by name"
            )
        return options

    @property
    def of_spec(self) -> SpecOptions:
        """The part that decides the spec, for ``embedder.spec(**options.of_spec)``."""
        return {
            "embedding_type": self.embedding_type,
            "dimensions": self.dimensions,
            "int8_scale": self.int8_scale,
        }

    def keywords(self) -> dict[str, Any]:
        """Return the options as keyword arguments of ``embed``."""
        return {
            "input_type": self.input_type,
            "embedding_type": self.embedding_type,
            "dimensions": self.dimensions,
            "truncate": self.truncate,
            "int8_scale": self.int8_scale,
            "modality": self.modality,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class KindOptions:
    """What a caller asks of a call for several kinds of vectors, besides :class:`EmbedOptions`.

    Attributes:
        kinds: Which kinds, each once; None for all that the model gives.
        max_active: The most tokens that a sparse vector keeps; None for all.
        token_type: How a dimension of a token's vector is stored.
        pool_factor: How many tokens of a passage share a vector on average.

    Raises:
        ConfigurationError: If an option has a value that no model knows.
    """

    kinds: Sequence[Kind] | None = None
    max_active: int | None = None
    token_type: TokenType = "float"
    pool_factor: int = 1

    def __post_init__(self) -> None:
        """Refuse a value that no model knows."""
        if self.kinds is not None:
            if isinstance(self.kinds, str) or not self.kinds:
                raise ConfigurationError(
                    f"kinds must list some of {', '.join(map(repr, get_args(Kind)))}; "
                    f"got {self.kinds!r}"
                )
            for kind in self.kinds:
                check_literal("kinds", kind, Kind)
            object.__setattr__(self, "kinds", tuple(dict.fromkeys(self.kinds)))
        check_literal("token_type", self.token_type, TokenType)
        check_size("pool_factor", self.pool_factor)
        if self.max_active is not None:
            check_size("max_active", self.max_active)

    def applied_to(self, contract: C) -> C:
        """Return the contract of vectors with these options, from one that is known.

        Where an option has its default, what the contract says stays: a name of a server may fix
        it.
        """
        found: Contract = contract
        if isinstance(contract, SparseSpec) and self.max_active is not None:
            found = replace(contract, max_active=self.max_active)
        if isinstance(contract, MultiVectorSpec):
            found = contract.stored_as(
                contract.token_type if self.token_type == "float" else self.token_type,
                pool_factor=self.pool_factor if self.pool_factor > 1 else contract.pool_factor,
            )
        return cast(C, found)

    def chosen(self, offered: Sequence[Kind], model: str) -> tuple[Kind, ...]:
        """Return the kinds to give, of those that a model offers.

        Raises:
            ConfigurationError: If the model does not give one of them.
        """
        for kind in self.kinds or ():
            if kind not in offered:
                calls = ["embed" if own == "dense" else f"embed_{own}" for own in offered]
                raise ConfigurationError(
                    f"{model} gives no {kind} vectors; it gives {' and '.join(offered)} "
                    f"({', '.join(calls)})"
                )
        return tuple(self.kinds or offered)


@lru_cache(maxsize=256, typed=True)
def cached_options(
    input_type: InputType,
    embedding_type: EmbeddingType,
    dimensions: int | None,
    truncate: Truncate,
    int8_scale: Int8Scale | None,
) -> EmbedOptions:
    """Return options that are checked once, for adapters that ask for the same at every call.

    Checking them takes 4 us; an adapter adds 30 us to the call.
    """
    return EmbedOptions(
        input_type=input_type,
        embedding_type=embedding_type,
        dimensions=dimensions,
        truncate=truncate,
        int8_scale=int8_scale,
    )


class EmbedBase(ABC):
    """``spec``, ``embed`` and ``aembed``, on top of methods that take the options as one value."""

    def spec(
        self,
        *,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        int8_scale: Int8Scale | None = None,
    ) -> VectorSpec:
        """Return the contract; see :meth:`nimbed.embedder.Embedder.spec`."""
        return self._spec(
            {
                "embedding_type": embedding_type,
                "dimensions": dimensions,
                "int8_scale": int8_scale,
            }
        )

    def embed(
        self,
        inputs: Sequence[Input],
        *,
        input_type: InputType,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        truncate: Truncate = "NONE",
        int8_scale: Int8Scale | None = None,
        modality: Modality | None = None,
        progress: Progress = False,
    ) -> EmbeddingBatch:
        """Embed inputs for one role; see :meth:`nimbed.embedder.Embedder.embed`."""
        options = EmbedOptions(
            input_type=input_type,
            embedding_type=embedding_type,
            dimensions=dimensions,
            truncate=truncate,
            int8_scale=int8_scale,
            modality=modality,
        )
        return self._embed(inputs, options, progress)

    async def aembed(
        self,
        inputs: Sequence[Input],
        *,
        input_type: InputType,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        truncate: Truncate = "NONE",
        int8_scale: Int8Scale | None = None,
        modality: Modality | None = None,
        progress: Progress = False,
    ) -> EmbeddingBatch:
        """Embed without blocking the loop; see :meth:`nimbed.embedder.Embedder.aembed`."""
        options = EmbedOptions(
            input_type=input_type,
            embedding_type=embedding_type,
            dimensions=dimensions,
            truncate=truncate,
            int8_scale=int8_scale,
            modality=modality,
        )
        return await self._aembed(inputs, options, progress)

    @abstractmethod
    def _spec(self, options: SpecOptions) -> VectorSpec: ...

    @abstractmethod
    def _embed(
        self, inputs: Sequence[Input], options: EmbedOptions, progress: Progress
    ) -> EmbeddingBatch: ...

    async def _aembed(
        self, inputs: Sequence[Input], options: EmbedOptions, progress: Progress
    ) -> EmbeddingBatch:
        return await asyncio.to_thread(self._embed, inputs, options, progress)
