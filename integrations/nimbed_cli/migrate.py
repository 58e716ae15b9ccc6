"""The ``nimbed migrate`` command: takes a table or a collection to another model or type."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbed_cli import options

if TYPE_CHECKING:
    from nimbed_pgvector import Migration

__all__ = ["migrate"]


def migrate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DSN]", help="A database, as for `nimbed load`."),
    ] = None,
    table: options.TableOrNone = None,
    collection: options.Collection = None,
    embedded: options.Embedded = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The new model: a name, a folder or a hub id."),
    ] = None,
    embedding_type: options.TableEmbeddingType = None,
    dimensions: options.Dimensions = None,
    int8_scale: options.Int8Scale = None,
    also: options.Also = None,
    truncate: options.Truncate = "NONE",
    rejects: options.Rejects = None,
    switch: Annotated[
        bool, typer.Option(help="Search by the new vectors once they are there and checked.")
    ] = True,
    keep_index: Annotated[
        bool,
        typer.Option(
            help="Keep the old index meanwhile; without it rows are filled faster where many leave "
            "their pages, and searches compare every row until the switch."
        ),
    ] = True,
    same_vectors: Annotated[
        bool,
        typer.Option(
            "--same-vectors",
            help="Change the table's contract alone, if an audit proves that the model makes the "
            "stored vectors.",
        ),
    ] = False,
    rollback: Annotated[
        bool,
        typer.Option(
            "--rollback", help="Search by the old vectors again, or drop unfinished new ones."
        ),
    ] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="Drop the old vectors, after which nothing is undone.")
    ] = False,
    card: options.Card = None,
    prompt_name: options.PromptName = None,
    base_url: options.BaseUrl = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    backend: options.Backend = "auto",
    progress: options.Progress = None,
    vector: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The collection's new vector. Default: one of the model's name."
        ),
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A new collection that takes the old one's place. Default: none where the new "
            "vector can be added (Weaviate 1.31, vectors with names, no alias), else NAME_2.",
        ),
    ] = None,
    source_property: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A property of the collection that is embedded; may be repeated. Default: those "
            "of the old vector.",
        ),
    ] = None,
    template: options.Template = None,
    grpc_port: options.GrpcPort = 50051,
) -> None:
    """Take a table or a collection to another model, type or size while it is read and written.

    New vectors are stored beside the old and checked; then searches use them, from one moment to
    the next. Killed at any moment and typed again, it goes on. `nimbed search` and `nimbed load`
    take the new model; programs that name the old one are refused by PostgreSQL, and are told
    here what to ask Weaviate for.
    """
    from nimbed.bulk import listing
    from nimbed.errors import ConfigurationError
    from nimbed_cli.terminal import print_findings, progress_bar

    name = options.target_name(
        arguments or [],
        table,
        collection,
        tables_alone={
            "--embedded": embedded is not None,
            "--also": also is not None,
            "--same-vectors": same_vectors,
        },
        collections_alone={
            "--vector": vector is not None,
            "--into": into is not None,
            "--source-property": bool(source_property),
            "--template": template is not None,
        },
    )
    form = (embedding_type, dimensions, int8_scale, also)
    others = same_vectors + rollback + finish
    if others > 1 or (others and any(form)):
        raise ConfigurationError(
            "--same-vectors, --rollback and --finish each do something of their own to vectors "
            "that are there; give one of them, and no type or size"
        )
    how: dict[str, Any] = {"card": card, "prompt_name": prompt_name, "base_url": base_url}
    how |= {"device": device, "dtype": dtype, "backend": backend}
    if collection is not None:
        from nimbed_cli.weaviate_target import migrate_collection

        with ExitStack() as stack:
            listed = rejects or Path(f"{name}.rejects.jsonl")
            bar = stack.enter_context(progress_bar("embedding", before="reading", show=progress))
            migrate_collection(
                (arguments or [""])[0],
                name,
                grpc_port=grpc_port,
                step="finish" if finish else "rollback" if rollback else "migrate",
                load=None
                if model is None and rollback
                else functools.partial(options.load_embedder, model, **how),
                asked=model is not None or embedding_type is not None or dimensions is not None,
                on_reject=stack.enter_context(listing(listed)),
                on_progress=lambda report: bar(report.read, 0),
                truncate=truncate,
                options={
                    "vector": vector,
                    "into": into,
                    "embedding_type": embedding_type,
                    "dimensions": dimensions,
                    "int8_scale": int8_scale,
                    "source_properties": source_property or None,
                    "template": template,
                    "switch": switch,
                },
            )
        return
    from nimbed_pgvector import VectorTable

    with ExitStack() as stack:
        connection = stack.enter_context(options.connect_database(arguments or [], embedded))
        target = VectorTable(connection, name)
        if finish:
            _tell(target.finish(), name)
            return
        if not (rollback or any(form) or model or card or prompt_name):
            raise ConfigurationError("say what the table is to hold: --model, or --embedding-type")
        embedder: Any = None
        if not rollback or model or card:
            embedder = options.load_embedder(model, table_spec=target.spec, **how)
        if same_vectors:
            found = target.relabel(embedder)
            print_findings(name, found.findings)
            typer.echo(f"{name} has the contract of {embedder.card.id} now", err=True)
            return
        listed = rejects or Path(f"{name}.rejects.jsonl")
        on_reject = stack.enter_context(listing(listed))
        move = stack.enter_context(progress_bar("embedding", before="reading", show=progress))
        telling: Callable[[Any], None] = lambda report: move(report.loaded, 0)  # noqa: E731
        common: dict[str, Any] = {
            "truncate": truncate,
            "on_reject": on_reject,
            "on_progress": telling,
        }
        if rollback:
            done = target.rollback(embedder, **common)
        else:
            common |= {"embedding_type": embedding_type, "dimensions": dimensions, "also": also}
            common |= {"int8_scale": int8_scale, "switch": switch, "on_index": move}
            common["keep_index"] = keep_index
            done = target.migrate(embedder, **common)
    print_findings(name, done.findings)
    _tell(done, name)


def _tell(done: Migration, table: str) -> None:
    """Say what was done, and what can be done next."""
    spec = done.spec
    holds = f"{table} holds {spec.embedding_type} vectors of {spec.model}, {spec.dimensions} wide"
    from nimbed.errors import count_rows

    rows = f"{count_rows(done.report.loaded)} embedded in {done.report.seconds:,.1f} s"
    said = {
        "prepared": f"{rows}; searches still use the old ones: run it again without --no-switch",
        "switched": f"{rows}; {holds} now. --rollback goes back, --finish drops the old ones",
        "rolled back": f"{rows}; {holds} again. --rollback undoes this, --finish drops the others",
        "abandoned": f"the unfinished new vectors are dropped; {holds}",
        "finished": f"the old vectors are dropped; {holds}",
    }
    typer.echo(said[done.state], err=True)
