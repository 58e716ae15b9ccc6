"""``nimbed load``: a file of texts, or of vectors, into PostgreSQL or Weaviate."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from nimbed_cli import options
from nimbed_cli.load_input import LoadInput, declared

if TYPE_CHECKING:
    from nimbed.bulk import JobReport
    from nimbed_cli.weaviate_target import CollectionTarget
    from nimbed_pgvector import VectorTable

__all__ = ["load"]

# New rows in a table with an index from which on it is worth a word: 30,000 took 28 s, not 5.
_MANY_NEW = 10_000


def load(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[DSN] [INPUT]",
            help="A database (postgresql://user@host/database; keep the password in PGPASSWORD or "
            "~/.pgpass) or a Weaviate (http://host:8080; its key in WEAVIATE_API_KEY), and a "
            "file, a 'PATTERN*' or a folder as for `nimbed embed`, or - for standard input. "
            "Vectors of `nimbed embed -o FILE.parquet` are not embedded again.",
        ),
    ],
    table: options.TableOrNone = None,
    collection: options.Collection = None,
    embedded: options.Embedded = None,
    from_table: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Instead of INPUT: a table of the same database."),
    ] = None,
    from_query: Annotated[
        str | None, typer.Option(metavar="SQL", help="Instead of INPUT: a SELECT.")
    ] = None,
    id_field: options.TableIdField = None,
    text_field: options.TextFields = None,
    template: options.Template = None,
    vector_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A field of vectors that the model of --card made; nothing is embedded.",
        ),
    ] = None,
    sparse_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A field of sparse vectors that the model of --card made, by token ids; beside "
            "--vector-field, or alone.",
        ),
    ] = None,
    metadata_field: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A field to keep; may be repeated. Default: all."),
    ] = None,
    input_format: options.InputFormat = None,
    encoding: options.Encoding = None,
    delimiter: options.Delimiter = None,
    model: options.TableModel = None,
    card: options.Card = None,
    prompt_name: options.PromptName = None,
    embedding_type: options.TableEmbeddingType = None,
    dimensions: options.Dimensions = None,
    int8_scale: options.Int8Scale = None,
    also: options.Also = None,
    kinds: options.Kinds = None,
    max_active: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The most weights of a sparse vector that are kept, the largest. Default: 1,000, "
            "as many as an index takes.",
        ),
    ] = None,
    truncate: options.Truncate = "NONE",
    chunk: options.Chunk = None,
    overlap: options.Overlap = 0,
    chunk_mode: options.ChunkMode = "plain",
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete the table's rows that INPUT has not.")
    ] = False,
    rejects: options.Rejects = None,
    index: Annotated[
        bool,
        typer.Option(help="Build the index afterwards; use --no-index while others still load."),
    ] = True,
    sparse_index: Annotated[
        bool,
        typer.Option(
            "--sparse-index",
            help="Index the sparse vectors too; without, a search compares all of them.",
        ),
    ] = False,
    words: Annotated[
        str | None,
        typer.Option(
            metavar="LANGUAGE",
            help="Index the words too, for `nimbed search --hybrid LANGUAGE`.",
        ),
    ] = None,
    base_url: options.BaseUrl = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    backend: options.Backend = "auto",
    progress: options.Progress = None,
    vector: options.Vector = None,
    vectorizer: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE",
            help="For a new collection: the module of Weaviate that embeds questions, and what is "
            "stored later without a vector, such as text2vec-cohere.",
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
    from nimbed.errors import ConfigurationError, InputError, count_rows
    from nimbed.files.sources import is_source
    from nimbed_cli.terminal import hint_if_stopped, progress_bar

    if from_table is None and from_query is None:
        *dsn, source = arguments
    else:
        dsn, source = arguments, None
        if embedded is None and len(dsn) != 1:
            raise ConfigurationError("--from-table and --from-query take the place of INPUT")
    brings = None
    if vector_field is not None or sparse_field is not None:
        if card is None:
            raise ConfigurationError("say by --card NAME which model made the vectors")
        brings = declared(card, vector_field, sparse_field, max_active, source)
    name = options.target_name(
        dsn,
        table,
        collection,
        tables_alone={
            "--embedded": embedded is not None,
            "--from-table": from_table is not None,
            "--from-query": from_query is not None,
            "--also": also is not None,
            "--sparse-field": sparse_field is not None,
            "--max-active": max_active is not None,
            "--sparse-index": sparse_index,
            "--words": words is not None,
            "--no-index": not index,
            "--chunk-mode": chunk_mode != "plain",
        },
        collections_alone={
            "--vector": vector is not None,
            "--vectorizer": vectorizer is not None,
            "--server": server is not None,
            "--served-name": served_name is not None,
        },
    )
    chosen = options.listed(kinds)
    weighed = sparse_field is not None or "sparse" in (chosen or ())
    if sparse_index and (not weighed or (max_active or 0) > 1_000):
        raise ConfigurationError(
            "--sparse-index needs --kinds dense,sparse or sparse, and no --max-active of more than "
            "1,000"
        )
    listed = rejects or Path(f"{name}.rejects.jsonl")
    if is_source(listed, [source]):
        raise ConfigurationError(
            f"the list of rejects would replace the input {source!r}; name another with --rejects"
        )
    given = LoadInput(
        source=source,
        table=from_table,
        query=from_query,
        text_field=text_field or "text",
        id_field=id_field,
        template=template,
        kind=input_format,
        encoding=encoding,
        delimiter=delimiter,
        brings=brings,
        keeps=metadata_field,
    )
    stored_as: dict[str, Any] = {
        "embedding_type": embedding_type,
        "dimensions": dimensions,
        "int8_scale": int8_scale,
    }
    with ExitStack() as stack:
        stack.enter_context(
            hint_if_stopped(f"what {name} has is kept, and the same command goes on from there")
        )
        opening: AbstractContextManager[Callable[[Any], VectorTable | CollectionTarget]]
        if collection is None:
            stored_as |= {"also": also, "kinds": chosen, "max_active": max_active}
            opening = _open_table(dsn, embedded, name, stored_as, given)
        else:
            from nimbed_cli.weaviate_target import open_collection

            opening = open_collection(
                dsn[0],
                name,
                grpc_port=grpc_port,
                vector=vector,
                module=vectorizer,
                server=server,
                served_name=served_name,
                stored_as=stored_as,
                kinds=chosen,
            )
        make: Callable[[Any], Any] = stack.enter_context(opening)
        target = make(None)
        common: dict[str, Any] = {
            "source": given.name,
            "metadata_fields": metadata_field or None,
            "on_reject": stack.enter_context(listing(listed)),
        }
        with progress_bar("loading", before="reading", show=progress) as move:
            texts = chunk is not None or prune or overlap > 0 or chunk_mode != "plain"
            report = _load_vectors(target, given, card, move, common, texts=texts)
            computed: list[str] = []
            if report is None:
                embedder = options.load_embedder(
                    model,
                    card=card,
                    prompt_name=prompt_name,
                    base_url=base_url,
                    device=device,
                    dtype=dtype,
                    backend=backend,
                    table_spec=target.find_spec(),
                )
                target = make(embedder)
                total = given.count()
                there = target.find_index() if collection is None else None
                slow = _warning(there, name)

                def tell(report: JobReport) -> None:
                    slow(report)
                    known = total and chunk is None  # chunks are more than rows
                    move(report.read, max(total, report.read) if known else 0)

                report = target.load(
                    given.rows(),
                    truncate=cast(Any, truncate),  # a word of the engine's, which checks it
                    chunk_tokens=chunk,
                    overlap=overlap,
                    **({} if collection is not None else {"chunk_mode": chunk_mode}),
                    prune=prune,
                    on_progress=tell,
                    **common,
                )
                computed = options.computed_in(embedder)
        if report.rejected and report.rejected == report.read:
            first = report.first_rejects[0]
            raise InputError(
                f"none of the {count_rows(report.rejected)} could be loaded; row {first.number}: "
                f"{first.reason} (all are in {listed})"
            )
        typer.echo("\n".join([*_summary(report, name, listed, given), *computed]), err=True)
        if index and collection is None and (report.loaded or report.unchanged):
            with progress_bar("indexing", before="indexing", show=progress) as move:
                built = target.index(words=words, sparse=sparse_index, on_progress=move)
            typer.echo(_of_index(built, target.find_index()), err=True)


def _of_index(built: bool, name: str | None) -> str:
    if name is None:  # of sparse vectors alone
        return "there is no index: a search compares every row (--sparse-index builds one)"
    return "the index is built" if built else "the index was there already"


@contextmanager
def _open_table(
    dsn: list[str], embedded: str | None, name: str, stored_as: dict[str, Any], given: LoadInput
) -> Generator[Callable[[Any], VectorTable]]:
    """Connect to PostgreSQL, and yield what makes a table of it a target."""
    from psycopg.conninfo import make_conninfo

    from nimbed_pgvector import VectorTable

    with options.connect_database(dsn, embedded) as connection:
        given.dsn = make_conninfo(connection.info.dsn, password=connection.info.password or None)
        yield lambda embedder: VectorTable(connection, name, embedder, **stored_as)


def _load_vectors(
    target: VectorTable | CollectionTarget,
    given: LoadInput,
    card: str | None,
    move: Callable[[int, int], None],
    common: dict[str, Any],
    *,
    texts: bool,
) -> JobReport | None:
    """Load vectors that are there; None if there are only texts, as must be if ``texts``."""
    from nimbed.bulk import JobReport
    from nimbed.errors import ConfigurationError

    mend = "--chunk and --prune are for texts that are embedded now"
    if given.brings is not None:
        if texts:
            raise ConfigurationError(f"{given.name} brings its vectors; {mend}")
        from nimbed.files.ready_vectors import declared_parts

        without = JobReport()
        parts, contracts = declared_parts(
            given.rows(),
            given.brings,
            on_reject=lambda reject: without.reject([reject], common["on_reject"]),
        )
        report = target.load_embedded(parts, **contracts, **common)
        report.rejected += without.rejected
        report.first_rejects = [*without.first_rejects, *report.first_rejects]
        return report
    source = given.source
    if source is None or given.kind not in (None, "parquet") or not source.endswith(".parquet"):
        return None
    from nimbed.files import open_embedded
    from nimbed.files.parquet import open_parquet
    from nimbed.files.sources import files_of

    if files_of(source) is not None:
        return None
    with open_parquet(source) as plain:
        if b"nimbed.spec" not in (plain.schema_arrow.metadata or {}):
            return None
    if texts:
        raise ConfigurationError(f"{source} brings its vectors; {mend}: give the file of texts")
    with open_embedded(source) as file:
        return target.load_embedded(
            ((list(given.observed(rows, typed=True)), vectors) for rows, vectors in file.parts()),
            file.contract.spec,
            on_progress=lambda report: move(report.read, file.count),
            **common,
        )


def _warning(index: str | None, table: str) -> Callable[[JobReport], None]:
    """Return what says once that many new rows go faster into a table without its index."""
    told = index is None

    def warn(report: JobReport) -> None:
        nonlocal told
        if not told and report.loaded - report.replaced >= _MANY_NEW:
            told = True
            typer.echo(
                f"many new rows, and the table {table} has its index, into which each is put by "
                f"itself: several times slower than to build it anew. To stop here loses nothing: "
                f"DROP INDEX {index}; then load again, and the index is built at the end",
                err=True,
            )

    return warn


def _summary(report: JobReport, table: str, listed: Path, found: LoadInput) -> Iterator[str]:
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
        if any("not valid UTF-8" in reject.reason for reject in report.first_rejects):
            yield "some are not UTF-8; --encoding says what else the file is, such as cp1252"
