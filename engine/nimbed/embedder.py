"""The interfaces of embedders: what every caller may rely on, and what a scheduler needs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, Self, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.cards import Modality, ModelCard
from nimbed.inputs import Input
from nimbed.kinds import EmbeddingKinds, MultiVectorBatch, SparseBatch
from nimbed.options import EmbedOptions, KindOptions
from nimbed.reports import Progress
from nimbed.spec import (
    EmbeddingType,
    InputType,
    Int8Scale,
    Kind,
    MultiVectorSpec,
    SparseSpec,
    TokenType,
    Truncate,
    VectorSpec,
)

__all__ = [
    "Adjustable",
    "Backend",
    "ContextEmbedding",
    "Embedder",
    "HybridBase",
    "HybridEmbedder",
    "Managed",
    "Prepared",
    "Replica",
    "Schedulable",
    "Token",
    "Tokenizing",
    "giving",
]

#: What runs a local model; see :func:`nimbed.load`.
Backend = Literal["auto", "torch", "onnxruntime"]


@runtime_checkable
class Embedder(Protocol):
    """Turns texts and images into vectors that carry their contract."""

    @property
    def card(self) -> ModelCard:
        """Facts about the model."""
        ...

    def spec(
        self,
        *,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        int8_scale: Int8Scale | None = None,
    ) -> VectorSpec:
        """Return the contract of what :meth:`embed` gives for these options; loads no weights.

        Raises:
            ConfigurationError: If the model cannot give such vectors.
        """
        ...

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
        """Embed inputs for one role.

        Args:
            inputs: Texts, :class:`nimbed.Image` values and (text, image) pairs; an empty list
                gives an empty batch. An image is a passage, never a query.
            input_type: ``query`` or ``passage``. It has no default: a query embedded as a
                passage is silently worse.
            embedding_type: How a dimension is stored.
            dimensions: One of the sizes the card offers; None for the full vector.
            truncate: What happens to an input that is too long: ``NONE`` raises an error that
                names its row, ``START`` and ``END`` cut the text at that end.
            int8_scale: ``even`` (default) or ``nim``, for int8 and uint8.
            modality: What every input must be; None takes each as its type says.
            progress: True for a bar on standard error, or a callable that gets (done, total).

        Returns:
            One vector per input, in the order of the inputs.

        Raises:
            ConfigurationError: If the model cannot give such vectors.
            InputError: If inputs are blank, malformed or too long (TooLongError); ``.rows`` has
                their numbers.
            BackendError: If the model or the server failed.
        """
        ...

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
        """Embed like :meth:`embed`, without blocking the event loop."""
        ...

    def close(self) -> None:
        """Release the weights or connections; may be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...


@runtime_checkable
class HybridEmbedder(Protocol):
    """An embedder that gives sparse vectors or multi-vectors, beside dense ones or alone."""

    @property
    def card(self) -> ModelCard:
        """Facts about the model."""
        ...

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors that the model gives; reads no weights."""
        ...

    def sparse_spec(self, *, max_active: int | None = None) -> SparseSpec:
        """Return the contract of sparse vectors; reads no weights.

        Raises:
            ConfigurationError: If the model gives none.
        """
        ...

    def multi_spec(
        self, *, token_type: TokenType = "float", pool_factor: int = 1
    ) -> MultiVectorSpec:
        """Return the contract of multi-vectors; reads no weights.

        Raises:
            ConfigurationError: If the model gives none, or none of that type.
        """
        ...

    def embed_kinds(
        self,
        inputs: Sequence[str],
        *,
        kinds: Sequence[Kind] | None = None,
        input_type: InputType,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        truncate: Truncate = "NONE",
        int8_scale: Int8Scale | None = None,
        max_active: int | None = None,
        token_type: TokenType = "float",
        pool_factor: int = 1,
        progress: Progress = False,
    ) -> EmbeddingKinds:
        """Embed texts as several kinds of vectors in one forward pass.

        Args:
            inputs: Texts; an empty list gives empty batches.
            kinds: Which kinds; None for all that the model gives.
            input_type: ``query`` or ``passage``.
            embedding_type: How a dimension of a dense vector is stored.
            dimensions: The size of a dense vector; None for the full one.
            truncate: As for :meth:`Embedder.embed`.
            int8_scale: ``even`` (default) or ``nim``, for dense int8 and uint8.
            max_active: The most tokens that a sparse vector keeps; None for all.
            token_type: How a dimension of a token's vector is stored.
            pool_factor: How many tokens of a passage share a vector on average, the mean of those
                that are alike; 1 for no pooling, which queries never are. Needs the extra
                ``pooling``.
            progress: As for :meth:`Embedder.embed`.

        Raises:
            ConfigurationError: If the model does not give one of the kinds, or not so.
            InputError: If texts are blank, malformed or too long; ``.rows`` has their numbers.
            BackendError: If the model or the server failed.
        """
        ...

    async def aembed_kinds(
        self,
        inputs: Sequence[str],
        *,
        kinds: Sequence[Kind] | None = None,
        input_type: InputType,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        truncate: Truncate = "NONE",
        int8_scale: Int8Scale | None = None,
        max_active: int | None = None,
        token_type: TokenType = "float",
        pool_factor: int = 1,
        progress: Progress = False,
    ) -> EmbeddingKinds:
        """Embed like :meth:`embed_kinds`, without blocking the event loop."""
        ...

    def embed_sparse(
        self,
        inputs: Sequence[str],
        *,
        input_type: InputType,
        truncate: Truncate = "NONE",
        max_active: int | None = None,
        progress: Progress = False,
    ) -> SparseBatch:
        """Embed texts as the weights of their tokens alone; see :meth:`embed_kinds`."""
        found = self.embed_kinds(
            inputs,
            kinds=("sparse",),
            input_type=input_type,
            truncate=truncate,
            max_active=max_active,
            progress=progress,
        ).sparse
        assert found is not None  # it was asked for
        return found

    def embed_multi(
        self,
        inputs: Sequence[str],
        *,
        input_type: InputType,
        truncate: Truncate = "NONE",
        token_type: TokenType = "float",
        pool_factor: int = 1,
        progress: Progress = False,
    ) -> MultiVectorBatch:
        """Embed texts as one vector a token alone; see :meth:`embed_kinds`."""
        found = self.embed_kinds(
            inputs,
            kinds=("multi",),
            input_type=input_type,
            truncate=truncate,
            token_type=token_type,
            pool_factor=pool_factor,
            progress=progress,
        ).multi
        assert found is not None  # it was asked for
        return found


class HybridBase(HybridEmbedder):
    """The calls for several kinds of vectors, on top of one that takes the options as values."""

    def embed_kinds(
        self,
        inputs: Sequence[str],
        *,
        kinds: Sequence[Kind] | None = None,
        input_type: InputType,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        truncate: Truncate = "NONE",
        int8_scale: Int8Scale | None = None,
        max_active: int | None = None,
        token_type: TokenType = "float",
        pool_factor: int = 1,
        progress: Progress = False,
    ) -> EmbeddingKinds:
        """Embed texts; see :meth:`HybridEmbedder.embed_kinds`."""
        asked = KindOptions(
            kinds=kinds, max_active=max_active, token_type=token_type, pool_factor=pool_factor
        )
        options = EmbedOptions(
            input_type=input_type,
            embedding_type=embedding_type,
            dimensions=dimensions,
            truncate=truncate,
            int8_scale=int8_scale,
            modality="text",
        )
        return self._embed_kinds(inputs, asked, options, progress)

    def _embed_kinds(
        self, inputs: Sequence[str], asked: KindOptions, options: EmbedOptions, progress: Progress
    ) -> EmbeddingKinds:
        raise NotImplementedError  # unless a class has an embed_kinds of its own

    async def aembed_kinds(self, inputs: Sequence[str], **options: Any) -> EmbeddingKinds:
        """Embed in a thread; see :meth:`embed_kinds` for the options."""
        return await asyncio.to_thread(self.embed_kinds, inputs, **options)


def giving(embedder: Embedder, kind: Literal["sparse", "multi"]) -> HybridEmbedder:
    """Return an embedder that gives a kind of vectors besides dense ones, or refuse it.

    Raises:
        ConfigurationError: If it does not.
    """
    offered: Sequence[Kind] = ("dense",)
    if isinstance(embedder, HybridEmbedder):
        offered = embedder.kinds
    KindOptions(kinds=(kind,)).chosen(offered, embedder.card.id)
    return cast(HybridEmbedder, embedder)


@runtime_checkable
class Adjustable(Protocol):
    """An embedder whose prompts and longest text can be changed without its weights."""

    def with_card(self, card: ModelCard) -> Embedder:
        """Return an embedder of the same weights, with the prompts and max_tokens of a card."""
        ...


class Managed:
    """Sync and async context management for embedders, on top of ``close``."""

    def close(self) -> None:
        """Release what the embedder holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Prepared:
    """Inputs that are checked, tokenized and ready for a device.

    Attributes:
        rows: What a replica embeds, one element an input.
        counts: Tokens of each.
        truncated: Row numbers of the inputs that were cut, ascending.
    """

    rows: Sequence[Any]
    counts: Sequence[int]
    truncated: Sequence[int]


class Replica(Protocol):
    """One copy of a model on one device."""

    @property
    def budget(self) -> int:
        """Tokens that fill the device at once."""
        ...

    @property
    def look_ahead(self) -> int:
        """Budgets of waiting rows to find similar lengths in; 1 where lengths do not matter."""
        ...

    @property
    def on_host(self) -> bool:
        """Whether it computes on the cores that requests are answered on."""
        ...

    def embed_rows(self, rows: Sequence[Any]) -> NDArray[np.float32]:
        """Return full float vectors, of shape (len(rows), dimensions), not normalised."""
        ...


@runtime_checkable
class Schedulable(Protocol):
    """An embedder that prepares inputs and runs the model in two separate steps.

    A :class:`nimbed.scheduling.Scheduler` puts its queue between the two: inputs are prepared in
    their caller's thread, and rows of many callers run on a device together.
    """

    def spec(
        self,
        *,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        int8_scale: Int8Scale | None = None,
    ) -> VectorSpec:
        """Return the contract of the vectors; see :meth:`Embedder.spec`."""
        ...

    def prepare(self, inputs: Sequence[Input], options: EmbedOptions) -> Prepared:
        """Check and tokenize inputs.

        Raises:
            ConfigurationError: If the model does not embed such inputs.
            InputError: If an input cannot be embedded; ``.rows`` has its number.
        """
        ...

    def replicas(self) -> Sequence[Replica]:
        """Return the copies of the model, weights loaded."""
        ...


class Token(NamedTuple):
    """One token of a text.

    Attributes:
        id: Its number in the model's vocabulary.
        text: How the vocabulary writes it.
        start: The first of its characters in the text that was read, prompt included.
        stop: The character behind its last; 0 like ``start`` where it is special.
        special: Whether it stands for no part of the text.
    """

    id: int
    text: str
    start: int
    stop: int
    special: bool


@runtime_checkable
class ContextEmbedding(Protocol):
    """An embedder whose ``embed`` takes chunks with the text around them: late chunking."""

    def require_context(self) -> None:
        """Raise a ConfigurationError that says why, if its model cannot."""
        ...


@runtime_checkable
class Tokenizing(Protocol):
    """An embedder that shows how its model reads a text, for those who cut texts to a length."""

    def tokenize(
        self, texts: Sequence[str], *, input_type: InputType | None = None, special: bool = True
    ) -> list[list[Token]]:
        """Return the tokens of texts, never cut.

        Args:
            texts: Strings.
            input_type: The role whose prompt is put before each; None for none.
            special: Whether the tokens that the model wants around a text are among them.

        Raises:
            InputError: If a text is too long to be tokenized, or the tokenizer gives up on it.
        """
        ...

    def detokenize(self, ids: Sequence[Sequence[int]], *, input_type: InputType) -> list[str]:
        """Return the texts whose tokens these are, special ones included and no prompt.

        Args:
            ids: Token ids of each text, none negative.
            input_type: The role that the texts will have.

        Raises:
            InputError: If this model's tokenizer makes other ids of every text; ``.rows`` names
                them. TooLongError, if they are more than the model reads.
        """
        ...
