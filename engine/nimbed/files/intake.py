"""The rows of a source that can be embedded, and what becomes of the others.

Knows nothing about embedders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nimbed.errors import ConfigurationError, name_rows
from nimbed.files.label import RESERVED
from nimbed.files.loose_columns import LooseColumns
from nimbed.files.readers import read_rows
from nimbed.files.rows import BadRow, Row
from nimbed.files.sources import Kind, Source, name_of

__all__ = ["Intake"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """How a source is read.

    Attributes:
        source: A path, ``-`` or a stream.
        kind: Its format.
        text_field: Field of the text.
        id_field: Field of the id, if any.
        carry: Whether the other fields are wanted.
    """

    source: Source
    kind: Kind
    text_field: str
    id_field: str | None
    carry: bool

    @property
    def typeless(self) -> bool:
        """Whether the format does not say what type a field has."""
        return self.kind != "parquet"

    def rows(self, *, carry: bool | None = None) -> Iterator[Row | BadRow]:
        """Read the source from its start.

        Raises:
            ConfigurationError: If a row has a field whose name the output needs.
        """
        wanted = self.carry if carry is None else carry
        rows = read_rows(
            self.source,
            text_field=self.text_field,
            id_field=self.id_field,
            kind=self.kind,
            carry=wanted,
        )
        for row in rows:
            if isinstance(row, Row) and row.columns:
                taken = next((name for name in RESERVED if name in row.columns), None)
                if taken is not None:
                    raise ConfigurationError(
                        f"{self.where([row.number])} has a field {taken!r} already, and the "
                        f"output needs that name; rename it, or write .npy"
                    )
            yield row

    def survey(self, columns: LooseColumns | None) -> tuple[int, BadRow | None]:
        """Count the good rows, find the first bad one, and let ``columns`` learn their types.

        A pass over a file costs little beside embedding it, and finds in seconds what would
        otherwise stop the job after hours.
        """
        good, first_bad = 0, None
        for row in self.rows(carry=columns is not None):
            if isinstance(row, BadRow):
                first_bad = first_bad or row
                continue
            good += 1
            if columns is not None:
                columns.learn(row)
        return good, first_bad

    def where(self, numbers: Sequence[int]) -> str:
        """Return ``line 3 of corpus.jsonl`` for a message."""
        return f"{self.places(numbers)} of {name_of(self.source)}"

    def places(self, numbers: Sequence[int]) -> str:
        """Return ``line 3`` or ``rows 3, 5`` for a message."""
        named = name_rows(numbers)
        return named if self.kind == "parquet" else named.replace("row", "line", 1)
