"""Encoders like BERT whose positions are rotations: GTE's, NomicBERT, Jina's third.

A post-norm transformer over packed sequences, with a plain or a gated MLP. The state dicts are
those of ``transformers.GteModel``, ``NomicBertModel`` and ``JinaEmbeddingsV3Model``, under the
names of the publishers' own code or under transformers'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from nimbed.local.attention import Attention, attention_for
from nimbed.local.batching import Layout
from nimbed.local.device import Placement
from nimbed.local.linear import Affine, Dense, Gated, dense, gated
from nimbed.local.models.fields import gate_activation, heads_fit, only, real, whole
from nimbed.local.norms import LayerNorm
from nimbed.local.rope import Turn, rope_for
from nimbed.local.weights import Tensors

__all__ = ["gte", "jina_v3", "nomic_bert"]

_GTE = {
    "encoder.layer.": "layers.",
    ".attention.": ".self_attn.",
    "attn_ln.": "post_attention_layernorm.",
    "mlp_ln.": "post_mlp_layernorm.",
}
_FLASH = {
    "encoder.layers.": "layers.",
    "emb_ln.": "embeddings.LayerNorm.",
    ".attn.Wqkv.": ".self_attn.qkv_proj.",
    ".attn.out_proj.": ".self_attn.o_proj.",
    ".mixer.Wqkv.": ".self_attn.qkv_proj.",
    ".mixer.out_proj.": ".self_attn.o_proj.",
    ".norm1.": ".post_attention_layernorm.",
    ".norm2.": ".post_mlp_layernorm.",
}
_NOMIC = {"mlp.fc11.": "mlp.up_proj.", "mlp.fc12.": "mlp.gate_proj.", "mlp.fc2.": "mlp.down_proj."}

_Mlp = Gated | Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: Dense
    attended: Dense
    attended_norm: LayerNorm
    mlp: _Mlp
    down: Dense
    down_norm: LayerNorm

    def __call__(
        self, x: torch.Tensor, turn: Turn, layout: Layout, attention: Attention, heads: int
    ) -> torch.Tensor:
        qkv = self.qkv(x).view(layout.rows, 3 * heads, -1)
        turned = turn(qkv[:, : 2 * heads])  # qkv itself, on CUDA
        attended = attention(turned[:, :heads], turned[:, heads:], qkv[:, 2 * heads :], layout)
        x = self.attended_norm.after(self.attended, attended, x)
        return self.down_norm.after(self.down, self.mlp(x), x)


class RotaryBert:
    """A post-norm encoder with rotary positions on one device.

    Args:
        config: config.json of the checkpoint, with ``rope_theta`` or ``rope_parameters``.
        tensors: Its weights, under transformers' names.
        placement: Device and dtype.
        attention_bias: Whether the products around attention have biases.
        up_bias: Whether those into the MLP have.
        down_bias: Whether the one out of it has.
        is_gated: Whether the MLP multiplies two products of its input.

    Raises:
        CheckpointError: If a weight is missing or misshapen, or the configuration asks for
            something that this network does not do.
    """

    def __init__(
        self,
        config: dict[str, Any],
        tensors: Tensors,
        placement: Placement,
        *,
        attention_bias: bool = True,
        up_bias: bool = True,
        down_bias: bool = True,
        is_gated: bool = False,
    ) -> None:
        self._attention = attention_for(placement)
        self.attentions = (self._attention,)
        self._heads = whole(config, "num_attention_heads")
        width, inner = whole(config, "hidden_size"), whole(config, "intermediate_size")
        head_dim = heads_fit(width, self._heads)
        eps = real(config, "layer_norm_eps", default=1e-12)
        activation = gate_activation(config) if is_gated else "gelu"
        self._rope = rope_for(config, head_dim, device=placement.device, dtype=placement.dtype)

        def norm(name: str) -> LayerNorm:
            return LayerNorm.read(tensors, name, width, placement, eps=eps)

        def affine(name: str, outputs: int, inputs: int, bias: bool) -> Affine:
            weight = tensors.get(f"{name}.weight", outputs, inputs)
            return Affine(weight, tensors.get(f"{name}.bias", outputs) if bias else None)

        def joined(at: str, name: str, parts: list[str], size: int, bias: bool) -> list[Affine]:
            """Read products of one input, stored apart or as one."""
            if f"{at}.{name}.weight" not in tensors:
                return [affine(f"{at}.{part}", size, width, bias) for part in parts]
            return affine(f"{at}.{name}", len(parts) * size, width, bias).split(len(parts))

        def qkv(at: str) -> Dense:
            parts = joined(at, "qkv_proj", ["q_proj", "k_proj", "v_proj"], width, attention_bias)
            biases = [part.bias for part in parts if part.bias is not None]
            weight = torch.cat([part.weight for part in parts])
            return dense(weight, torch.cat(biases) if biases else None, placement)

        def mlp(at: str) -> _Mlp:
            if not is_gated:
                return dense(*affine(f"{at}.fc1", inner, width, up_bias), placement).gelu
            up, gate = joined(at, "up_gate_proj", ["up_proj", "gate_proj"], inner, up_bias)
            return gated(gate, up, activation, placement)

        self.vocabulary = whole(config, "vocab_size")
        words = "embeddings.word_embeddings.weight"
        self._words = tensors.placed(placement, words, self.vocabulary, width)
        self._type: torch.Tensor | None = None  # every token is of type 0
        if config.get("type_vocab_size", 1):
            types = whole(config, "type_vocab_size", default=1)
            name = "embeddings.token_type_embeddings.weight"
            self._type = tensors.placed(placement, name, types, width)[0]
        self._norm = norm("embeddings.LayerNorm")
        self._layers: list[_Layer] = []
        for number in range(whole(config, "num_hidden_layers")):
            at = f"layers.{number}"
            down = f"{at}.mlp.down_proj" if is_gated else f"{at}.mlp.fc2"
            self._layers.append(
                _Layer(
                    qkv=qkv(f"{at}.self_attn"),
                    attended=dense(
                        *affine(f"{at}.self_attn.o_proj", width, width, attention_bias), placement
                    ),
                    attended_norm=norm(f"{at}.post_attention_layernorm"),
                    mlp=mlp(f"{at}.mlp"),
                    down=dense(*affine(down, width, inner, down_bias), placement),
                    down_norm=norm(f"{at}.post_mlp_layernorm"),
                )
            )

    def __call__(self, ids: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return the last layer's states.

        Args:
            ids: Packed token ids of shape (layout.rows,).
            layout: Where the sequences lie.

        Returns:
            Tensor of shape (layout.rows, width).
        """
        turn = self._rope.at(layout.positions)
        x = F.embedding(ids, self._words)
        x = self._norm(x if self._type is None else x.add_(self._type))
        for layer in self._layers:
            x = layer(x, turn, layout, self._attention, self._heads)
        return x


def gte(config: dict[str, Any], tensors: Tensors, placement: Placement) -> RotaryBert:
    """Read Alibaba's "new" encoder (gte-v1.5, gte-multilingual, arctic-embed-m-v2)."""
    tensors = tensors.stripped("new.", "gte.", renamed=_GTE)
    config = {"rope_theta": 160000.0 if config["model_type"] == "gte" else 10000.0, **config}
    return RotaryBert(config, tensors, placement, up_bias=False, is_gated=True)


def nomic_bert(config: dict[str, Any], tensors: Tensors, placement: Placement) -> RotaryBert:
    """Read a NomicBERT encoder (nomic-embed-text-v1 and v1.5)."""
    tensors = tensors.stripped("bert.", "nomic_bert.", renamed={**_FLASH, **_NOMIC})
    own = {"swiglu": "silu", "geglu": "gelu"}.get(config.get("activation_function", ""))
    activation = own or config.get("hidden_act", "silu")
    head_dim = heads_fit(whole(config, "hidden_size"), whole(config, "num_attention_heads"))
    only(config, head_dim=head_dim)
    return RotaryBert(
        {"rope_theta": 1000.0, "type_vocab_size": 2, **config, "hidden_act": activation},
        tensors,
        placement,
        attention_bias=config.get("qkv_proj_bias", False),
        up_bias=config.get("mlp_fc1_bias", False),
        down_bias=config.get("mlp_fc2_bias", False),
        is_gated=True,
    )


def jina_v3(config: dict[str, Any], tensors: Tensors, placement: Placement) -> RotaryBert:
    """Read the encoder of jina-embeddings-v3 with no adapter, or with one merged into it."""
    tensors = tensors.stripped("roberta.", renamed=_FLASH)
    return RotaryBert({"rope_theta": 20000.0, **config}, tensors, placement)
