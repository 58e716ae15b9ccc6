"""Ready vectors: the loader against a raw COPY of the same bytes."""

from __future__ import annotations

import argparse
import json
import statistics
import struct
from collections.abc import Callable
from typing import Any

import psycopg
from measure import median_ratio
from pgvector_rows import KINDS, fresh, interleaved, made, parts

from nimbed import EmbeddingBatch
from nimbed.rows import Row
from nimbed_pgvector import VectorTable


def raw_copy(connection: psycopg.Connection, rows: list[Row], batch: EmbeddingBatch) -> None:
    """Copy by hand: one COPY, one transaction, no check, no hash, no ledger."""
    spec = batch.spec
    if spec.packed:
        head = struct.pack(">i", spec.dimensions)
        convert: Callable[[Any], bytes] = lambda row: row.tobytes()  # noqa: E731
    else:
        head = struct.pack(">HH", spec.dimensions, 0)
        form = ">f4" if spec.dimensions <= 2000 else ">f2"
        convert = lambda row: row.astype(form).tobytes()  # noqa: E731
    pack = struct.Struct(">i").pack
    digest = bytes(16)
    with connection.cursor().copy(
        "COPY t (id, text, metadata, content_hash, embedding) FROM STDIN WITH (FORMAT BINARY)"
    ) as copy:
        copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        for row, vector in zip(rows, batch.vectors, strict=True):
            key, text = str(row.id).encode(), row.text.encode()
            metadata = b"\x01" + json.dumps(row.columns).encode()
            data = head + convert(vector)
            copy.write(
                b"".join(
                    (
                        b"\0\5", pack(len(key)), key, pack(len(text)), text, pack(len(metadata)),
                        metadata, pack(16), digest, pack(len(data)), data,
                    )
                )
            )  # fmt: skip
        copy.write(b"\xff\xff")


def load(dsn: str, options: argparse.Namespace) -> None:
    """Ready vectors: the loader, all safety included, against a raw COPY of the same bytes."""
    print(f"\n## Ready vectors, {options.rows} rows (rows/s; 1024 dimensions, halfvec 2048)")
    for kind in KINDS:
        load_kind(dsn, kind, options)


def load_kind(dsn: str, kind: str, options: argparse.Namespace) -> None:
    rows, batch = made(kind, options.rows)
    ready = parts(rows, batch)
    with psycopg.connect(dsn, autocommit=True) as connection:

        def ours() -> None:
            table = VectorTable(connection, "t")
            report = table.load_embedded(ready, batch.spec)
            assert report.loaded == len(rows)

        seconds = interleaved(
            {"raw COPY": lambda: raw_copy(connection, rows, batch), "nimbed": ours},
            options.rounds,
            before=lambda: fresh(connection, batch.spec),
        )
    rates = {name: len(rows) / statistics.median(times) for name, times in seconds.items()}
    print(f"{kind:8} " + "  ".join(f"{name} {rate:9,.0f}" for name, rate in rates.items()), end="")
    print(f"  nimbed / raw = {median_ratio(seconds['raw COPY'], seconds['nimbed']):.2f}")
