"""``nimbed models``: lists the catalogue, or describes one model and its vectors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

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
        typer.Argument(
            metavar="NAME", help="An id, an alias, an old name, a part of them, or a folder."
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Say whether NAME, also a hub id, can be loaded, with which pipeline, or what "
            "stands in the way. Reads its JSON files alone.",
        ),
    ] = False,
    card: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which of the models the folder NAME is said to hold."),
    ] = None,
    dimensions: options.Dimensions = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="DATABASE", help="Show how that database stores each type."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the known models, or those that NAME is a part of, or describe one."""
    from nimbed import cards
    from nimbed.errors import ConfigurationError

    if name is None:
        if dimensions is not None or store is not None or check or card is not None:
            raise ConfigurationError(
                "--check, --card, --dimensions and --store describe one model; each needs the name "
                "of a model"
            )
        _list(cards.catalogue(), as_json=as_json)
        return
    steps: list[str] | None = None
    if check or card is not None or Path(name).is_dir():
        described, steps = _from_files(name, card)
    else:
        found = _search(name)
        if len(found) > 1:
            if dimensions is not None or store is not None:
                raise ConfigurationError(
                    f"--dimensions and --store describe one model; {name!r} is a part of "
                    f"{len(found)}: {', '.join(each.id for each in found)}"
                )
            _list(found, as_json=as_json)
            return
        described = found[0] if found else cards.find(name)
    specs: list[VectorSpec] = []
    if "dense" in described.kinds or dimensions is not None or store is not None:
        specs = _specs(described, dimensions)  # raises, if the model has no such vectors
    fields = None if store is None else _fields(specs, store)
    if as_json:
        facts = {**_facts(described), "specs": [spec.to_dict() for spec in specs]}
        if steps is not None:
            facts["pipeline"] = steps
        if fields is not None:
            facts["fields"] = {
                kind: found if isinstance(found, str) else found.to_dict()
                for kind, found in fields.items()
            }
        typer.echo(json.dumps(facts, ensure_ascii=False, indent=2))
    else:
        _print_card(described, steps)
        if specs:
            typer.echo()
        if fields is not None:
            _print_fields(fields)
        elif specs:
            _print_specs(specs)


def _search(name: str) -> tuple[ModelCard, ...]:
    """Return the model of a name, or else all that have it as a part of one of their names."""
    from nimbed import cards

    exact = cards.known(name)
    if exact is not None:
        return (exact,)
    part = name.lower()
    return tuple(
        card
        for card in cards.catalogue()
        if part and any(part in each.lower() for each in (card.id, *card.aliases))
    )


def _list(listed: tuple[ModelCard, ...], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([_facts(card) for card in listed], ensure_ascii=False, indent=2))
    else:
        _print_catalogue(listed)


def _from_files(name: str, told: str | None) -> tuple[ModelCard, list[str]]:
    """Return the card of a model and what happens to a text, from its JSON files alone.

    Raises:
        UnknownModelError: If they are neither here nor can be downloaded.
        CheckpointError: If the model cannot be loaded; the message says what stands in the way.
    """
    from nimbed import cards
    from nimbed.local.checkpoint import read_checkpoint
    from nimbed.local.hub import locate
    from nimbed.local.sentence_config import has_routes
    from nimbed.spec import InputType

    located = locate(name, weights=False)
    card = None if told is None else cards.find(told)
    said = located.card or card
    sparse = said is not None and said.kinds == ("sparse",)  # whose modules are always followed
    if (said is not None and not sparse) or not has_routes(located.folder):
        read = read_checkpoint(located, revision=None, told=card)
        return read.card, list(read.pipeline.steps()) if located.card is None or sparse else []
    routes = {
        role: read_checkpoint(located, revision=None, told=card, role=role)
        for role in get_args(InputType)
    }
    steps = [f"{role}: {step}" for role, route in routes.items() for step in route.pipeline.steps()]
    return routes["passage"].card, steps


def _facts(card: ModelCard) -> dict[str, Any]:
    return {**dataclasses.asdict(card), "sizes": card.sizes}


def _specs(card: ModelCard, dimensions: int | None) -> list[VectorSpec]:
    """Return the contract of every type that can hold that many dimensions."""
    from nimbed.spec import EmbeddingType

    size = card.spec(dimensions=dimensions).dimensions
    packable = size % 8 == 0
    return [
        card.spec(embedding_type=kind, dimensions=dimensions)
        for kind in get_args(EmbeddingType)
        # Nothing but floats keeps the length of vectors.
        if kind == "float" or (card.metric == "cosine" and (packable or "binary" not in kind))
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
    from rich.console import Console

    from nimbed_cli.terminal import Column, print_table

    rows: list[tuple[str, ...]] = []
    for card in listed:
        inputs = "text, image" if "image" in card.modalities else "text"
        smallest = f"{card.sizes[0]}-" if len(card.sizes) > 1 else ""
        rows.append(
            (
                card.id,
                f"{smallest}{card.dimensions}",
                f"{card.max_tokens:,}",
                inputs,
                ", ".join(card.kinds),
            )
        )
    right = [Column(name, align="right") for name in ("dimensions", "tokens")]
    columns = [Column("model"), *right, Column("inputs"), Column("vectors")]
    console = Console()
    shown = 3 if console.is_terminal and console.width < 120 else 5  # the names are long
    print_table(columns[:shown], [row[:shown] for row in rows])
    # Beside the table, so that a pipe has rows alone.
    if shown == 3:
        images = ", ".join(card.id for card in listed if "image" in card.modalities)
        typer.echo(f"For images, too: {images}", err=True)
        sparse = ", ".join(card.id for card in listed if "sparse" in card.kinds)
        typer.echo(f"With sparse vectors: {sparse}", err=True)
    typer.echo("One of them in full: nimbed models NAME", err=True)


def _print_card(card: ModelCard, steps: list[str] | None) -> None:
    from nimbed_cli.terminal import print_facts

    parameters = ""
    if card.parameters is not None:
        inner, total = card.parameters
        parameters = f"{total:,} million ({inner:,} without embeddings)"
    pooling = card.pooling if isinstance(card.pooling, str) else ", ".join(card.pooling)
    unknown = "no public checkpoint is known" if steps is None else "the files that this describes"
    facts = {
        "model": card.id,
        "also called": ", ".join(card.aliases),
        "weights": card.weights or unknown,
        "vectors": ", ".join(card.kinds),
        "dimensions": ", ".join(map(str, card.sizes)),
        "longest input": f"{card.max_tokens:,} tokens",
        "inputs": ", ".join(card.modalities),
        "before a query": repr(card.query_prompt),
        "before a passage": repr(card.passage_prompt),
        "before texts of other tasks": ", ".join(
            f"{name} {prompt!r}" for name, prompt in card.task_prompts
        ),
        "pooling": pooling if "dense" in card.kinds else "",
        "pipeline": ", ".join(steps or ()),
        "can be loaded": "" if steps is None else "yes, as far as its JSON files say",
        "architecture": card.architecture,
        "parameters": parameters,
        "types of its NIM": ", ".join(card.served_types) if card.metric == "cosine" else "",
        "licence": card.licence,
        "replaced by": card.successor,
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
