"""Passages into PostgreSQL with pgvector, and out again by similarity.

:class:`VectorTable` loads, indexes and searches a table; :class:`AsyncVectorTable` does the same
on async connections.
"""

from nimbed.errors import missing_extra
from nimbed.files.load_report import LoadReport, Reject

try:
    from nimbed_pgvector.async_vector_table import AsyncVectorTable
    from nimbed_pgvector.columns import Column, Layout
    from nimbed_pgvector.faults import connect
    from nimbed_pgvector.schema import create_statements
    from nimbed_pgvector.searching import Hit
    from nimbed_pgvector.vector_table import VectorTable
except ModuleNotFoundError as error:
    if error.name not in ("psycopg", "xxhash"):
        raise
    raise missing_extra("pgvector", needs=error.name) from error

__all__ = [
    "AsyncVectorTable",
    "Column",
    "Hit",
    "Layout",
    "LoadReport",
    "Reject",
    "VectorTable",
    "connect",
    "create_statements",
]
