"""``nimbed models``: lists the catalogue, or describes one model and its vectors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbed_cli import options

if TYPE_CHECKING:
    from nimbed.cards import ModelCard
    from nimbed.spec import VectorSpec
    from nimbed.stores import StoreField

__all__ = ["models"]


def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="An id, an alias, an old name, or a folder."),
    ] = None,
    dimensions: options.Dimensions = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="DATABASE", help="Show how that database stores each type."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the known models, or describe one."""
    from nimbed import cards
    from nimbed.errors import ConfigurationError

    if name is None:
        if dimensions is not None or store is not None:
            raise ConfigurationError(
                "--dimensions and --store describe one model; each needs the name of a model"
            )
        listed = cards.catalogue()
        if as_json:
            typer.echo(json.dumps([_facts(card) for card in listed], ensure_ascii=False, indent=2))
        else:
            _print_catalogue(listed)
        return
    card = _card_of_folder(name) if Path(name).is_dir() else cards.find(name)
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
        _print_card(card)
        typer.echo()
        if fields is None:
            _print_specs(specs)
        else:
            _print_fields(fields)


def _card_of_folder(folder: str) -> ModelCard:
    """Return the card of a folder's model, from its JSON files alone.

    Raises:
        CheckpointError: If the model cannot be loaded; the message says what stands in the way.
    """
    from nimbed.local.checkpoint import read_checkpoint
    from nimbed.local.hub import locate

    return read_checkpoint(locate(folder), revision=None).card


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


def _print_catalogue(listed: tuple[ModelCard, ...]) -> None:
    from nimbed_cli.terminal import Column, print_table

    rows: list[tuple[str, ...]] = []
    for card in listed:
        inputs = "text, image" if "image" in card.modalities else "text"
        smallest = f"{card.sizes[0]}-" if len(card.sizes) > 1 else ""
        rows.append((card.id, f"{smallest}{card.dimensions}", f"{card.max_tokens:,}", inputs))
    right = (Column(name, align="right") for name in ("dimensions", "tokens"))
    print_table((Column("model"), *right, Column("inputs")), rows)
    # Beside the table, so that a pipe has rows alone.
    typer.echo("One of them in full: nimbed models NAME", err=True)


def _print_card(card: ModelCard) -> None:
    from nimbed_cli.terminal import print_facts

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
        "pooling": card.pooling if isinstance(card.pooling, str) else ", ".join(card.pooling),
        "architecture": card.architecture,
        "parameters": parameters,
        "types of its NIM": ", ".join(card.served_types),
        "licence": card.licence,
        "note": card.note,
    }
    print_facts([(name, fact) for name, fact in facts.items() if fact])


def _print_specs(specs: list[VectorSpec]) -> None:
    from nimbed_cli.terminal import Column, print_table

    left = (Column(name) for name in ("embedding type", "metric", "dtype"))
    right = (Column(name, align="right") for name in ("width", "bytes", "fingerprint"))
    print_table(
        (*left, *right),
        [
            (
                spec.embedding_type,
                spec.metric,
                spec.dtype,
                f"{spec.width:,}",
                f"{spec.bytes_per_vector:,}",
                spec.fingerprint,
            )
            for spec in specs
        ],
    )


def _print_fields(fields: dict[str, StoreField | str]) -> None:
    from nimbed_cli.terminal import Column, print_table

    rows: list[tuple[str, ...]] = []
    for kind, found in fields.items():
        if isinstance(found, str):
            rows.append((kind, "", "", "", found))
        else:
            details = ", ".join(f"{name}={value}" for name, value in found.options.items())
            rows.append((kind, found.type, found.metric, found.operator, details))
    names = ("stored as", "column type", "metric", "order by")
    print_table((*map(Column, names), Column("options, or why not", fit="fold")), rows)
