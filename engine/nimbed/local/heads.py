"""Heads over a network's token states: the weights of a text's tokens, and a vector a token.

Each is called with the states of one batch and gives what every text of it is, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from nimbed.errors import CheckpointError
from nimbed.local.batching import Layout
from nimbed.local.checkpoint import Checkpoint
from nimbed.local.device import Placement
from nimbed.local.head_config import TokenVectors, TokenWeights
from nimbed.local.linear import Dense, dense
from nimbed.local.models.fields import whole
from nimbed.local.tokenizer_config import read_special_ids
from nimbed.spec import InputType

__all__ = ["Heads", "MultiHead", "SparseHead", "TokenStates", "read_heads"]

#: Token ids, ascending, and the weight of each.
Weighted = tuple[NDArray[np.int32], NDArray[np.float32]]


class TokenStates(NamedTuple):
    """What a network made of one batch.

    Attributes:
        ids: Token ids of all texts, end to end; of shape (layout.tokens,).
        states: Of shape (layout.rows, width), on the network's device and in its dtype.
        layout: Where each text lies in them.
    """

    ids: NDArray[np.int64]
    states: torch.Tensor
    layout: Layout


class SparseHead(Protocol):
    """Makes sparse vectors of token states."""

    def __call__(self, batch: TokenStates, input_type: InputType) -> list[Weighted]:
        """Return the ids and positive weights of each text."""
        ...


class MultiHead(Protocol):
    """Makes multi-vectors of token states."""

    def __call__(self, batch: TokenStates, input_type: InputType) -> list[NDArray[np.float32]]:
        """Return the vectors of each text, of shape (tokens, dimensions), of any length."""
        ...


class Heads(NamedTuple):
    """The heads that a model has."""

    sparse: SparseHead | None = None
    multi: MultiHead | None = None


def read_heads(checkpoint: Checkpoint, placement: Placement) -> Heads:
    """Read a checkpoint's heads onto a device.

    Raises:
        CheckpointError: If a file is damaged or does not suit the model.
    """
    pipeline = checkpoint.pipeline
    width = whole(checkpoint.config, "hidden_size")
    sparse = multi = None
    if isinstance(pipeline.sparse, TokenWeights):
        unused = read_special_ids(checkpoint.folder)
        sparse = _M3Sparse.read(pipeline.sparse.path, width, placement, unused)
    if isinstance(pipeline.multi, TokenVectors):
        weight, bias = _read_linear(pipeline.multi.path, width, width)
        multi = _M3Multi(dense(weight, bias, placement.plain), placement)
    return Heads(sparse, multi)


@dataclass(frozen=True, slots=True)
class _M3Sparse:
    """bge-m3's: of each token relu(x·w + b), of a token that occurs twice the larger.

    The formula is FlagEmbedding's ``_process_token_weights``.
    """

    linear: Dense
    unused: NDArray[np.int64]

    @classmethod
    def read(cls, path: Path, width: int, placement: Placement, unused: Sequence[int]) -> _M3Sparse:
        weight, bias = _read_linear(path, 1, width)
        # Outputs to fill a register: of a single one the sums might depend on the number of rows.
        # In float32, which costs one of a thousand outputs nothing.
        weight, bias = F.pad(weight, (0, 0, 0, 15)), F.pad(bias, (0, 15))
        linear = dense(weight, bias, Placement(placement.device, torch.float32))
        return cls(linear, np.array(unused, np.int64))

    def __call__(self, batch: TokenStates, input_type: InputType) -> list[Weighted]:
        outputs = self.linear(batch.states.float())[: batch.layout.tokens, 0].cpu().numpy()
        # Not ``outputs > 0``, so that NaN is kept and refused.
        meant = ~(outputs <= 0) & ~np.isin(batch.ids, self.unused)
        return _largest_of_each(batch.ids, outputs, meant, batch.layout.lengths)


@dataclass(frozen=True, slots=True)
class _M3Multi:
    """bge-m3's: a linear layer over every token but the first, whose state is the dense vector."""

    linear: Dense
    placement: Placement

    def __call__(self, batch: TokenStates, input_type: InputType) -> list[NDArray[np.float32]]:
        outputs = self.linear(batch.states.to(self.placement.dtype))[: batch.layout.tokens]
        vectors = outputs.float().cpu().numpy()
        return [text[1:] for text in np.split(vectors, np.cumsum(batch.layout.lengths)[:-1])]


def _largest_of_each(
    ids: NDArray[np.int64],
    weights: NDArray[np.float32],
    meant: NDArray[np.bool_],
    lengths: Sequence[int],
) -> list[Weighted]:
    """Return for each text its tokens that are meant, each once, with its largest weight."""
    texts = np.repeat(np.arange(len(lengths)), lengths)[meant]
    span = int(ids.max()) + 1
    found, places = np.unique(texts * span + ids[meant], return_inverse=True)
    largest = np.zeros(len(found), np.float32)
    np.maximum.at(largest, places, weights[meant])
    texts, tokens = np.divmod(found, span)
    ends = np.searchsorted(texts, np.arange(1, len(lengths)))
    each = zip(np.split(tokens.astype(np.int32), ends), np.split(largest, ends), strict=True)
    return list(each)


def _read_linear(path: Path, outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
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
    return weight, bias
