"""Migration beside a load of the same vectors, searches meanwhile, and the lag of a sync."""

from __future__ import annotations

import argparse
import hashlib
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import Manager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from pgvector_rows import made, parts

from nimbed import EmbeddingBatch, FakeEmbedder
from nimbed.batch import normalize, quantize
from nimbed.fake import FAKE_CARD
from nimbed_pgvector import SyncedTable, VectorTable

DIMENSIONS = 384


class StubEmbedder(FakeEmbedder):
    """Gives each text a row of a table of random vectors: a model that takes no time."""

    def __init__(self, model: str) -> None:
        card = {name: getattr(FAKE_CARD, name) for name in FAKE_CARD.__dataclass_fields__}
        card |= {"id": model, "dimensions": DIMENSIONS, "matryoshka": ()}
        super().__init__(type(FAKE_CARD)(**card))
        random = np.random.default_rng(len(model))
        self._vectors = normalize(random.standard_normal((8192, DIMENSIONS), np.float32))

    def embed(self, inputs: Any, **options: Any) -> EmbeddingBatch:
        spec = self.spec(embedding_type=options.get("embedding_type", "float"))
        rows = [hash(text) % 8192 for text in inputs]
        return EmbeddingBatch(
            vectors=quantize(self._vectors[rows], spec),
            spec=spec,
            input_type=options["input_type"],
            token_counts=np.ones(len(rows), np.int32),
        )


def migrate(dsn: str, options: argparse.Namespace) -> None:
    """Backfill against a load of ready vectors, without and with an index on the old column."""
    rows, _ = made("bit", options.rows)
    old, new = StubEmbedder("old"), StubEmbedder("the new one")
    print(f"\n## Migration, {options.rows} rows of {DIMENSIONS} floats")
    if options.apart:
        print("searches and their server process have a core of their own")
    for indexed in (False, True):
        with psycopg.connect(dsn, autocommit=True) as connection:
            if options.apart:
                keep_to({0}, connection, with_children=True)
            connection.execute("DROP TABLE IF EXISTS t, nimbed_spec, nimbed_ledger CASCADE")
            begin = time.perf_counter()
            batch = old.embed([row.text for row in rows], input_type="passage")
            table = VectorTable(connection, "t", old)
            table.load_embedded(parts(rows, batch), batch.spec)
            load = len(rows) / (time.perf_counter() - begin)
            if indexed:
                table.index()
            # In a process of its own, as somebody else's searches are.
            with ProcessPoolExecutor(1) as reader, Manager() as manager:
                over, apart = manager.Event(), options.apart
                alone = reader.submit(searched, dsn, old, 3.0, over, apart).result()
                asking = reader.submit(searched, dsn, old, 1e9, over, apart)
                done = table.migrate(new, switch=False)
                over.set()
                told = asking.result()
            rate = done.report.loaded / done.report.seconds
            print(
                f"{'indexed' if indexed else 'no index':9} load {load:8,.0f} rows/s  backfill "
                f"{rate:8,.0f} rows/s  ratio {rate / load:.2f}  search p99 alone "
                f"{1e3 * np.quantile(alone, 0.99):.1f} ms, meanwhile "
                f"{1e3 * np.quantile(told, 0.99):.1f} ms (median {1e3 * np.median(alone):.1f} and "
                f"{1e3 * np.median(told):.1f})"
            )


def searched(
    dsn: str, embedder: StubEmbedder, seconds: float, over: threading.Event, apart: bool
) -> list[float]:
    """Return the seconds of one search after the other."""
    spent: list[float] = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        if apart:
            keep_to({1}, connection)
        table, end = VectorTable(connection, "t", embedder), time.perf_counter() + seconds
        while time.perf_counter() < end and not over.is_set():
            begin = time.perf_counter()
            table.search(f"question {len(spent)}", 10)
            spent.append(time.perf_counter() - begin)
            time.sleep(0.01)
    return spent


def keep_to(
    cores: set[int], connection: psycopg.Connection[Any], *, with_children: bool = False
) -> None:
    """Keep this process and its server process to some cores, later server processes too if asked.

    The server has to run on this machine, as this user.
    """
    server = connection.info.backend_pid
    pids = [0, server]
    if with_children:
        status = Path(f"/proc/{server}/status").read_text()
        pids.append(int(status.split("PPid:")[1].split()[0]))
    for pid in pids:
        os.sched_setaffinity(pid, cores)


def sync(dsn: str, options: argparse.Namespace) -> None:
    """The time from a change to its vector, and what a worker stores, without and with an index."""
    for indexed in (False, True):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                "DROP TABLE IF EXISTS articles, articles_embedding_store, seen CASCADE"
            )
            connection.execute("DROP TABLE IF EXISTS nimbed_queue, nimbed_rejects")
            connection.execute("CREATE TABLE articles (id int PRIMARY KEY, body text)")
            connection.execute(
                "INSERT INTO articles SELECT n, 'body ' || n FROM generate_series(1, 20000) n"
            )
            table = synced(connection)
            table.prepare()
            # The server's own clock tells when a vector was stored.
            connection.execute("CREATE TABLE seen (id int, digest text, at timestamptz)")
            connection.execute(
                "CREATE OR REPLACE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT"
                " INTO seen VALUES (NEW.id, NEW.digest, clock_timestamp()); RETURN NULL; END'"
            )
            connection.execute(
                "CREATE TRIGGER see AFTER UPDATE ON articles_embedding_store FOR EACH ROW"
                " EXECUTE FUNCTION see()"
            )
            report = table.run()
            print(f"\n## Sync: backfill {report.loaded / report.seconds:,.0f} rows/s", end=", ")
            if indexed:
                table.index()
            connection.execute("UPDATE articles SET body = body || '!' WHERE id <= 2000")
            report = table.run()
            most = report.loaded / report.seconds
            print(f"{'indexed' if indexed else 'no index'}, changes {most:,.0f} rows/s at most")
            for rate in (50, 200):
                if rate < most:
                    follow(dsn, connection, rate)


def synced(connection: psycopg.Connection) -> SyncedTable:
    return SyncedTable(connection, "articles", StubEmbedder("m"), text_fields=["body"])


def follow(dsn: str, connection: psycopg.Connection, rate: int) -> None:
    """Change rows at a rate for ten seconds, and print how long each took to be embedded."""
    over = threading.Event()

    def work() -> None:
        with psycopg.connect(dsn, autocommit=True) as own:
            synced(own).run(stop=over.is_set)

    worker = threading.Thread(target=work)
    worker.start()
    changed: dict[tuple[int, str], Any] = {}
    begin, number = time.perf_counter(), 0
    while number < 10 * rate:
        time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        number += 1
        text = f"changed {number} at {rate}"
        ((at,),) = connection.execute(
            "UPDATE articles SET body = %s WHERE id = %s RETURNING clock_timestamp()",
            (text, number),
        ).fetchall()
        changed[number, hashlib.md5(text.encode()).hexdigest()] = at
    pace = number / (time.perf_counter() - begin)
    while connection.execute("SELECT count(*) FROM nimbed_queue").fetchall() != [(0,)]:
        time.sleep(0.05)
    over.set()
    worker.join()
    seen = connection.execute("SELECT id, digest, at FROM seen").fetchall()
    stored = {(key, digest): at for key, digest, at in seen}
    lags = [(stored[each] - at).total_seconds() for each, at in changed.items()]
    low, high = np.quantile(lags, [0.5, 0.99])
    print(f"{pace:.0f} changes/s: lag median {low:.2f} s, p99 {high:.2f} s")
