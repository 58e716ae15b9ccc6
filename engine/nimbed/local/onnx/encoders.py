"""The graph of each architecture that ONNX Runtime runs, built from a checkpoint's files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

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
from nimbed.local.onnx.graph import Encoder, Floats, Reader, token_inputs
from nimbed.local.onnx.rotary import gte, modernbert, nomic_bert
from nimbed.local.onnx.weights import ArrayTensors, CodeType

__all__ = ["encoder"]

# Of a model that reads more tokens, attention never forms the matrix of all pairs: ONNX Runtime's
# MultiHeadAttention goes through it by blocks, where Attention keeps heads · tokens² numbers.
_MOST_PAIRS = 1024


def encoder(
    architecture: str,
    config: dict[str, Any],
    tensors: ArrayTensors,
    *,
    int8: CodeType | None = None,
) -> Encoder:
    """Build the graph of a checkpoint.

    Args:
        architecture: Of the checkpoint.
        config: Its config.json.
        tensors: Its weights.
        int8: Of which type the weights of the MLPs are, whose products then are of bytes; None
            leaves them in float32.

    Raises:
        CheckpointError: If a weight is missing or misshapen, or the configuration asks for
            something that the architecture does not do.
    """
    made = _ENCODERS[architecture](config, tensors, int8)
    tensors.refuse_leftovers()
    return made


def _bert(
    config: dict[str, Any],
    tensors: ArrayTensors,
    int8: CodeType | None,
    *,
    padding: int | None = None,
    distances: Floats | None = None,
) -> Encoder:
    """BERT, as :class:`nimbed.local.models.bert.Bert` has it."""
    tensors = tensors.stripped("bert.")
    heads, width = whole(config, "num_attention_heads"), whole(config, "hidden_size")
    heads_fit(width, heads)
    reader = Reader(tensors, width, real(config, "layer_norm_eps", default=1e-12), int8=int8)
    graph = reader.graph
    words = tensors.floats("embeddings.word_embeddings.weight", whole(config, "vocab_size"), width)
    places = whole(config, "max_position_embeddings")
    positions = tensors.floats("embeddings.position_embeddings.weight", places, width)
    # Every token is of type 0, so its embedding is added to the positions once, here.
    if config.get("type_vocab_size", 2):
        types = whole(config, "type_vocab_size", default=2)
        name = "embeddings.token_type_embeddings.weight"
        positions = positions + tensors.floats(name, types, width)[0]
    x = reader.embedded(graph.weight("places", positions), "embeddings.LayerNorm")
    inner = whole(config, "intermediate_size")
    bias_name = "" if distances is None else "bias"
    for number in range(whole(config, "num_hidden_layers")):
        at = f"encoder.layer.{number}"
        own = [f"{at}.attention.self.{part}" for part in ("query", "key", "value")]
        biases = [tensors.floats(f"{name}.bias", width) for name in own]
        joined = graph.weight(f"{own[0]}, {own[1]}, {own[2]}.bias", np.concatenate(biases))
        if places <= _MOST_PAIRS:
            parts = [tensors.floats(f"{name}.weight", width, width) for name in own]
            qkv = graph.weight(f"{own[0]}, {own[1]}, {own[2]}", np.concatenate(parts).T)
            attended = graph.node(
                "Attention", x, qkv, joined, "", "", bias_name, own=True, num_heads=heads
            )
        else:
            products = [reader.product(x, name, width, width) for name in own]
            attended = graph.node(
                "MultiHeadAttention", *products, joined, "", bias_name, own=True, num_heads=heads
            )
        output = f"{at}.attention.output"
        x = reader.after(f"{output}.LayerNorm", attended, f"{output}.dense", width, x)
        before = reader.quantized(x, width, norm=f"{output}.LayerNorm")
        up = reader.product(before, f"{at}.intermediate.dense", inner, width)
        up = graph.node("BiasGelu", up, reader.bias(f"{at}.intermediate.dense", inner), own=True)
        bent = reader.quantized(up, inner, gelu=True)
        x = reader.after(f"{at}.output.LayerNorm", bent, f"{at}.output.dense", inner, x)
    learnt = places - (0 if padding is None else padding + 1)
    inputs = [*token_inputs(words), ("positions", TensorProto.INT32, ["texts", "tokens"])]
    if distances is not None:
        inputs.append(("bias", TensorProto.FLOAT, [1, heads, "tokens", "tokens"]))
    model = graph.model(inputs, x)
    return Encoder(model, graph.weights, words, learnt, padding, distances)


def _xlm_roberta(config: dict[str, Any], tensors: ArrayTensors, int8: CodeType | None) -> Encoder:
    """XLM-R, whose positions begin behind the padding id."""
    tensors = tensors.stripped("roberta.", "xlm_roberta.")
    return _bert(config, tensors, int8, padding=first_position(config) - 1)


def _distilbert(config: dict[str, Any], tensors: ArrayTensors, int8: CodeType | None) -> Encoder:
    """DistilBERT: BERT without token types, under other names."""
    tensors = tensors.stripped("distilbert.", renamed=DISTILBERT_NAMES)
    return _bert({**config, "type_vocab_size": 0}, tensors, int8)


def _mpnet(config: dict[str, Any], tensors: ArrayTensors, int8: CodeType | None) -> Encoder:
    """MPNet, as :func:`nimbed.local.models.bert.mpnet` has it."""
    tensors = tensors.stripped("mpnet.", renamed=MPNET_NAMES)
    first, heads = first_position(config), whole(config, "num_attention_heads")
    longest = whole(config, "max_position_embeddings") - first
    table = tensors.floats("encoder.relative_attention_bias.weight", MPNET_BUCKETS, heads)
    added = table[mpnet_buckets(longest)].T
    return _bert(
        {**config, "type_vocab_size": 0}, tensors, int8, padding=first - 1, distances=added
    )


_ENCODERS: dict[str, Callable[..., Encoder]] = {
    "bert": _bert,
    "distilbert": _distilbert,
    "gte": gte,
    "modernbert": modernbert,
    "mpnet": _mpnet,
    "nomic_bert": nomic_bert,
    "xlm_roberta": _xlm_roberta,
}
