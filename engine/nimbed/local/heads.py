"""Sparse and multi-vector heads: bge-m3's weight a token, and its vector a token.

Both are small linear layers over the same token states as the dense vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from nimbed.errors import CheckpointError, ConfigurationError
from nimbed.inputs import check_texts
from nimbed.local.checkpoint import Checkpoint
from nimbed.local.engine import Engine
from nimbed.local.models.fields import whole
from nimbed.local.plan import micro_batches
from nimbed.local.tokenizer import InputTokenizer
from nimbed.spec import Truncate, check_literal

__all__ = ["M3Heads", "SparseVector"]

# XLM-R's vocabulary begins with <s>, <pad>, </s> and <unk>, which carry no meaning to match.
_FIRST_WORD = 4


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """Weights of the tokens that a text is about.

    Attributes:
        ids: Token ids, int32, ascending.
        weights: Positive float32, one an id; the inner product of two texts is their score.
    """

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]


class _Linear(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.float(), self.weight, self.bias)


class M3Heads:
    """The sparse and the ColBERT head of a model whose encoder runs in an engine.

    Args:
        tokenizer: Of the model.
        engine: Gives the token states.
        sparse: One output a token.
        colbert: One vector a token.
    """

    def __init__(
        self, tokenizer: InputTokenizer, engine: Engine, *, sparse: _Linear, colbert: _Linear
    ) -> None:
        self._tokenizer = tokenizer
        self._engine = engine
        self._sparse = sparse
        self._colbert = colbert

    @classmethod
    def read(cls, checkpoint: Checkpoint, tokenizer: InputTokenizer, engine: Engine) -> M3Heads:
        """Read both heads from sparse_linear.pt and colbert_linear.pt.

        Raises:
            ConfigurationError: If the model has no such heads.
            CheckpointError: If a file is damaged or does not suit the model.
        """
        width, device = whole(checkpoint.config, "hidden_size"), engine.placement.device
        sparse = _read(checkpoint.folder / "sparse_linear.pt", 1, width, device)
        colbert = _read(checkpoint.folder / "colbert_linear.pt", width, width, device)
        return cls(tokenizer, engine, sparse=sparse, colbert=colbert)

    def sparse(
        self, inputs: Sequence[str], *, prompt: str, truncate: Truncate
    ) -> list[SparseVector]:
        """Return a sparse vector for each text.

        A token that occurs more than once counts once, with its largest weight.

        Raises:
            ConfigurationError: If an argument has no such value.
            InputError: If a text cannot be embedded.
        """
        ids = self._ids(inputs, prompt, truncate)
        vectors: dict[int, SparseVector] = {}
        for row, outputs in self._outputs(ids, self._sparse):
            tokens, weights = np.asarray(ids[row], np.int32), outputs[:, 0]
            meant = (tokens >= _FIRST_WORD) & (weights > 0)
            words, places = np.unique(tokens[meant], return_inverse=True)
            largest = np.zeros(len(words), np.float32)
            np.maximum.at(largest, places, weights[meant])
            vectors[row] = SparseVector(words, largest)
        return [vectors[row] for row in range(len(ids))]

    def colbert(
        self, inputs: Sequence[str], *, prompt: str, truncate: Truncate
    ) -> list[NDArray[np.float32]]:
        """Return unit vectors of shape (tokens - 1, width) for each text.

        The first token has none: its state is the dense vector.

        Raises:
            ConfigurationError: If an argument has no such value.
            InputError: If a text cannot be embedded.
        """
        ids = self._ids(inputs, prompt, truncate)
        vectors = {
            row: outputs[1:] / np.linalg.norm(outputs[1:], axis=1, keepdims=True)
            for row, outputs in self._outputs(ids, self._colbert)
        }
        return [vectors[row] for row in range(len(ids))]

    def _ids(self, inputs: Sequence[str], prompt: str, truncate: Truncate) -> list[list[int]]:
        check_literal("truncate", truncate, Truncate)
        texts = check_texts(inputs)
        return self._tokenizer.encode(texts, prompt=prompt, truncate=truncate).ids

    def _outputs(
        self, ids: Sequence[list[int]], head: _Linear
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for rows in micro_batches([len(row) for row in ids], budget=self._engine.budget):
            chosen = rows.tolist()
            with self._engine.current():
                states, layout = self._engine.states([ids[row] for row in chosen])
                outputs = head(states[: layout.tokens]).cpu().numpy()
            yield from zip(chosen, np.split(outputs, np.cumsum(layout.lengths)[:-1]), strict=True)


def _read(path: Path, outputs: int, inputs: int, device: torch.device) -> _Linear:
    if not path.is_file():
        raise ConfigurationError(
            f"{path.parent.name} gives one dense vector a text; {path.name}, which bge-m3 has for "
            f"more, is not in its folder"
        )
    try:
        linear = torch.load(path, map_location="cpu", weights_only=True)
        weight, bias = linear["weight"].float(), linear["bias"].float()
    except Exception as error:  # torch raises whatever the bytes provoke
        raise CheckpointError(f"{path} cannot be loaded safely: {error}") from error
    if weight.shape != (outputs, inputs) or bias.shape != (outputs,):
        raise CheckpointError(
            f"{path} has shapes {tuple(weight.shape)} and {tuple(bias.shape)}, expected "
            f"{(outputs, inputs)} and {(outputs,)}"
        )
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise CheckpointError(f"{path} holds NaN or infinity")
    return _Linear(weight.to(device), bias.to(device))
