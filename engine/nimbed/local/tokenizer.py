"""Tokenization, cut to the model's length if the caller allows it.

Wraps the ``tokenizers`` library: tokenizer.json is the ground truth.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import tokenizers
from numpy.typing import NDArray

from nimbed.embedder import Token
from nimbed.errors import (
    CheckpointError,
    ConfigurationError,
    InputError,
    TooLongError,
    name_rows,
)
from nimbed.local.checkpoint import Checkpoint
from nimbed.local.head_config import ColBert
from nimbed.local.json_files import read_json
from nimbed.local.tokenizer_config import NO_CHANGES, TokenizerChanges
from nimbed.spec import Truncate

__all__ = [
    "InputTokenizer",
    "TextTokenizer",
    "Tokens",
    "bounded",
    "ids_of",
    "read_tokenizer",
]

# Characters up to which texts are tokenized here, one after the other. Rust's threads share the
# cores with a batch that runs meanwhile: two short texts then took 3 to 6 ms instead of 0.05. Nor
# does ``encode`` let go of the interpreter's lock, whose way back cost twice the tokens.
_FEW = 4096

# Characters of a text for each token that a model reads; what a text has beyond is not tokenized.
# A string of 60 MB, of which 256 tokens were then kept, took 117 s and 15 GB. English has 4
# characters a token, deeply indented code 20.
_CHARACTERS_PER_TOKEN = 64
# As many are tokenized at least: to some tokenizers a page of blanks is one token.
_LEAST_CHARACTERS = 64 * 1024
# Characters tokenized at once: a token that is about to be cut off takes 300 bytes.
_AT_ONCE = 2**20

# Turning what Rust holds into Python's integers costs as much as tokenizing on 16 cores, and nobody
# else can run meanwhile: it is left to whoever needs the ids, when he needs them.
Row: TypeAlias = "list[int] | tokenizers.Encoding"


class InputTokenizer(Protocol):
    """Tokenizes whatever the model embeds; see :meth:`TextTokenizer.encode`."""

    def encode(
        self, inputs: Sequence[Any], /, *, prompt: str, truncate: Truncate, first_row: int = 0
    ) -> Tokens:
        """Return token ids an input, special tokens included."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest text, special tokens included."""
        ...

    def count(self, texts: Sequence[str], *, prompt: str) -> list[int]:
        """Return the tokens of each text, however many; see :meth:`TextTokenizer.count`."""
        ...

    def spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return where the tokens of each text begin and end; see :meth:`TextTokenizer.spans`."""
        ...


class Tokens(NamedTuple):
    """Tokenized texts.

    Attributes:
        rows: What holds the ids of each text, special tokens included; see :func:`ids_of`.
        truncated: Which rows were cut, ascending.
        skip: How many of each row's first tokens are not pooled, or None if all are.
    """

    rows: Sequence[Row]
    truncated: list[int]
    skip: list[int] | None = None

    @property
    def ids(self) -> list[list[int]]:
        """Token ids a text, special tokens included."""
        return [ids_of(row) for row in self.rows]


def ids_of(row: Row) -> list[int]:
    """Return the token ids of a row, of which the tokenizer may not have made a list yet."""
    return row.ids if isinstance(row, tokenizers.Encoding) else row


def bounded(text: str, *, max_tokens: int, truncate: Truncate) -> str:
    """Return what is tokenized of a text: all of it, unless it is longer than any that would fit.

    Args:
        text: The text.
        max_tokens: Tokens that the model reads.
        truncate: ``START`` keeps the end, everything else the beginning.
    """
    most = max(_LEAST_CHARACTERS, _CHARACTERS_PER_TOKEN * max_tokens)
    if len(text) <= most:
        return text
    return text[-most:] if truncate == "START" else text[:most]


class TextTokenizer:
    """Tokenizes prompted texts.

    Args:
        path: tokenizer.json.
        max_tokens: Longest row, special tokens included.
        suffix: Put behind every text before it is tokenized; it may be cut off like the rest.
        skip_prompt: Whether the prompt's tokens are left out of the pooling.
        skip_head: Whether the special tokens before a prompt are left out with it.
        changes: What other files change of tokenizer.json.
        markers: What stands before texts, each read as one token where the vocabulary has it.
        bare: Whether tokenizer.json puts its special tokens around no text.
    """

    #: Characters up to which texts are tokenized one after the other, in this thread.
    few = _FEW

    def __init__(
        self,
        path: Path,
        *,
        max_tokens: int,
        suffix: str = "",
        skip_prompt: bool = False,
        skip_head: bool = False,
        changes: TokenizerChanges = NO_CHANGES,
        markers: Sequence[str] = (),
        bare: bool = False,
    ) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            _change(self._tokenizer, changes, markers)
            if bare:
                self._tokenizer.post_processor = None
            # Files in the wild have both baked in, at a length that is not the model's.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            if isinstance(self._tokenizer.decoder, tokenizers.decoders.WordPiece):
                self._tokenizer.decoder.cleanup = False  # it makes "don't" of "do not"
            mask = self._tokenizer.encode("a").special_tokens_mask
        except BaseException as error:  # the library raises bare Exception, and Rust's panics
            if not isinstance(error, Exception) and not _is_panic(error):
                raise
            raise CheckpointError(f"{path} is not a tokenizer: {error}") from error
        self._max_tokens = max_tokens
        self._suffix = suffix
        self._skip_prompt, self._skip_head = skip_prompt, skip_head
        content = [place for place, special in enumerate(mask) if not special]
        if not content:
            raise CheckpointError(f"{path} gives no token for the letter 'a'")
        self._head = content[0]
        self._tail = len(mask) - 1 - content[-1]
        self._suffix_length = self._bare_length(suffix)
        self._check_room()

    def _check_room(self) -> None:
        if self._max_tokens <= self._head + self._tail + self._suffix_length:
            raise CheckpointError(f"{self._max_tokens} tokens are no more than the special ones")

    def limited(self, max_tokens: int) -> TextTokenizer:
        """Return the same tokenizer for texts of another length at most."""
        other = copy.copy(self)
        other._max_tokens = max_tokens
        other._check_room()
        return other

    @property
    def opens(self) -> bool:
        """Whether every text begins with a special token."""
        return self._head > 0

    @property
    def closes(self) -> bool:
        """Whether every text ends with a special token."""
        return self._tail > 0

    def encode(
        self, texts: Sequence[str], *, prompt: str, truncate: Truncate, first_row: int = 0
    ) -> Tokens:
        """Tokenize ``prompt + text`` for each text; many of them in Rust threads.

        Args:
            texts: Valid, non-blank strings.
            prompt: Put before each of them; it survives truncation at either end.
            truncate: ``NONE`` raises for a row that is too long, ``START`` and ``END`` cut there.
            first_row: The caller's number of the first text, for messages.

        Raises:
            TooLongError: If a row is too long and may not be cut; of one that is too long to be
                tokenized at all, the length is counted in characters.
            InputError: If a row holds no token at all, or the tokenizer gives up on it.
        """
        skip = self.skipped(prompt)
        read = [bounded(text, max_tokens=self._max_tokens, truncate=truncate) for text in texts]
        huge = {row for row, text in enumerate(texts) if len(text) > len(read[row])}
        prompted = [f"{prompt}{text}{self._suffix}" for text in read]
        rows: list[Row] = []
        lengths: list[int] = []
        for few in _groups(prompted):
            for text, row in zip(few, self._encoded(few, first_row + len(rows)), strict=True):
                lengths.append(len(row))
                # At once, so that the tokens of all texts never lie in memory together.
                rows.append(
                    row if len(row) <= self._max_tokens else self._cut(row, text, prompt, truncate)
                )
        nothing = self._head + self._tail + self._suffix_length
        if lengths and min(lengths) <= nothing:
            empty = [first_row + row for row, length in enumerate(lengths) if length <= nothing]
            raise InputError(
                f"a text must hold something the model can read; {name_rows(empty)} vanishes "
                f"in tokenization (control or zero-width characters only)",
                rows=empty,
            )
        too_long = [
            row for row, length in enumerate(lengths) if length > self._max_tokens or row in huge
        ]
        if too_long and truncate == "NONE":
            raise TooLongError(
                lengths=[len(texts[row]) if row in huge else lengths[row] for row in too_long],
                limit=self._max_tokens,
                rows=[first_row + row for row in too_long],
                mend="split the text, or pass truncate='END' or 'START'",
                untokenized=[first_row + row for row in huge],
            )
        # Where the prompt's end merges with the text there may be fewer tokens than it has alone.
        skips = [min(skip, len(row) - 1) for row in rows] if skip else None
        return Tokens(rows, too_long, skips)

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest text, special tokens included."""
        return self._max_tokens

    def count(self, texts: Sequence[str], *, prompt: str) -> list[int]:
        """Return how many tokens each ``prompt + text`` has, special tokens included.

        Raises:
            InputError: If the tokenizer gives up on a text.
        """
        counts: list[int] = []
        for few in _groups([f"{prompt}{text}{self._suffix}" for text in texts]):
            counts.extend(map(len, self._encoded(few, len(counts))))
        return counts

    def spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return where the tokens of each text alone begin and end.

        Returns:
            For each text an array of shape (tokens, 2), in characters, without special tokens.
        """
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(each.offsets, np.int64).reshape(-1, 2) for each in encoded]

    def pieces(self, texts: Sequence[str], *, prompt: str, special: bool) -> list[list[Token]]:
        """Return the tokens of ``prompt + text`` for each text, as many as there are.

        Args:
            texts: Strings.
            prompt: Put before each of them.
            special: Whether the tokens that are put around every text are among them.

        Raises:
            InputError: If a text is too long to be tokenized, or the tokenizer gives up on it.
        """
        longest = max(texts, key=len, default="")
        most = len(bounded(longest, max_tokens=self._max_tokens, truncate="END"))
        huge = [row for row, text in enumerate(texts) if len(text) > most]
        if huge:
            raise InputError(
                f"a text of at most {most} characters is tokenized; {name_rows(huge)} has more",
                rows=huge,
            )
        found: list[list[Token]] = []
        for row, text in enumerate(texts):
            prompted = f"{prompt}{text}{self._suffix}"
            try:
                encoding = self._tokenizer.encode(prompted, add_special_tokens=special)
            except BaseException as error:
                if not _is_panic(error):
                    raise
                raise self._gives_up([row]) from None
            read = zip(
                encoding.ids,
                encoding.tokens,
                encoding.offsets,
                encoding.special_tokens_mask,
                strict=True,
            )
            found.append([Token(id, word, *at, bool(mask)) for id, word, at, mask in read])
        return found

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts that are tokenized to exactly these ids, special tokens included.

        Small ids mean something to every tokenizer: the special tokens tell whose they are.

        Raises:
            InputError: If there is no such text, or nothing would tell.
        """
        most = self._max_tokens
        long = [row for row, ids in enumerate(rows) if len(ids) > most]
        if long:
            mend = "token ids are not cut: send fewer, or the text"
            lengths = [len(rows[row]) for row in long]
            raise TooLongError(lengths=lengths, limit=most, rows=long, mend=mend)
        found = [self._text(ids) for ids in rows]
        foreign = [row for row, text in enumerate(found) if not text]
        if not foreign:
            return found
        raise InputError(
            f"{name_rows(foreign)}: these token ids are not what this model's tokenizer makes of a "
            f"text, special tokens included; send the text",
            rows=foreign,
        )

    def _text(self, ids: Sequence[int]) -> str:
        try:
            own = list(ids[self._head : len(ids) - self._tail])
            text = self._tokenizer.decode(own, skip_special_tokens=False).removesuffix(self._suffix)
            for each in (text, text.removeprefix(" ")):  # which some put before every text
                if self._tokenizer.encode(each + self._suffix).ids == list(ids):
                    return each if self._head + self._tail and each.strip() else ""
        except BaseException as error:  # an id beyond 32 bits, or a panic
            if not isinstance(error, OverflowError) and not _is_panic(error):
                raise
        return ""

    def _encoded(self, prompted: list[str], first_row: int) -> list[Row]:
        try:
            if sum(map(len, prompted)) <= self.few:
                return [self._tokenizer.encode(text) for text in prompted]
            return list(self._tokenizer.encode_batch_fast(prompted))
        except BaseException as error:
            if not _is_panic(error):
                raise
        failed = [first_row + row for row, text in enumerate(prompted) if not self._reads(text)]
        raise self._gives_up(failed)

    @staticmethod
    def _gives_up(rows: list[int]) -> InputError:
        fault = f"the model's tokenizer cannot read {name_rows(rows)}: it gave up"
        return InputError(f"{fault}; leave it out or split it", rows=rows)

    def _reads(self, text: str) -> bool:
        try:
            self._tokenizer.encode(text)
        except BaseException as error:
            if not _is_panic(error):
                raise
            return False
        return True

    def skipped(self, prompt: str) -> int:
        """Return how many of a row's first tokens are not pooled."""
        skip = self._bare_length(prompt) if self._skip_prompt else 0
        if skip and self._skip_head:
            skip += self._head
        if skip >= self._max_tokens:
            raise ConfigurationError(
                f"the prompt's {skip} tokens leave none of {self._max_tokens} for the text"
            )
        return skip

    def _bare_length(self, text: str) -> int:
        """Count a text's tokens by itself, without those that are put around every text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _cut(self, row: Row, prompted: str, prompt: str, truncate: Truncate) -> list[int]:
        """Return the ids of a row that fit; none where nothing may be cut, for it is refused."""
        if truncate == "NONE":
            return []
        ids = ids_of(row)
        tail = ids[len(ids) - self._tail :]
        if truncate == "END":
            return ids[: self._max_tokens - self._tail] + tail
        kept = self._prompt_tokens(prompted, len(prompt))
        head = ids[: min(self._head + kept, self._max_tokens - self._tail)]
        body = self._max_tokens - len(head) - self._tail
        end = len(ids) - self._tail
        return head + ids[end - body : end] + tail

    def _prompt_tokens(self, prompted: str, characters: int) -> int:
        """Count the tokens that begin inside the prompt; START must not cut them."""
        if not characters:
            return 0
        encoding = self._tokenizer.encode(prompted)
        return sum(
            not special and start < characters
            for (start, _), special in zip(
                encoding.offsets, encoding.special_tokens_mask, strict=True
            )
        )


def _change(
    tokenizer: tokenizers.Tokenizer, changes: TokenizerChanges, markers: Sequence[str]
) -> None:
    if changes.bert_normalizer:
        arguments: dict[str, Any] = dict(changes.bert_normalizer)
        tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(**arguments)
    if changes.lowercase:
        own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
        lower = tokenizers.normalizers.Lowercase()
        tokenizer.normalizer = tokenizers.normalizers.Sequence([lower, *own])
    tokenizer.add_tokens(
        [tokenizers.AddedToken(**dataclasses.asdict(token)) for token in changes.added]
    )

    # Markers before a text are read as the one token that they are in the vocabulary, which may
    # list them with the blank behind. The rule is that of sentence-transformers.
    for marker in markers:
        names = [name for name in (marker, marker.strip()) if tokenizer.token_to_id(name)]
        if names and tokenizer.encode(names[0], add_special_tokens=False).tokens != names[:1]:
            token = tokenizers.AddedToken(names[0], normalized=False, special=True)
            tokenizer.add_special_tokens([token])


def _is_panic(error: BaseException) -> bool:
    """Whether Rust code of the tokenizers library gave up; the class cannot be imported."""
    return type(error).__name__ == "PanicException"


def _groups(texts: list[str]) -> Iterator[list[str]]:
    """Yield the texts, some at a time, of little more than the characters tokenized at once."""
    start = size = 0
    for place, text in enumerate(texts):
        if size > _AT_ONCE:
            yield texts[start:place]
            start, size = place, 0
        size += len(text)
    yield texts[start:]


def read_tokenizer(checkpoint: Checkpoint) -> InputTokenizer:
    """Read a checkpoint's tokenizer.

    Raises:
        CheckpointError: If tokenizer.json is damaged or does not suit the model.
    """
    path, card = checkpoint.folder / "tokenizer.json", checkpoint.card
    if card.architecture in ("mistral3", "nemotron_vl"):
        from nimbed.local.vision.prompts import vision_tokenizer

        return vision_tokenizer(checkpoint)
    if card.architecture != "nvembed":
        multi = checkpoint.pipeline.multi
        texts = TextTokenizer(
            path,
            max_tokens=card.max_tokens,
            markers=multi.markers if isinstance(multi, ColBert) else (),
            skip_prompt=not checkpoint.pipeline.include_prompt,
            skip_head=True,
            changes=checkpoint.pipeline.tokenizer,
            bare=card.architecture == "static",
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
