"""Llama and Mistral, bidirectional, and the decoders that share their layers.

A pre-norm transformer with rotary positions, grouped keys and a gated MLP, run over packed
sequences. The state dict is that of ``transformers.LlamaModel``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from nimbed.errors import CheckpointError
from nimbed.local.attention import attention_for
from nimbed.local.batching import Layout
from nimbed.local.device import Placement
from nimbed.local.linear import Affine, Dense, Gated, dense, gated
from nimbed.local.models.fields import heads_fit, only, real, whole
from nimbed.local.norms import RmsNorm
from nimbed.local.rope import Turn, rope_for
from nimbed.local.weights import Tensors

__all__ = ["Llama", "QueryScale"]

QueryScale = Callable[[Layout], torch.Tensor | None]

# Types whose very name says that their attention looks both ways.
_BIDIRECTIONAL = ("llama_bidirec", "bidir_mistral")


@dataclass(frozen=True, slots=True)
class _Layer:
    norm: RmsNorm
    qkv: Dense
    q_norm: RmsNorm | None
    k_norm: RmsNorm | None
    attended: Dense
    mlp_norm: RmsNorm
    gated: Gated
    down: Dense


class Llama:
    """A Llama or Mistral encoder on one device.

    Args:
        config: config.json of the checkpoint, or the part of it that describes this network.
        tensors: Its weights.
        placement: Device and dtype.
        query_scale: Gives a factor a row for the queries, of shape (rows,), or None for 1.
        causal: Whether a token sees its past alone; None refuses a network that was trained so.
        head_norms: Whether queries and keys are normalised head by head.

    Raises:
        CheckpointError: If a weight is missing or misshapen, the network is causal, or the
            configuration asks for something that this one does not do.
    """

    def __init__(
        self,
        config: dict[str, Any],
        tensors: Tensors,
        placement: Placement,
        *,
        query_scale: QueryScale | None = None,
        causal: bool | None = None,
        head_norms: bool = False,
    ) -> None:
        if causal is None:
            refuse_causal(config)
        only(config, hidden_act="silu")
        tensors = tensors.stripped("model.")
        width, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
        self._heads = heads
        self._key_heads = whole(config, "num_key_value_heads", default=heads)
        heads_fit(heads, self._key_heads)
        self._head_dim = (
            whole(config, "head_dim") if config.get("head_dim") else heads_fit(width, heads)
        )
        self._rope = rope_for(
            config, self._head_dim, device=placement.device, dtype=placement.dtype
        )
        self._query_scale = query_scale
        self._attention = attention_for(placement, causal=bool(causal))
        self.attentions = (self._attention,)
        self.vocabulary = whole(config, "vocab_size")
        self._words = tensors.placed(placement, "embed_tokens.weight", self.vocabulary, width)
        read = _Reader(config, tensors, placement)
        self._layers = [
            read.layer(f"layers.{number}", self._heads, self._key_heads, self._head_dim, head_norms)
            for number in range(whole(config, "num_hidden_layers"))
        ]
        last = read.norm("norm", before_product=False)
        # A layer ends with the sum that the next one's first norm takes.
        self._next_norms = [*(layer.norm for layer in self._layers[1:]), last]

    def __call__(self, ids: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return the normed states of the last layer.

        Args:
            ids: Packed token ids of shape (layout.rows,).
            layout: Where the sequences lie.

        Returns:
            Tensor of shape (layout.rows, width).
        """
        return self.encode(self.embed_tokens(ids), layout)

    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the input states of token ids, of shape (rows, width)."""
        return F.embedding(ids, self._words)

    def encode(self, x: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Run the layers over input states of shape (layout.rows, width), which it overwrites."""
        turn = self._rope.at(layout.positions)
        scale = self._query_scale(layout) if self._query_scale is not None else None
        normed = self._layers[0].norm(x)
        for layer, next_norm in zip(self._layers, self._next_norms, strict=True):
            q, k, v = self._projected(layer, layer.qkv(normed), turn, scale)
            attended = self._attention(q, k, v, layout)
            x, normed = layer.mlp_norm.after(layer.attended, attended, x)
            x, normed = next_norm.after(layer.down, layer.gated(normed), x)
        assert isinstance(normed, torch.Tensor)  # no product follows the last norm
        return normed

    def _projected(
        self, layer: _Layer, qkv: torch.Tensor, turn: Turn, scale: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        qkv = qkv.view(qkv.shape[0], -1, self._head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            for part, norm in (
                (qkv[:, : self._heads], layer.q_norm),
                (qkv[:, self._heads : self._heads + self._key_heads], layer.k_norm),
            ):
                part.copy_(norm.of_heads(part))
        turned = turn(qkv[:, : self._heads + self._key_heads])  # qkv itself, on CUDA
        q, k = turned[:, : self._heads], turned[:, self._heads :]
        if scale is not None:
            q.mul_(scale[:, None, None])
        return q, k, qkv[:, self._heads + self._key_heads :]


class _Reader:
    """Reads layers."""

    def __init__(self, config: dict[str, Any], tensors: Tensors, placement: Placement) -> None:
        self._tensors, self._placement = tensors, placement
        self._width = whole(config, "hidden_size")
        self._inner = whole(config, "intermediate_size")
        self._eps = real(config, "rms_norm_eps")
        self._attention_bias = bool(config.get("attention_bias"))
        self._mlp_bias = bool(config.get("mlp_bias"))

    def layer(self, at: str, heads: int, key_heads: int, head_dim: int, head_norms: bool) -> _Layer:
        queries, keys = heads * head_dim, key_heads * head_dim
        attention, mlp = f"{at}.self_attn", f"{at}.mlp"
        # Each product is read and laid out before the next is read: one is held twice, not all.
        return _Layer(
            norm=self.norm(f"{at}.input_layernorm"),
            qkv=self._joined(
                [
                    (f"{attention}.{x}_proj", n)
                    for x, n in zip("qkv", (queries, keys, keys), strict=True)
                ]
            ),
            q_norm=self._head_norm(f"{attention}.q_norm", head_dim) if head_norms else None,
            k_norm=self._head_norm(f"{attention}.k_norm", head_dim) if head_norms else None,
            attended=dense(
                *self._affine(f"{attention}.o_proj", self._width, queries, self._attention_bias),
                self._placement,
            ),
            mlp_norm=self.norm(f"{at}.post_attention_layernorm"),
            gated=gated(
                self._affine(f"{mlp}.gate_proj", self._inner, self._width, self._mlp_bias),
                self._affine(f"{mlp}.up_proj", self._inner, self._width, self._mlp_bias),
                "silu",
                self._placement,
            ),
            down=dense(
                *self._affine(f"{mlp}.down_proj", self._width, self._inner, self._mlp_bias),
                self._placement,
            ),
        )

    def _joined(self, outputs: list[tuple[str, int]]) -> Dense:
        parts = [self._affine(n, size, self._width, self._attention_bias) for n, size in outputs]
        biases = [part.bias for part in parts if part.bias is not None]
        weight = torch.cat([part.weight for part in parts])
        return dense(weight, torch.cat(biases) if biases else None, self._placement)

    def norm(self, name: str, *, before_product: bool = True) -> RmsNorm:
        return RmsNorm.read(
            self._tensors,
            name,
            self._width,
            self._placement,
            eps=self._eps,
            before_product=before_product,
        )

    def _head_norm(self, name: str, head_dim: int) -> RmsNorm:
        return RmsNorm.read(
            self._tensors, name, head_dim, self._placement, eps=self._eps, before_product=False
        )

    def _affine(self, name: str, outputs: int, inputs: int, bias: bool) -> Affine:
        weight = self._tensors.get(f"{name}.weight", outputs, inputs)
        return Affine(weight, self._tensors.get(f"{name}.bias", outputs) if bias else None)


def refuse_causal(config: dict[str, Any]) -> None:
    """Refuse a network whose tokens see only their past, or that may be one.

    A decoder's weights run through bidirectional attention without a fault and give vectors that
    mean nothing, so something in the configuration has to say that it was trained both ways.

    Raises:
        CheckpointError: If nothing says so.
    """
    kind = config.get("model_type")
    named = kind in _BIDIRECTIONAL or any(
        "bidirec" in str(name).lower() for name in config.get("architectures") or ()
    )
    causal = config.get("is_causal")
    if causal is False or (named and causal is None):
        return
    raise CheckpointError(
        f"config.json describes a causal {kind}, a text generator; nimbed runs embedding models "
        f"whose attention looks both ways. If this one was trained so, put "
        f'"is_causal": false into its config.json'
    )
