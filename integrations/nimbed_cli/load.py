"""``nimbed load``: a file of texts, or of vectors, into a table of PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    import psycopg

    from nimbed import Embedder
    from nimbed.bulk import JobReport
    from nimbed_pgvector import VectorTable

__all__ = ["database", "embedder_for", "load"]


def load(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[DSN] INPUT",
            help="Where to (postgresql://user@host/database; keep the password in PGPASSWORD or "
            "~/.pgpass), and a .jsonl, .csv, .txt or .parquet file, or - for standard input. "
            "Vectors of `nimbed embed -o FILE.parquet` are not embedded again.",
        ),
    ],
    table: Annotated[str, typer.Option(metavar="NAME", help="Made if it is not there.")],
    embedded: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Instead of DSN: a database of its own in this folder."),
    ] = None,
    id_field: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Field of the primary key. Default: file name and row."),
    ] = None,
    text_field: Annotated[str, typer.Option(metavar="NAME", help="Field of the text.")] = "text",
    metadata_field: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A field to keep; may be repeated. Default: all."),
    ] = None,
    input_format: Annotated[
        str | None,
        typer.Option(metavar="txt|jsonl|csv|parquet", help="Needed where the name does not tell."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Default: the table's own, for a new one MiniLM."),
    ] = None,
    embedding_type: Annotated[
        str | None,
        typer.Option(
            metavar="float|int8|uint8|binary|ubinary",
            help="How a number is stored. Default: as the table has it, for a new one float.",
        ),
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(metavar="N", help="A shorter vector, if the model offers it.")
    ] = None,
    int8_scale: Annotated[
        str | None, typer.Option(metavar="even|nim", help="Scale of int8 and uint8.")
    ] = None,
    also: Annotated[
        str | None,
        typer.Option(
            metavar="float|halfvec", help="Keep floats too, by which candidates are ranked again."
        ),
    ] = None,
    truncate: Annotated[
        str, typer.Option(metavar="NONE|START|END", help="Where a text that is too long is cut.")
    ] = "NONE",
    rejects: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="List of the rows left out. Default: TABLE.rejects.jsonl."
        ),
    ] = None,
    index: Annotated[
        bool, typer.Option(help="Build the index after the load. Not, while others still load.")
    ] = True,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="A server that runs the model.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Where a local model runs.")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(metavar="auto|float32|bfloat16|float16", help="Its arithmetic.")
    ] = "auto",
    progress: Annotated[
        bool | None, typer.Option(help="Show a bar. Default: if a person watches.")
    ] = None,
) -> None:
    """Load a file into a table of PostgreSQL with pgvector, and index it.

    Killed at any moment and typed again, it loses nothing and stores nothing twice: rows that
    are there with the same content are skipped. Several may load into one table at once.
    """
    from nimbed.bulk import listing
    from nimbed.errors import ConfigurationError, InputError
    from nimbed_cli.terminal import progress_bar
    from nimbed_pgvector import VectorTable

    *dsn, source = arguments
    listed = rejects or Path(f"{table}.rejects.jsonl")
    if listed.resolve() == Path(source).resolve():
        raise ConfigurationError(f"the list of rejects would replace the input {source!r}")
    # Words of the engine: it checks them itself, before anything is read.
    options: dict[str, Any] = {
        "embedding_type": embedding_type,
        "dimensions": dimensions,
        "int8_scale": int8_scale,
        "also": also,
    }
    placement: dict[str, Any] = {"base_url": base_url, "device": device, "dtype": dtype}
    name = "stdin" if source == "-" else Path(source).name
    with ExitStack() as stack:
        connection = stack.enter_context(database(dsn, embedded))
        target = VectorTable(connection, table, **options)
        tell = stack.enter_context(listing(listed))
        common: dict[str, Any] = {
            "source": name,
            "metadata_fields": metadata_field or None,
            "on_reject": tell,
        }
        with progress_bar("loading", before="reading", show=progress) as move:
            report = _load_vectors(target, source, input_format, move, common)
            if report is None:
                found = target.find_spec()
                embedder = embedder_for(model, found, placement)
                target = VectorTable(connection, table, embedder, **options)
                report = _load_texts(
                    target, source, move, text_field, id_field, input_format, truncate, common
                )
        if report.rejected and report.rejected == report.read:
            first = report.first_rejects[0]
            raise InputError(
                f"none of the {report.rejected:,} rows could be loaded; row {first.number}: "
                f"{first.reason} (all are in {listed})"
            )
        typer.echo(_summary(report, table, listed), err=True)
        if index:
            with progress_bar("indexing", before="indexing", show=progress) as move:
                built = target.index(on_progress=move)
            typer.echo("the index is built" if built else "the index was there already", err=True)


@contextmanager
def database(
    dsn: list[str], embedded: str | None, *, read_only: bool = False
) -> Generator[psycopg.Connection[Any]]:
    """Connect to the database that was typed in, or to the one in a folder.

    Raises:
        ConfigurationError: If neither was typed in, or both.
    """
    from nimbed.errors import ConfigurationError
    from nimbed_pgvector import connect

    if len(dsn) != (0 if embedded else 1):
        raise ConfigurationError(
            "say which database: either its DSN as the first word, or --embedded DIR"
        )
    with ExitStack() as stack:
        if embedded is None:
            address = dsn[0]
        else:
            from nimbed_pgvector.embedded_server import embedded_server

            address = stack.enter_context(embedded_server(embedded))
        yield stack.enter_context(connect(address, read_only=read_only))


def embedder_for(model: str | None, spec: Any, placement: dict[str, Any]) -> Embedder:
    """Return the embedder that was typed in, or the one that a table's spec names."""
    import nimbed

    if model is None and spec is not None:
        return nimbed.load(spec.model, revision=spec.revision, **placement)
    return nimbed.load(model, **placement)


def _load_vectors(
    target: VectorTable,
    source: str,
    kind: str | None,
    move: Callable[[int, int], None],
    common: dict[str, Any],
) -> JobReport | None:
    """Load a file of vectors; None if the file has only texts."""
    if source == "-" or kind not in (None, "parquet") or not source.endswith(".parquet"):
        return None
    from nimbed.files import open_embedded
    from nimbed.files.parquet import open_parquet

    with open_parquet(source) as plain:
        if b"nimbed.spec" not in (plain.schema_arrow.metadata or {}):
            return None
    with open_embedded(source) as file:
        return target.load_embedded(
            file.parts(),
            file.contract.spec,
            on_progress=lambda report: move(report.read, file.count),
            **common,
        )


def _load_texts(
    target: VectorTable,
    source: str,
    move: Callable[[int, int], None],
    text_field: str,
    id_field: str | None,
    kind: str | None,
    truncate: str,
    common: dict[str, Any],
) -> JobReport:
    from nimbed.files import read_rows
    from nimbed.spec import Truncate

    total = _row_count(source, kind)
    rows = read_rows(source, text_field=text_field, id_field=id_field, kind=kind)
    return target.load(
        rows,
        truncate=cast(Truncate, truncate),
        on_progress=lambda report: move(report.read, max(total, report.read) if total else 0),
        **common,
    )


def _row_count(source: str, kind: str | None) -> int:
    """Return about how many rows a file has, for the time left; 0 where it must be read to tell."""
    from nimbed.files.parquet import open_parquet
    from nimbed.files.sources import is_rereadable, kind_of

    if not is_rereadable(source) or source.endswith(".gz"):
        return 0
    if kind_of(source, kind) == "parquet":
        with open_parquet(source) as file:
            return int(file.metadata.num_rows)
    with Path(source).open("rb") as file:  # lines: in a csv a record may have several
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b"")) or 1


def _summary(report: JobReport, table: str, listed: Path) -> str:
    rate = report.read / report.seconds if report.seconds else 0.0
    lines = [
        f"{report.loaded:,} passages loaded into {table}, {report.unchanged:,} were there already, "
        f"in {report.seconds:,.1f} s ({rate:,.0f} rows/s)"
    ]
    if report.rejected:
        lines.append(f"{report.rejected:,} rows were left out, listed with reasons in {listed}")
    return "\n".join(lines)
