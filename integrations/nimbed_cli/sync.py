"""The ``nimbed sync`` command: embeds a table that exists, and follows its changes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from nimbed_cli import options

__all__ = ["sync"]


def sync(
    from_table: Annotated[
        str, typer.Option(metavar="NAME", help="Your table, whose texts are embedded.")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DSN]", help="A database, as for `nimbed load`."),
    ] = None,
    text_field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Column of the text; several are joined by an empty line. Default: text.",
        ),
    ] = None,
    id_field: Annotated[
        str, typer.Option(metavar="NAME", help="Column of the key, with a unique index.")
    ] = "id",
    into: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE.COLUMN",
            help="A column of your table, to be added. Default: a table TABLE_embedding_store "
            "beside it, which leaves yours as it is.",
        ),
    ] = None,
    embedded: options.Embedded = None,
    model: options.Model = None,
    embedding_type: options.EmbeddingType = "float",
    dimensions: options.Dimensions = None,
    int8_scale: options.Int8Scale = None,
    truncate: options.Truncate = "NONE",
    rejects: options.Rejects = None,
    triggers: Annotated[
        bool,
        typer.Option(help="Follow changes, by triggers that write to a queue; or embed just once."),
    ] = True,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on as a worker, until it is stopped.")
    ] = False,
    index: Annotated[bool, typer.Option(help="Build the index afterwards.")] = True,
    card: options.Card = None,
    prompt_name: options.PromptName = None,
    base_url: options.BaseUrl = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    backend: options.Backend = "auto",
    progress: options.Progress = None,
) -> None:
    """Embed the rows of a table that exists, and keep their vectors in step with it.

    The first run adds what is needed and embeds all rows; each later one does what has changed, and
    with --watch it goes on. Several workers share the work; killed at any moment, nothing is lost.
    The view TABLE_embedding shows texts and vectors: `nimbed search --table TABLE_embedding`.
    """
    from nimbed.bulk import listing
    from nimbed.errors import ConfigurationError, count_rows
    from nimbed_cli.terminal import progress_bar
    from nimbed_pgvector import SyncedTable

    table, _, column = (into or "").rpartition(".")
    if into is not None and (table != from_table or not column):
        raise ConfigurationError(
            f"--into names a column of the table itself, as in {from_table}.embedding; got {into!r}"
        )
    how: dict[str, Any] = {"card": card, "prompt_name": prompt_name, "base_url": base_url}
    how |= {"device": device, "dtype": dtype, "backend": backend}
    with ExitStack() as stack:
        connection = stack.enter_context(options.connect_database(arguments or [], embedded))
        embedder = options.load_embedder(model, **how)
        # The engine checks the words.
        kind: dict[str, Any] = {"embedding_type": embedding_type, "int8_scale": int8_scale}
        kind |= {"dimensions": dimensions, "truncate": truncate}
        target = SyncedTable(
            connection,
            from_table,
            embedder,
            text_fields=text_field or ["text"],
            key=id_field,
            column=column or None,
            **kind,
        )
        if target.prepare(triggers=triggers):
            typer.echo(f"{target.view} shows texts and vectors; the least rights:", err=True)
            typer.echo("\n".join(target.grants()))
        listed = rejects or Path(f"{target.view}.rejects.jsonl")
        on_reject = stack.enter_context(listing(listed))
        with progress_bar("embedding", before="reading", show=progress) as move:
            report = target.run(
                on_reject=on_reject, on_progress=lambda report: move(report.loaded, 0)
            )
        typer.echo(
            f"{count_rows(report.loaded)} embedded, {report.replaced:,} of them anew, "
            f"{report.unchanged:,} unchanged or gone, {report.rejected:,} left out, in "
            f"{report.seconds:,.1f} s" + (f" (listed in {listed})" if report.rejected else ""),
            err=True,
        )
        for line in options.computed_in(embedder):
            typer.echo(line, err=True)
        if index and target.index():
            typer.echo("the index is built", err=True)
        if watch:
            typer.echo("following changes; Ctrl-C ends it", err=True)
            target.run(stop=lambda: False, on_reject=on_reject)
