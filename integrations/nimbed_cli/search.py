"""``nimbed search``: a question to the nearest passages of a table or a collection."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbed_cli import options

if TYPE_CHECKING:
    from nimbed_pgvector import Hit as TableHit
    from nimbed_weaviate import Hit as CollectionHit

__all__ = ["search"]


def search(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[DSN] QUESTION", help="A database, as for `nimbed load`, and the question."
        ),
    ],
    table: options.TableOrNone = None,
    collection: options.Collection = None,
    embedded: options.Embedded = None,
    k: Annotated[int, typer.Option("-k", metavar="N", help="How many passages to find.")] = 10,
    filter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="SQL for a table, such as \"metadata->>'lang' = 'en'\"; for a collection "
            "such as 'page >= 3'; several must all hold.",
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
    hybrid: Annotated[
        str | None,
        typer.Option(
            metavar="LANGUAGE",
            help="Rank by the question's words too; english, german, ... or simple.",
        ),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            metavar="dense,sparse",
            help="By which vectors, where the table has several kinds. Default: by all of them.",
        ),
    ] = None,
    fusion: Annotated[
        str,
        typer.Option(
            metavar="rrf|sum",
            help="How several rankings become one: by places, or by normalised scores.",
        ),
    ] = "rrf",
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="N,N",
            help="What each ranking counts for: of --kinds in their order, then of --hybrid. "
            "Default: 1 each.",
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            metavar="DISTANCE:ID",
            help="A page of answers, from behind this one; 'start' for the first page.",
        ),
    ] = None,
    as_sql: Annotated[
        bool, typer.Option("--sql", help="Print the search as SQL to paste; nothing is searched.")
    ] = False,
    model: options.TableModel = None,
    card: options.Card = None,
    prompt_name: options.PromptName = None,
    base_url: options.BaseUrl = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    backend: options.Backend = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each passage.")
    ] = False,
    vector: options.Vector = None,
    grpc_port: options.GrpcPort = 50051,
) -> None:
    """Search a table of PostgreSQL or a collection of Weaviate by meaning.

    The question is embedded as a query, by the model that made the vectors; on a CPU by ONNX
    Runtime in float32, where that is installed and nothing else is said, since it starts soonest.
    In a pipe the answers are tab-separated lines.
    """
    from nimbed.errors import ConfigurationError, InputError, TooLongError
    from nimbed_cli.terminal import Column, print_table

    *dsn, question = arguments
    name = options.target_name(
        dsn,
        table,
        collection,
        tables_alone={
            "--embedded": embedded is not None,
            "--candidates": candidates is not None,
            "--hybrid": hybrid is not None,
            "--kinds": kinds is not None,
            "--fusion": fusion != "rrf",
            "--weights": weights is not None,
            "--after": after is not None,
            "--sql": as_sql,
        },
        collections_alone={"--vector": vector is not None},
    )
    load = functools.partial(
        options.load_embedder,
        model,
        card=card,
        prompt_name=prompt_name,
        base_url=base_url,
        device=device,
        dtype=dtype,
        backend=backend,
        one_question=True,
    )
    hits: Sequence[TableHit | CollectionHit]
    try:
        if collection is not None:
            from nimbed_cli.weaviate_target import search_collection

            hits = search_collection(
                dsn[0],
                name,
                question,
                k,
                grpc_port=grpc_port,
                vector=vector,
                filters=filter or (),
                group=group,
                load=lambda spec: load(table_spec=spec),
                model=model,
            )
        else:
            from nimbed_pgvector import VectorTable

            with options.connect_database(dsn, embedded, read_only=True) as connection:
                there = VectorTable(connection, name)
                embedder = load(table_spec=there.find_spec() or there.spec)
                target = VectorTable(connection, name, embedder)
                condition = " AND ".join(f"({part}\n)" for part in filter or ()) or None
                how: dict[str, Any] = {
                    "filter": condition,
                    "candidates": candidates,
                    "hybrid": hybrid,
                    "kinds": options.listed(kinds),
                    "fusion": fusion,
                    "weights": options.numbers("--weights", weights),
                }
                if as_sql:
                    if group or after is not None:
                        raise ConfigurationError(
                            "--sql prints a search of passages; leave out --group and --after"
                        )
                    typer.echo(target.sql(question, k, **how))
                    return
                page = None if after is None else _place(after)
                hits = target.search(question, k, group=group, after=page, **how)
    except TooLongError as error:
        raise InputError(
            f"the question has {error.length:,} tokens, the model reads {error.limit:,}; shorten it"
        ) from error
    if after is not None and len(hits) == k:
        typer.echo(f"the next page: --after '{hits[-1].distance!r}:{hits[-1].id}'", err=True)
    if as_json:
        for hit in hits:
            facts = {
                "id": hit.id,
                "distance": hit.distance,
                "text": hit.text,
                "metadata": dict(hit.metadata),
            }
            score = getattr(hit, "score", None)  # of a table's hybrid search alone
            if score is not None:
                facts["score"] = score
            line = json.dumps(facts, ensure_ascii=False, default=str)
            # JSON escapes the control characters that terminals obey, except for these.
            typer.echo(re.sub("[\x7f-\x9f]", lambda each: f"\\u{ord(each[0]):04x}", line))
        return
    columns = [Column("distance", align="right"), Column("id"), Column("text", fit="cut")]
    rows = [[f"{hit.distance:.4f}", hit.id, hit.text] for hit in hits]
    scores = [getattr(hit, "score", None) for hit in hits]
    if hits and scores[0] is not None:  # what several rankings are ordered by
        columns = [Column("score", align="right"), *columns]
        rows = [[f"{score:.4f}", *row] for score, row in zip(scores, rows, strict=True)]
    print_table(columns, rows)


def _place(typed: str) -> tuple[float, str]:
    """Return where a page begins."""
    from nimbed.errors import ConfigurationError
    from nimbed_pgvector import FIRST_PAGE

    if typed == "start":
        return FIRST_PAGE
    distance, found, name = typed.partition(":")
    try:
        if found:
            return float(distance), name
    except ValueError:
        pass
    raise ConfigurationError(f"--after takes 'start' or DISTANCE:ID of the last hit; got {typed!r}")
