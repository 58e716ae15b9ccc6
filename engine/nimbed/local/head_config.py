"""Which heads a checkpoint has over its network's token states, from its files' names and JSON.

What is described here is read and computed by :mod:`nimbed.local.heads`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from nimbed.errors import CheckpointError
from nimbed.local.json_files import read_json
from nimbed.local.models.fields import whole
from nimbed.local.tokenizer_config import read_vocabulary
from nimbed.spec import InputType

__all__ = [
    "AutoEncoder",
    "ColBert",
    "Expansion",
    "Multi",
    "Sparse",
    "Splade",
    "TokenPooling",
    "TokenTable",
    "TokenVectors",
    "TokenWeights",
    "check_masked_model",
    "m3_heads",
    "read_special_ids",
    "read_special_token",
    "table_width",
    "vocabulary_hash",
]

# Tokens that say nothing of a text, and what they are called where no file names them.
_MEANINGLESS = {
    "cls_token": ("<s>", "[CLS]"),
    "eos_token": ("</s>",),
    "pad_token": ("<pad>", "[PAD]"),
    "unk_token": ("<unk>", "[UNK]"),
}
_OTHERS = {"sep_token": ("</s>", "[SEP]"), "mask_token": ("<mask>", "[MASK]")}
_USUAL = _MEANINGLESS | _OTHERS


@dataclass(frozen=True, slots=True)
class _Linear:
    """A linear layer over a token's state.

    Attributes:
        path: The file that holds it.
    """

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of its weights, beside those of the network."""
        return (self.path,)


class TokenWeights(_Linear):
    """bge-m3's sparse head, which gives each token its weight."""

    __slots__ = ()


class TokenVectors(_Linear):
    """bge-m3's multi-vector head, which gives each token its vector."""

    __slots__ = ()


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
class TokenPooling:
    """Fewer vectors a text, as the checkpoint has it; see :func:`nimbed.batch.pool_tokens`.

    Attributes:
        factor: How many tokens share a vector on average.
        protected: How many of the first tokens stay alone.
        roles: Whose tokens are pooled.
    """

    factor: float
    protected: int
    roles: tuple[InputType, ...]


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
        pooling: What becomes of alike tokens before a caller's own pool_factor.
    """

    query_prefix: str = ""
    passage_prefix: str = ""
    query_tokens: int | None = None
    passage_tokens: int | None = None
    expansion: Expansion | None = None
    skipped: tuple[str, ...] = ()
    skipped_in: tuple[InputType, ...] = ("passage",)
    pooling: TokenPooling | None = None

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
        if self.pooling is not None:
            where = " and ".join(self.pooling.roles)
            yield f"a vector for {self.pooling.factor} tokens that are alike ({where})"


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


@dataclass(frozen=True, slots=True)
class AutoEncoder:
    """A sparse autoencoder over one vector a text, whose latents take the place of a vocabulary.

    Attributes:
        folder: Of its weights.
        inputs: Dimensions of the vector.
        latents: How many there are.
        kept: How many of the largest a sparse vector keeps, unless something else is asked.
        scaled: Whether the vector's numbers are brought to a mean of 0 and a deviation of 1 first.
        unit: Whether it has unit length before that.
    """

    folder: Path
    inputs: int
    latents: int
    kept: int
    scaled: bool
    unit: bool

    @property
    def files(self) -> tuple[Path, ...]:
        """None: its weights count with the model's."""
        return ()

    def steps(self, kept: int | None) -> Iterator[str]:
        """Yield what happens to the vector, of whose latents so many are kept, for people."""
        if self.unit:
            yield "unit length"
        if self.scaled:
            yield "mean 0 and deviation 1"
        yield f"SparseAutoEncoder {self.inputs} to {self.latents}, the {kept} largest"


#: What makes sparse vectors of token states, or of tokens alone; and what makes multi-vectors.
Sparse: TypeAlias = TokenWeights | Splade | TokenTable | AutoEncoder
Multi: TypeAlias = TokenVectors | ColBert


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


def table_width(folder: Path, sparse: Sparse | None) -> int:
    """Return the width of a table of words or of weights, from the head of its file.

    Args:
        folder: Where the table lies.
        sparse: What makes sparse vectors of it, or None for a table of words.

    Raises:
        CheckpointError: If there is none, or the file is damaged.
    """
    if isinstance(sparse, TokenTable) and sparse.path.suffix == ".json":
        return 1 + max(read_vocabulary(folder).values())
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"{folder} holds no model.safetensors, from which alone a table of words is read; "
            f"SentenceTransformer(folder).save(folder) writes it"
        )
    try:
        with (folder / "model.safetensors").open("rb") as file:
            head = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 1 << 24)))
        if sparse is not None:
            (width,) = head["weight"]["shape"]
        else:
            table = head.get("embedding.weight") or head["embeddings"]
            _, width = table["shape"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / 'model.safetensors'} holds no table of words, embedding.weight or "
            f"embeddings, and no weight of tokens ({error!r})"
        ) from error
    return whole({"width": width}, "width")


def vocabulary_hash(folder: Path) -> str:
    """Return 16 hex digits that name the tokens of tokenizer.json and their ids."""
    tokens = sorted((number, word) for word, number in read_vocabulary(folder).items())
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]


def read_special_ids(folder: Path, *, every: bool = False) -> list[int]:
    """Return the ids of the tokens that begin, end, pad and replace, but stand for no word.

    Those that FlagEmbedding leaves out of bge-m3's sparse vectors.

    Args:
        folder: With tokenizer.json and, if there are any, the files that name special tokens.
        every: Whether tokens that separate and mask are among them, too.
    """
    vocabulary = read_vocabulary(folder)
    keys = _MEANINGLESS | (_OTHERS if every else {})
    names = [name for key in keys for name in _special_names(folder, key)]
    return sorted({vocabulary[name] for name in names if name in vocabulary})


def read_special_token(folder: Path, key: str) -> str | None:
    """Return the special token that a key such as ``mask_token`` names, or the usual one."""
    vocabulary = read_vocabulary(folder)
    return next((name for name in _special_names(folder, key) if name in vocabulary), None)


def _special_names(folder: Path, key: str) -> tuple[str, ...]:
    files = ("tokenizer_config.json", "special_tokens_map.json")
    token = next((said for name in files if (said := read_json(folder / name).get(key))), None)
    content = token.get("content") if isinstance(token, dict) else token
    return _USUAL[key] if content is None else (str(content),)
