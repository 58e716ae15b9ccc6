"""What ``nimbed load`` reads: a file, a table or a query, and the vectors that its rows bring."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from nimbed.files.ready_vectors import Declared

__all__ = ["LoadInput", "declared"]


@dataclass(slots=True, kw_only=True)
class LoadInput:
    """What is loaded, and what was seen of it.

    Attributes:
        source: A file; None for a table or a query of the database.
        dsn: Of the database.
        named: Whether the rows have ids of their own.
        unused: Whether they have a field named id that was not taken for one.
    """

    source: str | None
    table: str | None
    query: str | None
    text_field: str | list[str]
    id_field: str | None
    template: str | None
    kind: str | None
    encoding: str | None
    delimiter: str | None
    brings: Declared | None
    keeps: list[str] | None
    dsn: str = field(default="", repr=False)
    named: bool = False
    unused: bool = False

    @property
    def name(self) -> str:
        """What the ledger, and rows without an id, call it."""
        if self.source is None:
            return self.table or "query"
        return "stdin" if self.source == "-" else Path(self.source).name

    @property
    def vectors(self) -> str | None:
        """The field of dense vectors that are not embedded again."""
        return None if self.brings is None else self.brings.dense

    def rows(self) -> Iterator[Any]:
        """Read it from its start."""
        from nimbed.files import read_rows
        from nimbed.files.sources import kind_of

        fields: dict[str, Any] = {
            "text_field": self.text_field,
            "id_field": self.id_field,
            "template": self.template,
        }
        if self.source is not None:
            rows = read_rows(
                self.source,
                kind=self.kind,
                encoding=self.encoding,
                delimiter=self.delimiter,
                **fields,
            )
            typed = kind_of(self.source, self.kind) in ("parquet", "feather", "xlsx")
            return self.observed(rows, typed=typed)
        from nimbed_pgvector.query_rows import query_rows

        fields |= {"table": self.table, "query": self.query, "vector_field": self.vectors}
        return self.observed(query_rows(self.dsn, **fields), typed=True)

    def observed(self, rows: Iterable[Any], *, typed: bool) -> Iterator[Any]:
        """Yield rows; of a typed source with null for NaN, which JSON has not."""
        from nimbed.rows import Row, vector_in, without_nan

        left = iter(rows)
        for row in left:
            if isinstance(row, Row):
                self.named = row.id is not None
                self.unused = not self.named and "id" in row.columns
                vectors = vector_in(row)
                kept = self.keeps is None or vectors in self.keeps
                if vectors is not None and vectors != self.vectors and kept:
                    typer.echo(
                        f"the field {vectors} holds {len(row.columns[vectors]):,} numbers a row, "
                        f"which are kept as metadata; if they are vectors, --vector-field "
                        f"{vectors} --card MODEL takes them as such, and --metadata-field names "
                        f"what is kept",
                        err=True,
                    )
                left = itertools.chain([row], left)
                break
            yield row
        if not typed:
            yield from left
            return
        for row in left:
            if isinstance(row, Row) and any(
                isinstance(value, (float, list, dict)) for value in row.columns.values()
            ):
                row = dataclasses.replace(row, columns=without_nan(dict(row.columns)))
            yield row

    def count(self) -> int:
        """Return about how many rows there are, for the bar; 0 where it must be read to tell."""
        from nimbed.files.parquet import open_parquet
        from nimbed.files.sources import kind_of

        if self.source is None or self.source == "-" or not Path(self.source).is_file():
            return 0
        kind = kind_of(self.source, self.kind)
        if kind == "parquet":
            with open_parquet(self.source) as file:
                return int(file.metadata.num_rows)
        if kind not in ("txt", "jsonl", "csv", "tsv") or not self.source.endswith(f".{kind}"):
            return 0  # packed, or of another layout
        with Path(self.source).open("rb") as file:  # lines: in a csv a record may have several
            return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b"")) or 1


def declared(
    card: str, dense: str | None, sparse: str | None, max_active: int | None, source: str | None
) -> Declared:
    """Return what the fields hold; the vocabulary of sparse vectors stands in the model's files."""
    import nimbed
    from nimbed.embedder import giving
    from nimbed.errors import ConfigurationError
    from nimbed.files.ready_vectors import Declared
    from nimbed_pgvector.sparse import MOST_INDEXED

    if sparse is None:
        return Declared(card, dense)
    if source is None:
        raise ConfigurationError("--sparse-field is of a file; a table's sparsevec is not read")
    with nimbed.load(card) as model:  # reads no weights
        spec = giving(model, "sparse").sparse_spec(max_active=max_active or MOST_INDEXED)
    return Declared(card, dense, sparse, spec)
