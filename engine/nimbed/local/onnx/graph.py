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
from nimbed.local.models.fields import first_position, heads_fit, only, real, whole
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
        model: As ONNX writes it, without its weights. It takes ``ids`` and ``positions``, int32 of
            shape (texts, tokens), and ``words``, and gives float32 states of shape (texts, tokens,
            width).
        weights: By name.
        words: The vector of each token id. Given anew with each batch, it is used where it lies,
            in the mapped file; as a weight it would be copied, and it is half of a small model.
        learnt: How many positions it learnt.
        padding: Token id that takes no position, or None; see
            :class:`nimbed.local.models.bert.Bert`.
    """

    model: bytes
    weights: dict[str, Floats]
    words: Floats
    learnt: int
    padding: int | None = None


def encoder(architecture: str, config: dict[str, Any], tensors: ArrayTensors) -> Encoder:
    """Build the graph of a checkpoint.

    Raises:
        CheckpointError: If a weight is missing or misshapen, or the configuration asks for
            something that the architecture does not do.
    """
    made = _ENCODERS[architecture](config, tensors)
    tensors.refuse_leftovers()
    return made


def _bert(config: dict[str, Any], tensors: ArrayTensors, *, padding: int | None = None) -> Encoder:
    """BERT, as :class:`nimbed.local.models.bert.Bert` has it."""
    only(config, hidden_act="gelu", position_embedding_type="absolute")
    tensors = tensors.stripped("bert.")
    heads, width = whole(config, "num_attention_heads"), whole(config, "hidden_size")
    eps = real(config, "layer_norm_eps", default=1e-12)
    heads_fit(width, heads)
    graph = Graph()

    def matrix(name: str, outputs: int, inputs: int) -> str:
        return graph.weight(name, tensors.floats(f"{name}.weight", outputs, inputs).T)

    def bias(name: str, size: int) -> str:
        return graph.weight(f"{name}.bias", tensors.floats(f"{name}.bias", size))

    def norm(name: str) -> list[str]:
        return [
            graph.weight(f"{name}.{part}", tensors.floats(f"{name}.{part}", width))
            for part in ("weight", "bias")
        ]

    def added(x: str, name: str, inputs: int, residual: str, norm_name: str) -> str:
        """A product, its bias and what came before it, normalised in one operation."""
        product = graph.node("MatMul", x, matrix(name, width, inputs))
        scale, shift = norm(norm_name)
        return graph.node(
            "SkipLayerNormalization",
            *(product, residual, scale, shift, bias(name, width)),
            own=True,
            epsilon=eps,
        )

    words = tensors.floats("embeddings.word_embeddings.weight", whole(config, "vocab_size"), width)
    # Every token is of type 0, so its embedding is added to the positions once, here.
    types = tensors.floats(
        "embeddings.token_type_embeddings.weight",
        whole(config, "type_vocab_size", default=2),
        width,
    )
    places = whole(config, "max_position_embeddings")
    positions = tensors.floats("embeddings.position_embeddings.weight", places, width)
    x = graph.node(
        "EmbedLayerNormalization",
        *("ids", "", "words", graph.weight("places", positions + types[0])),
        *("", *norm("embeddings.LayerNorm"), "", "positions"),
        own=True,
        outputs=2,
        epsilon=eps,
    )
    inner = whole(config, "intermediate_size")
    for number in range(whole(config, "num_hidden_layers")):
        at = f"encoder.layer.{number}"
        own = [f"{at}.attention.self.{part}" for part in ("query", "key", "value")]
        biases = [tensors.floats(f"{name}.bias", width) for name in own]
        joined = graph.weight(f"{own[0]}, {own[1]}, {own[2]}.bias", np.concatenate(biases))
        if places <= _MOST_PAIRS:
            parts = [tensors.floats(f"{name}.weight", width, width) for name in own]
            qkv = graph.weight(f"{own[0]}, {own[1]}, {own[2]}", np.concatenate(parts).T)
            attended = graph.node("Attention", x, qkv, joined, own=True, num_heads=heads)
        else:
            products = [graph.node("MatMul", x, matrix(name, width, width)) for name in own]
            attended = graph.node(
                "MultiHeadAttention", *products, joined, own=True, num_heads=heads
            )
        output = f"{at}.attention.output"
        x = added(attended, f"{output}.dense", width, x, f"{output}.LayerNorm")
        up = graph.node("MatMul", x, matrix(f"{at}.intermediate.dense", inner, width))
        up = graph.node("BiasGelu", up, bias(f"{at}.intermediate.dense", inner), own=True)
        x = added(up, f"{at}.output.dense", inner, x, f"{at}.output.LayerNorm")
    learnt = places - (0 if padding is None else padding + 1)
    return Encoder(graph.model(_inputs(words), x), graph.weights, words, learnt, padding)


def _xlm_roberta(config: dict[str, Any], tensors: ArrayTensors) -> Encoder:
    """XLM-R, whose positions begin behind the padding id."""
    tensors = tensors.stripped("roberta.", "xlm_roberta.")
    return _bert(config, tensors, padding=first_position(config) - 1)


def _inputs(words: Floats) -> list[tuple[str, int, Sequence[str | int]]]:
    return [
        ("ids", TensorProto.INT32, ["texts", "tokens"]),
        ("positions", TensorProto.INT32, ["texts", "tokens"]),
        ("words", TensorProto.FLOAT, words.shape),
    ]


_ENCODERS: dict[str, Callable[[dict[str, Any], ArrayTensors], Encoder]] = {
    "bert": _bert,
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
