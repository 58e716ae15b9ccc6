"""Passages and queries of a study: read from files, or queries cut out of the passages.

A text that a file holds twice counts once: two equal passages could only be ranked by chance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from nimbed.bulk import embed_accepted
from nimbed.chunks import CHUNK_FIELDS, Splitter, split_rows
from nimbed.embedder import Embedder, HybridEmbedder
from nimbed.errors import InputError, TooLongError, name_rows
from nimbed.files import BadRow, read_rows
from nimbed.files.sources import NUMBERED, Source, check_exists, kind_of, name_of
from nimbed.kinds import EmbeddingKinds
from nimbed.reports import Progress
from nimbed.spec import InputType, Kind, Truncate

__all__ = ["Questions", "Texts", "embed_texts", "first_sentences", "read_texts"]

# Questions that are made: the standard error of recall is then a percent at most.
_MOST_QUESTIONS = 256
# The end of a sentence: a full stop before white space, one of the scripts that write none
# between sentences, or an empty line.
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？।])\s*|\n\s*\n")  # noqa: RUF001
_LEAST_WORDS_ASKED = 4
_LEAST_WORDS_LEFT = 8
# In scripts without spaces three characters carry about as much as a word.
_CHARACTERS_PER_WORD = 3
_SPACELESS = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The distinct texts of a file, or some made of them.

    Attributes:
        name: What messages call the file.
        unit: What a number counts there: ``line``, or ``row`` in a parquet file.
        texts: Each once, in the order of the file.
        numbers: Where each comes from: its first line, or its row in a parquet file.
        places: The index in ``texts`` of every id; ids are numbers where no field holds them.
        duplicates: Records whose text had come before.
        documents: The number of every document by its id, where the texts are chunks.
        document_of: The number of the document of each text, then.
    """

    name: str
    unit: str
    texts: tuple[str, ...]
    numbers: tuple[int, ...]
    places: Mapping[str, int]
    duplicates: int
    documents: Mapping[str, int] = field(default_factory=dict[str, int])
    document_of: tuple[int, ...] = ()

    def select(self, places: Sequence[int]) -> Texts:
        """Return the texts at some indices, without ids."""
        return replace(
            self,
            texts=tuple(self.texts[place] for place in places),
            numbers=tuple(self.numbers[place] for place in places),
            places={},
        )


def read_texts(
    source: Source,
    *,
    text_field: str | Sequence[str] = "text",
    id_field: str | None = None,
    kind: str | None = None,
    splitter: Splitter | None = None,
) -> Texts:
    """Read a file to its end.

    Args:
        source: What :func:`nimbed.files.read_rows` reads.
        text_field: Field or column of the text, or several that are joined.
        id_field: Field or column of the id; the lines of a text file have their numbers for ids.
        kind: The format, where the name does not tell it.
        splitter: Divides each text into chunks; equal ones of one document count once.

    Raises:
        InputError: If the file is missing or empty, a record is bad, or an id occurs twice.
        ConfigurationError: If the format or a column is unknown.
    """
    check_exists(source)
    found = kind_of(source, kind)
    name, unit = name_of(source), "row" if found in NUMBERED else "line"
    if found in ("txt", "folder"):
        id_field = None
    places: dict[str, int] = {}
    by_text: dict[tuple[int, str], int] = {}
    numbers: list[int] = []
    documents: dict[str, int] = {}
    rows = read_rows(source, text_field=text_field, id_field=id_field, kind=found, carry=False)
    if splitter is not None:
        rows = split_rows(rows, splitter, source=name)
    for row in rows:
        if isinstance(row, BadRow):
            raise InputError(f"{unit} {row.number} of {name}: {row.reason}", rows=[row.number])
        row_id = str(row.number if row.id is None else row.id)
        if row_id in places:
            raise InputError(
                f"{unit} {row.number} of {name}: the id {row_id!r} occurs for the second time",
                rows=[row.number],
            )
        document = 0
        if splitter is not None:
            # Equal chunks of two documents count twice: each may be the reason to find its own.
            whole = str(row.columns[CHUNK_FIELDS[0]])
            of_line = whole == f"{name}:{row.number}"
            document = documents.setdefault(str(row.number) if of_line else whole, len(documents))
        key = (document, row.text)
        if key not in by_text:
            by_text[key] = len(numbers)
            numbers.append(row.number)
        places[row_id] = by_text[key]
    if not numbers:
        raise InputError(f"{name} holds no text")
    return Texts(
        name=name,
        unit=unit,
        texts=tuple(text for _, text in by_text),
        numbers=tuple(numbers),
        places=places,
        duplicates=len(places) - len(numbers),
        documents=documents,
        document_of=tuple(document for document, _ in by_text) if documents else (),
    )


def embed_texts(
    embedder: Embedder,
    source: Texts,
    *,
    input_type: InputType,
    truncate: Truncate,
    kinds: Sequence[Kind] = ("dense",),
    progress: Progress = False,
) -> tuple[list[int], EmbeddingKinds]:
    """Embed texts as full vectors of some kinds; those that are too long are left out.

    Returns:
        The indices of the texts that were embedded, ascending, and their vectors.

    Raises:
        InputError: If a text cannot be embedded for another reason, or none is left; names its
            line.
    """

    def refuse(places: list[int], error: InputError) -> None:
        if isinstance(error, TooLongError) and len(places) < len(source.texts):
            return
        # The embedder counts from the first text; a person counts lines.
        numbers = [source.numbers[place] for place in places]
        where = name_rows(numbers).replace("row", source.unit, 1)
        raise InputError(f"{where} of {source.name}: {error.about(0)}", rows=numbers) from error

    def embed(texts: Sequence[str]) -> EmbeddingKinds:
        asked: dict[str, Any] = {
            "input_type": input_type,
            "truncate": truncate,
            "progress": progress,
        }
        if tuple(kinds) == ("dense",):
            return EmbeddingKinds(dense=embedder.embed(texts, **asked))
        return cast(HybridEmbedder, embedder).embed_kinds(texts, kinds=kinds, **asked)

    return embed_accepted(source.texts, embed, refuse)


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions made of passages, and the passages without them.

    Attributes:
        texts: The first sentences.
        places: The index of the passage of each.
        passages: Every passage, without its first sentence if that became a question.
    """

    texts: tuple[str, ...]
    places: tuple[int, ...]
    passages: tuple[str, ...]


def first_sentences(passages: Sequence[str], most: int = _MOST_QUESTIONS) -> Questions:
    """Cut the first sentence out of up to ``most`` passages, spread evenly over all of them.

    For whoever has no queries at hand: the first sentence asks for the rest of its passage. A
    passage serves if its first sentence has at least 4 words and the rest at least 8.

    Raises:
        InputError: If no passage serves.
    """
    cut = {place: parts for place, text in enumerate(passages) if (parts := _cut(text))}
    if not cut:
        raise InputError(
            f"no queries were given, and none of the {len(passages):,} passages has a first "
            f"sentence of {_LEAST_WORDS_ASKED} words followed by {_LEAST_WORDS_LEFT} more, from "
            f"which a query could be made; give your own with --queries"
        )
    able = list(cut)
    count = min(most, len(able))
    chosen = tuple(able[step * len(able) // count] for step in range(count))
    left = list(passages)
    for place in chosen:
        left[place] = cut[place][1]
    return Questions(tuple(cut[place][0] for place in chosen), chosen, tuple(left))


def _cut(text: str) -> tuple[str, str] | None:
    parts = _END.split(text.strip(), maxsplit=1)
    if len(parts) < 2:
        return None
    first, rest = parts
    if _words(first) < _LEAST_WORDS_ASKED or _words(rest) < _LEAST_WORDS_LEFT:
        return None
    return first, rest


def _words(text: str) -> int:
    spaceless = len(_SPACELESS.findall(text))
    return len(text.split()) + spaceless // _CHARACTERS_PER_WORD
