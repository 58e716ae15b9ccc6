"""``nimbed quickstart``: searches the standard library's documentation, by floats and by bits.

Docstrings are read from the sources; no module is imported.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import os
import shlex
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nimbed_cli import options

__all__ = [
    "OVERSAMPLING",
    "Passage",
    "compare",
    "quickstart",
    "search_database",
    "standard_library_passages",
]

if TYPE_CHECKING:
    from rich.table import Table

    from nimbed import Embedder, EmbeddingBatch
    from nimbed.spec import EmbeddingType, VectorSpec
    from nimbed_tradeoff import Measured


#: Candidates that Hamming fetches for every result that floats choose among them.
OVERSAMPLING = 8
_QUESTIONS = (
    "compress a file",
    "schedule a function to run later",
    "run a command and capture its output",
    "make a temporary file",
    "share memory between processes",
)
_SHOWN = 3
_COMPARED: tuple[tuple[EmbeddingType, int], ...] = (
    ("float", 0),
    ("int8", 0),
    ("ubinary", 0),
    ("ubinary", OVERSAMPLING),
)
# The passages left behind: few enough to be embedded again in half a minute.
_MOST_KEPT = 1000
_FILE_COMMANDS = (
    "{nimbed} embed {passages} -o {folder}/vectors.jsonl --input-type passage --id-field id",
    "{nimbed} tradeoff {passages} --id-field id",
)
_DATABASE_COMMANDS = (
    "{nimbed} load --embedded {folder}/database --table docs {passages} --id-field id",
    '{nimbed} search --embedded {folder}/database --table docs "compress a file" -k 3',
)
_OTHER_COMMANDS = (
    "{nimbed} models",
    """{python} -c 'import nimbed; print(nimbed.load().embed(["a text"], input_type="query"))'""",
)


def quickstart(
    passages: Annotated[
        int, typer.Option(metavar="N", min=50, help="How many passages to embed.")
    ] = 1000,
) -> None:
    """Embed and search Python's documentation.

    Docstrings of the standard library, searched by floats, by bits, and in a PostgreSQL of their
    own. Up to a thousand of them stay behind in passages.jsonl, for the commands that are shown
    at the end.
    """
    from rich.console import Console

    import nimbed
    from nimbed_cli.terminal import progress_bar

    console = Console(highlight=False)
    with nimbed.load() as embedder:
        with progress_bar("embedding", before="reading the standard library") as move:
            corpus = standard_library_passages(passages)
            texts = [passage.text for passage in corpus]
            started = time.perf_counter()
            # The first texts alone, so that loading the model is not taken for embedding.
            embedder.embed(texts[:8], input_type="passage", truncate="END")
            loaded = time.perf_counter()
            floats = embedder.embed(texts, input_type="passage", truncate="END", progress=move)
            seconds = time.perf_counter() - loaded
        questions = embedder.embed(_QUESTIONS, input_type="query")
        computed = "".join(f"{line}\n" for line in options.computed_in(embedder))
        console.print(
            f"[bold]{len(corpus):,} docstrings of Python's standard library[/bold]\n"
            f"{embedder.card.id}, {floats.spec.dimensions} dimensions\n{computed}"
            f"model ready in {loaded - started:.1f} s, embedded in {seconds:.1f} s: "
            f"{len(corpus) / seconds:,.0f} passages/s, "
            f"{floats.token_counts.sum() / seconds:,.0f} tokens/s"
        )
        packed = embedder.spec(embedding_type="ubinary")
        console.print(_answers(corpus, questions, floats, packed))
        console.print(_comparison(compare(corpus, floats, embedder), len(corpus)))
        smaller = floats.spec.bytes_per_vector // packed.bytes_per_vector
        console.print(
            f"[dim]recall@10: how many of the ten nearest by float are found, where first\n"
            f"sentences ask for the rest of their passages. Bits take {smaller} times less\n"
            f"memory; rescored, the best {OVERSAMPLING}0 by bits are ranked again by floats from "
            f"disk.[/dim]\n"
        )
        ran, answers = search_database(corpus, floats, _QUESTIONS, questions, embedder)
        console.print(answers)
    cut = set(floats.truncated)
    whole = [passage for row, passage in enumerate(corpus) if row not in cut]
    kept = whole[:: -(-len(whole) // _MOST_KEPT)]
    path = leave_passages(kept)
    typed = (*_FILE_COMMANDS, *(_DATABASE_COMMANDS if ran else ()), *_OTHER_COMMANDS)
    console.print("[bold]What to type next[/bold]")
    console.print(f"{len(kept):,} of the passages are in {path}\n", markup=False, soft_wrap=True)
    for command in _commands(path, typed):
        console.print(f"  {command}", markup=False, soft_wrap=True)


def leave_passages(passages: Sequence[Passage]) -> Path:
    """Write passages as JSON lines into the current folder, and replace no file of anybody else's.

    Returns:
        ``passages.jsonl``; ``quickstart-passages.jsonl`` where a file of the first name holds
        something else; in a new temporary folder where the current one cannot be written to.
    """
    lines = (json.dumps({"id": each.id, "text": each.text}) + "\n" for each in passages)
    written = "".join(lines).encode()
    folder = Path() if os.access(".", os.W_OK) else Path(tempfile.mkdtemp(prefix="nimbed-"))
    path = folder / "passages.jsonl"
    if path.exists() and not (path.is_file() and path.read_bytes() == written):
        path = folder / "quickstart-passages.jsonl"
    path.write_bytes(written)
    return path


def _commands(passages: Path, typed: Sequence[str]) -> list[str]:
    """Return commands as they are to be typed here: with this program, this Python, that file."""
    from nimbed_cli.terminal import program_typed, python_typed

    places = {
        "nimbed": program_typed(),
        "python": python_typed(),
        "passages": shlex.quote(str(passages)),
        "folder": shlex.quote(str(passages.parent)),
    }
    return [command.format(**places) for command in typed]


def compare(
    corpus: Sequence[Passage], floats: EmbeddingBatch, embedder: Embedder
) -> tuple[Measured, ...]:
    """Search a corpus by the first sentences of some passages, of which the rest is left in it.

    The names in front are left out of both, or bits would be found by the name alone.

    Args:
        corpus: The passages.
        floats: Their vectors.
        embedder: The embedder that made them.

    Returns:
        What float, int8, bits, and bits rescored by float cost and keep.
    """
    import numpy as np

    from nimbed.batch import concatenate
    from nimbed_tradeoff import Way, measure
    from nimbed_tradeoff.texts import first_sentences

    made = first_sentences([passage.text.removeprefix(f"{passage.id}: ") for passage in corpus])
    asked = embedder.embed(made.texts, input_type="query", truncate="END")
    left = [made.passages[place] for place in made.places]
    others = floats.select(np.setdiff1d(np.arange(len(floats)), made.places))
    rest = embedder.embed(left, input_type="passage", truncate="END")
    ways = [
        Way(spec=embedder.spec(embedding_type=kind), oversampling=times)
        for kind, times in _COMPARED
    ]
    return measure(asked, concatenate([others, rest]), ways)


def search_database(
    corpus: Sequence[Passage],
    floats: EmbeddingBatch,
    questions: Sequence[str],
    asked: EmbeddingBatch,
    embedder: Embedder,
) -> tuple[bool, str]:
    """Load passages into a PostgreSQL of their own, in a temporary folder, and search it.

    What ``nimbed load --embedded`` and ``nimbed search --embedded`` do.

    Args:
        corpus: The passages.
        floats: Their vectors.
        questions: The questions.
        asked: Their vectors.
        embedder: The embedder that made the vectors.

    Returns:
        Whether a database runs here, and the answers in rich's markup, or why it does not.
    """
    from rich.markup import escape

    from nimbed.errors import NimbedError
    from nimbed.files import Row

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
        return False, f"[dim]No PostgreSQL could be started here: {escape(str(error))}[/dim]\n"
    lines = [
        "[bold]The same in a PostgreSQL of its own, with pgvector[/bold]",
        f"loaded and indexed in {loaded - begun:.1f} s; a question takes "
        f"{1000 * seconds:.1f} ms: bits by HNSW, then floats\n",
        f"  {'question':36}  cosine  nearest passage",
    ]
    for question, found in zip(questions, hits, strict=True):
        best = found[0]
        lines.append(f"  {question:36.36}  [cyan]{1 - best.distance:6.2f}[/cyan]  {best.id:.32}")
    return True, "\n".join(lines) + "\n"


def _answers(
    corpus: list[Passage], questions: EmbeddingBatch, floats: EmbeddingBatch, packed: VectorSpec
) -> Table:
    """Answer every question twice: by floats, and by bits whose best candidates floats rank."""
    from rich import box
    from rich.table import Table

    from nimbed.search import nearest, rescore
    from nimbed_tradeoff import derive

    exact = nearest(questions, floats, _SHOWN)
    coarse = nearest(derive(questions, packed), derive(floats, packed), _SHOWN * OVERSAMPLING)
    rescored = rescore(questions, floats, coarse.rows, _SHOWN)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("cosine, nearest by floats", "bits that differ, by bits then floats"):
        table.add_column(heading, width=37, no_wrap=True, overflow="ellipsis")
    for place, question in enumerate(_QUESTIONS):
        if place:
            table.add_row()
        table.add_row(f"[bold]{question}[/bold]")
        differing = dict(zip(coarse.rows[place], coarse.distances[place], strict=True))
        for left, distance, right in zip(
            exact.rows[place], exact.distances[place], rescored.rows[place], strict=True
        ):
            table.add_row(
                f"[cyan]{1 - distance:4.2f}[/cyan] {corpus[left].id}",
                f"[cyan]{differing[right]:3d}[/cyan] {corpus[right].id}",
            )
    return table


def _comparison(compared: Sequence[Measured], count: int) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stored as")
    table.add_column("compared by")
    for heading in ("bytes", "in memory", "query time", "recall@10"):
        table.add_column(heading, justify="right")
    for each in compared:
        spec, rescored = each.way.spec, each.way.oversampling > 0
        table.add_row(
            f"{spec.embedding_type}, rescored" if rescored else spec.embedding_type,
            "both" if rescored else spec.metric,
            f"{each.bytes_per_vector:,}",
            f"{each.bytes_per_vector * count / 1e6:.2f} MB",
            f"{each.milliseconds:.2f} ms",
            f"{each.recall:.3f}",
        )
    return table


_SHORTEST = 60
_LONGEST = 600
# Nobody searches tests, bundled tools and tables for documentation; not every machine has
# tkinter.
_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "distutils",
        "encodings",
        "ensurepip",
        "idlelib",
        "lib-dynload",
        "lib2to3",
        "msilib",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "tkinter",
        "turtledemo",
    }
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A docstring.

    Attributes:
        id: Dotted name of what it documents, such as ``shutil.make_archive``.
        text: That name and the docstring, cut at the end of a paragraph where it is long.
    """

    id: str
    text: str


def standard_library_passages(limit: int) -> list[Passage]:
    """Return up to ``limit`` docstrings of public names, spread evenly over the library.

    The same Python gives the same passages in the same order. The first call reads the library.
    """
    passages = _whole_library()
    if len(passages) <= limit:
        return list(passages)
    return [passages[place * len(passages) // limit] for place in range(limit)]


@functools.cache
def _whole_library() -> tuple[Passage, ...]:
    found: dict[str, str] = {}
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED_FOLDERS.isdisjoint(parts) and not any(map(_is_private, parts)):
            for name, text in _of_module(path, [part for part in parts if part != "__init__"]):
                found.setdefault(text, name)
    # The name often says what the docstring takes for granted.
    passages = (Passage(name, f"{name}: {text}") for text, name in found.items())
    return tuple(sorted(passages, key=lambda passage: passage.id))


def _of_module(path: Path, parts: list[str]) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # templates with placeholders carry .py names too
        return
    yield from _documented(tree, ".".join(parts))


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Yield (name, docstring) of a module, class or function and of what it defines."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = _shortened(inspect.cleandoc(ast.get_docstring(node, clean=False) or ""))
        if len(text) >= _SHORTEST:
            yield name, text
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return  # a function's inner functions are not public
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if not _is_private(child.name):
                yield from _documented(child, f"{name}.{child.name}")
        elif isinstance(child, (ast.If, ast.Try)):
            yield from _documented(child, name)


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    for separator in ("\n\n", "\n", " "):
        end = text.rfind(separator, _SHORTEST, _LONGEST)
        if end > 0:
            return text[:end].rstrip()
    return text[:_LONGEST]


def _is_private(name: str) -> bool:
    return name.startswith("_") and name != "__init__"
