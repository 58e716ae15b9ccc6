"""From a file of any known format to a stream of rows.

The one door for whoever reads texts: the embedding job, the loaders of databases.
"""

from __future__ import annotations

from collections.abc import Iterator

from nimbed.errors import ConfigurationError
from nimbed.files.csv_rows import csv_rows
from nimbed.files.parquet_rows import parquet_rows
from nimbed.files.rows import BadRow, Row
from nimbed.files.sources import Source, kind_of
from nimbed.files.text_rows import jsonl_rows, txt_rows

__all__ = ["read_rows"]

_BY_FIELD = {"jsonl": jsonl_rows, "csv": csv_rows, "parquet": parquet_rows}


def read_rows(
    source: Source,
    *,
    text_field: str = "text",
    id_field: str | None = None,
    kind: str | None = None,
    carry: bool = True,
) -> Iterator[Row | BadRow]:
    """Yield every record of a file, the bad ones with their reason, without reading ahead.

    Args:
        source: A path, ``-`` for standard input, or an open binary stream.
        text_field: Field or column that holds the text; ``txt`` has none.
        id_field: Field or column that holds a string or an integer, if any.
        kind: ``txt``, ``jsonl``, ``csv`` or ``parquet``; None tells it from the suffix, and takes
            a stream for ``txt``.
        carry: False leaves ``Row.columns`` empty and does not read the other columns.

    Raises:
        ConfigurationError: If the format is unknown, or a column does not exist.
        InputError: If the file is missing or damaged as a whole.
        MissingExtraError: If pyarrow is needed and absent.
    """
    found = kind_of(source, kind)
    if found == "txt":
        if id_field is not None:
            raise ConfigurationError(f"a text a line has no fields; leave out {id_field!r}")
        return txt_rows(source)
    if text_field == id_field:
        raise ConfigurationError(f"{text_field!r} cannot be both the text and the id")
    return _BY_FIELD[found](source, text_field=text_field, id_field=id_field, carry=carry)
