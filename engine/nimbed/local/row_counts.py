"""The numbers of rows at which a matrix product gives every row the same bits.

A library of matrix products chooses its kernel, and so the order of a row's sums, by the number of
rows too. Batches come in multiples of 16 rows, where no product on AVX2 or AVX512 was seen to
differ. On processors with AMX, oneDNN's bfloat16 product of 1,536 inputs has another kernel from 33
rows on, and a vector would depend on what it is embedded with. There it is measured, once for each
size of weight, when a product is first used; so are MKL's products, which promise nothing. Too few
rows are padded, which costs little: it happens in small batches alone, and only in the products
that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
import torch.nn.functional as F

__all__ = ["Rows", "measured", "run"]

# Of the sizes that batches are padded to (nimbed.local.batching); larger ones take the kernel of
# the largest. Large weights are measured with fewer rows, so that each takes some 10 ms on AMX.
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


def run(key: Hashable, operation: Operation, *operands: torch.Tensor, outputs: int) -> torch.Tensor:
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
        known = measured(operation, widths, first.dtype, outputs=outputs)
        _measured[key, first.shape[1], outputs, first.dtype] = known
    rows = len(first)
    if known.block:
        return _in_blocks(operation, operands, known.block)
    if rows >= known.least:
        return operation(*operands)
    return operation(*(_padded(each, known.least) for each in operands))[:rows]


def measured(operation: Operation, widths: list[int], dtype: torch.dtype, *, outputs: int) -> Rows:
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
        operation(*(_padded(each[start : start + block], block) for each in operands))
        for start in range(0, len(operands[0]), block)
    ]
    return torch.cat(parts)[: len(operands[0])]


def _padded(x: torch.Tensor, rows: int) -> torch.Tensor:
    return F.pad(x, (0, 0, 0, rows - len(x)))
