"""One vector a sequence out of packed token states, in float32, and the modules around it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from nimbed.cards import Pooling
from nimbed.errors import CheckpointError
from nimbed.local import kernels
from nimbed.local.attention import Attention
from nimbed.local.batching import LayeredModel, Layout, padded_total
from nimbed.local.device import Placement
from nimbed.local.linear import dense
from nimbed.local.pipeline import DenseModule, LayerWeights, NormModule
from nimbed.local.weights import Tensors, open_tensors

__all__ = ["Module", "WeightedLayers", "invariant_product", "pool", "read_modules"]

Module = Callable[[torch.Tensor], torch.Tensor]

_ACTIVATIONS: dict[str, Module] = {
    "Tanh": torch.tanh,
    "ReLU": F.relu,
    "GELU": F.gelu,
    "Sigmoid": torch.sigmoid,
    "SiLU": F.silu,
    "LeakyReLU": F.leaky_relu,
    "ELU": F.elu,
}


def pool(hidden: torch.Tensor, layout: Layout, how: Pooling | tuple[Pooling, ...]) -> torch.Tensor:
    """Pool packed token states.

    The formulas are those of sentence-transformers' Pooling module. ``latent`` is the mean:
    NV-Embed's model has done the rest before.

    Args:
        hidden: States of shape (layout.rows, width), any float dtype.
        layout: Where the sequences lie, and which of their rows are pooled.
        how: One way, or several whose vectors are joined.

    Returns:
        float32 of shape (sequences, width times the number of ways).
    """
    if isinstance(how, str):
        return _pooled(hidden, layout, how)
    return torch.cat([_pooled(hidden, layout, each) for each in how], dim=1)


def _pooled(hidden: torch.Tensor, layout: Layout, how: Pooling) -> torch.Tensor:
    if how == "cls":
        return hidden[layout.firsts].float()
    if how == "lasttoken":
        return hidden[layout.ends - 1].float()
    # Sums in float32: in bfloat16 a mean over 500 tokens would lose four bits.
    if how in ("mean", "latent"):
        if kernels.usable(hidden.device):
            from nimbed.local.kernels.fused import mean_rows

            return mean_rows(hidden, layout.firsts, layout.ends)
        states = hidden[: layout.tokens].float()
        if not layout.skips and hidden.is_cpu and layout.groups:
            return _by_group(states, layout)
        if not layout.skips:
            return _reduced(states, layout, "mean")
        return _reduced(_without_skipped(states, layout), layout, "sum") / _counts(layout)
    states = hidden[: layout.tokens].float()
    if how == "max":
        return _reduced(_without_skipped(states, layout, float("-inf")), layout, "max")
    states = _without_skipped(states, layout)
    if how == "mean_sqrt_len_tokens":
        return _reduced(states, layout, "sum") / _counts(layout).sqrt()
    weights = _without_skipped(layout.positions[: layout.tokens, None].float() + 1, layout)
    return _reduced(states * weights, layout, "sum") / _reduced(weights, layout, "sum")


def _reduced(states: torch.Tensor, layout: Layout, how: str) -> torch.Tensor:
    return torch.segment_reduce(states, how, offsets=layout.offsets.long(), axis=0)


def _counts(layout: Layout) -> torch.Tensor:
    return (layout.ends - layout.firsts).clamp_min(1)[:, None].float()


def _without_skipped(states: torch.Tensor, layout: Layout, instead: float = 0.0) -> torch.Tensor:
    """Replace what is not pooled; asks the device for no value, so that a graph can hold it."""
    if not layout.skips:
        return states
    firsts = torch.repeat_interleave(
        layout.firsts - layout.starts,
        layout.offsets.long().diff(),
        output_size=layout.tokens,
    )
    skipped = layout.positions[: layout.tokens] < firsts
    return states.masked_fill(skipped[:, None], instead)


def _by_group(states: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Take the means of equally long neighbours at once: 2 to 20 times as fast on the CPU."""
    means = [
        states[start : start + count * length].view(count, length, -1).mean(1)
        for start, count, length in layout.groups
    ]
    return torch.cat(means)


class WeightedLayers:
    """A network that gives a weighted mean of its layers' states in place of the last layer's.

    The formula is that of sentence-transformers' WeightedLayerPooling: the sum of the states, each
    times its layer's weight, over the sum of the weights.

    Args:
        model: The network.
        layers: Which layers count, and where their weights are.

    Raises:
        CheckpointError: If the weights are missing, misshapen, damaged, or sum to nothing.
    """

    def __init__(self, model: LayeredModel, layers: LayerWeights) -> None:
        self._model, self._first = model, layers.first
        with open_tensors(layers.folder) as tensors:
            stored = tensors.get("layer_weights", layers.last + 1 - layers.first).double()
        total = float(stored.sum())
        if total == 0:
            raise CheckpointError(f"{layers.folder}: the layer_weights sum to zero")
        # Numbers, not a tensor: the device is asked for none of them.
        self._shares: list[float] = (stored / total).tolist()

    @property
    def vocabulary(self) -> int:
        """How many token ids it knows."""
        return self._model.vocabulary

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """What its layers attend with."""
        return self._model.attentions

    def __call__(self, ids: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return float32 states of shape (layout.rows, width) for ids of shape (layout.rows,)."""
        counted = itertools.islice(self._model.layers(ids, layout), self._first, None)
        # A product apart from its sum: as one operation some rows would be rounded twice, others
        # once, by their place in the batch.
        return functools.reduce(
            torch.Tensor.add_,
            (share * states.float() for share, states in zip(self._shares, counted, strict=True)),
        )


def read_modules(modules: Sequence[DenseModule | NormModule], device: torch.device) -> list[Module]:
    """Read what follows the pooling; it runs in float32, since a vector is little work.

    Raises:
        CheckpointError: If weights are missing, misshapen or damaged.
    """
    made: list[Module] = []
    for module in modules:
        with open_tensors(module.folder) as tensors:
            if isinstance(module, DenseModule):
                made.append(_dense(module, tensors, device))
            else:
                made.append(_norm(module, tensors, device))
    return made


def _dense(module: DenseModule, tensors: Tensors, device: torch.device) -> Module:
    def get(name: str, *shape: int) -> torch.Tensor:
        return tensors.get(name, *shape).to(device, torch.float32, copy=True)

    weight = get("linear.weight", module.outputs, module.inputs)
    if not module.bias and "linear.bias" in tensors:
        raise CheckpointError(f"{module.folder} has a bias that its config.json denies")
    bias = get("linear.bias", module.outputs) if module.bias else None
    product = invariant_product(weight, bias)
    projection = None
    if module.residual and module.inputs != module.outputs:
        projection = invariant_product(get("residual.weight", module.outputs, module.inputs), None)

    def dense_module(x: torch.Tensor) -> torch.Tensor:
        out = product(x)
        out = out if module.activation == "Identity" else _ACTIVATIONS[module.activation](out)
        if not module.residual:
            return out
        return out + (x if projection is None else projection(x))

    return dense_module


def invariant_product(weight: torch.Tensor, bias: torch.Tensor | None) -> Module:
    """Return x·Wᵀ + b, the same to the bit whatever else a batch holds.

    A plain product chooses its algorithm, and so its sums, by the number of rows; the one that the
    network has gives every row the same in whole blocks of rows.
    """
    made = dense(weight, bias, Placement(weight.device, torch.float32))
    if not weight.is_cpu:
        return made

    def product(x: torch.Tensor) -> torch.Tensor:
        return made(F.pad(x, (0, 0, 0, padded_total(len(x), x.device) - len(x))))[: len(x)]

    return product


def _norm(module: NormModule, tensors: Tensors, device: torch.device) -> Module:
    weight, bias = (
        tensors.get(f"norm.{name}", module.width).to(device, torch.float32, copy=True)
        for name in ("weight", "bias")
    )
    return lambda x: F.layer_norm(x, (module.width,), weight, bias, 1e-5)
