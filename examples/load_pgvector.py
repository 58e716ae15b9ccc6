"""Load a file of passages into PostgreSQL and search it by meaning.

    pip install 'nimbed[quickstart,pgvector]'
    python examples/load_pgvector.py passages.jsonl --dsn postgresql://me@localhost/mine

Without --dsn a database of its own is kept in the folder ./passages-db; without a file, the
documentation of Python's standard library is loaded. It prints what was loaded, what was left
out and why, and the answers to a question. Run it again: what is there is not embedded again.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import nimbed
from nimbed.files import listing, read_rows
from nimbed_pgvector import LoadReport, VectorTable, connect
from nimbed_pgvector.embedded_server import embedded_server

MODULES = ("shutil", "subprocess", "tempfile", "zipfile")


def standard_library() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (id, text, metadata) for documented functions of a few modules."""
    for module in MODULES:
        for name, thing in inspect.getmembers(__import__(module), callable):
            text = inspect.getdoc(thing)
            if text and not name.startswith("_"):
                yield f"{module}.{name}", text, {"module": module}


def main() -> None:
    """Load, index, search."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", nargs="?", help="a .jsonl, .csv or .parquet file")
    parser.add_argument("--dsn", help="postgresql://...; the password belongs into ~/.pgpass")
    parser.add_argument("--folder", default="passages-db", help="the database without a --dsn")
    parser.add_argument("--table", default="passages")
    parser.add_argument("--id-field", default="id")
    parser.add_argument("--question", default="make a temporary directory")
    options = parser.parse_args()

    with ExitStack() as stack:
        dsn = options.dsn or stack.enter_context(embedded_server(options.folder))
        connection = stack.enter_context(connect(dsn))
        embedder = stack.enter_context(nimbed.load())
        left_out = stack.enter_context(listing(f"{options.table}.rejects.jsonl"))

        # 48 bytes a passage for the index, floats of half precision to rank the best 8 k again.
        table = VectorTable(
            connection, options.table, embedder, embedding_type="ubinary", also="halfvec"
        )

        def show(report: LoadReport) -> None:
            print(f"\r{report.read:,} rows", end="", file=sys.stderr)

        source = options.file or "standard-library"
        items = (
            read_rows(options.file, id_field=options.id_field)
            if options.file
            else standard_library()
        )
        report = table.load(
            items, source=source, truncate="END", on_reject=left_out, on_progress=show
        )
        print(file=sys.stderr)
        print(f"{report.loaded} loaded, {report.unchanged} unchanged, {report.rejected} left out")
        if table.index():
            print("built the index")
        for hit in table.search(options.question, k=3):
            print(f"{hit.distance:.3f}  {hit.id}  {hit.text.splitlines()[0][:70]}")


if __name__ == "__main__":
    main()
