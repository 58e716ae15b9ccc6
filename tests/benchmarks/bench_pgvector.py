"""The pgvector loader against raw COPY, other libraries, embedding alone and bare SQL.

Run: python tests/benchmarks/bench_pgvector.py [load] [rivals] [overlap] [search] [filtering]
     [chunking] [memory] [migrate] [sync] [kinds] [--rows 100000] [--rounds 3] [--dsn DSN]

Without --dsn an embedded PostgreSQL is started; without parts, every part runs for which the
packages are installed. Jobs take turns within a round; the tables show medians.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psycopg
from pgvector_chunking import chunking
from pgvector_filtering import filtering
from pgvector_kinds import kinds
from pgvector_lifecycle import migrate, sync
from pgvector_loading import load
from pgvector_memory import memory
from pgvector_overlap import overlap
from pgvector_rivals import rivals
from pgvector_searching import search

from nimbed_pgvector.embedded_server import embedded_server

PARTS: dict[str, Callable[[str, argparse.Namespace], None]] = {
    "load": load,
    "rivals": rivals,
    "overlap": overlap,
    "search": search,
    "memory": memory,
    "filtering": filtering,
    "chunking": chunking,
    "migrate": migrate,
    "sync": sync,
    "kinds": kinds,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dsn")
    parser.add_argument(
        "--apart", action="store_true", help="migrate: a core for the searches, one for the rest"
    )
    options = parser.parse_args()
    if not PARTS.keys() >= set(options.parts):
        parser.error(f"the parts are {', '.join(PARTS)}")
    wanted = options.parts or ["load", "rivals", "search", "memory", "overlap", "migrate", "sync"]
    with ExitStack() as stack:
        dsn = options.dsn
        if dsn is None:
            folder = Path(tempfile.mkdtemp(prefix="nimbed-bench-", dir="/tmp"))
            folder.chmod(0o755)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            dsn = stack.enter_context(embedded_server(folder / "data"))
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("CREATE EXTENSION vector")
        for part in wanted:
            PARTS[part](dsn, options)


if __name__ == "__main__":
    main()
