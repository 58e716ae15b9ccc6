"""``nimbed search``: a question to the nearest passages of a table of PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbed_cli.load import database, embedder_for

if TYPE_CHECKING:
    from nimbed_pgvector import Hit

__all__ = ["search"]


def search(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[DSN] QUESTION", help="Which database, as for `nimbed load`, and the question."
        ),
    ],
    table: Annotated[str, typer.Option(metavar="NAME", help="The table that was loaded.")],
    embedded: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Instead of DSN: the database in this folder."),
    ] = None,
    k: Annotated[int, typer.Option("-k", metavar="N", help="How many passages.")] = 10,
    filter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SQL",
            help="A condition, such as \"metadata->>'lang' = 'en'\"; several must all hold.",
        ),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(metavar="N", help="Nearest by bits that are ranked again. Default: 8 k."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: the one that the table names.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="A server that runs the model.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Where a local model runs.")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(metavar="auto|float32|bfloat16|float16", help="Its arithmetic.")
    ] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each passage.")
    ] = False,
) -> None:
    """Search a table by meaning.

    The question is embedded as a query, by the model that the table was loaded with.
    """
    from nimbed_pgvector import VectorTable

    *dsn, question = arguments
    placement: dict[str, Any] = {"base_url": base_url, "device": device, "dtype": dtype}
    with database(dsn, embedded, read_only=True) as connection:
        spec = VectorTable(connection, table).spec
        target = VectorTable(connection, table, embedder_for(model, spec, placement))
        condition = " AND ".join(f"({part}\n)" for part in filter or ()) or None
        hits = target.search(question, k, filter=condition, candidates=candidates)
    if as_json:
        for hit in hits:
            typer.echo(json.dumps(_facts(hit), ensure_ascii=False, default=str))
    else:
        _print_table(hits)


def _facts(hit: Hit) -> dict[str, Any]:
    return {
        "id": hit.id,
        "distance": hit.distance,
        "text": hit.text,
        "metadata": dict(hit.metadata),
    }


def _print_table(hits: Sequence[Hit]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("distance", justify="right", no_wrap=True)
    table.add_column("id", no_wrap=True, overflow="ellipsis", max_width=30)
    table.add_column("text", overflow="ellipsis", no_wrap=True)
    for hit in hits:
        one_line = " ".join(hit.text.split())
        # Text, not a string: a passage may hold what rich takes for markup.
        table.add_row(f"{hit.distance:.4f}", Text(hit.id), Text(one_line))
    Console(highlight=False).print(table)
