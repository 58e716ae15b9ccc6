"""Splits documents into chunks of a number of tokens, counted by the model's own tokenizer.

A chunk ends with a paragraph where the second half of it has one, else with a sentence, a word, a
character. Its span says where it lies: without overlap, the chunks one after the other are the
document again.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from nimbed.embedder import ContextEmbedding
from nimbed.errors import ConfigurationError
from nimbed.inputs import ContextText
from nimbed.rows import BadRow, Item, Row, as_rows, row_id, text_fault
from nimbed.spec import InputType

__all__ = [
    "CHUNK_FIELDS",
    "CONTEXT_FIELD",
    "Chunk",
    "ChunkColumns",
    "ChunkMode",
    "ContextText",
    "LateSplitter",
    "Splitter",
    "TokenCounter",
    "chunk_row",
    "document_of",
    "split_rows",
]

#: What the row of a chunk has beside its document's fields: the document's id, the number of the
#: chunk from 0, and where it begins and ends, in characters.
CHUNK_FIELDS = ("chunk_of", "chunk", "chunk_start", "chunk_stop")
#: What the row of a late chunk has besides: a digest of the text that its vector depends on.
CONTEXT_FIELD = "chunk_context"
#: Whether a chunk is embedded alone or with the text around it.
ChunkMode = Literal["plain", "late"]

# Of a chunk beside prompt and special tokens: enough for any single character, which a tokenizer
# may spell byte by byte.
_LEAST_ROOM = 16
# Every tokenizer reads that much at least; blanks may be no tokens at all.
_MOST_CHARACTERS = 64 * 1024
# Chunks that are counted together: tokenizers use all cores for many texts.
_AHEAD = 64
# Documents that are counted together: no more than this many, nor of many more characters.
_DOCUMENTS, _CHARACTERS = 256, 2**20

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
# A full stop before white space, one of the scripts that write none between sentences, or a line.
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|[。！？।]+[」』”]*\s*|\n\s*")  # noqa: RUF001
_WORD = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document.

    Attributes:
        number: Its place among the document's chunks, from 0.
        start: The character of the document that it begins with.
        stop: The character behind its last one.
        text: ``document[start:stop]``.
    """

    number: int
    start: int
    stop: int
    text: str


@runtime_checkable
class TokenCounter(Protocol):
    """An embedder, or a tokenizer alone, that counts tokens as the model reads them."""

    @property
    def text_tokens(self) -> int:
        """Tokens of the longest text that the model reads, prompt and special ones included."""
        ...

    def count_tokens(self, texts: Sequence[str], *, input_type: InputType) -> list[int]:
        """Return the tokens of each text, prompt and special ones included, however many."""
        ...

    def token_spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return where the tokens of each text alone begin and end, in characters: (tokens, 2)."""
        ...


class Splitter:
    """Splits documents into chunks that a model can read.

    Args:
        counter: An embedder that counts tokens, such as a local one.
        tokens: Tokens of a chunk at most, its prompt and the special tokens included; None for
            as many as the model reads.
        overlap: Tokens of a chunk's end that the next one begins with, at most.
        input_type: What the chunks are embedded as; the prompt depends on it.
        before: What the caller will put before every chunk; it is counted too.

    Raises:
        ConfigurationError: If the model does not read so many tokens, or too few are left beside
            prompt, special tokens and overlap.
    """

    def __init__(
        self,
        counter: TokenCounter,
        *,
        tokens: int | None = None,
        overlap: int = 0,
        input_type: InputType = "passage",
        before: str = "",
    ) -> None:
        if not isinstance(counter, TokenCounter):
            raise ConfigurationError(
                f"{type(counter).__name__} does not count tokens; give a local embedder of the "
                f"same model, or nimbed.load.token_counter(embedder)"
            )
        most = counter.text_tokens
        self._counter, self._before = counter, before
        self._input_type: InputType = input_type
        self._tokens = most if tokens is None else tokens
        around = self.count("a") - len(counter.token_spans(["a"])[0])
        self._room, self._overlap = self._tokens - around, overlap
        if self._tokens > most:
            raise ConfigurationError(
                f"a chunk of {tokens} tokens is too long: the model reads {most}"
            )
        if self._room < _LEAST_ROOM:
            raise ConfigurationError(
                f"a chunk of {self._tokens} tokens is too short: {around} are the prompt, special "
                f"tokens and metadata, so it needs at least {around + _LEAST_ROOM}"
            )
        if not 0 <= overlap <= self._room // 2:
            raise ConfigurationError(
                f"the overlap must lie between 0 and half of a chunk's own tokens, "
                f"{self._room // 2}; got {overlap}"
            )

    @property
    def tokens(self) -> int:
        """Tokens of a chunk at most, its prompt and the special tokens included."""
        return self._tokens

    def count(self, text: str) -> int:
        """Return how many tokens a chunk has, everything included that stands before it."""
        return self._counted([text])[0]

    def split(self, document: str) -> list[Chunk]:
        """Return the chunks of a document."""
        return self.split_all([document])[0]

    def split_all(self, documents: Sequence[str]) -> list[list[Chunk]]:
        """Return the chunks of each document.

        What cannot be embedded (a blank text, half a character) is one chunk as it stands. A
        stretch of more than 64 Ki characters that holds no token is left out between two chunks;
        apart from this they cover the document.
        """
        # Most documents are short, and counted together.
        able = [
            place
            for place, text in enumerate(documents)
            if len(text) <= _MOST_CHARACTERS and text_fault(text) is None
        ]
        counts = dict(zip(able, self._counted([documents[place] for place in able]), strict=True))
        chunks: list[list[Chunk]] = []
        for place, text in enumerate(documents):
            fits = counts.get(place, 0) <= self._tokens and len(text) <= _MOST_CHARACTERS
            whole = [Chunk(0, 0, len(text), text)]
            chunks.append(whole if fits or text_fault(text) else self._split(text) or whole)
        return chunks

    def _counted(self, texts: Sequence[str]) -> list[int]:
        read = [self._before + text for text in texts] if self._before else texts
        return self._counter.count_tokens(read, input_type=self._input_type) if read else []

    def _split(self, text: str) -> list[Chunk]:
        tokens = self._located(text)
        found: list[Chunk] = []
        start, covered = 0, 0
        while covered < len(text):
            spans = list(itertools.islice(self._spans(text, tokens, start, covered), _AHEAD))
            if not spans:
                break
            counts = self._counted([text[begin:end] for begin, end in spans])
            for (begin, end), count in zip(spans, counts, strict=True):
                fits = count <= self._tokens
                if not fits:  # alone it has more tokens than within the document
                    begin, end = self._fitted(text, tokens, begin, covered, count)
                found.append(Chunk(len(found), begin, end, text[begin:end]))
                start, covered = self._resumed(text, tokens, begin, end), end
                if not fits:
                    break
        return found

    def _located(self, text: str) -> NDArray[np.int64]:
        """Return where the tokens of a text begin and end, of shape (2, tokens), ascending."""
        starts, at = [0], 0
        while len(text) - at > _MOST_CHARACTERS:
            end = _last(_WORD, text, at + _MOST_CHARACTERS // 2, at + _MOST_CHARACTERS)
            at = end or at + _MOST_CHARACTERS
            starts.append(at)
        parts = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
        spans = [
            span + start
            for few in range(0, len(parts), _AHEAD)
            for span, start in zip(
                self._counter.token_spans(parts[few : few + _AHEAD]),
                starts[few : few + _AHEAD],
                strict=True,
            )
        ]
        return np.maximum.accumulate(np.concatenate(spans)).T

    def _spans(
        self, text: str, tokens: NDArray[np.int64], start: int, covered: int
    ) -> Iterator[tuple[int, int]]:
        while covered < len(text):
            span = self._span(text, tokens, start, covered, self._room)
            if span is None:
                return
            yield span
            covered = span[1]
            start = self._resumed(text, tokens, *span)

    def _span(
        self, text: str, tokens: NDArray[np.int64], start: int, covered: int, room: int
    ) -> tuple[int, int] | None:
        """Return the span of the chunk that begins at ``start``, or behind an empty stretch.

        Args:
            text: The document.
            tokens: Where its tokens begin and end.
            start: Where the chunk begins; before ``covered`` where it overlaps the last one.
            covered: What the chunks before it reach to; it goes beyond.
            room: Tokens of it at most.

        Returns:
            The span, or None if no token is left.
        """
        starts, ends = tokens
        if not len(ends) or ends[-1] <= covered:
            return None
        first = int(np.searchsorted(ends, start, "right"))
        if starts[first] >= start + _MOST_CHARACTERS:
            start = int(starts[first])
        after = first + room
        hard = int(starts[after]) if after < len(starts) else len(text)
        # At least a character that belongs to a token.
        hard = min(max(hard, int(starts[first]) + 1, start + 1), start + _MOST_CHARACTERS)
        if hard <= covered:  # no room is left for an overlap
            return self._span(text, tokens, covered, covered, room)
        if hard == len(text):
            return start, hard
        middle = (first + min(after, len(starts))) // 2
        low = int(starts[middle]) if middle < len(starts) else (start + hard) // 2
        low = max(low, int(starts[first]) + 1, covered + 1, start + 1)
        for border in (_PARAGRAPH, _SENTENCE, _WORD):
            end = _last(border, text, low, hard)
            if end is not None:
                return start, end
        return start, _whole_character(text, low, hard)

    def _fitted(
        self, text: str, tokens: NDArray[np.int64], start: int, covered: int, count: int
    ) -> tuple[int, int]:
        """Return a shorter span for a chunk that has ``count`` tokens, too many."""
        room = self._room
        while True:
            room = max(1, min(room - 1, room - (count - self._tokens)))
            span = self._span(text, tokens, start, covered, room)
            if span is None:  # pragma: no cover - the chunk that was too long had tokens
                return start, len(text)
            (count,) = self._counted([text[slice(*span)]])
            if count <= self._tokens or room == 1:
                return span

    def _resumed(self, text: str, tokens: NDArray[np.int64], start: int, end: int) -> int:
        """Return where the chunk behind a span begins."""
        if not self._overlap or end == len(text):
            return end
        starts = tokens[0]
        first = int(np.searchsorted(starts, end, "left")) - self._overlap
        at = max(start + 1, int(starts[first]) if first > 0 else 0)
        for border, until in ((_SENTENCE, (at + end) // 2), (_WORD, end)):
            found = border.search(text, at, until)
            if found is not None and found.end() < end:
                return found.end()
        while at < end and _joined(text[at - 1], text[at]):
            at += 1
        return at


class LateSplitter(Splitter):
    """Splits documents into chunks that are embedded with the text around them: late chunking.

    The texts of its chunks are :class:`ContextText`; what the model reads in one pass is the
    document, or where it is too long for the model the longest part of it that is not.

    Args:
        embedder: A local embedder of a model that pools by the mean.
        tokens: As of :class:`Splitter`.
        overlap: As of :class:`Splitter`.
        input_type: As of :class:`Splitter`.

    Raises:
        ConfigurationError: If the embedder takes no such chunks, or as for :class:`Splitter`.
    """

    def __init__(
        self,
        embedder: object,
        *,
        tokens: int | None = None,
        overlap: int = 0,
        input_type: InputType = "passage",
    ) -> None:
        if not (isinstance(embedder, ContextEmbedding) and isinstance(embedder, TokenCounter)):
            raise ConfigurationError(
                f"late chunking needs the states of a document's tokens, which "
                f"{type(embedder).__name__} does not give; load the model itself, with torch"
            )
        embedder.require_context()
        super().__init__(embedder, tokens=tokens, overlap=overlap, input_type=input_type)
        self._whole = Splitter(embedder, input_type=input_type)

    def split_all(self, documents: Sequence[str]) -> list[list[Chunk]]:
        """Return the chunks of each document; see :meth:`Splitter.split_all`."""
        found: list[list[Chunk]] = []
        for read in self._whole.split_all(documents):
            chunks: list[Chunk] = []
            for whole, parts in zip(
                read, super().split_all([each.text for each in read]), strict=True
            ):
                for part in parts:
                    text = ContextText(whole.text, part.start, part.stop)
                    start, stop = whole.start + part.start, whole.start + part.stop
                    chunks.append(Chunk(len(chunks), start, stop, text))
            found.append(chunks)
        return found


def _last(border: re.Pattern[str], text: str, low: int, high: int) -> int | None:
    """Return the last place within (low, high] that a border ends at."""
    # What stands before the window decides whether it begins within a border.
    ends = [found.end() for found in border.finditer(text, max(0, low - 1), high)]
    return ends[-1] if ends and ends[-1] >= low else None


def _whole_character(text: str, low: int, at: int) -> int:
    """Return the nearest place before ``at``, or ``at``, that is not within a character as seen."""
    place = at
    while place > low and place < len(text) and _joined(text[place - 1], text[place]):
        place -= 1
    return place if place > low else at


def _joined(before: str, after: str) -> bool:
    """Return whether two code points are one character as seen: an accent, an emoji's parts."""
    if after.isascii():
        return before == "\r" and after == "\n"
    return (
        unicodedata.category(after) in ("Mn", "Mc", "Me", "Cf")  # accents, selectors, joiners
        or before == "\u200d"
        or "\U0001f3fb" <= after <= "\U0001f3ff"  # skin
        or ("\U0001f1e6" <= after <= "\U0001f1ff" and "\U0001f1e6" <= before <= "\U0001f1ff")
    )


def document_of(chunk_id: str) -> str:
    """Return the id of the document that a chunk belongs to."""
    return chunk_id.rpartition("#")[0]


def split_rows(
    items: Iterable[Item],
    splitter: Splitter,
    *,
    source: str,
    ended: Callable[[str, int], object] = lambda document, chunks: None,
) -> Iterator[Row | BadRow]:
    """Yield the chunks of every row as rows of their own, with their document's fields.

    A chunk's id is its document's with ``#`` and its number, and :data:`CHUNK_FIELDS` are added to
    its columns. A document that fits is one chunk.

    Args:
        items: Documents.
        splitter: How they are split.
        source: Names a document that has no id, with its number.
        ended: Told the id of each document and its number of chunks, before the last of them.

    Raises:
        ConfigurationError: If a row has a field of such a name already.
    """
    left = as_rows(items)
    while some := list(_some(left)):
        rows = [row for row in some if isinstance(row, Row)]
        split = iter(splitter.split_all([row.text for row in rows]))
        for row in some:
            if isinstance(row, BadRow):
                yield row
                continue
            fields = (*CHUNK_FIELDS, CONTEXT_FIELD)
            taken = next((name for name in fields if name in row.columns), None)
            if taken is not None:
                raise ConfigurationError(
                    f"row {row.number} of {source} has a field {taken!r} already, and the row of "
                    f"a chunk needs that name; rename it"
                )
            document, chunks = row_id(row, source), next(split)
            for chunk in chunks:
                if chunk is chunks[-1]:
                    ended(str(document), len(chunks))
                yield chunk_row(row, document, chunk)


class ChunkColumns(Mapping[str, Any]):
    """The columns of a document, as they are, and those of a chunk of it.

    Attributes:
        document: The document's.
        facts: Those named by :data:`CHUNK_FIELDS`.
    """

    __slots__ = ("document", "facts")

    def __init__(self, document: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self.document = document
        self.facts = facts

    def __getitem__(self, name: str) -> Any:
        return self.facts[name] if name in self.facts else self.document[name]

    def __iter__(self) -> Iterator[str]:
        return itertools.chain(self.document, self.facts)

    def __len__(self) -> int:
        return len(self.document) + len(self.facts)


def chunk_row(row: Row, document: str | int, chunk: Chunk) -> Row:
    """Return the row of a chunk of a document."""
    place = (document, chunk.number, chunk.start, chunk.stop)
    facts: dict[str, Any] = dict(zip(CHUNK_FIELDS, place, strict=True))
    if isinstance(chunk.text, ContextText):
        facts[CONTEXT_FIELD] = _digest(chunk.text.document)
    plain = isinstance(row.columns, dict)
    return replace(
        row,
        text=chunk.text,
        id=f"{document}#{chunk.number}",
        columns={**row.columns, **facts} if plain else ChunkColumns(row.columns, facts),
    )


@functools.lru_cache(maxsize=8)
def _digest(document: str) -> str:
    return hashlib.blake2b(document.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _some(rows: Iterator[Row | BadRow]) -> Iterator[Row | BadRow]:
    """Yield the next rows that are split together."""
    characters = 0
    for row in itertools.islice(rows, _DOCUMENTS):
        yield row
        characters += len(row.text) if isinstance(row, Row) else 0
        if characters >= _CHARACTERS:
            return
