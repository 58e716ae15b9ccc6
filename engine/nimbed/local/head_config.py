"""Which heads a checkpoint has over its network's token states, from its files' names and JSON.

What is described here is read and computed by :mod:`nimbed.local.heads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from nimbed.errors import CheckpointError

__all__ = [
    "Multi",
    "Sparse",
    "Splade",
    "TokenTable",
    "TokenVectors",
    "TokenWeights",
    "check_masked_model",
    "m3_heads",
]


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


@dataclass(frozen=True, slots=True)
class Splade:
    """A masked-language-model head, whose scores of the vocabulary are pooled over a text's tokens.

    Attributes:
        pooling: How: the largest score of each word (SPLADE v2 and later), or their sum.
        logarithms: How often log(1 + x) is taken of a score, negative ones being 0 before.
        special: Whether special tokens, such as [SEP], keep their weights.
    """

    pooling: Literal["max", "sum"] = "max"
    logarithms: int = 1
    special: bool = True

    @property
    def files(self) -> tuple[Path, ...]:
        """None: the head is in the network's own files."""
        return ()


class MaskedModel(NamedTuple):
    """How the tensors of a masked language model's head are called, without its prefix.

    Attributes:
        transform: A linear layer over the states.
        norm: A layer norm behind it.
        decoder: The linear layer that scores the vocabulary.
        bias: Its bias, to which one by the decoder's name is tied.
        words: The table of the network's words, which is the decoder's weight if they are tied.
    """

    transform: str
    norm: str
    decoder: str
    bias: str
    words: str = "embeddings.word_embeddings"


_ROBERTA = MaskedModel("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias")
_BERT = "cls.predictions"

#: By architecture; the names are those of transformers.
MASKED_MODELS: Mapping[str, MaskedModel] = {
    "bert": MaskedModel(
        f"{_BERT}.transform.dense",
        f"{_BERT}.transform.LayerNorm",
        f"{_BERT}.decoder",
        f"{_BERT}.bias",
    ),
    "distilbert": MaskedModel(
        "vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"
    ),
    "modernbert": MaskedModel(
        "head.dense", "head.norm", "decoder", "decoder.bias", "embeddings.tok_embeddings"
    ),
    "mpnet": _ROBERTA,
    "xlm_roberta": _ROBERTA,
}


@dataclass(frozen=True, slots=True)
class TokenTable:
    """A weight for each token of the vocabulary, which texts are given without a network.

    Attributes:
        path: The file that holds it: safetensors, or JSON with a weight for each token.
    """

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """None: the table is all there is, and the content id has it."""
        return ()


#: What makes sparse vectors of token states, or of tokens alone; and what makes multi-vectors.
Sparse: TypeAlias = TokenWeights | Splade | TokenTable
Multi: TypeAlias = TokenVectors


def check_masked_model(folder: Path, config: Mapping[str, Any], architecture: str) -> None:
    """Refuse a masked language model whose head nimbed does not have.

    Raises:
        CheckpointError: If it is of another architecture, or its head asks for something else.
    """
    if architecture not in MASKED_MODELS:
        raise CheckpointError(
            f"{folder} pools the scores of a {architecture} as a masked language model; nimbed "
            f"does so of {', '.join(MASKED_MODELS)}"
        )
    activation = config.get("classifier_activation") or "gelu"
    if architecture == "modernbert" and activation != "gelu":
        raise CheckpointError(
            f"{folder / 'config.json'} gives classifier_activation {activation!r}; nimbed knows "
            f"only 'gelu' there"
        )


def m3_heads(folder: Path) -> tuple[TokenWeights | None, TokenVectors | None]:
    """Return the heads that lie beside bge-m3's weights, in files that no other file lists."""
    sparse, multi = (folder / f"{name}_linear.pt" for name in ("sparse", "colbert"))
    return (
        TokenWeights(sparse) if sparse.is_file() else None,
        TokenVectors(multi) if multi.is_file() else None,
    )
