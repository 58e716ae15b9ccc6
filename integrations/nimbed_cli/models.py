"""``nimbed models``: the catalogue, or one card with the contract of every embedding type."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from nimbed.cards import ModelCard
    from nimbed.spec import VectorSpec
    from nimbed.stores import StoreField

__all__ = ["models"]


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="An id, an alias or an old name.")
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(metavar="N", help="Specs of a shorter vector, for one model.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="DATABASE", help="How that database wants each type's vectors."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """List the known models, or describe one."""
    from nimbed import cards
    from nimbed.errors import ConfigurationError

    if name is None:
        if dimensions is not None or store is not None:
            raise ConfigurationError("--dimensions and --store each needs the name of a model")
        listed = cards.catalogue()
        if as_json:
            typer.echo(json.dumps([_facts(card) for card in listed], ensure_ascii=False, indent=2))
        else:
            _show(_catalogue_table(listed))
            _show("One of them in full: nimbed models NAME")
        return
    card = cards.find(name)
    specs = _specs(card, dimensions)
    fields = None if store is None else _fields(specs, store)
    if as_json:
        facts = {**_facts(card), "specs": [spec.to_dict() for spec in specs]}
        if fields is not None:
            facts["fields"] = {
                kind: found if isinstance(found, str) else found.to_dict()
                for kind, found in fields.items()
            }
        typer.echo(json.dumps(facts, ensure_ascii=False, indent=2))
    else:
        _show(_card_table(card))
        _show(_spec_table(specs) if fields is None else _field_table(fields))


def _show(what: Table | str) -> None:
    from rich.console import Console

    Console(highlight=False).print(what)


def _facts(card: ModelCard) -> dict[str, Any]:
    return {**dataclasses.asdict(card), "sizes": card.sizes}


def _specs(card: ModelCard, dimensions: int | None) -> list[VectorSpec]:
    """Return the contract of every type that can hold that many dimensions."""
    from typing import get_args

    from nimbed.spec import EmbeddingType

    size = card.spec(dimensions=dimensions).dimensions
    packable = size % 8 == 0
    return [
        card.spec(embedding_type=kind, dimensions=dimensions)
        for kind in get_args(EmbeddingType)
        if packable or not kind.endswith("binary")
    ]


def _fields(specs: list[VectorSpec], store: str) -> dict[str, StoreField | str]:
    """Return the field of each type, or why the database cannot have it."""
    from nimbed import stores
    from nimbed.errors import ConfigurationError

    if store not in stores.names():
        stores.field(specs[0], store)  # raises, and says which names there are
    found: dict[str, StoreField | str] = {}
    for spec in specs:
        try:
            found[spec.embedding_type] = stores.field(spec, store)
        except ConfigurationError as error:
            found[spec.embedding_type] = str(error)
    return found


def _catalogue_table(listed: tuple[ModelCard, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("dimensions", justify="right")
    table.add_column("tokens", justify="right")
    table.add_column("inputs")
    for card in listed:
        inputs = "text, image" if "image" in card.modalities else "text"
        smallest = f"{card.sizes[0]}-" if len(card.sizes) > 1 else ""
        table.add_row(card.id, f"{smallest}{card.dimensions}", f"{card.max_tokens:,}", inputs)
    return table


def _card_table(card: ModelCard) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    parameters = ""
    if card.parameters is not None:
        inner, total = card.parameters
        parameters = f"{total:,} million ({inner:,} without embeddings)"
    facts = {
        "model": card.id,
        "also called": ", ".join(card.aliases),
        "weights": card.weights or "no public checkpoint is known",
        "dimensions": ", ".join(map(str, card.sizes)),
        "longest input": f"{card.max_tokens:,} tokens",
        "inputs": ", ".join(card.modalities),
        "before a query": repr(card.query_prompt),
        "before a passage": repr(card.passage_prompt),
        "pooling": card.pooling,
        "architecture": card.architecture,
        "parameters": parameters,
        "types of its NIM": ", ".join(card.served_types),
        "licence": card.licence,
        "note": card.note,
    }
    for fact, value in facts.items():
        if value:
            table.add_row(fact, Text(value))  # a Text, since brackets in a prompt are no markup
    return table


def _spec_table(specs: list[VectorSpec]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("embedding type", "metric", "dtype"):
        table.add_column(name)
    for name in ("width", "bytes", "fingerprint"):
        table.add_column(name, justify="right")
    for spec in specs:
        table.add_row(
            spec.embedding_type,
            spec.metric,
            spec.dtype,
            f"{spec.width:,}",
            f"{spec.bytes_per_vector:,}",
            spec.fingerprint,
        )
    return table


def _field_table(fields: dict[str, StoreField | str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("embedding type", "type", "metric", "order by", "options, or why not"):
        table.add_column(name, overflow="fold")
    for kind, found in fields.items():
        if isinstance(found, str):
            table.add_row(kind, "", "", "", Text(found))
        else:
            options = ", ".join(f"{name}={value}" for name, value in found.options.items())
            table.add_row(kind, *map(Text, (found.type, found.metric, found.operator, options)))
    return table
