"""Parts of ONNX graphs: operations with their weights, and what follows the pooling.

The operators of the domain com.microsoft are ONNX Runtime's own, which fuse what belongs together:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.

Every batch holds texts of one length, so no graph masks padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from nimbed.errors import CheckpointError
from nimbed.local.onnx.weights import Array, ArrayTensors, Codes, CodeType, open_arrays, quantized
from nimbed.local.pipeline import DenseModule, NormModule

__all__ = ["Encoder", "Floats", "Graph", "Quantized", "Reader", "modules_graph", "token_inputs"]

Floats = NDArray[np.float32]

_OPSET = 17
_IR = 8  # of that opset; a younger one would refuse older runtimes without need

# GELU goes no lower than -0.16998, so its codes need few places below their zero.
_GELU_LEAST, _GELU_ZERO = 0.17, 32

# Which power of what a norm makes expect its columns are divided by: all of it would make the
# weights' columns as uneven as the states' were.
_SMOOTHED = 0.75

# Parts of the columns behind an activation that have a scale each.
_PARTS = 4


class Graph:
    """A graph in the making: nodes, and the weights that they name.

    Attributes:
        weights: By name; they are handed over beside the model, not in it.
    """

    def __init__(self) -> None:
        self.weights: dict[str, Array] = {}
        self._nodes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def weight(self, name: str, values: Floats) -> str:
        """Add a weight in float32; returns its name."""
        self.weights[name] = np.ascontiguousarray(values, np.float32)
        return name

    def product(self, x: str, name: str, weight: Floats) -> str:
        """Add x·Wᵀ; a weight as checkpoints store it is packed from where it lies."""
        return self.node("FusedMatMul", x, self.weight(name, weight), own=True, transB=1)

    def codes(self, name: str, values: Codes) -> str:
        """Add a quantised weight, or the zeros of one; returns its name."""
        self.weights[name] = values
        return name

    def constant(self, values: Array) -> str:
        """Add a few numbers that the model itself holds, once; returns their name."""
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._constants:
            kind = helper.np_dtype_to_tensor_dtype(values.dtype)
            value = helper.make_tensor("value", kind, values.shape, key[2], raw=True)
            self._constants[key] = self.node("Constant", value=value)
        return self._constants[key]

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

    def split(self, x: str, parts: int) -> list[str]:
        """Divide the last axis into equal parts; returns their names."""
        if parts == 1:
            return [x]
        first = self.node("Split", x, axis=-1, outputs=parts)
        return [first, *(f"{first}_{place}" for place in range(1, parts))]

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
                data_type=helper.np_dtype_to_tensor_dtype(values.dtype),
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
        window: Tokens that some layers see on either side of each, or None. If not, the model also
            takes what :func:`nimbed.local.onnx.session.blocks` makes.
        turns: By how a rotation is called, its radians a token, of shape (head_dim / 2,). For each,
            the model also takes ``cosines`` and ``sines`` of shape (tokens, head_dim / 2).
    """

    model: bytes
    weights: dict[str, Array]
    words: Floats
    learnt: int
    padding: int | None = None
    distances: Floats | None = None
    window: int | None = None
    turns: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Quantized:
    """States as bytes: what :meth:`Reader.quantized` adds to a graph.

    Attributes:
        codes: Names of the bytes, uint8 of shape (texts, tokens, columns), a part of the columns
            each.
        scales: Names of the scales of each part, of shape (texts, tokens, 1).
        zero: The code that stands for nothing.
        smoothing: What each column was divided by before, or None.
    """

    codes: Sequence[str]
    scales: Sequence[str]
    zero: int
    smoothing: Floats | None


class Reader:
    """Adds a network's operations to a graph, with their weights.

    Args:
        tensors: Of the checkpoint.
        width: Of the states.
        eps: Of the norms.
        norm_bias: Whether they have a shift.
        int8: Of which type the weights of quantised products are; None quantises nothing.
    """

    def __init__(
        self,
        tensors: ArrayTensors,
        width: int,
        eps: float,
        *,
        norm_bias: bool = True,
        int8: CodeType | None = None,
    ) -> None:
        self.graph = Graph()
        self._tensors, self._width, self._eps = tensors, width, eps
        self._norm_parts = ("weight", "bias") if norm_bias else ("weight",)
        self._int8 = int8
        self._shapes: dict[int, str] = {}

    def quantized(
        self, x: str, size: int, *, norm: str | None = None, gelu: bool = False
    ) -> str | Quantized:
        """Add what makes bytes of the states that an MLP's product takes.

        Each token has a scale of its own, by its largest number, so that its bytes depend on no
        other token. Two things make the steps finer. A norm gives some columns far larger numbers
        than others; they are first divided by what the norm's gain and shift make expect, and the
        weights multiplied by it, by powers of two, which round nothing. And what comes out of an
        activation, few large numbers among many small ones, has a scale for each quarter of its
        columns.

        Args:
            x: The states.
            size: Their columns.
            norm: The norm that they come from, if any.
            gelu: Whether they come from a GELU.

        Returns:
            The states as they are, where nothing is quantised.
        """
        if self._int8 is None:
            return x
        graph, smoothing, parts = self.graph, None, 1
        if norm is not None:
            smoothing = self._smoothing(norm)
            x = graph.node("Mul", x, graph.weight(f"{norm}.smoothing", np.reciprocal(smoothing)))
        elif size % _PARTS == 0:
            parts = _PARTS
        # QuantizeLinear takes a scale a row of a matrix, and the zero of each.
        matrix = graph.node("Reshape", x, graph.constant(np.array([-1, size // parts])))
        zero = _GELU_ZERO if gelu else 128
        largest = matrix if gelu else graph.node("Abs", matrix)
        rows = graph.node("ReduceMax", largest, axes=[1], keepdims=0)
        rows = graph.node("Mul", rows, graph.constant(np.array(1 / (255 - zero), np.float32)))
        if gelu:
            least = np.array(_GELU_LEAST / zero, np.float32)
            rows = graph.node("Max", rows, graph.constant(least))
        value = helper.make_tensor("value", TensorProto.UINT8, [1], [zero])
        zeros = graph.node("ConstantOfShape", graph.node("Shape", rows), value=value)
        codes = graph.node("QuantizeLinear", matrix, rows, zeros, axis=0)
        return Quantized(
            graph.split(graph.node("Reshape", codes, self._shape(size)), parts),
            graph.split(graph.node("Reshape", rows, self._shape(parts)), parts),
            zero,
            smoothing,
        )

    def _shape(self, columns: int) -> str:
        """Return the name of the shape (texts, tokens, columns)."""
        if columns not in self._shapes:
            counted = self.graph.node("Shape", "ids")
            last = self.graph.constant(np.array([columns]))
            self._shapes[columns] = self.graph.node("Concat", counted, last, axis=0)
        return self._shapes[columns]

    def _smoothing(self, norm: str) -> Floats:
        parts = [self._tensors.floats(f"{norm}.{part}", self._width) for part in self._norm_parts]
        expected = np.sqrt(np.square(parts, dtype=np.float64).sum(0))
        middle = np.median(expected) or 1.0
        powers = np.rint(np.log2(np.maximum(expected / middle, 1e-9)) * _SMOOTHED)
        smoothing: Floats = np.exp2(np.clip(powers, -6, 6)).astype(np.float32)
        return smoothing

    def _multiply(self, x: str | Quantized, name: str, weight: Floats) -> str:
        """Add x·Wᵀ, in integers where x is quantised."""
        graph = self.graph
        if isinstance(x, str):
            return graph.product(x, name, weight)
        assert self._int8 is not None
        if x.smoothing is not None:
            weight = weight * x.smoothing
        products = []
        for place, part in enumerate(np.split(weight, len(x.codes), axis=1)):
            made, own = quantized(part, self._int8), f"{name}, {place}"
            product = graph.node(
                "MatMulIntegerToFloat",
                x.codes[place],
                graph.codes(own, made.codes),
                graph.constant(np.array(1, np.float32)),
                graph.weight(f"{own}.scales", made.scales),
                graph.constant(np.array(x.zero, np.uint8)),
                graph.codes(f"{own}.zeros", made.zeros),
                own=True,
            )
            products.append(graph.node("Mul", product, x.scales[place]))
        return products[0] if len(products) == 1 else graph.node("Sum", *products)

    def product(self, x: str | Quantized, name: str, outputs: int, inputs: int) -> str:
        """Add x·Wᵀ."""
        return self._multiply(x, name, self._tensors.floats(f"{name}.weight", outputs, inputs))

    def products(
        self,
        x: str | Quantized,
        name: str,
        sizes: Sequence[int],
        inputs: int | None = None,
        *,
        bias: bool,
    ) -> list[str]:
        """Add products of one input, which the checkpoint stores as one.

        Args:
            x: The input.
            name: Of the weight.
            sizes: Outputs of each product.
            inputs: Width of the input, if it is not that of the states.
            bias: Whether they have one.
        """
        total, ends = sum(sizes), np.cumsum(sizes)[:-1]
        weight = self._tensors.floats(f"{name}.weight", total, inputs or self._width)
        biases = np.split(self._tensors.floats(f"{name}.bias", total), ends) if bias else []
        made = []
        for place, part in enumerate(np.split(weight, ends)):
            product = self._multiply(x, f"{name}.{place}", part)
            if bias:
                shift = self.graph.weight(f"{name}.{place}.bias", biases[place])
                product = self.graph.node("Add", product, shift)
            made.append(product)
        return made

    def gated(self, gate: str, up: str, activation: Literal["gelu", "silu"]) -> str:
        """Add the gate's activation, times the other product."""
        if activation == "silu":
            activated = self.graph.node("QuickGelu", gate, own=True, alpha=1.0)
        else:
            activated = self.graph.node("Gelu", gate, own=True)
        return self.graph.node("Mul", activated, up)

    def bias(self, name: str, size: int) -> str:
        """Add a product's bias; returns its name."""
        return self.graph.weight(f"{name}.bias", self._tensors.floats(f"{name}.bias", size))

    def norm(self, name: str) -> list[str]:
        """Add scale and shift of a norm; returns their names."""
        parts = [f"{name}.{part}" for part in self._norm_parts]
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
        self,
        norm: str,
        x: str | Quantized,
        name: str,
        inputs: int,
        residual: str,
        *,
        bias: bool = True,
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


def modules_graph(modules: Sequence[DenseModule | NormModule]) -> tuple[bytes, dict[str, Array]]:
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
    out = graph.product(x, f"{at}weight", weight)
    if module.bias:
        bias = graph.weight(f"{at}bias", tensors.floats("linear.bias", module.outputs))
        out = graph.node("Add", out, bias)
    out = _activated(graph, out, module.activation)
    if not module.residual:
        return out
    if module.inputs != module.outputs:
        projection = tensors.floats("residual.weight", module.outputs, module.inputs)
        x = graph.product(x, f"{at}residual", projection)
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
