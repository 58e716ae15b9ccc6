"""Tokenization of texts, images and pairs of both for a vision-language model.

An image becomes tokens, one or more a piece of it; its prompt and its text stand around them. What
a user writes never becomes one of these tokens: it is read as plain text.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from nimbed.cards import ModelCard
from nimbed.errors import CheckpointError, InputError, TooLongError
from nimbed.images import Image
from nimbed.inputs import Input
from nimbed.local.checkpoint import Checkpoint
from nimbed.local.json_files import read_json
from nimbed.local.tokenizer import TextTokenizer, Tokens, bounded
from nimbed.local.vision.reader import ImageRow
from nimbed.local.vision.settings import ImageSettings, PixtralSettings, VisionSettings
from nimbed.spec import Truncate

__all__ = ["VisionTokenizer", "vision_tokenizer"]


def vision_tokenizer(checkpoint: Checkpoint) -> VisionTokenizer:
    """Read the tokenizer of a vision-language checkpoint, and how it wants its images.

    Raises:
        CheckpointError: If a file is damaged or does not suit the model.
    """
    folder, config = checkpoint.folder, checkpoint.config
    if not checkpoint.pipeline.include_prompt:
        raise CheckpointError(
            f"{folder} pools without the prompt (include_prompt false), which nimbed does not do "
            f"for models that read images"
        )
    if checkpoint.pipeline.tokenizer:
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'} adds tokens that tokenizer.json lacks or has with "
            f"other flags, which nimbed does not follow for models that read images; save the "
            f"tokenizer anew with transformers"
        )
    settings: ImageSettings
    if checkpoint.card.architecture == "mistral3":
        settings = PixtralSettings.read(config, folder)
    else:
        settings = VisionSettings.read(config, read_json(folder / "processor_config.json"))
    return VisionTokenizer(folder / "tokenizer.json", card=checkpoint.card, settings=settings)


class VisionTokenizer:
    """Tokenizes the inputs of a vision-language model.

    Args:
        path: tokenizer.json.
        card: Prompts and longest input.
        settings: How the model wants its images.
    """

    def __init__(self, path: Path, *, card: ModelCard, settings: ImageSettings) -> None:
        self._path, self._card, self._settings = path, card, settings
        self._longest_text = min(card.max_tokens, settings.longest_text or card.max_tokens)
        self._texts = TextTokenizer(path, max_tokens=self._longest_text)
        marks = settings.marks
        self._marks = _special_tokens(path) if marks is None else marks
        self._openings = {mark[0] for mark in self._marks}

    def encode(
        self, inputs: Sequence[Input], *, prompt: str, truncate: Truncate, first_row: int = 0
    ) -> Tokens:
        """Tokenize inputs; as :meth:`TextTokenizer.encode`, which takes what is only text.

        Args:
            inputs: Valid texts, images and pairs of (text, image).
            prompt: Put before each of them.
            truncate: What happens to a text that is too long; an image is never cut.
            first_row: The caller's number of the first input, for messages.

        Returns:
            Ids a row; an :class:`ImageRow` where the input shows an image.

        Raises:
            InputError: If a row is too long and may not be cut, holds no token, or its image is
                damaged, animated or too large.
            MissingExtraError: If there is an image and Pillow is not installed.
        """
        plain = [text for text in inputs if isinstance(text, str) and not self._marked(text)]
        if len(plain) == len(inputs):
            return self._texts.encode(plain, prompt=prompt, truncate=truncate, first_row=first_row)
        ids: list[list[int]] = []
        truncated: list[int] = []
        failed: list[tuple[int, InputError]] = []
        for place, item in enumerate(inputs):
            row = first_row + place
            try:
                encoded, cut = self._row(item, prompt, truncate, row)
            except InputError as error:
                failed.append((row, error))
                continue
            ids.append(encoded)
            truncated.extend([place] if cut else [])
        if len(failed) == 1:
            raise failed[0][1]
        if failed:
            raise InputError(
                f"{failed[0][1]} (and {len(failed) - 1} more rows)",
                rows=[row for row, _ in failed],
            ) from failed[0][1]
        return Tokens(ids, truncated)

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest text alone, special tokens included."""
        return self._texts.max_tokens

    def count(self, texts: Sequence[str], *, prompt: str) -> list[int]:
        """Return how many tokens each ``prompt + text`` has; as :meth:`TextTokenizer.count`."""
        counts = self._texts.count(texts, prompt=prompt)
        for row, text in enumerate(texts):
            if self._marked(text):
                head, body = self._divided(text, prompt)
                counts[row] = len(head) + len(self._literal.ids(body)) + len(self._literal.tail)
        return counts

    def spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return where the tokens of each text begin and end; as :meth:`TextTokenizer.spans`.

        Marks are read as marks here, so a text that holds some has fewer tokens than are counted.
        """
        return self._texts.spans(texts)

    def _divided(self, text: str, prompt: str) -> tuple[list[int], str]:
        """Return the ids that stand before a text with marks, and what is read literally."""
        lead = prompt.rstrip()
        return self._literal.head(lead), prompt[len(lead) :] + text

    def _row(
        self, item: Input, prompt: str, truncate: Truncate, row: int
    ) -> tuple[list[int], bool]:
        if isinstance(item, str):
            if not self._marked(item):
                found = self._texts.encode([item], prompt=prompt, truncate=truncate, first_row=row)
                return found.ids[0], bool(found.truncated)
            head, body = self._divided(item, prompt)
            return self._fitted(head, body, self._longest_text, truncate, row)
        text, image = ("", item) if isinstance(item, Image) else item
        settings = self._settings
        try:
            names, cutting = settings.shown(*image.size)
        except InputError as error:
            raise InputError(f"row {row}: {error}", rows=[row]) from error
        mark, context_id = settings.context
        head = self._literal.head(f"{prompt}{settings.before}{mark}{settings.after}")
        at = head.index(context_id)
        head[at : at + 1] = [self._literal.mark(name) for name in names]
        body = f" {text}" if text or settings.spaced else ""
        ids, cut = self._fitted(head, body, self._card.max_tokens, truncate, row)
        return ImageRow(ids, image=image, cutting=cutting, row=row), cut

    def _fitted(
        self, head: list[int], body: str, most: int, truncate: Truncate, row: int
    ) -> tuple[list[int], bool]:
        """Join head and body, the body read literally and cut to fit."""
        read = bounded(body, max_tokens=most, truncate=truncate)
        ids, tail = self._literal.ids(read), self._literal.tail
        mark, context_id = self._settings.context
        if context_id in ids:
            raise InputError(
                f"row {row} holds {mark}, which this model's tokenizer cannot read as text",
                rows=[row],
            )
        room, length = most - len(head) - len(tail), len(head) + len(ids) + len(tail)
        untokenized = [row] if len(read) < len(body) else []
        if untokenized:
            length = len(body)  # in characters
        if length <= most:
            return [*head, *ids, *tail], False
        if truncate == "NONE" or room < 1:
            mend = (
                "split the text, or pass truncate='END' or 'START'"
                if room > 0
                else "the image fills them alone and cannot be cut"
            )
            raise TooLongError(
                lengths=[length], limit=most, rows=[row], mend=mend, untokenized=untokenized
            )
        return [*head, *(ids[:room] if truncate == "END" else ids[-room:]), *tail], True

    @functools.cached_property
    def _literal(self) -> _Literal:
        # Made when the first image or mark is met: a vocabulary takes half a second to read.
        literal = _Literal(self._path)
        mark, context_id = self._settings.context
        if literal.mark(mark) != context_id:
            raise CheckpointError(
                f"{self._path} does not read {mark} as the one token {context_id} that "
                f"config.json promises"
            )
        return literal

    def _marked(self, text: str) -> bool:
        openings = any(opening in text for opening in self._openings)
        return openings and any(mark in text for mark in self._marks)


class _Literal:
    """Two readings of one tokenizer: marks as marks, and everything as plain text.

    Args:
        path: tokenizer.json.
    """

    def __init__(self, path: Path) -> None:
        # TextTokenizer has read the file, so it is sound.
        self._path = path
        self._ids: dict[str, int] = {}
        self._marks = tokenizers.Tokenizer.from_file(str(path))
        self._marks.no_truncation()
        self._marks.no_padding()
        self._plain = tokenizers.Tokenizer.from_str(self._marks.to_str())
        self._plain.encode_special_tokens = True
        framed = self._marks.encode("a")
        content = [place for place, special in enumerate(framed.special_tokens_mask) if not special]
        self._begin = framed.ids[: content[0]]
        self.tail = framed.ids[content[-1] + 1 :]

    def head(self, text: str) -> list[int]:
        """Return the ids of what stands before a user's text, beginning token included."""
        return [*self._begin, *self._marks.encode(text, add_special_tokens=False).ids]

    def mark(self, name: str) -> int:
        """Return the id of a token that is read as one.

        Raises:
            CheckpointError: If it is not.
        """
        if name not in self._ids:
            ids = self._marks.encode(name, add_special_tokens=False).ids
            if len(ids) != 1:
                raise CheckpointError(
                    f"{self._path} does not read {name} as the one token that it is in an image"
                )
            self._ids[name] = ids[0]
        return self._ids[name]

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text in which nothing has a special meaning."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids


def _special_tokens(path: Path) -> tuple[str, ...]:
    """Return the texts that a tokenizer.json reads as special tokens."""
    added = read_json(path).get("added_tokens") or []
    return tuple(token["content"] for token in added if token.get("special"))
