"""ONNX graphs of encoders, built from a checkpoint's configuration and weights.

The operators of the domain com.microsoft are ONNX Runtime's own, which fuse what belongs together:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.

Every batch holds texts of one length, so no graph has a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from nimbed.errors import CheckpointError
from nimbed.local.models.fields import (
    DISTILBERT_NAMES,
    MPNET_BUCKETS,
    MPNET_NAMES,
    NOMIC_NAMES,
    first_position,
    gate_activation,
    heads_fit,
    mpnet_buckets,
    nomic_settings,
    real,
    rope_parameters,
    whole,
)
from nimbed.local.onnx.weights import ArrayTensors, open_arrays
from nimbed.local.pipeline import DenseModule, NormModule

__all__ = ["Encoder", "Graph", "encoder", "modules_graph"]

Floats = NDArray[np.float32]

_OPSET = 17
_IR = 8  # of that opset; a younger one would refuse older runtimes without need

# Of a model that reads more tokens, attention never forms the matrix of all pairs: ONNX Runtime's
# MultiHeadAttention goes through it by blocks, where Attention keeps heads · tokens² numbers.
_MOST_PAIRS = 1024


class Graph:
    """A graph in the making: nodes, and the weights that they name.

    Attributes:
        weights: By name, in float32; they are handed over beside the model, not in it.
    """

    def __init__(self) -> None:
        self.weights: dict[str, Floats] = {}
        self._nodes: list[Any] = []

    def weight(self, name: str, values: Floats) -> str:
        """Add a weight; returns its name."""
        self.weights[name] = np.ascontiguousarray(values, np.float32)
        return name

    def node(
        self, operator: str, *inputs: str, own: bool = False, outputs: int = 1, **attributes: Any
    ) -> str:
        """Add an operation.

        Args:
            operator: Its name.
            inputs: Names of what it takes; an empty one leaves an optional input out.
            own: Whether it is ONNX Runtime's own.
            outputs: How many it has, of which only the first is used.
            attributes: As the operator calls them.

        Returns:
            The name of its output.
        """
        name = f"{operator}_{len(self._nodes)}"
        names = [name, *(f"{name}_{place}" for place in range(1, outputs))]
        domain = "com.microsoft" if own else ""
        self._nodes.append(
            helper.make_node(operator, list(inputs), names, domain=domain, **attributes)
        )
        return name

    def model(self, inputs: Sequence[tuple[str, int, Sequence[str | int]]], output: str) -> bytes:
        """Return the model as ONNX writes it, without its weights.

        Args:
            inputs: Name, type and shape of each.
            output: Name of a float32 output.
        """
        weights = []
        for name, values in self.weights.items():
            tensor = TensorProto(
                name=name,
                data_type=TensorProto.FLOAT,
                dims=values.shape,
                data_location=TensorProto.EXTERNAL,
            )
            tensor.external_data.add(key="location", value="given beside the model")
            weights.append(tensor)
        graph = helper.make_graph(
            self._nodes,
            "nimbed",
            [helper.make_tensor_value_info(*each) for each in inputs],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            weights,
        )
        domains = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
        made = helper.make_model(graph, opset_imports=domains, ir_version=_IR)
        written: bytes = made.SerializeToString()
        return written


@dataclass(frozen=True, slots=True)
class Encoder:
    """A network as a graph.

    Attributes:
        model: As ONNX writes it, without its weights. It takes ``ids``, int32 of shape (texts,
            tokens), ``words`` and, if the model learnt them, ``positions`` like ``ids``; it gives
            float32 states of shape (texts, tokens, width).
        weights: By name.
        words: The vector of each token id. Given anew with each batch, it is used where it lies,
            in the mapped file; as a weight it would be copied, and it is half of a small model.
        learnt: How many positions it learnt.
        padding: Token id that takes no position, or None; see
            :class:`nimbed.local.models.bert.Bert`.
        distances: What is added to the scores by the distance of two tokens, of shape (heads, 2 ·
            learnt - 1), or None. If not, the model also takes ``bias`` of shape (1, heads, tokens,
            tokens).
    """

    model: bytes
    weights: dict[str, Floats]
    words: Floats
    learnt: int
    padding: int | None = None
    distances: Floats | None = None


class Reader:
    """Adds a network's operations to a graph, with their weights.

    Args:
        tensors: Of the checkpoint.
        width: Of the states.
        eps: Of the norms.
    """

    def __init__(self, tensors: ArrayTensors, width: int, eps: float) -> None:
        self.graph = Graph()
        self._tensors, self._width, self._eps = tensors, width, eps

    def product(self, x: str, name: str, outputs: int, inputs: int) -> str:
        """Add x·Wᵀ."""
        weight = self._tensors.floats(f"{name}.weight", outputs, inputs)
        return self.graph.node("MatMul", x, self.graph.weight(name, weight.T))

    def bias(self, name: str, size: int) -> str:
        """Add a product's bias; returns its name."""
        return self.graph.weight(f"{name}.bias", self._tensors.floats(f"{name}.bias", size))

    def norm(self, name: str) -> list[str]:
        """Add scale and shift of a norm; returns their names."""
        parts = (f"{name}.weight", f"{name}.bias")
        return [self.graph.weight(part, self._tensors.floats(part, self._width)) for part in parts]

    def normalized(self, x: str, name: str) -> str:
        """Add a norm."""
        return self.graph.node("LayerNormalization", x, *self.norm(name), epsilon=self._eps)

    def embedded(self, positions: str, name: str) -> str:
        """Add the sum of words and positions, normed."""
        return self.graph.node(
            "EmbedLayerNormalization",
            *("ids", "", "words", positions, "", *self.norm(name), "", "positions"),
            own=True,
            outputs=2,
            epsilon=self._eps,
        )

    def after(
        self, norm: str, x: str, name: str, inputs: int, residual: str, *, bias: bool = True
    ) -> str:
        """Add a product, its bias and what came before it, normed in one operation."""
        product = self.product(x, name, self._width, inputs)
        given = [product, residual, *self.norm(norm)]
        if bias:
            given.append(self.bias(name, self._width))
        return self.graph.node("SkipLayerNormalization", *given, own=True, epsilon=self._eps)


def token_inputs(words: Floats) -> list[tuple[str, int, Sequence[str | int]]]:
    """Return what every encoder takes."""
    return [
        ("ids", TensorProto.INT32, ["texts", "tokens"]),
        ("words", TensorProto.FLOAT, words.shape),
    ]


def encoder(architecture: str, config: dict[str, Any], tensors: ArrayTensors) -> Encoder:
    """Build the graph of a checkpoint.

    Raises:
        CheckpointError: If a weight is missing or misshapen, or the configuration asks for
            something that the architecture does not do.
    """
    made = _ENCODERS[architecture](config, tensors)
    tensors.refuse_leftovers()
    return made


def _bert(
    config: dict[str, Any],
    tensors: ArrayTensors,
    *,
    padding: int | None = None,
    distances: Floats | None = None,
) -> Encoder:
    """BERT, as :class:`nimbed.local.models.bert.Bert` has it."""
    tensors = tensors.stripped("bert.")
    heads, width = whole(config, "num_attention_heads"), whole(config, "hidden_size")
    heads_fit(width, heads)
    reader = Reader(tensors, width, real(config, "layer_norm_eps", default=1e-12))
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
        up = reader.product(x, f"{at}.intermediate.dense", inner, width)
        up = graph.node("BiasGelu", up, reader.bias(f"{at}.intermediate.dense", inner), own=True)
        x = reader.after(f"{at}.output.LayerNorm", up, f"{at}.output.dense", inner, x)
    learnt = places - (0 if padding is None else padding + 1)
    inputs = [*token_inputs(words), ("positions", TensorProto.INT32, ["texts", "tokens"])]
    if distances is not None:
        inputs.append(("bias", TensorProto.FLOAT, [1, heads, "tokens", "tokens"]))
    model = graph.model(inputs, x)
    return Encoder(model, graph.weights, words, learnt, padding, distances)


def _xlm_roberta(config: dict[str, Any], tensors: ArrayTensors) -> Encoder:
    """XLM-R, whose positions begin behind the padding id."""
    tensors = tensors.stripped("roberta.", "xlm_roberta.")
    return _bert(config, tensors, padding=first_position(config) - 1)


def _distilbert(config: dict[str, Any], tensors: ArrayTensors) -> Encoder:
    """DistilBERT: BERT without token types, under other names."""
    tensors = tensors.stripped("distilbert.", renamed=DISTILBERT_NAMES)
    return _bert({**config, "type_vocab_size": 0}, tensors)


def _mpnet(config: dict[str, Any], tensors: ArrayTensors) -> Encoder:
    """MPNet, as :mod:`nimbed.local.models.mpnet` has it."""
    tensors = tensors.stripped("mpnet.", renamed=MPNET_NAMES)
    first, heads = first_position(config), whole(config, "num_attention_heads")
    longest = whole(config, "max_position_embeddings") - first
    table = tensors.floats("encoder.relative_attention_bias.weight", MPNET_BUCKETS, heads)
    added = table[mpnet_buckets(longest)].T
    return _bert({**config, "type_vocab_size": 0}, tensors, padding=first - 1, distances=added)


def _nomic_bert(config: dict[str, Any], tensors: ArrayTensors) -> Encoder:
    """NomicBERT, as :mod:`nimbed.local.models.rotary_bert` has it: rotated, with a gated MLP."""
    tensors = tensors.stripped("bert.", "nomic_bert.", renamed=NOMIC_NAMES)
    config = nomic_settings(config)
    heads, width = whole(config, "num_attention_heads"), whole(config, "hidden_size")
    inner, head_dim = whole(config, "intermediate_size"), heads_fit(width, heads)
    places = whole(config, "max_position_embeddings", default=2048)
    reader = Reader(tensors, width, real(config, "layer_norm_eps", default=1e-12))
    graph = reader.graph
    words = tensors.floats("embeddings.word_embeddings.weight", whole(config, "vocab_size"), width)
    x = graph.node("Gather", "words", "ids")
    if config["type_vocab_size"]:
        name, types = "embeddings.token_type_embeddings.weight", whole(config, "type_vocab_size")
        x = graph.node("Add", x, graph.weight("type", tensors.floats(name, types, width)[0]))
    x = reader.normalized(x, "embeddings.LayerNorm")
    turns = [graph.weight(*each) for each in _turns(config, head_dim, places)]
    begin = graph.node("Constant", value=helper.make_tensor("begin", TensorProto.INT64, [1], [0]))
    silu = gate_activation(config) == "silu"

    def parts(x: str, at: str, joined: str, names: list[str], size: int, bias: bool) -> list[str]:
        """Add products of one input, stored apart or as one."""
        together = f"{at}.{joined}.weight" in tensors
        made = []
        for place, part in enumerate(names):
            name, rows = f"{at}.{part}", slice(None)
            count = size
            if together:
                name, count = f"{at}.{joined}", len(names) * size
                rows = slice(place * size, (place + 1) * size)
            weight = tensors.floats(f"{name}.weight", count, width)[rows].T
            product = graph.node("MatMul", x, graph.weight(f"{at}.{part}", weight))
            if bias:
                own = graph.weight(f"{at}.{part}.bias", tensors.floats(f"{name}.bias", count)[rows])
                product = graph.node("Add", product, own)
            made.append(product)
        return made

    for number in range(whole(config, "num_hidden_layers")):
        at = f"layers.{number}"
        names = ["q_proj", "k_proj", "v_proj"]
        qkv = parts(x, f"{at}.self_attn", "qkv_proj", names, width, config["qkv_proj_bias"])
        turned = [
            graph.node("RotaryEmbedding", each, begin, *turns, own=True, num_heads=heads)
            for each in qkv[:2]
        ]
        attended = graph.node("MultiHeadAttention", *turned, qkv[2], own=True, num_heads=heads)
        norm, output = f"{at}.post_attention_layernorm", f"{at}.self_attn.o_proj"
        x = reader.after(norm, attended, output, width, x, bias=config["qkv_proj_bias"])
        names = ["up_proj", "gate_proj"]
        up, gate = parts(x, f"{at}.mlp", "up_gate_proj", names, inner, config["mlp_fc1_bias"])
        if silu:
            activated = graph.node("QuickGelu", gate, own=True, alpha=1.0)
        else:
            activated = graph.node("Gelu", gate, own=True)
        gated = graph.node("Mul", activated, up)
        norm, down = f"{at}.post_mlp_layernorm", f"{at}.mlp.down_proj"
        x = reader.after(norm, gated, down, inner, x, bias=config["mlp_fc2_bias"])
    return Encoder(graph.model(token_inputs(words), x), graph.weights, words, places)


def _turns(config: dict[str, Any], head_dim: int, places: int) -> list[tuple[str, Floats]]:
    """Return cosines and sines of shape (places, head_dim / 2), by name."""
    asked = rope_parameters(config)
    if asked["rope_type"] != "default":
        raise CheckpointError(
            f"config.json asks for {asked['rope_type']!r} rotary positions, which run in torch "
            f"alone; load the model with backend='torch'"
        )
    powers = np.arange(0, head_dim, 2) / head_dim
    frequencies = (1.0 / real(asked, "rope_theta", default=10000.0) ** powers).astype(np.float32)
    angles = np.arange(places, dtype=np.float32)[:, None] * frequencies
    return [("cosines", np.cos(angles)), ("sines", np.sin(angles))]


_ENCODERS: dict[str, Callable[[dict[str, Any], ArrayTensors], Encoder]] = {
    "bert": _bert,
    "distilbert": _distilbert,
    "mpnet": _mpnet,
    "nomic_bert": _nomic_bert,
    "xlm_roberta": _xlm_roberta,
}


def modules_graph(modules: Sequence[DenseModule | NormModule]) -> tuple[bytes, dict[str, Floats]]:
    """Build the graph of what follows the pooling, from ``pooled`` to the vectors.

    Returns:
        The model without its weights, and these by name.

    Raises:
        CheckpointError: If weights are missing, misshapen or damaged.
    """
    graph, x = Graph(), "pooled"
    for place, module in enumerate(modules):
        with open_arrays(module.folder) as tensors:
            if isinstance(module, DenseModule):
                x = _dense(graph, x, module, tensors, f"{place}.")
                continue
            scale, shift = (
                graph.weight(f"{place}.{part}", tensors.floats(f"norm.{part}", module.width))
                for part in ("weight", "bias")
            )
            x = graph.node("LayerNormalization", x, scale, shift, epsilon=1e-5)
    first = modules[0]
    width = first.inputs if isinstance(first, DenseModule) else first.width
    return graph.model([("pooled", TensorProto.FLOAT, ["texts", width])], x), graph.weights


def _dense(graph: Graph, x: str, module: DenseModule, tensors: ArrayTensors, at: str) -> str:
    weight = tensors.floats("linear.weight", module.outputs, module.inputs)
    if not module.bias and "linear.bias" in tensors:
        raise CheckpointError(f"{module.folder} has a bias that its config.json denies")
    out = graph.node("MatMul", x, graph.weight(f"{at}weight", weight.T))
    if module.bias:
        bias = graph.weight(f"{at}bias", tensors.floats("linear.bias", module.outputs))
        out = graph.node("Add", out, bias)
    out = _activated(graph, out, module.activation)
    if not module.residual:
        return out
    if module.inputs != module.outputs:
        projection = tensors.floats("residual.weight", module.outputs, module.inputs)
        x = graph.node("MatMul", x, graph.weight(f"{at}residual", projection.T))
    return graph.node("Add", out, x)


# torch's names of activations, with torch's own parameters.
_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "Tanh": ("Tanh", {}),
    "ReLU": ("Relu", {}),
    "Sigmoid": ("Sigmoid", {}),
    "LeakyReLU": ("LeakyRelu", {"alpha": 0.01}),
    "ELU": ("Elu", {"alpha": 1.0}),
}


def _activated(graph: Graph, x: str, activation: str) -> str:
    if activation == "Identity":
        return x
    if activation == "GELU":
        return graph.node("Gelu", x, own=True)
    if activation == "SiLU":
        return graph.node("Mul", x, graph.node("Sigmoid", x))
    operator, parameters = _ACTIVATIONS[activation]
    return graph.node(operator, x, **parameters)
