"""BERT (MiniLM, E5, arctic-embed, BGE), RoBERTa, MPNet and DistilBERT, which share its layers.

A post-norm transformer with learnt positions, run over packed sequences. The state dicts are those
of ``transformers.BertModel`` and its kin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from nimbed.errors import ConfigurationError
from nimbed.local.attention import Attention, DistanceBias, attention_for
from nimbed.local.batching import LayeredModel, Layout
from nimbed.local.device import Placement
from nimbed.local.linear import Dense, dense
from nimbed.local.models.fields import (
    DISTILBERT_NAMES,
    MPNET_BUCKETS,
    MPNET_NAMES,
    first_position,
    heads_fit,
    mpnet_buckets,
    real,
    whole,
)
from nimbed.local.norms import LayerNorm
from nimbed.local.weights import Tensors

__all__ = ["Bert", "distilbert", "mpnet", "xlm_roberta"]


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: Dense
    attended: Dense
    attended_norm: LayerNorm
    up: Dense
    down: Dense
    down_norm: LayerNorm

    def __call__(
        self, x: torch.Tensor, layout: Layout, attention: Attention, heads: int
    ) -> torch.Tensor:
        q, k, v = self.qkv(x).view(layout.rows, 3, heads, -1).unbind(1)
        x = self.attended_norm.after(self.attended, attention(q, k, v, layout), x)
        return self.down_norm.after(self.down, self.up.gelu(x), x)


class Bert(LayeredModel):
    """A BERT encoder on one device.

    Args:
        config: config.json of the checkpoint.
        tensors: Its weights.
        placement: Device and dtype.
        padding: Token id that takes no position, and the row of the position table that it takes
            instead; those behind it are the positions. None if there is no such id.
        bias: What every layer adds to its scores.

    Raises:
        CheckpointError: If a weight is missing or misshapen, or the configuration asks for
            something a BERT encoder does not do.
    """

    def __init__(
        self,
        config: dict[str, Any],
        tensors: Tensors,
        placement: Placement,
        *,
        padding: int | None = None,
        bias: DistanceBias | None = None,
    ) -> None:
        tensors = tensors.stripped("bert.")
        self._placement = placement
        self._heads = whole(config, "num_attention_heads")
        width, eps = whole(config, "hidden_size"), real(config, "layer_norm_eps", default=1e-12)
        heads_fit(width, self._heads)
        self._attention = attention_for(placement, bias=bias, head_dim=width // self._heads)
        self.attentions = (self._attention,)

        def norm(name: str) -> LayerNorm:
            return LayerNorm.read(tensors, name, width, placement, eps=eps)

        def product(name: str, outputs: int, inputs: int) -> Dense:
            weight = tensors.get(f"{name}.weight", outputs, inputs)
            return dense(weight, tensors.get(f"{name}.bias", outputs), placement)

        def fused(names: list[str]) -> Dense:
            weight = torch.cat([tensors.get(f"{name}.weight", width, width) for name in names])
            bias = torch.cat([tensors.get(f"{name}.bias", width) for name in names])
            return dense(weight, bias, placement)

        def table(name: str, size: int) -> torch.Tensor:
            return tensors.placed(placement, f"embeddings.{name}_embeddings.weight", size, width)

        self.vocabulary = whole(config, "vocab_size")
        self._words = table("word", self.vocabulary)
        positions = tensors.get(
            "embeddings.position_embeddings.weight",
            whole(config, "max_position_embeddings"),
            width,
        ).float()
        # Every token is of type 0, so its embedding is added to the positions once, here.
        if config.get("type_vocab_size") != 0:
            types = whole(config, "type_vocab_size", default=2)
            name = "embeddings.token_type_embeddings.weight"
            positions = positions + tensors.get(name, types, width)[0].float()
        self._padding = padding
        self._learnt = len(positions) - (0 if padding is None else padding + 1)
        self._positions = positions.to(placement.device, placement.dtype, copy=True)
        self._norm = norm("embeddings.LayerNorm")
        inner = whole(config, "intermediate_size")
        self._layers: list[_Layer] = []
        for number in range(whole(config, "num_hidden_layers")):
            at = f"encoder.layer.{number}"
            own = f"{at}.attention.self"
            self._layers.append(
                _Layer(
                    qkv=fused([f"{own}.query", f"{own}.key", f"{own}.value"]),
                    attended=product(f"{at}.attention.output.dense", width, width),
                    attended_norm=norm(f"{at}.attention.output.LayerNorm"),
                    up=product(f"{at}.intermediate.dense", inner, width),
                    down=product(f"{at}.output.dense", width, inner),
                    down_norm=norm(f"{at}.output.LayerNorm"),
                )
            )

    def layers(self, ids: torch.Tensor, layout: Layout) -> Iterator[torch.Tensor]:
        """Yield what the layers begin with, and the states of each; see :meth:`__call__`.

        The next layer may overwrite them.
        """
        if layout.longest > self._learnt:
            raise ConfigurationError(
                f"the model learnt {self._learnt} positions, a text has {layout.longest} "
                f"tokens; lower max_tokens on the model's card"
            )
        positions = layout.positions
        if self._padding is not None:
            positions = _positions_without(self._padding, ids, positions)
        x = F.embedding(ids, self._words) + F.embedding(positions, self._positions)
        x = self._norm(x)
        yield x
        for layer in self._layers:
            x = layer(x, layout, self._attention, self._heads)
            yield x


def _positions_without(padding: int, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Count a text's tokens as fairseq does, which skips the padding id wherever it stands.

    A text may hold the word "<pad>". Positions begin behind the id; it takes its own number as its
    row. The source is transformers' ``create_position_ids_from_input_ids``.
    """
    counted = (ids != padding).long()
    ends = counted.cumsum(0)
    first = torch.arange(len(ids), device=ids.device) - positions  # row of the text's first token
    before = ends[first] - counted[first]
    return (ends - before) * counted + padding


def xlm_roberta(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Bert:
    """Read a RoBERTa, CamemBERT or XLM-R encoder: its positions begin behind the padding id.

    bge-m3, multilingual-e5, all-distilroberta.
    """
    return Bert(
        config,
        tensors.stripped("roberta.", "xlm_roberta."),
        placement,
        padding=first_position(config) - 1,
    )


def mpnet(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Bert:
    """Read an MPNet encoder (all-mpnet-base-v2): it has a bias for the distance between tokens."""
    tensors = tensors.stripped("mpnet.", renamed=MPNET_NAMES)
    first = first_position(config)
    longest = whole(config, "max_position_embeddings") - first
    table = tensors.placed(
        Placement(placement.device, torch.float32),
        "encoder.relative_attention_bias.weight",
        MPNET_BUCKETS,
        whole(config, "num_attention_heads"),
    )
    buckets = torch.from_numpy(mpnet_buckets(longest)).to(placement.device)
    added = table[buckets].t().contiguous()
    return Bert(
        {**config, "type_vocab_size": 0},
        tensors,
        placement,
        padding=first - 1,
        bias=DistanceBias(added.to(placement.dtype) if placement.device.type == "cuda" else added),
    )


def distilbert(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Bert:
    """Read a DistilBERT encoder (distiluse): it has no token types, and other names."""
    tensors = tensors.stripped("distilbert.", renamed=DISTILBERT_NAMES)
    return Bert({**config, "type_vocab_size": 0}, tensors, placement)
