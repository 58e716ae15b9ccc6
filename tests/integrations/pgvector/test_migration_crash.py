"""A migration killed at any moment, with readers and writers: no row lost, no answer mixed."""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing.process
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest
from tests.integrations.pgvector.crash_migrator import (
    MEANWHILE,
    OTHER,
    load_meanwhile,
    migrate_slowly,
    roll_back_slowly,
    roll_forth_slowly,
)
from tests.integrations.pgvector.test_crash import PROCESSES

import nimbed
from nimbed import FakeEmbedder
from nimbed.errors import NimbedError
from nimbed.fake import FAKE_CARD
from nimbed_pgvector import VectorTable

from .stored_rows import decoded

pytestmark = pytest.mark.postgres
CARDS = {card.id: card for card in (FAKE_CARD, OTHER)}
QUESTION = "which passage?"


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nimbed, "load", lambda name, **_: FakeEmbedder(CARDS[name]))


@functools.cache
def vector(model: str, text: str, role: Any = "passage") -> np.ndarray:
    return FakeEmbedder(CARDS[model]).embed([text], input_type=role).vectors[0]


def space_of(text: str, distance: float) -> set[str]:
    """The models by whose vectors this text is so far from the question."""
    return {
        model
        for model in CARDS
        if abs(1 - vector(model, QUESTION, "query") @ vector(model, text) - distance) < 1e-5
    }


class Traffic:
    """A reader that checks each answer, and a writer that remembers what it has committed."""

    def __init__(self, dsn: str, texts: dict[str, str]) -> None:
        self.dsn, self.texts, self.over = dsn, texts, threading.Event()
        self.faults: list[Any] = []
        self.answers = 0
        self.spaces: set[str] = set()

    def read(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            table = VectorTable(connection, "t")  # asks with the model that the table names
            while not self.over.is_set():
                hits = table.search(QUESTION, 10)
                spaces = set.intersection(*(space_of(hit.text, hit.distance) for hit in hits))
                if len(hits) != 10 or len(spaces) != 1:
                    self.faults.append(hits)
                self.answers += 1
                self.spaces |= spaces

    def write(self) -> None:
        chance, number = random.Random(5), 0
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not self.over.is_set():
                number += 1
                rows = {f"p{chance.randrange(600)}": f"written {number} {n}" for n in range(5)}
                # Exchanged columns are told aloud, and the same rows are loaded again.
                while True:
                    with contextlib.suppress(NimbedError):
                        VectorTable(connection, "t").load(list(rows.items()))
                        break
                self.texts |= rows
                gone = f"p{chance.randrange(600)}"
                connection.execute("DELETE FROM t WHERE id = %s", (gone,))
                self.texts.pop(gone, None)
                time.sleep(0.01)

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:
                self.faults.append(error)

        threads = [threading.Thread(target=guarded, args=(w,)) for w in (self.read, self.write)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join()


# multiprocessing looks after all children when it starts one. Of two threads that look at the same
# child, the second is told that it ended with 255.
_LOOKING = threading.Lock()


def killed_again_and_again(work: Callable[..., None], dsn: str, kills: int, most: float) -> int:
    """Run a migration to its end, killed at random moments before; return how often it was."""
    chance, killed = random.Random(kills), 0
    while True:
        process = PROCESSES.Process(target=work, args=(dsn, 50))
        with _LOOKING:
            process.start()
        code = ended(process, 0.15 + chance.random() * most if killed < kills else math.inf)
        if code is None:
            process.kill()
            code = ended(process, math.inf)
            assert code in (0, -signal.SIGKILL)  # it may have ended just before
            killed += code != 0
        else:
            assert code == 0
        if code == 0:
            return killed


def ended(process: multiprocessing.process.BaseProcess, seconds: float) -> int | None:
    """Wait for a process to end, and return its exit code, or None if it goes on."""
    deadline = time.monotonic() + seconds
    while True:
        with _LOOKING:
            code = process.exitcode
        if code is not None or time.monotonic() > deadline:
            return code
        time.sleep(0.005)


def migrate_under_fire(dsn: str, *, rows: int, kills: int) -> None:
    texts = {f"p{n}": f"passage number {n}" for n in range(rows)}
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = VectorTable(connection, "t", FakeEmbedder())
        table.load(list(texts.items()))
        table.index()
        traffic = Traffic(dsn, texts)
        with traffic.flowing():
            killed = killed_again_and_again(migrate_slowly, dsn, kills, 0.3)
            time.sleep(0.2)
            killed += killed_again_and_again(roll_back_slowly, dsn, 2, 0.05)
            time.sleep(0.2)
            assert VectorTable(connection, "t").spec.model == FAKE_CARD.id
            killed += killed_again_and_again(roll_forth_slowly, dsn, 1, 0.05)
        assert traffic.faults == []
        assert traffic.spaces == set(CARDS)
        assert killed >= kills
        only_the_new_space(connection, traffic.texts)


def only_the_new_space(connection: psycopg.Connection, texts: dict[str, str]) -> None:
    """The table holds these texts and no others, each with the new model's vector of it."""
    assert VectorTable(connection, "t").spec.model == OTHER.id
    (column,) = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 't'::regclass"
        " AND col_description(attrelid, attnum) LIKE 'nimbed {%'"
    ).fetchall()[0]
    held = connection.execute(f"SELECT id, text, vector_send({column}) FROM t").fetchall()
    assert {name: text for name, text, _ in held} == texts
    assert len(held) == len(texts)
    for _, text, raw in held:
        np.testing.assert_array_equal(decoded(raw, "vector"), vector(OTHER.id, text))


def test_a_migration_killed_under_readers_and_writers_mixes_and_loses_nothing(dsn: str) -> None:
    migrate_under_fire(dsn, rows=1000, kills=5)


def test_loads_and_a_migration_that_are_killed_side_by_side_lose_nothing(dsn: str) -> None:
    """The loader knows the old model alone: what it writes is embedded by the migration."""
    texts = {f"p{n}": f"passage number {n}" for n in range(1000)}
    with psycopg.connect(dsn, autocommit=True) as connection:
        VectorTable(connection, "t", FakeEmbedder()).load(list(texts.items()))
        with ThreadPoolExecutor(1) as beside:
            loading = beside.submit(killed_again_and_again, load_meanwhile, dsn, 3, 0.25)
            killed = killed_again_and_again(migrate_slowly, dsn, 4, 0.3)
            assert (killed, loading.result()) == (4, 3)
        only_the_new_space(connection, texts | dict(MEANWHILE))


@pytest.mark.slow
def test_a_migration_killed_fifty_times_mixes_and_loses_nothing(dsn: str) -> None:
    migrate_under_fire(dsn, rows=9000, kills=50)
