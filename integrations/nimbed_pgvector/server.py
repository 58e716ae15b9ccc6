"""What a server and its database must offer: pgvector, new enough, and text in UTF-8.

Knows nothing about tables.
"""

from __future__ import annotations

from psycopg import sql

from nimbed.errors import ConfigurationError
from nimbed_pgvector.steps import Query, Steps

__all__ = ["extension", "require_utf8"]


def extension() -> Steps[tuple[int, ...]]:
    """Return the version of pgvector, installed into the database if need be.

    Raises:
        ConfigurationError: If the server has none, or one older than 0.7.
    """
    found = sql.SQL("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    rows = yield Query(found)
    if not rows:
        offered = yield Query(
            sql.SQL("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'")
        )
        if not offered:
            raise ConfigurationError(
                "this PostgreSQL server has no pgvector; install its package on the server "
                "(postgresql-NN-pgvector, or the image pgvector/pgvector), or use --embedded DIR"
            )
        yield Query(sql.SQL("CREATE EXTENSION IF NOT EXISTS vector"))
        rows = yield Query(found)
    version = tuple(int(part) for part in rows[0][0].split(".") if part.isdigit())
    if version < (0, 7):
        raise ConfigurationError(
            f"pgvector {rows[0][0]} has neither halfvec nor an index on bit; nimbed needs 0.7 or "
            f"newer: upgrade it, then run ALTER EXTENSION vector UPDATE"
        )
    return version


def require_utf8() -> Steps[None]:
    """Refuse a database that would keep other characters than it was given, or refuse some later.

    Raises:
        ConfigurationError: If its encoding is not UTF8.
    """
    ((encoding,),) = yield Query(sql.SQL("SELECT current_setting('server_encoding')"))
    if encoding != "UTF8":
        raise ConfigurationError(
            f"this database stores text as {encoding}, which cannot hold every text; make one with "
            f"CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )
