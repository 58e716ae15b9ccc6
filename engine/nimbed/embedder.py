"""The contract that local, remote and fake embedders fulfil."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, runtime_checkable

from nimbed.batch import EmbeddingBatch
from nimbed.cards import Modality, ModelCard
from nimbed.inputs import Input
from nimbed.progress import Progress
from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate, VectorSpec

__all__ = ["Embedder", "Managed"]


@runtime_checkable
class Embedder(Protocol):
    """Turns inputs into vectors that carry their contract."""

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
        """Return what :meth:`embed` with the same options will promise; loads no weights.

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
            truncate: What happens to an input that is too long: ``NONE`` raises and names its
                row, ``START`` and ``END`` cut there.
            int8_scale: ``even`` (default) or ``nim``, for int8 and uint8.
            modality: What every input is; None tells it by the type of each.
            progress: True for a bar on standard error, or a callable told (done, total).

        Returns:
            One vector an input, in the order of the inputs.

        Raises:
            ConfigurationError: If the model cannot give such vectors.
            InputError: If inputs are blank, malformed or too long (TooLongError); ``.rows`` names
                them.
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
        """Do what :meth:`embed` does without blocking the event loop."""
        ...

    def close(self) -> None:
        """Release weights or connections; may be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...


class Managed:
    """Context management for embedders, sync and async, on top of ``close``."""

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
