"""A file of texts in, its distinct texts and their vectors out.

A text that stands in the file twice would be two passages that only chance can rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nimbed.batch import EmbeddingBatch
from nimbed.embedder import Embedder
from nimbed.errors import InputError, name_rows
from nimbed.files.readers import RowReader as Intake
from nimbed.files.sources import Source, check_exists, kind_of, name_of
from nimbed.progress import Progress
from nimbed.rows import BadRow
from nimbed.spec import InputType, Truncate

__all__ = ["Texts", "embed_texts", "read_texts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The distinct texts of a file, or some made of them.

    Attributes:
        intake: How the file is read.
        texts: Each once, in the order of the file.
        numbers: Where each comes from: its first line, or its row in a parquet file.
        places: The place in ``texts`` of every id; ids are numbers where no field holds them.
        duplicates: Records whose text had been there already.
    """

    intake: Intake
    texts: tuple[str, ...]
    numbers: tuple[int, ...]
    places: Mapping[str, int]
    duplicates: int

    def at(self, places: Sequence[int]) -> Texts:
        """Return the texts at some places alone, without ids."""
        return replace(
            self,
            texts=tuple(self.texts[place] for place in places),
            numbers=tuple(self.numbers[place] for place in places),
            places={},
        )


def read_texts(
    source: Source,
    *,
    text_field: str = "text",
    id_field: str | None = None,
    kind: str | None = None,
) -> Texts:
    """Read a file to its end.

    Args:
        source: What ``nimbed embed`` reads: txt, jsonl, csv, parquet, or ``-``.
        text_field: Field or column of the text.
        id_field: Field or column of the id; a text a line has none, and is called by its number.
        kind: The format, where the name does not tell it.

    Raises:
        InputError: If the file is missing or empty, a record is bad, or an id stands twice.
        ConfigurationError: If the format or a column is unknown.
    """
    check_exists(source)
    found = kind_of(source, kind)
    intake = Intake(
        source=source,
        kind=found,
        text_field=text_field,
        id_field=None if found == "txt" else id_field,
        carry=False,
    )
    places: dict[str, int] = {}
    by_text: dict[str, int] = {}
    numbers: list[int] = []
    for row in intake.rows():
        if isinstance(row, BadRow):
            raise InputError(f"{intake.where([row.number])}: {row.reason}", rows=[row.number])
        name = str(row.number if row.id is None else row.id)
        if name in places:
            raise InputError(
                f"{intake.where([row.number])}: the id {name!r} stands there for the second time",
                rows=[row.number],
            )
        if row.text not in by_text:
            by_text[row.text] = len(numbers)
            numbers.append(row.number)
        places[name] = by_text[row.text]
    if not numbers:
        raise InputError(f"{name_of(source)} holds no text")
    return Texts(
        intake=intake,
        texts=tuple(by_text),
        numbers=tuple(numbers),
        places=places,
        duplicates=len(places) - len(numbers),
    )


def embed_texts(
    embedder: Embedder,
    source: Texts,
    *,
    input_type: InputType,
    truncate: Truncate,
    progress: Progress = False,
) -> EmbeddingBatch:
    """Embed texts as full float vectors.

    Raises:
        InputError: If a text cannot be embedded; names its line.
    """
    try:
        return embedder.embed(
            source.texts, input_type=input_type, truncate=truncate, progress=progress
        )
    except InputError as error:
        if not error.rows:
            raise
        # The embedder counts from the first text; a person counts lines.
        numbers = [source.numbers[row] for row in error.rows]
        reason = str(error).replace(f" ({name_rows(error.rows)})", "")
        raise InputError(f"{source.intake.where(numbers)}: {reason}", rows=numbers) from error
