"""Connections to PostgreSQL, and its errors turned into nimbed's, which say what to do.

No connection string gets into a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager

import psycopg
from psycopg import errors, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from nimbed.errors import BackendError, ConfigurationError, NimbedError

__all__ = ["connect", "translate_errors"]

_SAFE = "the rows committed so far are safe, and a rerun does only the rest"

# Parameters of URLs that other tools read: Prisma's, SQLAlchemy's, asyncpg's and JDBC's about pools
# and prepared statements, which mean nothing to one connection, and those that name a schema.
_OF_POOLS = frozenset(
    {"pgbouncer", "connection_limit", "pool_timeout", "pool_size", "max_overflow", "pool_recycle"}
    | {"pool_pre_ping", "statement_cache_size", "prepared_statement_cache_size"}
    | {"prepared_statements", "prepareThreshold", "preparedStatementCacheQueries"}
)
_SCHEMAS = ("schema", "currentSchema", "search_path")


def connect(dsn: str, *, read_only: bool = False) -> psycopg.Connection:
    """Connect with autocommit, and say clearly why if that fails.

    Through PgBouncer, statements are not prepared: in its transaction mode the next one may reach
    another server. It refuses startup options, too; a read-only connection then has no autocommit,
    since each transaction says that it is one.

    Args:
        dsn: A libpq connection string or URL; of SQLAlchemy's and JDBC's URLs the driver is left
            out, and of Prisma's and others' what is said to a pool.
        read_only: Let the server refuse every change.

    Raises:
        ConfigurationError: If the string is not a connection string.
        BackendError: If the server cannot be reached or refuses.
    """
    options = "-c default_transaction_read_only=on" if read_only else None
    dsn = _for_libpq(dsn)
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.Error:
        # libpq quotes the string that it cannot read, and with it the password.
        raise ConfigurationError(
            "this is not a connection string; write postgresql://user@host:5432/database, "
            "and keep the password in PGPASSWORD or ~/.pgpass"
        ) from None
    if options and given.get("options"):
        options = f"{given['options']} {options}"
    extra = {} if "connect_timeout" in given else {"connect_timeout": "10"}
    extra |= {} if "application_name" in given else {"application_name": "nimbed"}
    extra["client_encoding"] = "UTF8"  # whatever PGCLIENTENCODING says: texts hold any character
    started = extra | ({"options": options} if options else {})
    try:
        try:
            connection = psycopg.connect(make_conninfo(dsn, **started), autocommit=True)
        except psycopg.OperationalError as error:
            if "unsupported startup parameter" not in str(error) or not options:
                raise
            connection = psycopg.connect(make_conninfo(dsn, **extra))
            connection.read_only = True
        if not _keeps_its_server(connection):
            connection.prepare_threshold = None
        return connection
    except psycopg.Error as error:
        said, password = _first_line(error), str(given.get("password") or "")
        hidden = said.replace(password, "***") if password else said
        raise BackendError(f"cannot connect to PostgreSQL: {hidden}") from None


def _for_libpq(dsn: str) -> str:
    """Return a URL as libpq reads it, without what other tools have in it for themselves.

    Raises:
        ConfigurationError: If there is an @ too many, or a parameter that libpq does not know.
    """
    dsn = re.sub(r"^(?:jdbc:)?(postgres(?:ql)?)(?:\+\w+)?://", r"\1://", dsn)
    _check_url(dsn)
    before, found, query = dsn.partition("?")
    if not found or not before.startswith(("postgresql://", "postgres://")):
        return dsn
    given = [
        re.sub(r"^ssl=(?!true$)", "sslmode=", each)
        for each in query.split("&")
        if each.partition("=")[0] not in _OF_POOLS
    ]
    known = {word.keyword.decode() for word in pq.Conninfo.get_defaults()} | {"ssl"}
    names = [each.partition("=")[0] for each in given]
    for name in names:
        if name in _SCHEMAS:
            raise ConfigurationError(
                f"the URL's parameter {name} is another tool's; leave it out, and name the table "
                f"with its schema, as in SCHEMA.TABLE"
            )
        if name not in known:
            # What follows a password may be the rest of it.
            said = "a parameter" if "password" in names else f"a parameter {name!r}"
            raise ConfigurationError(
                f"this URL has {said} that PostgreSQL's own library does not know; leave it out, "
                f"or percent-encode the password's characters: ? as %3F, & as %26"
            )
    return f"{before}?{'&'.join(given)}" if given else before


def _check_url(dsn: str) -> None:
    """Refuse a URL whose password libpq would take for a host's name, and print.

    Raises:
        ConfigurationError: If there is an @ too many.
    """
    scheme, found, rest = dsn.partition("://")
    if not found or scheme not in ("postgresql", "postgres"):
        return
    before, _, query = rest.partition("?")
    authority, _, database = before.partition("/")
    # A host and a database have no @; one that follows "/", or "?" right away, ends a password.
    broken = "@" in database or ("@" in query and before == authority and "@" not in authority)
    if authority.count("@") > 1 or broken:
        raise ConfigurationError(
            "this URL has an @, / or ? in its user or password; percent-encode them: @ as %40, "
            "/ as %2F, ? as %3F, # as %23; or keep the password in PGPASSWORD or ~/.pgpass"
        )


def _keeps_its_server(connection: psycopg.Connection) -> bool:
    """Return whether the process that answers is the one that the connection began with.

    PgBouncer tells its clients a number of its own.
    """
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    if not connection.autocommit:
        connection.rollback()
    return row is not None and row[0] == connection.info.backend_pid


@contextmanager
def translate_errors(doing: str, *, rights: Callable[[], str] | None = None) -> Generator[None]:
    """Turn whatever psycopg raises inside into an error of nimbed; ``rights`` says the least."""
    try:
        yield
    except psycopg.Error as error:
        raise _translated(error, doing, rights) from error


def _translated(error: psycopg.Error, doing: str, rights: Callable[[], str] | None) -> NimbedError:
    """Return the error of nimbed that says what an error of psycopg means."""
    said = _first_line(error)
    if isinstance(error, errors.DiskFull):
        return BackendError(f"the server's disk is full while {doing}; make room: {_SAFE} ({said})")
    if isinstance(error, errors.InsufficientPrivilege):
        needs = "" if rights is None else f"; {rights()}"
        return ConfigurationError(f"the database role may not do this while {doing}: {said}{needs}")
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return ConfigurationError(
            f"this connection is read-only, which forbids {doing}: {said}; of a read replica, "
            f"connect to its primary"
        )
    if isinstance(
        error, (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable)
    ):
        return BackendError(f"others were in the way of {doing}: {said}; run it again: {_SAFE}")
    if isinstance(error, (errors.DuplicatePreparedStatement, errors.InvalidSqlStatementName)):
        return ConfigurationError(
            f"this connection reaches another server process with each transaction, as through "
            f"PgBouncer, and statements must not be prepared: nimbed_pgvector.connect() sees to "
            f"it, or give psycopg prepare_threshold=None ({said})"
        )
    if isinstance(error, errors.UntranslatableCharacter):
        return ConfigurationError(
            f"this connection's client_encoding cannot hold every text: {said}; connect with "
            f"client_encoding=UTF8"
        )
    if isinstance(error, errors.QueryCanceled) and "statement timeout" in said:
        return BackendError(
            f"the server's statement_timeout is too short for {doing} ({said}); raise it for this "
            f"role, as in ALTER ROLE name SET statement_timeout = '1min'"
        )
    if isinstance(error, errors.QueryCanceled):
        return BackendError(f"the server cancelled {doing}: {said}; {_SAFE}")
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return BackendError(f"the connection was lost while {doing}: {said}; {_SAFE}")
    if isinstance(error, errors.UndefinedColumn) and '"embedding' in said:
        return ConfigurationError(
            f"a migration exchanged the columns of vectors during {doing}; run it again, with the "
            f"model that the table names now: {_SAFE} ({said})"
        )
    if isinstance(error, (psycopg.ProgrammingError, psycopg.DataError)):
        return ConfigurationError(f"the server refuses {doing}: {said}")
    return BackendError(f"the server failed while {doing}: {said}")


def _first_line(error: psycopg.Error) -> str:
    text = error.diag.message_primary or str(error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
