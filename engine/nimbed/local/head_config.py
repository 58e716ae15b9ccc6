"""Which heads a checkpoint has over its network's token states, from its files' names and JSON.

What is described here is read and computed by :mod:`nimbed.local.heads`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

__all__ = ["Multi", "Sparse", "TokenVectors", "TokenWeights", "m3_heads"]


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """bge-m3's sparse head: a linear layer that gives each token its weight.

    Attributes:
        path: The file that holds it.
    """

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of its weights, beside those of the network."""
        return (self.path,)


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """bge-m3's multi-vector head: a linear layer that gives each token its vector.

    Attributes:
        path: The file that holds it.
    """

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of its weights, beside those of the network."""
        return (self.path,)


#: What makes sparse vectors of token states, and what makes multi-vectors.
Sparse: TypeAlias = TokenWeights
Multi: TypeAlias = TokenVectors


def m3_heads(folder: Path) -> tuple[TokenWeights | None, TokenVectors | None]:
    """Return the heads that lie beside bge-m3's weights, in files that no other file lists."""
    sparse, multi = (folder / f"{name}_linear.pt" for name in ("sparse", "colbert"))
    return (
        TokenWeights(sparse) if sparse.is_file() else None,
        TokenVectors(multi) if multi.is_file() else None,
    )
