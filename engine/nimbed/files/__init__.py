"""Files: texts are read from them, vectors written to them, a few thousand rows at a time."""

from nimbed.bulk import JobReport, listing
from nimbed.files.embed_file import FileReport, embed_file
from nimbed.files.parquet import EmbeddedFile, open_embedded, read_embedded
from nimbed.files.readers import read_rows
from nimbed.rows import BadRow, Reject, Row

__all__ = [
    "BadRow",
    "EmbeddedFile",
    "FileReport",
    "JobReport",
    "Reject",
    "Row",
    "embed_file",
    "listing",
    "open_embedded",
    "read_embedded",
    "read_rows",
]
