"""Embedded passages into a PostgreSQL of their own, questions answered out of it.

What ``nimbed load --embedded`` and ``nimbed search --embedded`` do, in a temporary folder.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimbed import Embedder, EmbeddingBatch
    from nimbed_cli.corpus import Passage

__all__ = ["answers_of_a_database"]

_SHOWN = 3


def answers_of_a_database(
    corpus: Sequence[Passage],
    floats: EmbeddingBatch,
    questions: Sequence[str],
    asked: EmbeddingBatch,
    embedder: Embedder,
) -> str:
    """Load, index and ask; return what happened in rich's markup, or why no database runs here.

    Args:
        corpus: The passages.
        floats: Their vectors.
        questions: The questions.
        asked: Their vectors.
        embedder: What made the vectors.
    """
    from rich.markup import escape

    from nimbed.errors import NimbedError
    from nimbed.rows import Row

    rows = [Row(place, each.text, each.id) for place, each in enumerate(corpus, 1)]
    try:
        from nimbed_pgvector import VectorTable, connect
        from nimbed_pgvector.embedded_server import embedded_server

        with tempfile.TemporaryDirectory(prefix="nimbed-") as folder:
            Path(folder).chmod(0o755)  # for root the server runs as another user
            with embedded_server(Path(folder) / "data") as dsn, connect(dsn) as connection:
                begun = time.perf_counter()
                table = VectorTable(
                    connection, "docs", embedder, embedding_type="ubinary", also="halfvec"
                )
                table.load_embedded([(rows, floats)], floats.spec)
                table.index()
                loaded = time.perf_counter()
                hits = [
                    table.nearest(asked.select([place]), _SHOWN) for place in range(len(questions))
                ]
                seconds = (time.perf_counter() - loaded) / len(questions)
    except NimbedError as error:
        return f"[dim]No PostgreSQL could be started here: {escape(str(error))}[/dim]\n"
    lines = [
        "[bold]The same in a PostgreSQL of its own, with pgvector[/bold]",
        f"loaded and indexed in {loaded - begun:.1f} s; a question takes "
        f"{1000 * seconds:.1f} ms: bits by HNSW, then floats\n",
    ]
    for question, found in zip(questions, hits, strict=True):
        best = found[0]
        lines.append(f"  {question:36.36}  [cyan]{1 - best.distance:4.2f}[/cyan] {best.id:.34}")
    return "\n".join(lines) + "\n"
