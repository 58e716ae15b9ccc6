"""Encoders like BERT whose positions are rotations: GTE's, NomicBERT, Jina's third.

A post-norm transformer over packed sequences, with a plain or a gated MLP, or a mixture of experts,
of which each token meets a few (nomic-embed-text-v2-moe). The state dicts are those of
``transformers.GteModel``, ``NomicBertModel`` and ``JinaEmbeddingsV3Model``, under the names of the
publishers' own code or under transformers'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from nimbed.errors import CheckpointError
from nimbed.local.attention import Attention, attention_for
from nimbed.local.batching import LayeredModel, Layout, padded_total
from nimbed.local.device import Placement
from nimbed.local.linear import Activations, Affine, Dense, Gated, Product, dense, gated
from nimbed.local.models.fields import (
    FLASH_NAMES,
    GTE_NAMES,
    NOMIC_NAMES,
    gate_activation,
    gte_settings,
    heads_fit,
    nomic_settings,
    real,
    whole,
)
from nimbed.local.norms import LayerNorm
from nimbed.local.rope import Turn, rope_for
from nimbed.local.weights import Tensors

__all__ = ["Experts", "gte", "jina_v3", "nomic_bert"]

_Mlp = Gated | Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: Dense
    attended: Dense
    attended_norm: LayerNorm
    mlp: _Mlp
    down: Product
    down_norm: LayerNorm

    def __call__(
        self, x: torch.Tensor, turn: Turn, layout: Layout, attention: Attention, heads: int
    ) -> torch.Tensor:
        qkv = self.qkv(x).view(layout.rows, 3 * heads, -1)
        turned = turn(qkv[:, : 2 * heads])  # qkv itself, on CUDA
        attended = attention(turned[:, :heads], turned[:, heads:], qkv[:, 2 * heads :], layout)
        x = self.attended_norm.after(self.attended, attended, x)
        return self.down_norm.after(self.down, self.mlp(x), x)


class RotaryBert(LayeredModel):
    """A post-norm encoder with rotary positions on one device.

    Args:
        config: config.json of the checkpoint, with ``rope_theta`` or ``rope_parameters``.
        tensors: Its weights, under transformers' names.
        placement: Device and dtype.
        attention_bias: Whether the products around attention have biases.
        up_bias: Whether those into the MLP have.
        down_bias: Whether the one out of it has.
        is_gated: Whether the MLP multiplies two products of its input.
        experts: Reads what a layer of a number has instead of an MLP, if anything.

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
        experts: Callable[[int], Experts | None] | None = None,
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

        def mlp(at: str, number: int) -> tuple[_Mlp, Product]:
            mixture = experts(number) if experts is not None else None
            if mixture is not None:
                return (lambda x: x), mixture
            name = f"{at}.down_proj" if is_gated else f"{at}.fc2"
            down = dense(*affine(name, width, inner, down_bias), placement)
            if not is_gated:
                return dense(*affine(f"{at}.fc1", inner, width, up_bias), placement).gelu, down
            up, gate = joined(at, "up_gate_proj", ["up_proj", "gate_proj"], inner, up_bias)
            return gated(gate, up, activation, placement), down

        self.vocabulary = whole(config, "vocab_size")
        words = "embeddings.word_embeddings.weight"
        self._words = tensors.placed(placement, words, self.vocabulary, width)
        self._type: torch.Tensor | None = None  # every token is of type 0
        if config.get("type_vocab_size") != 0:
            types = whole(config, "type_vocab_size", default=1)
            name = "embeddings.token_type_embeddings.weight"
            self._type = tensors.placed(placement, name, types, width)[0]
        self._norm = norm("embeddings.LayerNorm")
        self._layers: list[_Layer] = []
        for number in range(whole(config, "num_hidden_layers")):
            at = f"layers.{number}"
            into, out_of = mlp(f"{at}.mlp", number)
            self._layers.append(
                _Layer(
                    qkv=qkv(f"{at}.self_attn"),
                    attended=dense(
                        *affine(f"{at}.self_attn.o_proj", width, width, attention_bias), placement
                    ),
                    attended_norm=norm(f"{at}.post_attention_layernorm"),
                    mlp=into,
                    down=out_of,
                    down_norm=norm(f"{at}.post_mlp_layernorm"),
                )
            )

    def layers(self, ids: torch.Tensor, layout: Layout) -> Iterator[torch.Tensor]:
        """Yield what the layers begin with, and the states of each; see :meth:`__call__`.

        The next layer may overwrite them.
        """
        turn = self._rope.at(layout.positions)
        x = F.embedding(ids, self._words)
        x = self._norm(x if self._type is None else x.add_(self._type))
        yield x
        for layer in self._layers:
            x = layer(x, turn, layout, self._attention, self._heads)
            yield x


def gte(config: dict[str, Any], tensors: Tensors, placement: Placement) -> RotaryBert:
    """Read Alibaba's "new" encoder (gte-v1.5, gte-multilingual, arctic-embed-m-v2)."""
    tensors = tensors.stripped("new.", "gte.", renamed=GTE_NAMES)
    return RotaryBert(gte_settings(config), tensors, placement, up_bias=False, is_gated=True)


def nomic_bert(config: dict[str, Any], tensors: Tensors, placement: Placement) -> RotaryBert:
    """Read a NomicBERT encoder (nomic-embed-text-v1, v1.5 and v2-moe)."""
    named = config.get("activation_function", "")
    renamed = FLASH_NAMES if named == "gelu" else NOMIC_NAMES
    tensors = tensors.stripped("bert.", "nomic_bert.", renamed=renamed)
    width = whole(config, "hidden_size")
    config = nomic_settings(config)

    def experts(number: int) -> Experts | None:
        if (config.get("num_experts") or 0) < 2:
            return None
        if number % whole(config, "moe_every_n_layers") != 1:
            return None
        return Experts.read(
            tensors,
            f"layers.{number}.mlp",
            placement,
            width=width,
            inner=whole(config, "intermediate_size"),
            experts=whole(config, "num_experts"),
            chosen=whole(config, "moe_top_k"),
        )

    return RotaryBert(
        config,
        tensors,
        placement,
        attention_bias=config["qkv_proj_bias"],
        up_bias=config["mlp_fc1_bias"],
        down_bias=config["mlp_fc2_bias"],
        is_gated=named != "gelu",
        experts=experts,
    )


def jina_v3(config: dict[str, Any], tensors: Tensors, placement: Placement) -> RotaryBert:
    """Read the encoder of jina-embeddings-v3 and jina-colbert-v2.

    With the adapter that ``adapter`` names, if any.
    """
    adapters = config.get("lora_adaptations")
    if adapters:
        scale = real(config, "lora_alpha", default=1) / whole(config, "lora_rank", default=4)
        tensors = tensors.adapted(adapters.index(config["adapter"]), scale=scale)
    tensors = tensors.stripped("roberta.", renamed=FLASH_NAMES)
    return RotaryBert({"rope_theta": 20000.0, **config}, tensors, placement)


@dataclass(frozen=True, slots=True)
class Experts:
    """Σ shareₑ · downₑ(gelu(upₑ·x)) + bias over the experts e that the router likes best.

    A share is the softmax over all experts, in float32, and not divided by the sum of those chosen.

    Attributes:
        router: One output an expert, in float32.
        parts: Both products of each expert.
        bias: Of shape (width,), added once.
        chosen: How many experts a token meets.
    """

    router: Dense
    parts: Sequence[tuple[Dense, Dense]]
    bias: torch.Tensor
    chosen: int

    def __call__(self, x: Activations) -> torch.Tensor:
        """Return what the experts make of x of shape (rows, width)."""
        assert isinstance(x, torch.Tensor)
        shares, experts = self.router(x.float()).softmax(-1).topk(self.chosen)
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for number, (up, down) in enumerate(self.parts):
            if not x.is_cpu:
                # Which rows are whose is a value, for which a device would have to be waited.
                share = shares.masked_fill(experts != number, 0).sum(-1, keepdim=True)
                out += down(up.gelu(x)).float() * share
                continue
            rows, places = torch.where(experts == number)
            if len(rows):
                # Products of few shapes, and of enough rows for each to be independent of them.
                filled = F.pad(rows, (0, padded_total(len(rows), x.device) - len(rows)))
                made = down(up.gelu(x[filled]))[: len(rows)].float()
                out.index_add_(0, rows, made * shares[rows, places, None])
        return out.add_(self.bias).to(x.dtype)

    def plus(self, x: Activations, residual: torch.Tensor) -> torch.Tensor:
        """Return what the experts make of x, plus a residual."""
        return self(x).add_(residual)

    @classmethod
    def read(
        cls,
        tensors: Tensors,
        at: str,
        placement: Placement,
        *,
        width: int,
        inner: int,
        experts: int,
        chosen: int,
    ) -> Experts:
        """Read the experts of a layer, whose weights lie in two tensors, expert by expert.

        Args:
            tensors: Of the checkpoint.
            at: Name of the layer's MLP.
            placement: Device and dtype.
            width: Of the states.
            inner: Of an expert's hidden layer.
            experts: How many there are.
            chosen: How many a token meets.

        Raises:
            CheckpointError: If a weight is missing or misshapen, or there are fewer experts.
        """
        if chosen > experts:
            raise CheckpointError(f"config.json has a token meet {chosen} experts of {experts}")
        whole = Placement(placement.device, torch.float32)
        up, down = (  # of each expert as (inner, width)
            tensors.get(f"{at}.experts.mlp.{name}", experts * inner, width).chunk(experts)
            for name in ("w1", "w2")
        )
        return cls(
            router=dense(tensors.get(f"{at}.router.layer.weight", experts, width), None, whole),
            parts=[
                (dense(first, None, placement), dense(second.t().contiguous(), None, placement))
                for first, second in zip(up, down, strict=True)
            ],
            bias=tensors.placed(whole, f"{at}.experts.bias", width),
            chosen=chosen,
        )
