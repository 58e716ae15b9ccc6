"""Matrix products with a weight that never changes, plain and gated.

On the CPU the weight is laid out once for oneDNN, which also fuses the activation and the
residual into the product. On CUDA it is torch's own product, in float8 where that was asked for.

**Numbers of rows.** A library of matrix products chooses its kernel, and so the order of a row's
sums, by the number of rows too. On AVX2 and AVX512 oneDNN treats one row apart and no other number;
batches come in multiples of 4. On processors with AMX, oneDNN's bfloat16 product of 1,536 inputs
has another kernel from 33 rows on, and a vector would depend on what it is embedded with. There it
is measured, once for each size of weight, when a product is first used; so are MKL's products,
which promise nothing. Too few rows are padded, which costs little: it happens in small batches
alone, and only in the products that need it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from nimbed.local import kernels
from nimbed.local.device import Placement, has_amx
from nimbed.local.float8 import Float8Rows, Float8Weight, activate, gated_rows
from nimbed.local.weights import Tensors

__all__ = [
    "Activation",
    "Activations",
    "Affine",
    "Dense",
    "Gated",
    "Product",
    "Rows",
    "dense",
    "gated",
    "in_agreeing_rows",
    "measured_rows",
    "read_affine",
    "read_dense",
]

Activation = Literal["silu", "gelu", "gelu_tanh"]

# What a product multiplies: rows of the placement's dtype, or float8 rows where it takes those.
Activations = torch.Tensor | Float8Rows

# The layout that oneDNN chooses for this many rows runs as fast at any other number.
_TYPICAL_ROWS = 1024

# From this width on MKL is the faster where it is at all: not for MiniLM's 384.
_WIDE = 512


class Product(Protocol):
    """A map of x of shape (rows, inputs) to (rows, outputs)."""

    def __call__(self, x: Activations) -> torch.Tensor:
        """Return what it makes of x."""
        ...

    def plus(self, x: Activations, residual: torch.Tensor) -> torch.Tensor:
        """Return what it makes of x, plus residual, which may be overwritten with the result."""
        ...


class Dense(Product, Protocol):
    """An affine map x·Wᵀ + b for x of shape (rows, inputs)."""

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the exact (erf) GELU to x·Wᵀ + b."""
        ...

    def gelu_tanh(self, x: torch.Tensor) -> torch.Tensor:
        """Apply GELU's tanh approximation to x·Wᵀ + b."""
        ...


def dense(weight: torch.Tensor, bias: torch.Tensor | None, placement: Placement) -> Dense:
    """Prepare a weight of shape (outputs, inputs) for a device.

    Args:
        weight: As stored; it is converted and may be freed by the caller.
        bias: Of shape (outputs,), or None.
        placement: Device and dtype.
    """
    laid_out = placement.on_cpu and _lays_out(weight.shape, placement.dtype)
    # On the CPU a plain weight is copied: it may lie in a mapped file.
    copied = placement.on_cpu and not laid_out
    weight = weight.to(placement.device, placement.dtype, copy=copied)
    bias = None if bias is None else bias.to(placement.device, placement.dtype)
    # Tensor cores take float8 in blocks of 16 by 16.
    if placement.float8 and not any(size % 16 for size in weight.shape):
        return _Float8(Float8Weight.of(weight), bias)
    if laid_out:
        return _Prepacked(weight, bias)
    return _Plain(weight, bias)


class _Plain:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Activations) -> torch.Tensor:
        assert isinstance(x, torch.Tensor)  # float8 rows are made for float8 products alone
        return _alike(
            "plain",
            len(self._weight),
            lambda rows: F.linear(rows, self._weight, self._bias),
            x,
            assured=False,
        )

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self(x))

    def gelu_tanh(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self(x), approximate="tanh")

    def plus(self, x: Activations, residual: torch.Tensor) -> torch.Tensor:
        if self._bias is None:
            assert isinstance(x, torch.Tensor)
            # The sum rides in the product.
            return _alike(
                "sum",
                len(self._weight),
                lambda rows, sums: sums.addmm_(rows, self._weight.t()),
                *(x, residual),
                assured=False,
            )
        return self(x).add_(residual)


class _Float8:
    """A weight in float8; see :mod:`nimbed.local.float8`."""

    def __init__(self, weight: Float8Weight, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Activations) -> torch.Tensor:
        rows = x if isinstance(x, Float8Rows) else Float8Rows.of(x)
        return self._weight.product(rows, self._bias)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self(x))

    def gelu_tanh(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self(x), approximate="tanh")

    def plus(self, x: Activations, residual: torch.Tensor) -> torch.Tensor:
        return self(x).add_(residual)


class _Prepacked:
    """A weight in oneDNN's blocked layout.

    Measured on an AMD EPYC with AVX512: 2.3x F.linear (MKL) in float32 at every number of rows,
    1.3x in bfloat16, 3x with the activation fused.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)
        self._bias, self._outputs = bias, len(weight)

    def __call__(self, x: Activations) -> torch.Tensor:
        assert isinstance(x, torch.Tensor)
        return self._pointwise(x, "none", "")

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return self._pointwise(x, "gelu", "none")

    def gelu_tanh(self, x: torch.Tensor) -> torch.Tensor:
        return self._pointwise(x, "gelu", "tanh")

    def plus(self, x: Activations, residual: torch.Tensor) -> torch.Tensor:
        assert isinstance(x, torch.Tensor)

        def product(rows: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
            return _onednn_binary(rows, residual, Affine(self._weight, self._bias), "add")

        return _alike("add", self._outputs, product, x, residual)

    def _pointwise(self, x: torch.Tensor, activation: str, algorithm: str) -> torch.Tensor:
        def product(rows: torch.Tensor) -> torch.Tensor:
            return _onednn(rows, Affine(self._weight, self._bias), activation, algorithm)

        return _alike(activation + algorithm, self._outputs, product, x)


def _onednn(x: torch.Tensor, affine: Affine, activation: str, algorithm: str) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        x, affine.weight, affine.bias, activation, [], algorithm
    )
    return out


def _onednn_binary(
    x: torch.Tensor, other: torch.Tensor, affine: Affine, operation: str
) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
        x, other, affine.weight, affine.bias, operation
    )
    return out


def _alike(
    kind: str,
    outputs: int,
    product: Operation,
    *operands: torch.Tensor,
    assured: bool = True,
) -> torch.Tensor:
    """Return a product whose rows are the same to the bit in batches of any size.

    ``assured`` says that none but AMX's kernels were seen to follow the number of rows.
    """
    if not operands[0].is_cpu or (assured and not has_amx()):
        return product(*operands)
    return in_agreeing_rows(kind, product, *operands, outputs=outputs)


def _lays_out(shape: torch.Size, dtype: torch.dtype) -> bool:
    """Whether a weight is laid out for oneDNN on the CPU."""
    return not _mkl_is_faster(shape, dtype) and _onednn_takes(dtype)


def _mkl_is_faster(shape: torch.Size, dtype: torch.dtype) -> bool:
    """Whether torch's own product is: float32 through MKL, where there is no AVX512.

    Measured on an AMD EPYC with AVX2 alone, 1,664 rows of 768 to 3,072: 82 against 71 GFLOP/s, and
    73 against 48 with GELU, which oneDNN computes slowly there. Narrow weights gain nothing.
    """
    if dtype != torch.float32 or min(shape) < _WIDE:
        return False
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return has_mkl and torch.backends.cpu.get_cpu_capability() == "AVX2"


@functools.cache
def _onednn_takes(dtype: torch.dtype) -> bool:
    """Whether this torch has the prepacked product for a dtype, and it is right.

    The operators are torch.compile's own and carry no promise of stability, so a small product
    is compared with F.linear before they are trusted.
    """
    generator = torch.Generator().manual_seed(0)
    x, weight, residual = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 32), (48, 32), (5, 48))
    )
    plain = _Plain(weight, weight[:, 0].contiguous())
    try:
        packed = _Prepacked(weight, weight[:, 0].contiguous())
        pairs = [
            (packed(x), plain(x)),
            (packed.gelu(x), plain.gelu(x)),
            (packed.gelu_tanh(x), plain.gelu_tanh(x)),
            (packed.plus(x, residual), plain.plus(x, residual.clone())),
        ]
    except (RuntimeError, AttributeError, TypeError):
        return False
    loose = 1e-4 if dtype == torch.float32 else 0.2
    return all(torch.allclose(a.float(), b.float(), rtol=loose, atol=loose) for a, b in pairs)


# oneDNN's names: activation, algorithm.
_POINTWISE = {"silu": ("swish", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}


class Affine(NamedTuple):
    """A weight of shape (outputs, inputs) and a bias of shape (outputs,), or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def split(self, count: int) -> list[Affine]:
        """Return the products that were stored as this one, each with as many outputs."""
        biases = [None] * count if self.bias is None else self.bias.chunk(count)
        return list(map(Affine, self.weight.chunk(count), biases))


def read_affine(tensors: Tensors, names: Mapping[str, int], inputs: int, *, bias: bool) -> Affine:
    """Read the products of these names, joined into one if there are several.

    Args:
        tensors: Of the checkpoint.
        names: Their names, without ``.weight``, and their outputs.
        inputs: Of each.
        bias: Whether they have biases.
    """
    weights = [tensors.get(f"{name}.weight", size, inputs) for name, size in names.items()]
    biases = [tensors.get(f"{name}.bias", size) for name, size in names.items() if bias]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    return Affine(weight, torch.cat(biases) if biases else None)


def read_dense(
    tensors: Tensors, names: Mapping[str, int], inputs: int, placement: Placement, *, bias: bool
) -> Dense:
    """Read the products of these names, as :func:`read_affine` does, onto a device."""
    return dense(*read_affine(tensors, names, inputs, bias=bias), placement)


class Gated(Protocol):
    """A gated product."""

    def __call__(self, x: Activations) -> Activations:
        """Return act(gate(x)) ⊙ up(x) of shape (rows, outputs), for a product."""
        ...


def gated(gate: Affine, up: Affine, activation: Activation, placement: Placement) -> Gated:
    """Prepare a gated product for a device; ``gelu`` is the exact (erf) one."""
    on_cpu = placement.on_cpu and not placement.float8
    laid_out = on_cpu and _lays_out(gate.weight.shape, placement.dtype)
    if laid_out and _onednn_gates(placement.dtype, activation):
        return _PrepackedGate(gate, up, activation, placement)
    return _JoinedGate(gate, up, activation, placement)


class _JoinedGate:
    """One product with both weights: a GPU would rather have few large ones."""

    def __init__(
        self, gate: Affine, up: Affine, activation: Activation, placement: Placement
    ) -> None:
        weight = torch.cat([part.weight.to(placement.dtype) for part in (gate, up)])
        biases = [part.bias for part in (gate, up) if part.bias is not None]
        self._both = dense(weight, torch.cat(biases) if biases else None, placement)
        self._activation: Activation = activation
        self._float8 = placement.float8
        self._fused = kernels.usable(placement.device)

    def __call__(self, x: Activations) -> Activations:
        both = self._both(x)
        if self._float8:  # the product behind it takes float8 rows
            return gated_rows(both, activation=self._activation)
        if self._fused:
            from nimbed.local.kernels.fused import gated_activation

            return gated_activation(both, activation=self._activation)
        gate, up = both.chunk(2, dim=-1)
        return activate(gate, self._activation).mul_(up)


class _PrepackedGate:
    """Two weights in oneDNN's blocked layout.

    Measured on an AMD EPYC with AVX512-BF16, 1024 rows of 2048 to 8192: 74 ms against 83 ms for
    the joined product in bfloat16, 163 ms against 169 ms in float32.
    """

    def __init__(
        self, gate: Affine, up: Affine, activation: Activation, placement: Placement
    ) -> None:
        self._gate, self._up = self._laid_out(gate, placement), self._laid_out(up, placement)
        self._activation, self._algorithm = _POINTWISE[activation]
        self._outputs = len(gate.weight)

    def _laid_out(self, affine: Affine, placement: Placement) -> Affine:
        weight = torch.ops.mkldnn._reorder_linear_weight(
            affine.weight.to(placement.dtype).contiguous(), _TYPICAL_ROWS
        )
        return Affine(weight, None if affine.bias is None else affine.bias.to(placement.dtype))

    def __call__(self, x: Activations) -> torch.Tensor:
        assert isinstance(x, torch.Tensor)

        def product(rows: torch.Tensor) -> torch.Tensor:
            gate = _onednn(rows, self._gate, self._activation, self._algorithm)
            return _onednn_binary(rows, gate, self._up, "mul")

        return _alike(f"gated {self._activation}{self._algorithm}", self._outputs, product, x)


@functools.cache
def _onednn_gates(dtype: torch.dtype, activation: Activation) -> bool:
    """Whether this torch has the fused products and they are right; compare _onednn_takes."""
    generator = torch.Generator().manual_seed(0)
    x, gate, up = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 32), (48, 32), (48, 32))
    )
    placement = Placement(torch.device("cpu"), dtype)
    pair = (Affine(gate, gate[:, 0].contiguous()), Affine(up, None))
    wide = F.linear(x.float(), gate.float(), gate[:, 0].float())
    plain = activate(wide, activation) * F.linear(x.float(), up.float())
    try:
        fused = _PrepackedGate(*pair, activation, placement)(x)
    except (RuntimeError, AttributeError, TypeError):
        return False
    loose = 1e-4 if dtype == torch.float32 else 0.2
    return torch.allclose(fused.float(), plain, rtol=loose, atol=loose)


# Of the sizes that batches are padded to (nimbed.local.batching), those in multiples of the first;
# larger ones take the kernel of the largest. Large weights are measured with fewer rows, so that
# each takes some 10 ms on AMX.
_SIZES = (16, 32, 48, 64, 128, 256, 1024)
_LARGE_WEIGHT, _FEW = 4_000_000, 256
# Where no number of rows agrees with the larger ones, all products are made in blocks of as many.
_BLOCK = 64


class Rows(NamedTuple):
    """How a product is given its rows.

    Attributes:
        least: Fewer are padded to as many.
        block: As many at a time; 0 for all at once.
    """

    least: int
    block: int = 0


_measured: dict[Hashable, Rows] = {}

Operation = Callable[..., torch.Tensor]


def in_agreeing_rows(
    key: Hashable, operation: Operation, *operands: torch.Tensor, outputs: int
) -> torch.Tensor:
    """Apply a product to its operands, of as many rows each, in numbers of rows that agree.

    Args:
        key: What the kernel may depend on besides the widths and the dtype.
        operation: The product; it may overwrite what it is given.
        operands: Tensors of shape (rows, inputs).
        outputs: Columns of the result.
    """
    first = operands[0]
    known = _measured.get((key, first.shape[1], outputs, first.dtype))
    if known is None:
        widths = [each.shape[1] for each in operands]
        known = measured_rows(operation, widths, first.dtype, outputs=outputs)
        _measured[key, first.shape[1], outputs, first.dtype] = known
    if known.block:
        return _in_blocks(operation, operands, known.block)
    rows = len(first)
    measured = max(known.least, -(-rows // _SIZES[0]) * _SIZES[0])
    if rows == measured:
        return operation(*operands)
    return operation(*(_with_rows(each, measured) for each in operands))[:rows]


def measured_rows(
    operation: Operation, widths: list[int], dtype: torch.dtype, *, outputs: int
) -> Rows:
    """Return how a product must be given its rows so that their number changes no bit.

    Random rows are multiplied all at once, then the last 16, the last 32 and so on.
    """
    most = _FEW if widths[0] * outputs > _LARGE_WEIGHT else _SIZES[-1]
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(most, width, generator=generator).to(dtype) for width in widths]
    whole = operation(*(each.clone() for each in operands))
    least = most
    for rows in reversed([size for size in _SIZES if size < most]):
        if not torch.equal(operation(*(each[-rows:].clone() for each in operands)), whole[-rows:]):
            break
        least = rows
    if least == most:
        return Rows(_BLOCK, _BLOCK)
    return Rows(least if least > _SIZES[0] else 0)


def _in_blocks(
    operation: Operation, operands: tuple[torch.Tensor, ...], block: int
) -> torch.Tensor:
    parts = [
        operation(*(_with_rows(each[start : start + block], block) for each in operands))
        for start in range(0, len(operands[0]), block)
    ]
    return torch.cat(parts)[: len(operands[0])]


def _with_rows(x: torch.Tensor, rows: int) -> torch.Tensor:
    return F.pad(x, (0, 0, 0, rows - len(x)))
