"""An embedder without a model, for tests of code that uses nimbed.

A vector is drawn from the hash of the *prompted* input, so code that forgets the role, or confuses
the two roles, fails a plain equality test. An image is hashed as it is, never decoded. Sparse
vectors and multi-vectors are hashed word by word, so that texts that share words are near.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.cards import ModelCard
from nimbed.embedder import HybridBase, Managed
from nimbed.errors import TooLongError
from nimbed.images import Image
from nimbed.inputs import ContextText, Input, check_inputs
from nimbed.kinds import EmbeddingKinds, MultiVectorBatch, SparseBatch
from nimbed.options import EmbedBase, EmbedOptions, KindOptions, SpecOptions
from nimbed.reports import Progress, reporting
from nimbed.spec import (
    InputType,
    Kind,
    MultiVectorSpec,
    SparseSpec,
    TokenType,
    VectorSpec,
)

__all__ = ["FAKE_CARD", "FakeEmbedder"]

FAKE_CARD = ModelCard(
    id="nimbed/fake",
    architecture="fake",
    dimensions=64,
    matryoshka=(16, 32, 64),
    max_tokens=512,
    pooling="mean",
    asymmetric=True,
    query_prompt="query: ",
    passage_prompt="passage: ",
    licence="Apache-2.0",
)


#: Words that sparse vectors tell apart; a hash chooses one for each.
_VOCABULARY = 2**15


class FakeEmbedder(EmbedBase, HybridBase, Managed):
    """Embeds an input as a unit vector seeded by the hash of prompt, text and image.

    Words stand for tokens, and an image counts as one; a word's weight in a sparse vector is 1 plus
    the logarithm of how often it occurs. Every rule of the real embedders holds: roles, sizes,
    types, lengths; images are embedded if the card has them.

    Attributes:
        calls: Every (input_type, inputs) that was embedded, in order.
    """

    def __init__(self, card: ModelCard = FAKE_CARD) -> None:
        self._card = card
        self.calls: list[tuple[InputType, tuple[Input, ...]]] = []

    @property
    def card(self) -> ModelCard:
        """Facts about the pretended model."""
        return self._card

    def with_card(self, card: ModelCard) -> FakeEmbedder:
        """Return another with this card; see :class:`nimbed.embedder.Adjustable`."""
        return FakeEmbedder(card)

    def _spec(self, options: SpecOptions) -> VectorSpec:
        return self._card.spec(**options)

    def _embed(
        self, inputs: Sequence[Input], options: EmbedOptions, progress: Progress
    ) -> EmbeddingBatch:
        card = self._card
        spec = self.spec(**options.of_spec)
        items, counts, cut = self._read(inputs, options, in_context=True)
        self.calls.append((options.input_type, tuple(items)))
        prompt = card.prompt(options.input_type)
        floats = np.empty((len(items), card.dimensions), np.float32)
        with reporting(progress, len(items)) as finished:
            for row, item in enumerate(items):
                floats[row] = _hashed(f"{prompt}{_text(item)}{_digest(item)}", card.dimensions)
                finished(1)
        return EmbeddingBatch.from_floats(
            floats,
            spec=spec,
            input_type=options.input_type,
            token_counts=counts,
            truncated=cut,
        )

    async def _aembed(
        self, inputs: Sequence[Input], options: EmbedOptions, progress: Progress
    ) -> EmbeddingBatch:
        return self._embed(inputs, options, progress)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """All three."""
        return get_args(Kind)

    def sparse_spec(self, *, max_active: int | None = None) -> SparseSpec:
        """Return the contract; see :meth:`nimbed.embedder.HybridEmbedder.sparse_spec`."""
        return SparseSpec(
            model=self._card.id,
            vocabulary="hashed words",
            dimensions=_VOCABULARY,
            max_active=max_active,
            query_prompt=self._card.query_prompt,
            passage_prompt=self._card.passage_prompt,
        )

    def multi_spec(
        self, *, token_type: TokenType = "float", pool_factor: int = 1
    ) -> MultiVectorSpec:
        """Return the contract; see :meth:`nimbed.embedder.HybridEmbedder.multi_spec`."""
        return MultiVectorSpec.of(
            model=self._card.id,
            dimensions=self._card.dimensions,
            token_type=token_type,
            pool_factor=pool_factor,
            query_prompt=self._card.query_prompt,
            passage_prompt=self._card.passage_prompt,
        )

    def _embed_kinds(
        self, inputs: Sequence[str], asked: KindOptions, options: EmbedOptions, progress: Progress
    ) -> EmbeddingKinds:
        chosen = asked.chosen(self.kinds, self._card.id)
        role = options.input_type
        dense = None
        if "dense" in chosen:
            dense = self._embed(inputs, options, progress)
        items, counts, cut = self._read(inputs, options)
        if "dense" not in chosen:
            self.calls.append((role, tuple(items)))
        shared: Any = {"input_type": role, "token_counts": counts, "truncated": cut}
        prompt = self._card.prompt(role)
        words = [f"{prompt}{_text(item)}".split() for item in items]
        sparse = multi = None
        if "sparse" in chosen:
            spec = self.sparse_spec(max_active=asked.max_active)
            sparse = SparseBatch.from_rows([_weights(each) for each in words], spec=spec, **shared)
        if "multi" in chosen:
            width = self._card.dimensions
            rows = [np.stack([_hashed(word, width) for word in each]) for each in words]
            multi = MultiVectorBatch.from_floats(
                rows,
                spec=self.multi_spec(token_type=asked.token_type, pool_factor=asked.pool_factor),
                **shared,
            )
        return EmbeddingKinds(dense=dense, sparse=sparse, multi=multi)

    def _read(
        self, inputs: Sequence[Input], options: EmbedOptions, *, in_context: bool = False
    ) -> tuple[list[Input], NDArray[np.int32], tuple[int, ...]]:
        """Return the inputs as they are read, the tokens of each, and which were cut."""
        card = self._card
        items = check_inputs(
            inputs,
            input_type=options.input_type,
            modality=options.modality,
            model=card.id,
            modalities=card.modalities,
            in_context=in_context,
        )
        prompt = card.prompt(options.input_type)
        room = card.max_tokens - len(prompt.split())
        words = [_text(item).split() for item in items]
        too_long = [row for row, split in enumerate(words) if len(split) > room]
        if too_long and options.truncate == "NONE":
            raise TooLongError(
                lengths=[len(words[row]) + card.max_tokens - room for row in too_long],
                limit=card.max_tokens,
                rows=too_long,
                mend="split the text, or pass truncate='END' or 'START'",
            )
        for row in too_long:
            words[row] = words[row][:room] if options.truncate == "END" else words[row][-room:]
            items[row] = _with_text(items[row], " ".join(words[row]))
        lengths = [
            len(prompt.split()) + len(split) + (not isinstance(item, str))
            for split, item in zip(words, items, strict=True)
        ]
        return items, np.array(lengths, np.int32), tuple(too_long)

    def require_context(self) -> None:
        """Take chunks with the text around them; it is hashed too."""

    @property
    def text_tokens(self) -> int:
        """Words of the longest text, the prompt's included."""
        return self._card.max_tokens

    def count_tokens(self, texts: Sequence[str], *, input_type: InputType) -> list[int]:
        """Return the words of each text, the prompt's included."""
        prompt = len(self._card.prompt(input_type).split())
        return [prompt + len(text.split()) for text in texts]

    def token_spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return where the words of each text begin and end, in characters: (words, 2)."""
        return [
            np.array([word.span() for word in re.finditer(r"\S+", text)], np.int64).reshape(-1, 2)
            for text in texts
        ]


def _text(item: Input) -> str:
    if isinstance(item, str):
        return item
    return "" if isinstance(item, Image) else item[0]


def _digest(item: Input) -> str:
    if isinstance(item, ContextText) and len(item) < len(item.document):
        return f"\0{item.start} {item.document}"
    if isinstance(item, str):
        return ""
    return f"\0{item.digest if isinstance(item, Image) else item[1].digest}"


def _with_text(item: Input, text: str) -> Input:
    return (text, item[1]) if isinstance(item, tuple) else text


def _hashed(text: str, dimensions: int) -> NDArray[np.float64]:
    seed = np.frombuffer(_seed(text), np.uint32)
    return np.random.default_rng(seed).standard_normal(dimensions)


def _seed(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _weights(words: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    ids = [int.from_bytes(_seed(word)[:4]) % _VOCABULARY for word in words]
    found, counts = np.unique(np.array(ids, np.int32), return_counts=True)
    return found, (1 + np.log(counts)).astype(np.float32)
