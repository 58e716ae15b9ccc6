"""The ``nimbed audit`` command: says what the vectors of a table or a collection are."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbed_cli import options

if TYPE_CHECKING:
    from nimbed.audit import Audit

__all__ = ["audit"]


def audit(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DSN|URL]",
            help="A database, as for `nimbed load`; or a Weaviate, such as http://localhost:8080.",
        ),
    ] = None,
    table: Annotated[
        str | None, typer.Option(metavar="NAME", help="The table of PostgreSQL.")
    ] = None,
    collection: Annotated[
        str | None, typer.Option(metavar="NAME", help="The collection of a Weaviate.")
    ] = None,
    vector: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of a collection's several vectors.")
    ] = None,
    text_property: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The property that was embedded. Default: text."),
    ] = None,
    grpc_port: options.GrpcPort = 50051,
    embedded: options.Embedded = None,
    sample: Annotated[
        int, typer.Option(metavar="N", help="Rows to look at, chosen by chance.")
    ] = 100,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Compare with this model. Default: the one that is named there."
        ),
    ] = None,
    instead: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A model that may have made the vectors instead; may be repeated.",
        ),
    ] = None,
    card: options.Card = None,
    prompt_name: options.PromptName = None,
    base_url: options.BaseUrl = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    backend: options.Backend = "auto",
    as_json: options.Json = False,
) -> None:
    """Embed a sample of stored texts again, and say what the stored vectors are.

    This model's passages, its queries, without its prompt, with another field in front, cut, of
    another row, of another model, not normalised, quantised; and how many of them. The exit code is
    1 if they are not what the contract, or the module, says.
    """
    import nimbed
    from nimbed.errors import ConfigurationError

    # The engine checks the words.
    placement: dict[str, Any] = {"device": device, "dtype": dtype, "backend": backend}
    others = {name: functools.partial(nimbed.load, name, **placement) for name in instead or ()}
    how: dict[str, Any] = {"card": card, "prompt_name": prompt_name, "base_url": base_url}
    how |= placement
    load = functools.partial(options.load_embedder, model, **how)
    address = (arguments or [""])[0]
    if address.startswith(("http://", "https://")):
        from nimbed_weaviate import audit as audit_collection
        from nimbed_weaviate import connect, current_collection

        if collection is None or table is not None or embedded is not None:
            raise ConfigurationError(
                "say which collection of this Weaviate: --collection NAME, without --table and "
                "--embedded"
            )
        with connect(address, grpc_port=grpc_port) as client:
            found = audit_collection(
                current_collection(client, collection),
                None if model is None and base_url is None and card is None else load(),
                vector=vector,
                text_property=text_property,
                rows=sample,
                others=others,
            )
    else:
        from nimbed_pgvector import VectorTable

        if table is None or collection or vector or text_property:
            raise ConfigurationError(
                "say which table of this database: --table NAME, without --collection, --vector "
                "and --text-property, which are for a Weaviate at http://..."
            )
        with options.connect_database(arguments or [], embedded, read_only=True) as connection:
            target = VectorTable(connection, table)
            named = model is not None or card is not None
            target = VectorTable(
                connection,
                table,
                None if named else load(table_spec=target.find_spec() or target.spec),
            )
            found = target.audit(load() if named else None, rows=sample, others=others)
    _show(collection or table or "", found, as_json)
    if not found.ok:
        raise typer.Exit(1)


def _show(name: str, found: Audit, as_json: bool) -> None:
    from nimbed_cli.terminal import print_findings

    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2))
        return
    print_findings(name, found.findings)
    if not found.rows:
        typer.echo("there are no rows yet", err=True)
    elif found.ok:
        # The rule of three, for a confidence of 95 %.
        typer.echo(
            f"{found.rows:,} rows were looked at; a fault in fewer than {3 / found.rows:.1%} of "
            f"the rows may be missed",
            err=True,
        )
