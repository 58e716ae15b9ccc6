"""Heads over a network's token states: the weights of a text's tokens, and a vector a token.

Each is called with the states of one batch and gives what every text of it is, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from nimbed.batch import normalize, pool_tokens
from nimbed.errors import CheckpointError
from nimbed.local.batching import Layout
from nimbed.local.checkpoint import Checkpoint
from nimbed.local.device import Placement
from nimbed.local.head_config import (
    MASKED_MODELS,
    AutoEncoder,
    ColBert,
    Splade,
    TokenVectors,
    TokenWeights,
    read_special_ids,
)
from nimbed.local.linear import Dense, dense, read_affine
from nimbed.local.models.fields import real, whole
from nimbed.local.norms import LayerNorm
from nimbed.local.pooling import Module, invariant_product, pool, read_modules
from nimbed.local.tokenizer_config import read_vocabulary
from nimbed.local.weights import open_tensors
from nimbed.spec import InputType

__all__ = ["Heads", "MultiHead", "SparseHead", "TokenStates", "read_heads"]

# Words of a vocabulary that are scored at a time.
_WORDS = 2048

# What may stand before a network's names in a masked language model.
_PREFIXES = ("bert.", "distilbert.", "roberta.", "xlm_roberta.", "mpnet.", "model.")

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
    if isinstance(pipeline.multi, ColBert):
        return Heads(multi=_ColBert.read(checkpoint, pipeline.multi, placement))
    width = whole(checkpoint.config, "hidden_size")
    sparse: SparseHead | None = None
    multi: MultiHead | None = None
    if isinstance(pipeline.sparse, TokenWeights):
        unused = read_special_ids(checkpoint.folder)
        sparse = _M3Sparse.read(pipeline.sparse.path, width, placement, unused)
    elif isinstance(pipeline.sparse, Splade):
        sparse = _SpladeHead.read(checkpoint, pipeline.sparse, placement)
    elif isinstance(pipeline.sparse, AutoEncoder):
        sparse = _SparseAutoEncoder.read(checkpoint, pipeline.sparse, placement)
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


@dataclass(frozen=True, slots=True)
class _ColBert:
    """Each token's state through Dense modules, in float32; some words' tokens are left out."""

    modules: Sequence[Module]
    skipped: NDArray[np.int64]
    facts: ColBert

    @classmethod
    def read(cls, checkpoint: Checkpoint, facts: ColBert, placement: Placement) -> _ColBert:
        vocabulary = read_vocabulary(checkpoint.folder)
        # Words that are not one token cannot be left out; sentence-transformers does not either.
        skipped = [vocabulary[word] for word in facts.skipped if word in vocabulary]
        modules = read_modules(checkpoint.pipeline.modules, placement.device)
        return cls(modules, np.array(skipped, np.int64), facts)

    def __call__(self, batch: TokenStates, input_type: InputType) -> list[NDArray[np.float32]]:
        vectors = batch.states[: batch.layout.tokens].float()
        for module in self.modules:
            vectors = module(vectors)
        kept = np.ones(len(batch.ids), bool)
        if input_type in self.facts.skipped_in:
            kept = ~np.isin(batch.ids, self.skipped)
        ends = np.cumsum(batch.layout.lengths)[:-1]
        each = zip(np.split(vectors.cpu().numpy(), ends), np.split(kept, ends), strict=True)
        rows = [text[chosen] for text, chosen in each]
        pooling = self.facts.pooling
        if pooling is None or input_type not in pooling.roles:
            return rows
        factor, protected = pooling.factor, pooling.protected
        return [pool_tokens(normalize(row), factor, protected=protected) for row in rows]


@dataclass(frozen=True, slots=True)
class _SparseAutoEncoder:
    """One vector a text, as dense models have it, then relu((x - b)·Wᵀ + c), in float32.

    The formula is that of sentence-transformers' SparseAutoEncoder (CSR, arXiv 2503.01776), whose
    largest latents a batch keeps by its spec's ``max_active``.
    """

    how: Any
    modules: Sequence[Module]
    facts: AutoEncoder
    before: torch.Tensor
    product: Module

    @classmethod
    def read(
        cls, checkpoint: Checkpoint, facts: AutoEncoder, placement: Placement
    ) -> _SparseAutoEncoder:
        pipeline, device = checkpoint.pipeline, placement.device
        with torch.inference_mode(), open_tensors(facts.folder) as tensors:
            # The two are one tensor, which safetensors writes by either name.
            names = ("encoder.weight", "decoder.linear.weight")
            shapes = {
                next(filter(tensors.__contains__, names), names[0]): (facts.latents, facts.inputs),
                "latent_bias": (facts.latents,),
                "pre_bias": (facts.inputs,),
            }
            weight, bias, before = (
                tensors.get(name, *shape).to(device, torch.float32, copy=True)
                for name, shape in shapes.items()
            )
            modules = read_modules(pipeline.modules, device)
            product = invariant_product(weight, bias)
        return cls(pipeline.card_pooling, modules, facts, before, product)

    def __call__(self, batch: TokenStates, input_type: InputType) -> list[Weighted]:
        x = pool(batch.states, batch.layout, self.how)
        for module in self.modules:
            x = module(x)
        if self.facts.unit:
            x = F.normalize(x, dim=1)
        if self.facts.scaled:
            x = x - x.mean(1, keepdim=True)
            x = x / (x.std(1, keepdim=True) + 1e-5)
        latents = self.product(x - self.before).cpu().numpy()
        # Not ``latents > 0``, so that NaN is kept and refused.
        text, latent = np.nonzero(~(latents <= 0))
        ids, weights = latent.astype(np.int32), latents[text, latent]
        return _by_text(text, ids, weights, len(latents))


class _SpladeHead:
    """A masked language model's scores of the vocabulary, pooled over a text's tokens.

    The formulas are those of sentence-transformers' SpladePooling. The vocabulary is scored some
    words at a time, so that the scores of a batch, 120 MB for 1,024 tokens of BERT's 30,522 words,
    never lie in memory together: each part is pooled while it is in the cache.
    """

    def __init__(
        self, transform: Dense, norm: LayerNorm, parts: Sequence[Dense], config: Splade, unused: Any
    ) -> None:
        self._transform, self._norm, self._parts = transform, norm, parts
        self._config, self._unused = config, unused

    @classmethod
    def read(cls, checkpoint: Checkpoint, config: Splade, placement: Placement) -> _SpladeHead:
        facts, architecture = checkpoint.config, checkpoint.card.architecture
        names, width = MASKED_MODELS[architecture], whole(checkpoint.config, "hidden_size")
        modern, words = architecture == "modernbert", whole(facts, "vocab_size")
        fixed = 1e-5 if modern else 1e-12
        eps = real(facts, "norm_eps" if modern else "layer_norm_eps", default=fixed)
        if architecture == "distilbert":
            eps = fixed  # whatever its configuration says
        placement = placement.plain
        with torch.inference_mode(), open_tensors(checkpoint.folder) as stored:
            tensors = stored.stripped(*_PREFIXES)
            biased = not modern or bool(facts.get("classifier_bias"))
            transform = dense(
                *read_affine(tensors, {names.transform: width}, width, bias=biased), placement
            )
            shifted = not modern or bool(facts.get("norm_bias"))
            norm = LayerNorm.read(tensors, names.norm, width, placement, eps=eps, bias=shifted)
            own = facts.get("tie_word_embeddings") is False
            bias = None
            if not modern or facts.get("decoder_bias") is not False:
                biases = (f"{names.decoder}.bias", names.bias)
                either = biases if own else biases[::-1]  # the second is tied to the first
                bias = tensors.get(next(filter(tensors.__contains__, either), names.bias), words)
            table = f"{names.decoder if own else names.words}.weight"
            parts = [
                dense(
                    tensors.get(table, words, width, rows=slice(first, first + _WORDS)),
                    None if bias is None else bias[first : first + _WORDS],
                    placement,
                )
                for first in range(0, words, _WORDS)
            ]
        unused = [] if config.special else read_special_ids(checkpoint.folder, every=True)
        return cls(transform, norm, parts, config, np.array(unused, np.int64))

    def __call__(self, batch: TokenStates, input_type: InputType) -> list[Weighted]:
        layout = batch.layout
        x = self._norm(self._transform.gelu(batch.states.to(self._norm.weight.dtype)))
        texts, words, weights = [], [], []
        for number, part in enumerate(self._parts):
            pooled = self._pooled(part(x), layout).cpu().numpy()
            # Not ``pooled > 0``, so that NaN is kept and refused.
            at_text, at_word = np.nonzero(~(pooled <= 0))
            texts.append(at_text)
            words.append(at_word + number * _WORDS)
            weights.append(pooled[at_text, at_word])
        text, word, weight = map(np.concatenate, (texts, words, weights))
        kept = ~np.isin(word, self._unused)
        order = np.argsort(text[kept], kind="stable")  # of a text, the words ascend already
        ids = word[kept][order].astype(np.int32)
        return _by_text(text[kept][order], ids, weight[kept][order], len(layout.lengths))

    def _pooled(self, scores: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return float32 weights of shape (texts, words)."""
        largest = self._config.pooling == "max"
        pooled: list[torch.Tensor] = []
        for start, count, length in layout.groups:
            rows = scores[start : start + count * length].view(count, length, -1)
            # Logarithms keep the order, so that they are taken of the largest alone.
            pooled.append(rows.amax(1).float() if largest else self._weights(rows.float()).sum(1))
        together = torch.cat(pooled)
        return self._weights(together) if largest else together

    def _weights(self, scores: torch.Tensor) -> torch.Tensor:
        weights = scores.relu_()
        for _ in range(self._config.logarithms):
            weights = weights.log1p_()
        return weights


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
    return _by_text(texts, tokens.astype(np.int32), largest, len(lengths))


def _by_text(
    texts: NDArray[np.integer], ids: NDArray[np.int32], weights: NDArray[np.float32], count: int
) -> list[Weighted]:
    """Return for each of ``count`` texts its ids and weights, of which ``texts`` says whose."""
    ends = np.searchsorted(texts, np.arange(1, count))
    return list(zip(np.split(ids, ends), np.split(weights, ends), strict=True))


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
