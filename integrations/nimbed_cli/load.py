"""``nimbed load``: a file of texts, or of vectors, into PostgreSQL or Weaviate."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbed_cli import options

if TYPE_CHECKING:
    from nimbed.bulk import JobReport
    from nimbed_cli.weaviate_target import CollectionTarget
    from nimbed_pgvector import VectorTable

__all__ = ["load"]


def load(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[DSN] INPUT",
            help="A database (postgresql://user@host/database; keep the password in PGPASSWORD or "
            "~/.pgpass) or a Weaviate (http://host:8080; its key in WEAVIATE_API_KEY), and a "
            ".jsonl, .csv, .txt or .parquet file, or - for standard input. Vectors of "
            "`nimbed embed -o FILE.parquet` are not embedded again.",
        ),
    ],
    table: options.Table = None,
    collection: options.Collection = None,
    embedded: options.Embedded = None,
    id_field: options.TableIdField = None,
    text_field: options.TextField = "text",
    metadata_field: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A field to keep; may be repeated. Default: all."),
    ] = None,
    input_format: options.InputFormat = None,
    model: options.TableModel = None,
    embedding_type: options.TableEmbeddingType = None,
    dimensions: options.Dimensions = None,
    int8_scale: options.Int8Scale = None,
    also: Annotated[
        str | None,
        typer.Option(
            metavar="float|halfvec",
            help="Store floats too, which rank the best candidates again.",
        ),
    ] = None,
    truncate: options.Truncate = "NONE",
    chunk: options.Chunk = None,
    overlap: options.Overlap = 0,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete the table's rows that INPUT has not.")
    ] = False,
    rejects: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="List of the rows left out. Default: TABLE.rejects.jsonl."
        ),
    ] = None,
    index: Annotated[
        bool,
        typer.Option(help="Build the index afterwards; use --no-index while others still load."),
    ] = True,
    base_url: options.BaseUrl = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    progress: options.Progress = None,
    vector: options.Vector = None,
    vectorizer: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE",
            help="For a new collection: the module of Weaviate that embeds questions, and what is "
            "stored later without a vector, such as text2vec-nvidia.",
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The module's embedding server, as Weaviate sees it."),
    ] = None,
    served_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="That server's name for the model. Default: its id."),
    ] = None,
    grpc_port: options.GrpcPort = 50051,
) -> None:
    """Load a file into a table of PostgreSQL with pgvector, or into a collection of Weaviate.

    The table or collection is created if it does not exist, and indexed. Killed at any moment and
    run again, a load loses nothing and stores nothing twice: rows that are there with the same
    content are skipped. Several may load into one table at once.
    """
    from nimbed.bulk import listing
    from nimbed.errors import ConfigurationError, InputError
    from nimbed.files.sources import is_source
    from nimbed_cli.terminal import progress_bar
    from nimbed_cli.weaviate_target import open_collection, target_name

    *dsn, source = arguments
    name = target_name(
        dsn,
        table,
        collection,
        tables_alone={
            "--embedded": embedded is not None,
            "--also": also is not None,
            "--no-index": not index,
        },
        collections_alone={
            "--vector": vector is not None,
            "--vectorizer": vectorizer is not None,
            "--server": server is not None,
            "--served-name": served_name is not None,
        },
    )
    listed = rejects or Path(f"{name}.rejects.jsonl")
    if is_source(listed, [source]):
        raise ConfigurationError(
            f"the list of rejects would replace the input {source!r}; name another with --rejects"
        )
    stored_as: dict[str, Any] = {
        "embedding_type": embedding_type,
        "dimensions": dimensions,
        "int8_scale": int8_scale,
    }
    with ExitStack() as stack:
        opening: AbstractContextManager[Callable[[Any], VectorTable | CollectionTarget]]
        if collection is None:
            opening = _open_table(dsn, embedded, name, {**stored_as, "also": also})
        else:
            opening = open_collection(
                dsn[0],
                name,
                grpc_port=grpc_port,
                vector=vector,
                module=vectorizer,
                server=server,
                served_name=served_name,
                stored_as=stored_as,
            )
        make: Callable[[Any], Any] = stack.enter_context(opening)
        target = make(None)
        common: dict[str, Any] = {
            "source": "stdin" if source == "-" else Path(source).name,
            "metadata_fields": metadata_field or None,
            "on_reject": stack.enter_context(listing(listed)),
        }
        with progress_bar("loading", before="reading", show=progress) as move:
            found = _Found()
            report = _load_vectors(
                target, source, input_format, move, common, found, texts=chunk is not None or prune
            )
            if report is None:
                embedder = options.load_embedder(
                    model,
                    base_url=base_url,
                    device=device,
                    dtype=dtype,
                    table_spec=target.find_spec(),
                )
                target = make(embedder)
                common |= {
                    "truncate": truncate,  # a word of the engine's, which checks it
                    "chunk_tokens": chunk,
                    "overlap": overlap,
                    "prune": prune,
                }
                report = _load_texts(
                    target, source, move, text_field, id_field, input_format, common, found
                )
        if report.rejected and report.rejected == report.read:
            first = report.first_rejects[0]
            raise InputError(
                f"none of the {report.rejected:,} rows could be loaded; row {first.number}: "
                f"{first.reason} (all are in {listed})"
            )
        typer.echo("\n".join(_summary(report, name, listed, found)), err=True)
        if index and collection is None and (report.loaded or report.unchanged):
            with progress_bar("indexing", before="indexing", show=progress) as move:
                built = target.index(on_progress=move)
            typer.echo("the index is built" if built else "the index was there already", err=True)


@contextmanager
def _open_table(
    dsn: list[str], embedded: str | None, name: str, stored_as: dict[str, Any]
) -> Generator[Callable[[Any], VectorTable]]:
    """Connect to PostgreSQL, and yield what makes a table of it a target."""
    from nimbed_pgvector import VectorTable

    with options.connect_database(dsn, embedded) as connection:
        yield lambda embedder: VectorTable(connection, name, embedder, **stored_as)


def _load_vectors(
    target: VectorTable | CollectionTarget,
    source: str,
    kind: str | None,
    move: Callable[[int, int], None],
    common: dict[str, Any],
    found: _Found,
    *,
    texts: bool,
) -> JobReport | None:
    """Load a file of vectors; None if the file has only texts, which it must have if ``texts``."""
    if source == "-" or kind not in (None, "parquet") or not source.endswith(".parquet"):
        return None
    from nimbed.errors import ConfigurationError
    from nimbed.files import open_embedded
    from nimbed.files.parquet import open_parquet

    with open_parquet(source) as plain:
        if b"nimbed.spec" not in (plain.schema_arrow.metadata or {}):
            return None
    if texts:
        raise ConfigurationError(
            f"{source} holds vectors of its texts; --chunk and --prune are for texts alone: give "
            f"the file that it was made of"
        )
    with open_embedded(source) as file:
        return target.load_embedded(
            ((list(_observed(rows, found, typed=True)), vectors) for rows, vectors in file.parts()),
            file.contract.spec,
            on_progress=lambda report: move(report.read, file.count),
            **common,
        )


def _load_texts(
    target: VectorTable | CollectionTarget,
    source: str,
    move: Callable[[int, int], None],
    text_field: str,
    id_field: str | None,
    kind: str | None,
    common: dict[str, Any],
    found: _Found,
) -> JobReport:
    from nimbed.files import read_rows
    from nimbed.files.sources import kind_of

    total = _row_count(source, kind)
    rows = read_rows(source, text_field=text_field, id_field=id_field, kind=kind)
    return target.load(
        _observed(rows, found, typed=kind_of(source, kind) == "parquet"),
        on_progress=lambda report: move(report.read, max(total, report.read) if total else 0),
        **common,
    )


@dataclass(slots=True)
class _Found:
    """What was seen of the rows.

    Attributes:
        named: Whether they have ids of their own.
        unused: Whether they have a field named id that was not taken for one.
    """

    named: bool = False
    unused: bool = False


def _observed(rows: Iterable[Any], found: _Found, *, typed: bool) -> Iterator[Any]:
    """Yield rows, those of a typed file with null where a field is NaN, which JSON has not."""
    from nimbed.rows import Row, without_nan

    left = iter(rows)
    for row in left:
        if isinstance(row, Row):
            found.named = row.id is not None
            found.unused = not found.named and "id" in row.columns
            left = itertools.chain([row], left)
            break
        yield row
    if not typed:
        yield from left
        return
    for row in left:
        if isinstance(row, Row) and any(
            isinstance(value, (float, list, dict)) for value in row.columns.values()
        ):
            row = dataclasses.replace(row, columns=without_nan(dict(row.columns)))
        yield row


def _row_count(source: str, kind: str | None) -> int:
    """Return about how many rows a file has, for the bar; 0 where it must be read to tell."""
    from nimbed.files.parquet import open_parquet
    from nimbed.files.sources import is_rereadable, kind_of

    if not is_rereadable(source) or source.endswith(".gz"):
        return 0
    if kind_of(source, kind) == "parquet":
        with open_parquet(source) as file:
            return int(file.metadata.num_rows)
    with Path(source).open("rb") as file:  # lines: in a csv a record may have several
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b"")) or 1


def _summary(report: JobReport, table: str, listed: Path, found: _Found) -> Iterator[str]:
    rate = report.read / report.seconds if report.seconds else 0.0
    pruned = f", {report.removed:,} removed" if report.removed else ""
    yield (
        f"{table}: {report.loaded - report.replaced:,} new, {report.replaced:,} changed, "
        f"{report.unchanged:,} unchanged, {report.rejected:,} left out{pruned}, "
        f"in {report.seconds:,.1f} s ({rate:,.0f} rows/s)"
    )
    if report.replaced and not found.named:
        yield (
            "the ids are made of the file's name, without its folder, and the row's number: if "
            "another file of this name was loaded before, these rows took the place of its rows; "
            "give --id-field, or rename one file and load both again"
        )
    if found.unused:
        yield "the rows have a field id, kept as metadata; --id-field id makes it their key"
    if report.rejected:
        yield f"the rows left out are listed with their reasons in {listed}"
