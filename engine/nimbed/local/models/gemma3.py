"""Gemma 3, of texts alone (EmbeddingGemma): norms on both sides of attention and MLP.

Layers that see a window of neighbours alternate with layers that see everything, each kind with a
rotation of its own. The states between the layers are float32 whatever the dtype, since they grow
beyond what float16 holds. The state dict is that of ``transformers.Gemma3TextModel``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from nimbed.errors import CheckpointError
from nimbed.local.attention import Attention, attention_for
from nimbed.local.batching import LayeredModel, Layout
from nimbed.local.device import Placement
from nimbed.local.linear import Dense, Gated, gated, read_affine, read_dense
from nimbed.local.models.fields import gemma3_is_causal, heads_fit, only, real, whole
from nimbed.local.norms import OffsetRmsNorm
from nimbed.local.rope import Rope, Turn, rope_for
from nimbed.local.weights import Tensors

__all__ = ["Gemma3"]

_FULL, _SLIDING = "full_attention", "sliding_attention"
# Every sixth layer sees everything, and the two rotations, unless the configuration says otherwise.
_PATTERN = 6
_THETAS = {_FULL: 1000000.0, _SLIDING: 10000.0}


@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str
    norm: OffsetRmsNorm
    qkv: Dense
    q_norm: OffsetRmsNorm
    k_norm: OffsetRmsNorm
    attended: Dense
    attended_norm: OffsetRmsNorm
    mlp_norm: OffsetRmsNorm
    gated: Gated
    down: Dense
    down_norm: OffsetRmsNorm


class Gemma3(LayeredModel):
    """A Gemma 3 text model on one device.

    Args:
        config: config.json of the checkpoint.
        tensors: Its weights.
        placement: Device and dtype.

    Raises:
        CheckpointError: If a weight is missing or misshapen, or the configuration asks for
            something that this model does not do.
    """

    def __init__(self, config: dict[str, Any], tensors: Tensors, placement: Placement) -> None:
        only(config, hidden_activation="gelu_pytorch_tanh", attn_logit_softcapping=None)
        only(config, hidden_act="gelu_pytorch_tanh", mlp_bias=False)
        self._tensors, self._placement = tensors.stripped("model."), placement
        self._width, self._heads = (
            whole(config, "hidden_size"),
            whole(config, "num_attention_heads"),
        )
        self._key_heads = whole(config, "num_key_value_heads")
        heads_fit(self._heads, self._key_heads)
        self._head_dim = whole(config, "head_dim", default=256)
        self._eps = real(config, "rms_norm_eps", default=1e-6)
        self._bias = bool(config.get("attention_bias"))
        # Attention divides by the root of head_dim; the factor of the queries mends that.
        asked = real(config, "query_pre_attn_scalar", default=256.0)
        self._query_scale = (self._head_dim / asked) ** 0.5
        kinds = _kinds(config)
        self._attentions: dict[str, Attention] = {
            kind: attention_for(
                placement,
                causal=gemma3_is_causal(config),
                window=_window(config) if kind == _SLIDING else None,
            )
            for kind in dict.fromkeys(kinds)
        }
        self.attentions = tuple(self._attentions.values())
        self._ropes = {kind: self._rope(config, kind) for kind in self._attentions}
        self.vocabulary = whole(config, "vocab_size")
        self._words = self._tensors.placed(
            placement, "embed_tokens.weight", self.vocabulary, self._width
        )
        self._inner = whole(config, "intermediate_size")
        self._layers = [self._layer(f"layers.{n}", kind) for n, kind in enumerate(kinds)]
        self._norm = self._read_norm("norm")
        del self._tensors

    def layers(self, ids: torch.Tensor, layout: Layout) -> Iterator[torch.Tensor]:
        """Yield what each layer begins with, and the normed states of the last.

        The next layer overwrites them.
        """
        dtype = self._placement.dtype
        x = F.embedding(ids, self._words).float() * self._width**0.5
        turns = {kind: rope.at(layout.positions) for kind, rope in self._ropes.items()}
        for layer in self._layers:
            yield x
            q, k, v = self._projected(layer, layer.norm(x, dtype), turns[layer.kind])
            attended = self._attentions[layer.kind](q, k, v, layout)
            layer.attended_norm.added_(x, layer.attended(attended))
            inner = layer.gated(layer.mlp_norm(x, dtype))
            layer.down_norm.added_(x, layer.down(inner))
        yield self._norm(x, dtype)

    def _projected(
        self, layer: _Layer, normed: torch.Tensor, turn: Turn
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heads, both = self._heads, self._heads + self._key_heads
        qkv = layer.qkv(normed).view(normed.shape[0], -1, self._head_dim)
        layer.q_norm.of_heads_(qkv[:, :heads])
        layer.k_norm.of_heads_(qkv[:, heads:both])
        turned = turn(qkv[:, :both])
        return turned[:, :heads], turned[:, heads:], qkv[:, both:]

    def _layer(self, at: str, kind: str) -> _Layer:
        own, mlp, width, inner = f"{at}.self_attn", f"{at}.mlp", self._width, self._inner
        queries, keys = self._heads * self._head_dim, self._key_heads * self._head_dim
        tensors, placement, bias = self._tensors, self._placement, self._bias
        sizes = {f"{own}.q_proj": queries, f"{own}.k_proj": keys, f"{own}.v_proj": keys}
        return _Layer(
            kind=kind,
            norm=self._read_norm(f"{at}.input_layernorm"),
            qkv=read_dense(tensors, sizes, width, placement, bias=bias),
            q_norm=self._read_head_norm(f"{own}.q_norm", self._query_scale),
            k_norm=self._read_head_norm(f"{own}.k_norm", 1.0),
            attended=read_dense(tensors, {f"{own}.o_proj": width}, queries, placement, bias=bias),
            attended_norm=self._read_norm(f"{at}.post_attention_layernorm"),
            mlp_norm=self._read_norm(f"{at}.pre_feedforward_layernorm"),
            gated=gated(
                read_affine(tensors, {f"{mlp}.gate_proj": inner}, width, bias=False),
                read_affine(tensors, {f"{mlp}.up_proj": inner}, width, bias=False),
                "gelu_tanh",
                placement,
            ),
            down=read_dense(tensors, {f"{mlp}.down_proj": width}, inner, placement, bias=False),
            down_norm=self._read_norm(f"{at}.post_feedforward_layernorm"),
        )

    def _read_norm(self, name: str) -> OffsetRmsNorm:
        return OffsetRmsNorm.read(self._tensors, name, self._width, self._placement, eps=self._eps)

    def _read_head_norm(self, name: str, scale: float) -> OffsetRmsNorm:
        return OffsetRmsNorm.read(
            self._tensors, name, self._head_dim, self._placement, eps=self._eps, scale=scale
        )

    def _rope(self, config: Mapping[str, Any], kind: str) -> Rope:
        return rope_for(
            {
                "max_position_embeddings": config.get("max_position_embeddings"),
                "rope_parameters": _turn(config, kind),
            },
            self._head_dim,
            device=self._placement.device,
            dtype=self._placement.dtype,
        )


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """Return what each layer attends to."""
    layers, given = whole(config, "num_hidden_layers"), config.get("layer_types")
    if given is None:
        every = whole(config, "sliding_window_pattern", default=_PATTERN)
        return [_FULL if (number + 1) % every == 0 else _SLIDING for number in range(layers)]
    if (
        not isinstance(given, list)
        or len(given) != layers
        or not all(kind in (_FULL, _SLIDING) for kind in given)
    ):
        raise CheckpointError(
            f"config.json gives layer_types {given!r}; expected {_FULL} or {_SLIDING} for each of "
            f"{layers} layers"
        )
    return given


def _window(config: Mapping[str, Any]) -> int:
    """Return how many neighbours a token sees; the configuration counts both sides, and itself."""
    given = whole(config, "sliding_window", default=4096)
    return given - 1 if gemma3_is_causal(config) else given // 2


def _turn(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the rotation of a kind of layers, as transformers reads either spelling.

    Before version 5 ``rope_scaling`` held for the layers that see everything.
    """
    tables = config.get("rope_parameters")
    if tables is not None:
        table = tables.get(kind, {}) if isinstance(tables, dict) else tables
        if not isinstance(table, dict):
            raise CheckpointError(f"config.json gives rope_parameters {tables!r}, expected tables")
    else:
        table = (config.get("rope_scaling") or {}) if kind == _FULL else {}
    key = "rope_theta" if kind == _FULL else "rope_local_base_freq"
    theta = config.get(key)
    return {"rope_theta": _THETAS[kind] if theta is None else theta, **table}
