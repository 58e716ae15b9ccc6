"""Tokens counted as a model reads them, from the JSON files of its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nimbed.errors import missing_extra
from nimbed.local.checkpoint import Checkpoint
from nimbed.spec import InputType

__all__ = ["ModelTokens"]


class ModelTokens:
    """Counts tokens as a checkpoint's model reads them; weights are not needed.

    A :class:`nimbed.chunks.TokenCounter`.

    Raises:
        MissingExtraError: If tokenizers is not installed.
        CheckpointError: If tokenizer.json is damaged or does not suit the model.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        try:
            from nimbed.local.tokenizer import read_tokenizer
        except ImportError as error:
            raise missing_extra("local", needs=error.name or "tokenizers") from error
        self._card = checkpoint.card
        self.tokenizer = read_tokenizer(checkpoint)

    @property
    def text_tokens(self) -> int:
        """Tokens of the longest text, prompt and special tokens included."""
        return self.tokenizer.max_tokens

    def count_tokens(self, texts: Sequence[str], *, input_type: InputType) -> list[int]:
        """Return the tokens of each text, prompt and special tokens included, however many."""
        return self.tokenizer.count(texts, prompt=self._card.prompt(input_type))

    def token_spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return where the tokens of each text alone begin and end; see TextTokenizer.spans."""
        return self.tokenizer.spans(texts)
