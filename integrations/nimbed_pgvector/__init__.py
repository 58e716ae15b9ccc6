"""Passages in PostgreSQL with pgvector: loaded, indexed, and found again by similarity.

:class:`VectorTable` loads, indexes and searches a table; :class:`AsyncVectorTable` does the same
on async connections.
"""

from nimbed.bulk import JobReport
from nimbed.errors import missing_extra
from nimbed.rows import Reject

try:
    from nimbed_pgvector.columns import Column, Layout
    from nimbed_pgvector.errors import connect
    from nimbed_pgvector.exchange import Migration
    from nimbed_pgvector.schema import create_statements
    from nimbed_pgvector.search import FIRST_PAGE, Hit
    from nimbed_pgvector.sync import AsyncSyncedTable, SyncedTable
    from nimbed_pgvector.table import AsyncVectorTable, VectorTable
except ModuleNotFoundError as error:
    if error.name not in ("psycopg", "xxhash"):
        raise
    raise missing_extra("pgvector", needs=error.name) from error

LoadReport = JobReport  #: The name of earlier versions.

__all__ = [
    "FIRST_PAGE",
    "AsyncSyncedTable",
    "AsyncVectorTable",
    "Column",
    "Hit",
    "JobReport",
    "Layout",
    "LoadReport",
    "Migration",
    "Reject",
    "SyncedTable",
    "VectorTable",
    "connect",
    "create_statements",
]
