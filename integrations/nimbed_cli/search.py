"""``nimbed search``: a question to the nearest passages of a table of PostgreSQL."""

from __future__ import annotations

import json
import re
from typing import Annotated

import typer

from nimbed_cli import options

__all__ = ["search"]


def search(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[DSN] QUESTION", help="A database, as for `nimbed load`, and the question."
        ),
    ],
    table: options.Table,
    embedded: options.Embedded = None,
    k: Annotated[int, typer.Option("-k", metavar="N", help="How many passages to find.")] = 10,
    filter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SQL",
            help="A condition, such as \"metadata->>'lang' = 'en'\"; several must all hold.",
        ),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="How many nearest by bits are ranked again by floats. Default: 8 k."
        ),
    ] = None,
    group: Annotated[
        bool, typer.Option("--group", help="One answer a document, where the table holds chunks.")
    ] = False,
    model: options.TableModel = None,
    base_url: options.BaseUrl = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each passage.")
    ] = False,
) -> None:
    """Search a table by meaning.

    The question is embedded as a query, by the model that the table was loaded with. In a pipe
    the answers are tab-separated lines.
    """
    from nimbed_cli.terminal import Column, print_table
    from nimbed_pgvector import VectorTable

    *dsn, question = arguments
    with options.connect_database(dsn, embedded, read_only=True) as connection:
        embedder = options.load_embedder(
            model,
            base_url=base_url,
            device=device,
            dtype=dtype,
            table_spec=VectorTable(connection, table).spec,
        )
        target = VectorTable(connection, table, embedder)
        condition = " AND ".join(f"({part}\n)" for part in filter or ()) or None
        hits = target.search(question, k, filter=condition, candidates=candidates, group=group)
    if as_json:
        for hit in hits:
            facts = {
                "id": hit.id,
                "distance": hit.distance,
                "text": hit.text,
                "metadata": dict(hit.metadata),
            }
            line = json.dumps(facts, ensure_ascii=False, default=str)
            # JSON escapes the control characters that terminals obey, except for these.
            typer.echo(re.sub("[\x7f-\x9f]", lambda each: f"\\u{ord(each[0]):04x}", line))
        return
    columns = (Column("distance", align="right"), Column("id"), Column("text", fit="cut"))
    print_table(columns, [(f"{hit.distance:.4f}", hit.id, hit.text) for hit in hits])
