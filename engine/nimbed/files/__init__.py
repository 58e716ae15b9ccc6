"""Files of texts in, files of vectors out, one stretch of rows at a time."""

from nimbed.files.embed_file import FileReport, embed_file
from nimbed.files.embedded import EmbeddedFile, open_embedded, read_embedded
from nimbed.files.readers import read_rows
from nimbed.files.reject_list import listing
from nimbed.files.rows import BadRow, Row

__all__ = [
    "BadRow",
    "EmbeddedFile",
    "FileReport",
    "Row",
    "embed_file",
    "listing",
    "open_embedded",
    "read_embedded",
    "read_rows",
]
