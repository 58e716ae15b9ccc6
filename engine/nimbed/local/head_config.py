"""Which heads a checkpoint has over its network's token states, from its files' names and JSON.

What is described here is read and computed by :mod:`nimbed.local.heads`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from nimbed.spec import InputType

__all__ = ["ColBert", "Expansion", "Multi", "Sparse", "TokenVectors", "TokenWeights", "m3_heads"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """Tokens put behind a short query, whose vectors count like those of its words.

    Attributes:
        token: Which, as the vocabulary writes it; usually ``[MASK]``.
        length: How many tokens the query then has.
        attended: Whether the network attends to them; they attend to the query's own in any case.
        fixed: Whether a query of more tokens is too long.
    """

    token: str
    length: int
    attended: bool = False
    fixed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ColBert:
    """ColBERT's head: each token's state through the pipeline's Dense modules.

    Attributes:
        query_prefix: The marker before a query, which is one token where the vocabulary has it.
        passage_prefix: Likewise before a passage.
        query_tokens: The longest query; None for the longest text that the network reads.
        passage_tokens: Likewise of passages.
        expansion: What is put behind a short query, if anything is.
        skipped: Words, usually marks of punctuation, whose tokens give no vector.
        skipped_in: The roles in which they do not.
    """

    query_prefix: str = ""
    passage_prefix: str = ""
    query_tokens: int | None = None
    passage_tokens: int | None = None
    expansion: Expansion | None = None
    skipped: tuple[str, ...] = ()
    skipped_in: tuple[InputType, ...] = ("passage",)

    @property
    def markers(self) -> tuple[str, ...]:
        """The markers of both roles."""
        return self.query_prefix, self.passage_prefix

    @property
    def files(self) -> tuple[Path, ...]:
        """None: the modules' weights count with the model's."""
        return ()

    def steps(self) -> Iterator[str]:
        """Yield what happens to queries and passages, for people."""
        roles = (("queries", self.query_prefix), ("passages", self.passage_prefix))
        yield from (f"{role} begin with the token {word!r}" for role, word in roles if word)
        if self.expansion is not None:
            unseen = "" if self.expansion.attended else ", which nothing attends to"
            yield f"queries to {self.expansion.length} tokens by {self.expansion.token}{unseen}"
        if self.skipped:
            where = " and ".join(self.skipped_in)
            yield f"{len(self.skipped)} words without vectors ({where}): {' '.join(self.skipped)}"


#: What makes sparse vectors of token states, and what makes multi-vectors.
Sparse: TypeAlias = TokenWeights
Multi: TypeAlias = TokenVectors | ColBert


def m3_heads(folder: Path) -> tuple[TokenWeights | None, TokenVectors | None]:
    """Return the heads that lie beside bge-m3's weights, in files that no other file lists."""
    sparse, multi = (folder / f"{name}_linear.pt" for name in ("sparse", "colbert"))
    return (
        TokenWeights(sparse) if sparse.is_file() else None,
        TokenVectors(multi) if multi.is_file() else None,
    )
