"""Peak memory of a process that loads ready vectors from a generator."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
from pgvector_rows import PART, fresh, made

from nimbed import EmbeddingBatch
from nimbed.rows import Row
from nimbed_pgvector import VectorTable


def memory(dsn: str, options: argparse.Namespace) -> None:
    """Peak memory of a process that loads so many rows from a generator."""
    print("\n## Peak memory of the loading process (MB)")
    for rows in (options.rows // 4, options.rows, options.rows * 3):
        done = subprocess.run(
            [sys.executable, __file__, dsn, str(rows)],
            check=True,
            capture_output=True,
            text=True,
        )
        print(f"{rows:9} rows {done.stdout.strip():>8}")


def one_load(dsn: str, count: int) -> None:
    rows, batch = made("bit", PART)

    def stream() -> Iterator[tuple[list[Row], EmbeddingBatch]]:
        for start in range(0, count, PART):
            yield (
                [
                    Row(start + n, row.text, f"{start}-{n}", row.columns)
                    for n, row in enumerate(rows)
                ],
                batch,
            )

    with psycopg.connect(dsn, autocommit=True) as connection:
        fresh(connection, batch.spec)
        VectorTable(connection, "t").load_embedded(stream(), batch.spec)
    # Not getrusage: that counts what the parent held when it forked.
    (peak,) = (
        line.split()[1]
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    print(f"{int(peak) / 1024:.0f}")


if __name__ == "__main__":
    one_load(sys.argv[1], int(sys.argv[2]))
