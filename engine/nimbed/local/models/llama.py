"""Llama, Mistral and Qwen: decoders, causal unless they say otherwise.

A pre-norm transformer with rotary positions, grouped keys and a gated MLP, run over packed
sequences. Mistral (e5-mistral, SFR) is Llama with windows, and Ministral 3 (Nemotron-3-Embed) has
queries that grow with their position; Qwen2 (gte-Qwen2) is Llama with biases for queries, keys and
values, and Qwen3 (Qwen3-Embedding) normalises queries and keys head by head instead. The state
dicts are those of transformers' LlamaModel, MistralModel, Ministral3Model, Qwen2Model and
Qwen3Model. Pixtral and others share the layers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from nimbed.errors import CheckpointError
from nimbed.local.attention import Attention, attention_for
from nimbed.local.batching import LayeredModel, Layout
from nimbed.local.device import Placement
from nimbed.local.linear import Activation, Affine, Dense, Gated, gated, read_affine, read_dense
from nimbed.local.models.fields import (
    heads_fit,
    is_causal,
    only,
    real,
    refuse_causal,
    rope_parameters,
    whole,
)
from nimbed.local.norms import RmsNorm
from nimbed.local.rope import Turn, rope_for
from nimbed.local.weights import Tensors

__all__ = [
    "GatedLayers",
    "LayerShape",
    "Llama",
    "QueryScale",
    "llama",
    "ministral3",
    "mistral",
    "qwen2",
    "qwen3",
]

QueryScale = Callable[[Layout], torch.Tensor | None]


def llama(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Llama:
    """Read a Llama, which looks both ways if its configuration says so."""
    return Llama(config, tensors, placement, causal=is_causal(config))


class Llama(LayeredModel):
    """A Llama, or a network that differs from it in a few details, on one device.

    Args:
        config: config.json of the checkpoint, or the part of it that describes this network.
        tensors: Its weights.
        placement: Device and dtype.
        query_scale: Gives a factor a row for the queries, of shape (rows,), or None for 1.
        causal: Whether a token sees its past alone; None refuses a network that was trained so.
        head_norms: Whether queries and keys are normalised head by head.
        windows: How far each layer's tokens see, as :func:`attention_for` counts; None for all.
        qkv_bias: Whether queries, keys and values alone have biases, whatever the configuration
            says.

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
        windows: Sequence[int | None] | None = None,
        qkv_bias: bool = False,
    ) -> None:
        if causal is None:
            refuse_causal(config)
        only(config, hidden_act="silu")
        tensors = tensors.stripped("model.")
        width, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
        bias = bool(config.get("attention_bias"))
        shape = LayerShape(
            width=width,
            inner=whole(config, "intermediate_size"),
            heads=heads,
            key_heads=whole(config, "num_key_value_heads", default=heads),
            head_dim=whole(config, "head_dim")
            if config.get("head_dim")
            else heads_fit(width, heads),
            eps=real(config, "rms_norm_eps"),
            qkv_bias=bias or qkv_bias,
            attended_bias=bias,
            mlp_bias=bool(config.get("mlp_bias")),
            head_norms=head_norms,
        )
        heads_fit(heads, shape.key_heads)
        self._rope = rope_for(
            config, shape.head_dim, device=placement.device, dtype=placement.dtype
        )
        self._query_scale = query_scale
        count = whole(config, "num_hidden_layers")
        windows = [None] * count if windows is None else windows
        kinds = {
            window: attention_for(placement, causal=bool(causal), window=window)
            for window in dict.fromkeys(windows)
        }
        self.attentions = tuple(kinds.values())
        self.vocabulary = whole(config, "vocab_size")
        self._words = tensors.placed(placement, "embed_tokens.weight", self.vocabulary, width)
        self._layers = GatedLayers(
            shape,
            tensors,
            placement,
            [kinds[window] for window in windows],
            at="layers",
            last=RmsNorm.read(
                tensors, "norm", width, placement, eps=shape.eps, before_product=False
            ),
        )

    def layers(self, ids: torch.Tensor, layout: Layout) -> Iterator[torch.Tensor]:
        """Yield what each layer begins with, and the normed states of the last.

        The next layer may overwrite them.
        """
        return self._each(F.embedding(ids, self._words), layout)

    def with_images(
        self, ids: torch.Tensor, layout: Layout, images: torch.Tensor, *, mark: int, key: str
    ) -> torch.Tensor:
        """Return states for packed ids, some of which stand for a piece of an image.

        Args:
            ids: Packed token ids of shape (layout.rows,).
            layout: Where the sequences lie.
            images: The images' states in the order of their tokens, of shape (tokens, width).
            mark: The id that stands for a piece.
            key: What config.json calls it, for the message.

        Raises:
            CheckpointError: If there are not as many such tokens as states.
        """
        places = (ids == mark).nonzero()[:, 0]
        if len(places) != len(images):
            raise CheckpointError(
                f"{len(places)} context tokens met {len(images)} image states; "
                f"{key} {mark} is not the tokenizer's"
            )
        x = F.embedding(ids, self._words).index_copy(0, places, images)
        return deque(self._each(x, layout), maxlen=1).pop()

    def _each(self, x: torch.Tensor, layout: Layout) -> Iterator[torch.Tensor]:
        turn = self._rope.at(layout.positions)
        scale = self._query_scale(layout) if self._query_scale is not None else None
        return self._layers.each(x, layout, turn, scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """What the layers of a network have in common.

    Attributes:
        width: Of a state.
        inner: Of the gated MLP.
        heads: Of the queries.
        key_heads: Of keys and values.
        head_dim: Of a head.
        eps: Of the norms.
        activation: Of the MLP's gate.
        qkv_bias: Whether queries, keys and values have biases.
        attended_bias: Whether the product behind the attention has one.
        mlp_bias: Whether those of the MLP have.
        head_norms: Whether queries and keys are normalised head by head.
        names: Of the attention, its last product, the MLP, and the norms before both.
    """

    width: int
    inner: int
    heads: int
    key_heads: int
    head_dim: int
    eps: float
    activation: Activation = "silu"
    qkv_bias: bool = False
    attended_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    names: tuple[str, str, str, str] = (
        *("self_attn", "mlp"),
        *("input_layernorm", "post_attention_layernorm"),
    )


@dataclass(frozen=True, slots=True)
class _Layer:
    attention: Attention
    norm: RmsNorm
    qkv: Dense
    q_norm: RmsNorm | None
    k_norm: RmsNorm | None
    attended: Dense
    mlp_norm: RmsNorm
    gated: Gated
    down: Dense


class GatedLayers:
    """Pre-norm layers: attention with rotary positions, then a gated MLP.

    Args:
        shape: Their sizes and names.
        tensors: Their weights.
        placement: Device and dtype.
        attentions: What each layer attends with; as many as there are layers.
        at: What stands before the layers' numbers in the weights' names.
        last: A norm behind the last layer, if there is one.

    Raises:
        CheckpointError: If a weight is missing or misshapen.
    """

    def __init__(
        self,
        shape: LayerShape,
        tensors: Tensors,
        placement: Placement,
        attentions: Sequence[Attention],
        *,
        at: str,
        last: RmsNorm | None,
    ) -> None:
        self._shape, self._tensors, self._placement = shape, tensors, placement
        self._layers = [self._read(f"{at}.{n}", attend) for n, attend in enumerate(attentions)]
        del self._tensors
        # A layer ends with the sum that the next one's first norm takes.
        self._next_norms = [*(layer.norm for layer in self._layers[1:]), last]

    def __call__(self, x: torch.Tensor, layout: Layout, turn: Turn) -> torch.Tensor:
        """Return the states behind the last layer; see :meth:`each`."""
        return deque(self.each(x, layout, turn), maxlen=1).pop()

    def each(
        self, x: torch.Tensor, layout: Layout, turn: Turn, scale: torch.Tensor | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield what each layer begins with, and the states behind the last.

        The next layer may overwrite them; the last ones are normed if a norm follows.

        Args:
            x: Input states of shape (layout.rows, width), which are overwritten.
            layout: Where the sequences lie.
            turn: The rotation of each row.
            scale: A factor a row for the queries, of shape (layout.rows,).
        """
        normed = self._layers[0].norm(x)
        for layer, next_norm in zip(self._layers, self._next_norms, strict=True):
            yield x
            q, k, v = self._projected(layer, layer.qkv(normed), turn, scale)
            attended = layer.attention(q, k, v, layout)
            x, normed = layer.mlp_norm.after(layer.attended, attended, x)
            if next_norm is None:
                yield layer.down.plus(layer.gated(normed), x)
                return
            x, normed = next_norm.after(layer.down, layer.gated(normed), x)
        assert isinstance(normed, torch.Tensor)  # no product follows the last norm
        yield normed

    def _projected(
        self, layer: _Layer, qkv: torch.Tensor, turn: Turn, scale: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heads, key_heads = self._shape.heads, self._shape.key_heads
        qkv = qkv.view(qkv.shape[0], -1, self._shape.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            layer.q_norm.of_heads_(qkv[:, :heads])
            layer.k_norm.of_heads_(qkv[:, heads : heads + key_heads])
        turned = turn(qkv[:, : heads + key_heads])  # qkv itself, on CUDA
        q, k = turned[:, :heads], turned[:, heads:]
        if scale is not None:
            q.mul_(scale[:, None, None])
        return q, k, qkv[:, heads + key_heads :]

    def _read(self, at: str, attention: Attention) -> _Layer:
        shape, placement = self._shape, self._placement
        own, mlp, norm, mlp_norm = (f"{at}.{name}" for name in shape.names)
        queries, keys = shape.heads * shape.head_dim, shape.key_heads * shape.head_dim

        def product(names: dict[str, int], inputs: int, bias: bool) -> Dense:
            return read_dense(self._tensors, names, inputs, placement, bias=bias)

        def half(name: str) -> Affine:
            names = {f"{mlp}.{name}": shape.inner}
            return read_affine(self._tensors, names, shape.width, bias=shape.mlp_bias)

        # Each product is read and laid out before the next is read: one is held twice, not all.
        return _Layer(
            attention=attention,
            norm=self._norm(norm),
            qkv=product(
                {f"{own}.q_proj": queries, f"{own}.k_proj": keys, f"{own}.v_proj": keys},
                shape.width,
                shape.qkv_bias,
            ),
            q_norm=self._norm(f"{own}.q_norm", of_heads=True) if shape.head_norms else None,
            k_norm=self._norm(f"{own}.k_norm", of_heads=True) if shape.head_norms else None,
            attended=product({f"{own}.o_proj": shape.width}, queries, shape.attended_bias),
            mlp_norm=self._norm(mlp_norm),
            gated=gated(half("gate_proj"), half("up_proj"), shape.activation, placement),
            down=product({f"{mlp}.down_proj": shape.width}, shape.inner, shape.mlp_bias),
        )

    def _norm(self, name: str, *, of_heads: bool = False) -> RmsNorm:
        return RmsNorm.read(
            self._tensors,
            name,
            self._shape.head_dim if of_heads else self._shape.width,
            self._placement,
            eps=self._shape.eps,
            before_product=not of_heads,
        )


# transformers' own, for a configuration that leaves it out.
_USUAL_WINDOW = 4096


def mistral(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Llama:
    """Read a Mistral; see :class:`nimbed.local.models.llama.Llama`.

    NVIDIA's own bidirectional type names a sliding window that its models were trained without.
    """
    causal = is_causal(config)
    if config.get("model_type") == "bidir_mistral":
        return Llama(config, tensors, placement, causal=causal)
    only(config, attention_bias=False)
    windows = _windows({"sliding_window": _USUAL_WINDOW, **config}, causal)
    return Llama(config, tensors, placement, causal=causal, windows=windows)


def ministral3(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Llama:
    """Read a Ministral 3; see :class:`nimbed.local.models.llama.Llama`."""
    only(config, attention_bias=False)
    asked = rope_parameters(config)
    scale = None
    if asked.get("llama_4_scaling_beta"):
        beta = real(asked, "llama_4_scaling_beta")
        scale = _query_scale(beta, whole(asked, "original_max_position_embeddings"), placement)
    causal = is_causal(config)
    windows = _windows(config, causal)
    return Llama(config, tensors, placement, query_scale=scale, causal=causal, windows=windows)


def _windows(config: Mapping[str, Any], causal: bool) -> list[int | None]:
    """Return how far each layer's tokens see; transformers counts a causal token itself, too."""
    layers = whole(config, "num_hidden_layers")
    if config.get("sliding_window") is None:
        return [None] * layers
    return [whole(config, "sliding_window") - causal] * layers


def _query_scale(beta: float, trained: int, placement: Placement) -> QueryScale:
    def scale(layout: Layout) -> torch.Tensor | None:
        if layout.longest <= trained:
            return None  # the logarithm of 1 everywhere
        turns = torch.floor(layout.positions / trained)
        return (1 + beta * torch.log1p(turns)).to(placement.dtype)

    return scale


# transformers' own, for a configuration that leaves them out.
_USUAL_WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def qwen2(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Llama:
    """Read a Qwen2; see :class:`nimbed.local.models.llama.Llama`."""
    only(config, attention_bias=False)
    causal = is_causal(config)
    windows = _layer_windows(config, causal)
    return Llama(config, tensors, placement, causal=causal, windows=windows, qkv_bias=True)


def qwen3(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Llama:
    """Read a Qwen3; see :class:`nimbed.local.models.llama.Llama`."""
    causal = is_causal(config)
    windows = _layer_windows(config, causal)
    return Llama(config, tensors, placement, causal=causal, windows=windows, head_norms=True)


def _layer_windows(config: Mapping[str, Any], causal: bool) -> list[int | None]:
    """Return how far each layer's tokens see.

    The rule is that of transformers' configurations: layers from ``max_window_layers`` on have the
    window, unless ``layer_types`` says which do, and none has it without ``use_sliding_window``.
    """
    layers, kinds = whole(config, "num_hidden_layers"), config.get("layer_types")
    facts = {**_USUAL_WINDOWS, **config}
    slides = facts["use_sliding_window"] is True and facts["sliding_window"] is not None
    first = facts["max_window_layers"]
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        raise CheckpointError(f"config.json gives max_window_layers {first!r}, expected a number")
    if kinds is None:
        kinds = [_SLIDING if slides and number >= first else _FULL for number in range(layers)]
    known = (_FULL, _SLIDING) if slides else (_FULL,)
    if not isinstance(kinds, list) or len(kinds) != layers or not all(k in known for k in kinds):
        raise CheckpointError(
            f"config.json gives layer_types {kinds!r}; expected one of {', '.join(known)} for each "
            f"of {layers} layers"
        )
    window = whole(facts, "sliding_window") - causal if slides else None
    return [window if kind == _SLIDING else None for kind in kinds]
