"""ModernBERT (gte-modernbert, nomic's modernbert-embed, granite-embedding r2).

A pre-norm encoder with rotary positions and a gated MLP. Most layers see the tokens around each
token alone; every third sees the whole text and turns its positions more slowly. The state dict is
that of ``transformers.ModernBertModel``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from nimbed.local.attention import Attention, attention_for
from nimbed.local.batching import LayeredModel, Layout
from nimbed.local.device import Placement
from nimbed.local.linear import Affine, Dense, Gated, dense, gated
from nimbed.local.models.fields import (
    FULL,
    SLIDING,
    gate_activation,
    heads_fit,
    modernbert_layers,
    modernbert_rotation,
    real,
    whole,
)
from nimbed.local.norms import LayerNorm
from nimbed.local.rope import Rope, rope_for
from nimbed.local.weights import Tensors

__all__ = ["ModernBert"]


@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str
    norm: LayerNorm | None
    qkv: Dense
    attended: Dense
    mlp_norm: LayerNorm
    gated: Gated
    down: Dense


class ModernBert(LayeredModel):
    """A ModernBERT encoder on one device.

    Args:
        config: config.json of the checkpoint.
        tensors: Its weights.
        placement: Device and dtype.

    Raises:
        CheckpointError: If a weight is missing or misshapen, or the configuration asks for
            something that this network does not do.
    """

    def __init__(self, config: dict[str, Any], tensors: Tensors, placement: Placement) -> None:
        tensors = tensors.stripped("model.")
        width, inner = whole(config, "hidden_size"), whole(config, "intermediate_size")
        self._heads = whole(config, "num_attention_heads")
        head_dim = heads_fit(width, self._heads)
        activation = gate_activation(config)
        eps = real(config, "norm_eps", default=1e-5)

        def norm(name: str) -> LayerNorm:
            bias = bool(config.get("norm_bias"))
            return LayerNorm.read(tensors, name, width, placement, eps=eps, bias=bias)

        def affine(name: str, outputs: int, inputs: int, bias: str) -> Affine:
            weight = tensors.get(f"{name}.weight", outputs, inputs)
            return Affine(
                weight, tensors.get(f"{name}.bias", outputs) if config.get(bias) else None
            )

        def product(name: str, outputs: int, inputs: int, bias: str) -> Dense:
            return dense(*affine(name, outputs, inputs, bias), placement)

        kinds = modernbert_layers(config)
        self._ropes: dict[str, Rope] = {
            kind: rope_for(
                modernbert_rotation(config, kind),
                head_dim,
                device=placement.device,
                dtype=placement.dtype,
            )
            for kind in set(kinds)
        }
        self._attention: dict[str, Attention] = {
            FULL: attention_for(placement),
            # Half of it lies on either side.
            SLIDING: attention_for(
                placement, window=whole(config, "local_attention", default=128) // 2
            ),
        }
        self.attentions = tuple(self._attention[kind] for kind in set(kinds))
        self.vocabulary = whole(config, "vocab_size")
        self._words = tensors.placed(
            placement, "embeddings.tok_embeddings.weight", self.vocabulary, width
        )
        self._norm = norm("embeddings.norm")
        self._layers: list[_Layer] = []
        for number, kind in enumerate(kinds):
            at = f"layers.{number}"
            joined = affine(f"{at}.mlp.Wi", 2 * inner, width, "mlp_bias")
            gate, up = joined.split(2)
            self._layers.append(
                _Layer(
                    kind=kind,
                    norm=norm(f"{at}.attn_norm") if number else None,
                    qkv=product(f"{at}.attn.Wqkv", 3 * width, width, "attention_bias"),
                    attended=product(f"{at}.attn.Wo", width, width, "attention_bias"),
                    mlp_norm=norm(f"{at}.mlp_norm"),
                    gated=gated(gate, up, activation, placement),
                    down=product(f"{at}.mlp.Wo", width, inner, "mlp_bias"),
                )
            )
        self._last_norm = norm("final_norm")

    def layers(self, ids: torch.Tensor, layout: Layout) -> Iterator[torch.Tensor]:
        """Yield what each layer begins with, and the normed states of the last.

        The next layer may overwrite them.
        """
        turns = {kind: rope.at(layout.positions) for kind, rope in self._ropes.items()}
        x = self._norm(F.embedding(ids, self._words))
        for layer in self._layers:
            yield x
            normed = x if layer.norm is None else layer.norm(x)
            qkv = layer.qkv(normed).view(layout.rows, 3 * self._heads, -1)
            turned = turns[layer.kind](qkv[:, : 2 * self._heads])
            attended = self._attention[layer.kind](
                turned[:, : self._heads],
                turned[:, self._heads :],
                qkv[:, 2 * self._heads :],
                layout,
            )
            x = layer.attended.plus(attended, x)
            x = layer.down.plus(layer.gated(layer.mlp_norm(x)), x)
        yield self._last_norm(x)
