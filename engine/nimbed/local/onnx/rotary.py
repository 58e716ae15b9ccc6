"""Graphs of encoders whose positions are rotations: NomicBERT, GTE and ModernBERT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from nimbed.local.models.fields import (
    FULL,
    GTE_NAMES,
    NOMIC_NAMES,
    SLIDING,
    gate_activation,
    gte_settings,
    heads_fit,
    modernbert_layers,
    modernbert_rotation,
    nomic_settings,
    real,
    rope_parameters,
    whole,
)
from nimbed.local.onnx.graph import Encoder, Floats, Graph, Quantized, Reader, token_inputs
from nimbed.local.onnx.weights import ArrayTensors, CodeType

__all__ = ["gte", "modernbert", "nomic_bert"]


def nomic_bert(config: dict[str, Any], tensors: ArrayTensors, int8: CodeType | None) -> Encoder:
    """NomicBERT, as :mod:`nimbed.local.models.rotary_bert` has it."""
    config = nomic_settings(config)
    return _rotary_bert(
        config,
        tensors.stripped("bert.", "nomic_bert.", renamed=NOMIC_NAMES),
        int8,
        places=whole(config, "max_position_embeddings", default=2048),
        attention_bias=config["qkv_proj_bias"],
        up_bias=config["mlp_fc1_bias"],
        down_bias=config["mlp_fc2_bias"],
    )


def gte(config: dict[str, Any], tensors: ArrayTensors, int8: CodeType | None) -> Encoder:
    """Alibaba's "new" encoder, as :mod:`nimbed.local.models.rotary_bert` has it."""
    return _rotary_bert(
        gte_settings(config),
        tensors.stripped("new.", "gte.", renamed=GTE_NAMES),
        int8,
        places=whole(config, "max_position_embeddings"),
        attention_bias=True,
        up_bias=False,
        down_bias=True,
    )


def _rotary_bert(
    config: dict[str, Any],
    tensors: ArrayTensors,
    int8: CodeType | None,
    *,
    places: int,
    attention_bias: bool,
    up_bias: bool,
    down_bias: bool,
) -> Encoder:
    """Build a post-norm encoder with rotary positions and a gated MLP.

    Args:
        config: config.json of the checkpoint, with what it leaves unsaid.
        tensors: Under transformers' names.
        int8: As :func:`nimbed.local.onnx.encoders.encoder` has it.
        places: Tokens of the longest text.
        attention_bias: Whether the products around attention have biases.
        up_bias: Whether those into the MLP have.
        down_bias: Whether the one out of it has.
    """
    heads, width = whole(config, "num_attention_heads"), whole(config, "hidden_size")
    inner, head_dim = whole(config, "intermediate_size"), heads_fit(width, heads)
    reader = Reader(tensors, width, real(config, "layer_norm_eps", default=1e-12), int8=int8)
    graph = reader.graph
    words = tensors.floats("embeddings.word_embeddings.weight", whole(config, "vocab_size"), width)
    x = graph.node("Gather", "words", "ids")
    if config.get("type_vocab_size") != 0:
        types = whole(config, "type_vocab_size", default=1)
        name = "embeddings.token_type_embeddings.weight"
        x = graph.node("Add", x, graph.weight("type", tensors.floats(name, types, width)[0]))
    x = reader.normalized(x, "embeddings.LayerNorm")
    turn = _Turn(graph, config, head_dim, heads)
    activation = gate_activation(config)

    def parts(
        x: str | Quantized, at: str, joined: str, names: list[str], size: int, bias: bool
    ) -> list[str]:
        """Add products of one input, stored apart or as one."""
        if f"{at}.{joined}.weight" in tensors:
            return reader.products(x, f"{at}.{joined}", [size] * len(names), bias=bias)
        return [reader.products(x, f"{at}.{name}", [size], bias=bias)[0] for name in names]

    for number in range(whole(config, "num_hidden_layers")):
        at = f"layers.{number}"
        names = ["q_proj", "k_proj", "v_proj"]
        query, key, value = parts(x, f"{at}.self_attn", "qkv_proj", names, width, attention_bias)
        attended = graph.node(
            "MultiHeadAttention", turn(query), turn(key), value, own=True, num_heads=heads
        )
        norm, output = f"{at}.post_attention_layernorm", f"{at}.self_attn.o_proj"
        x = reader.after(norm, attended, output, width, x, bias=attention_bias)
        names = ["up_proj", "gate_proj"]
        before = reader.quantized(x, width, norm=norm)
        up, gate = parts(before, f"{at}.mlp", "up_gate_proj", names, inner, up_bias)
        gated = reader.quantized(reader.gated(gate, up, activation), inner)
        norm, down = f"{at}.post_mlp_layernorm", f"{at}.mlp.down_proj"
        x = reader.after(norm, gated, down, inner, x, bias=down_bias)
    model = graph.model([*token_inputs(words), *turn.inputs], x)
    return Encoder(model, graph.weights, words, places, turns=turn.frequencies)


def modernbert(config: dict[str, Any], tensors: ArrayTensors, int8: CodeType | None) -> Encoder:
    """ModernBERT, as :class:`nimbed.local.models.modernbert.ModernBert` has it.

    ONNX Runtime's windows on a CPU are those of decoders, so a layer with a window gathers blocks
    of queries and the keys around each, and attends in every block as in a text of its own: scores
    take memory by the token, not by the pair.
    """
    tensors = tensors.stripped("model.")
    heads, width = whole(config, "num_attention_heads"), whole(config, "hidden_size")
    inner, head_dim = whole(config, "intermediate_size"), heads_fit(width, heads)
    places = whole(config, "max_position_embeddings", default=8192)
    activation = gate_activation(config)
    norm_bias, attention_bias, mlp_bias = (
        bool(config.get(name)) for name in ("norm_bias", "attention_bias", "mlp_bias")
    )
    reader = Reader(
        tensors, width, real(config, "norm_eps", default=1e-5), norm_bias=norm_bias, int8=int8
    )
    graph = reader.graph
    kinds = modernbert_layers(config)
    turns = {
        kind: _Turn(graph, modernbert_rotation(config, kind), head_dim, heads, f"{kind}, ")
        for kind in dict.fromkeys(kinds)
    }
    window = whole(config, "local_attention", default=128) // 2 if SLIDING in kinds else None
    flat = graph.constant(np.array([-1, width]))

    def near(x: str, rows: str) -> str:
        """Add the rows of texts that an input names."""
        return graph.node("Gather", graph.node("Reshape", x, flat), rows)

    def attention(kind: str, query: str, key: str, value: str) -> str:
        query, key = turns[kind](query), turns[kind](key)
        if kind == FULL:
            return graph.node("MultiHeadAttention", query, key, value, own=True, num_heads=heads)
        blocks = near(query, "queries"), near(key, "keys"), near(value, "keys")
        # Between the keys and what is added to the scores: a bias of the products, and a mask.
        given = (*blocks, "", "", "hidden")
        attended = graph.node("MultiHeadAttention", *given, own=True, num_heads=heads)
        return near(attended, "back")

    words = tensors.floats("embeddings.tok_embeddings.weight", whole(config, "vocab_size"), width)
    x = reader.normalized(graph.node("Gather", "words", "ids"), "embeddings.norm")
    for number, kind in enumerate(kinds):
        at = f"layers.{number}"
        normed = reader.normalized(x, f"{at}.attn_norm") if number else x
        qkv = reader.products(normed, f"{at}.attn.Wqkv", [width] * 3, bias=attention_bias)
        attended = attention(kind, *qkv)
        (out,) = reader.products(attended, f"{at}.attn.Wo", [width], width, bias=attention_bias)
        x = graph.node("Add", x, out)
        normed = reader.normalized(x, f"{at}.mlp_norm")
        before = reader.quantized(normed, width, norm=f"{at}.mlp_norm")
        gate, up = reader.products(before, f"{at}.mlp.Wi", [inner] * 2, bias=mlp_bias)
        gated = reader.quantized(reader.gated(gate, up, activation), inner)
        (down,) = reader.products(gated, f"{at}.mlp.Wo", [width], inner, bias=mlp_bias)
        x = graph.node("Add", x, down)
    x = reader.normalized(x, "final_norm")
    inputs = token_inputs(words)
    frequencies: dict[str, Floats] = {}
    for turn in turns.values():
        inputs += turn.inputs
        frequencies |= turn.frequencies
    if window is not None:
        inputs += [
            ("queries", TensorProto.INT64, ["blocks", "some"]),
            ("keys", TensorProto.INT64, ["blocks", "around"]),
            ("hidden", TensorProto.FLOAT, ["masks", 1, "some", "around"]),
            ("back", TensorProto.INT64, ["texts", "tokens"]),
        ]
    model = graph.model(inputs, x)
    return Encoder(model, graph.weights, words, places, window=window, turns=frequencies)


class _Turn:
    """Adds rotations to a graph.

    Attributes:
        inputs: What the graph takes for them.
        frequencies: See :class:`Encoder`.

    Args:
        graph: Which it is.
        config: With the rotary parameters.
        head_dim: Dimensions of a head.
        heads: Of a row.
        name: What the names of its inputs begin with.
    """

    def __init__(
        self,
        graph: Graph,
        config: dict[str, Any],
        head_dim: int,
        heads: int,
        name: str = "",
    ) -> None:
        self._graph, self._heads = graph, heads
        self._tables = [f"{name}cosines", f"{name}sines"]
        self.frequencies = {name: _frequencies(config, head_dim)}
        self.inputs: list[tuple[str, int, Sequence[str | int]]] = [
            (table, TensorProto.FLOAT, ["tokens", head_dim // 2]) for table in self._tables
        ]
        self._begin = graph.constant(np.array([0]))

    def __call__(self, x: str) -> str:
        """Add the rotation of every head, by its token's place in the text."""
        return self._graph.node(
            "RotaryEmbedding", x, self._begin, *self._tables, own=True, num_heads=self._heads
        )


def _frequencies(config: dict[str, Any], head_dim: int) -> Floats:
    """Return radians a token, of shape (head_dim / 2,).

    Rounded where torch rounds in :mod:`nimbed.local.rope`: an error in the last place would be
    multiplied by the position.
    """
    asked = rope_parameters(config)
    kind, base = asked["rope_type"], real(asked, "rope_theta", default=10000.0)
    assert kind in ("default", "ntk")  # nimbed.local.backends leaves the rest to torch
    scale = 1.0 if kind == "default" else real(asked, "factor")
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = (base * scale) ** exponents.astype(np.float64)
    plain = np.float32(1.0) / powers.astype(np.float32)
    frequencies: Floats = plain / np.float32(scale ** (2 / head_dim))
    return frequencies
