"""The tokenizer of a checkpoint, as its model reads texts, and tokens counted by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nimbed.errors import CheckpointError
from nimbed.local.checkpoint import Checkpoint
from nimbed.local.json_files import read_json
from nimbed.local.tokenizer import InputTokenizer, TextTokenizer
from nimbed.spec import InputType

__all__ = ["ModelTokens", "read_tokenizer"]


def read_tokenizer(checkpoint: Checkpoint) -> InputTokenizer:
    """Read a checkpoint's tokenizer.

    Raises:
        CheckpointError: If tokenizer.json is damaged or does not suit the model.
    """
    path, card = checkpoint.folder / "tokenizer.json", checkpoint.card
    if card.architecture in ("mistral3", "nemotron_vl"):
        from nimbed.local.vision.prompts import vision_tokenizer  # torch reads images

        return vision_tokenizer(checkpoint)
    if card.architecture != "nvembed":
        texts = TextTokenizer(
            path,
            max_tokens=card.max_tokens,
            skip_prompt=not checkpoint.pipeline.include_prompt,
            skip_head=True,
            changes=checkpoint.pipeline.tokenizer,
        )
        if card.pooling == "cls" and not texts.opens:
            raise CheckpointError(
                f"{checkpoint.folder} pools by cls, but its tokenizer.json puts no token before a "
                f"text: the vector would be that of the first word"
            )
        ends = read_json(checkpoint.folder / "tokenizer_config.json").get("add_eos_token")
        if card.pooling == "lasttoken" and ends is True and not texts.closes:
            raise CheckpointError(
                f"{checkpoint.folder} pools by the last token and asks for an end token "
                f"(add_eos_token in tokenizer_config.json), which its tokenizer.json puts behind "
                f"no text: the vector would be that of the last word. Add the token to "
                f"tokenizer.json's post_processor"
            )
        return texts
    # NV-Embed was trained with its end token in the text, before truncation, and with the
    # instruction left out of the mean.
    return TextTokenizer(
        path,
        max_tokens=card.max_tokens,
        suffix="</s>" if checkpoint.config.get("add_eos", True) else "",
        skip_prompt=bool(checkpoint.config.get("is_mask_instruction", True)),
    )


class ModelTokens:
    """Counts tokens as a checkpoint's model reads them; weights are not needed.

    A :class:`nimbed.chunks.TokenCounter`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
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
