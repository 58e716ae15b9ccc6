"""The two halves of embedding that a scheduler puts its queue between.

Preparing (checking, tokenizing) happens in the caller's thread; running happens on a device, with
rows of many callers together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from nimbed.inputs import Input, Modality
from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate, VectorSpec

__all__ = ["Observer", "Prepared", "Replica", "Staged"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Inputs that are ready for the device.

    Attributes:
        rows: What a replica understands, one an input.
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
class Staged(Protocol):
    """An embedder whose halves can be called apart."""

    def spec(
        self,
        *,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        int8_scale: Int8Scale | None = None,
    ) -> VectorSpec:
        """Return the contract of the vectors."""
        ...

    def prepare(
        self,
        inputs: Sequence[Input],
        *,
        input_type: InputType,
        truncate: Truncate = "NONE",
        modality: Modality | None = None,
    ) -> Prepared:
        """Check and tokenize inputs.

        Raises:
            ConfigurationError: If the model does not embed such inputs.
            InputError: If an input cannot be embedded; ``.rows`` names it.
        """
        ...

    def replicas(self) -> Sequence[Replica]:
        """Return the copies of the model, weights loaded."""
        ...


class Observer(Protocol):
    """Told how long each half takes, from any thread."""

    def tokenized(self, seconds: float) -> None:
        """Note how long the inputs of one request took to prepare."""
        ...

    def ran(
        self, *, items: int, tokens: int, waited: float, longest: float, seconds: float
    ) -> None:
        """Note a batch.

        Args:
            items: Its inputs.
            tokens: Their tokens.
            waited: Their waits in the queue, in sum; seconds.
            longest: The longest of these waits.
            seconds: How long it ran.
        """
        ...
