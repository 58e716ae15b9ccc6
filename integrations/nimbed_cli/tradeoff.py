"""``nimbed tradeoff``: measures what each embedding type and size keeps, on your own passages."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from nimbed_cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from nimbed_tradeoff import Tradeoff

__all__ = ["tradeoff"]

T = TypeVar("T")


def tradeoff(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Your passages: a file, a pattern or a folder, as for `nimbed embed`, or - for "
            "standard input.",
        ),
    ],
    queries: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Your queries. Default: first sentences of the passages."
        ),
    ] = None,
    judgements: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Which passages answer which query: query id, passage id and grade, separated by "
            "tabs, or .jsonl with query_id, passage_id, grade. Default: those that float finds.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write an .html page with plots, too."),
    ] = None,
    model: options.Model = None,
    card: options.Card = None,
    prompt_name: options.PromptName = None,
    dimensions: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Sizes to try. Default: all that the model offers."),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,KIND",
            help="Compare these kinds of vectors and fuse them: dense,sparse,multi. Needs "
            "--judgements.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="W,W", help="What each kind counts for when fused. Default: 1 each."),
    ] = None,
    weaviate: Annotated[
        bool,
        typer.Option("--weaviate", help="Measure Weaviate's quantisers of float vectors, too."),
    ] = False,
    keep: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Share of float's recall that must be kept."),
    ] = 0.97,
    text_field: options.TextFields = None,
    id_field: options.RowIdField = None,
    input_format: options.InputFormat = None,
    truncate: options.Truncate = "NONE",
    chunk: options.Chunk = None,
    overlap: options.Overlap = 0,
    chunk_mode: options.ChunkMode = "plain",
    base_url: options.BaseUrl = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    backend: options.Backend = "auto",
    as_json: options.Json = False,
    progress: options.Progress = None,
) -> None:
    """Measure what int8, bits and shorter vectors keep.

    Embeds your passages once, derives every type and size from the floats, and recommends one.
    """
    import nimbed_tradeoff
    from nimbed_cli.terminal import progress_bar

    target = None if output is None else _writable(output, (source, queries, judgements))
    with (
        options.load_embedder(
            model,
            card=card,
            prompt_name=prompt_name,
            base_url=base_url,
            device=device,
            dtype=dtype,
            backend=backend,
        ) as embedder,
        progress_bar("embedding", before="reading", show=progress) as move,
    ):
        study = nimbed_tradeoff.tradeoff(
            embedder,
            source,
            queries=queries,
            judgements=judgements,
            text_field=text_field or "text",
            id_field=id_field,
            kind=input_format,
            dimensions=_listed("--dimensions", dimensions, int, "sizes", "128,256"),
            kinds=cast(Any, _listed("--kinds", kinds, str, "kinds", "dense,sparse")),
            weights=_listed("--weights", weights, float, "numbers", "1,0.3"),
            quantizers=weaviate,
            keep=keep,
            truncate=cast(Any, truncate),  # a word of the engine's, which checks it
            splitter=options.splitter_for(embedder, chunk, overlap, chunk_mode),
            progress=move,
        )
    if target is not None:
        from nimbed.files.writers import Staging

        with Staging(target) as staging:
            staging.place(target).write_text(nimbed_tradeoff.page(study), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(study.to_dict(), ensure_ascii=False, indent=2))
    else:
        _show(study, target)
        given = {
            "--model": model,
            "--card": card,
            "--prompt-name": prompt_name,
            "--base-url": base_url,
            "--text-field": text_field,
            "--id-field": id_field,
            "--input-format": input_format,
            "--truncate": None if truncate == "NONE" else truncate,
            "--chunk": chunk,
            "--overlap": overlap or None,
            "--chunk-mode": None if chunk_mode == "plain" else chunk_mode,
        }
        typer.echo("\nso stored:\n" + "\n".join(_commands(study, source, given)))


def _writable(output: str, inputs: Iterable[str | None]) -> Path:
    """Return the path of the page, if one can be written there, before anything is embedded."""
    from nimbed.errors import ConfigurationError
    from nimbed.files.sources import is_source
    from nimbed_tradeoff.plots import check_installed

    target = Path(output)
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigurationError(f"the page is HTML; call it .html, not {target.name!r}")
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no folder {str(target.parent)!r} to write into")
    if is_source(target, inputs):
        raise ConfigurationError(
            f"the page would replace the input {output!r}; give it another name"
        )
    check_installed()
    return target


def _listed(
    option: str, typed: str | None, read: Callable[[str], T], noun: str, example: str
) -> list[T] | None:
    """Return what was typed with commas in between."""
    from nimbed.errors import ConfigurationError

    if typed is None:
        return None
    try:
        return [read(each.strip()) for each in typed.split(",")]
    except ValueError:
        raise ConfigurationError(
            f"{option} takes {noun} separated by commas, such as {example}; got {typed!r}"
        ) from None


def _commands(study: Tradeoff, source: str, given: Mapping[str, object]) -> list[str]:
    """Return what stores the same passages in the recommended way.

    A table, unless the floats to rescore by have more dimensions than the index: a table has one
    size, so these are two files.
    """
    from nimbed_cli.terminal import program_typed

    best, full = study.advice.best.way, study.measured[0].way.spec
    compact = {"--embedding-type": best.spec.embedding_type, "--dimensions": best.spec.dimensions}
    if best.oversampling and best.spec.dimensions != full.dimensions:
        jobs: list[tuple[list[str], Mapping[str, object]]] = [
            (
                ["embed", source, "-o", f"{name}.jsonl", "--input-type", "passage"],
                stored,
            )
            for name, stored in (("compact", compact), ("floats", {}))
        ]
    else:
        also = {"--also": "halfvec" if best.oversampling else None}
        table = ["load", "--embedded", "./database", "--table", "passages", source]
        jobs = [(table, {**compact, **also})]
    commands = []
    for words, stored in jobs:
        for name, value in {**given, **stored}.items():
            for each in value if isinstance(value, list) else [value]:
                if each is not None:
                    words += [name, str(each)]
        commands.append(f"{program_typed()} {shlex.join(words)}")
    return commands


def _show(study: Tradeoff, target: Path | None) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    console.print(
        f"[bold]{study.passages:,} passages of {escape(study.source)}[/bold], "
        f"{study.queries:,} queries, {escape(study.model)}\n"
        f"embedded in {study.embedding_seconds:,.1f} s, "
        f"measured in {study.measuring_seconds:,.1f} s\n"
    )
    console.print(_table(study, console.width))
    console.print(f"\n[bold]{escape(study.advice.sentence)}[/bold]\n")
    if study.measured_kinds:
        console.print(_kinds_table(study, console.width))
        console.print(f"\n[bold]{escape(study.kinds_sentence)}[/bold]\n")
    if study.measured_quantizers:
        console.print(_quantizers_table(study, console.width))
        console.print()
    for note in study.notes:
        console.print(f"[dim]{escape(note)}[/dim]")
    if target is None:
        console.print("\nadd -o page.html for the plots")
    else:
        console.print(f"\nplots written to {escape(str(target))}")


def _kinds_table(study: Tradeoff, width: int) -> Table:
    """Return a row for each kind of vector, alone, smaller and fused."""
    from nimbed_tradeoff import TOP
    from nimbed_tradeoff.kinds import best_kind

    best = best_kind(study.measured_kinds)
    columns: dict[str, list[str]] = {}
    for each in study.measured_kinds:
        quality = each.quality
        cells = {
            "kinds": each.label,
            "fused": each.fused_by or "",
            "bytes": f"{each.bytes_per_passage:,.0f}",
            f"recall@{TOP}": f"{quality.recall:.3f}",
            f"nDCG@{TOP}": f"{quality.ndcg:.3f}",
            "ms": f"{quality.milliseconds:.3f}",
            "": "<" if each is best else "",
        }
        for name, cell in cells.items():
            columns.setdefault(name, [name]).append(cell)
    table = _fitting(columns, width, without=("ms", f"recall@{TOP}", "bytes"))
    table.caption = "< the best nDCG\nbytes: of a passage, in the mean"
    table.caption_justify = "left"
    return table


def _quantizers_table(study: Tradeoff, width: int) -> Table:
    """Return a row for each of Weaviate's quantisers, and one for floats."""
    from nimbed_tradeoff import TOP
    from nimbed_tradeoff.quantizers import RESCORED

    full = study.measured[0]
    rows: list[tuple[str, int, float, float, float | None]]
    rows = [("none", full.bytes_per_vector, full.recall, full.ndcg, None)]
    rows += [
        (each.name, each.bytes_per_vector, each.alone.recall, each.alone.ndcg, each.rescored.recall)
        for each in study.measured_quantizers
    ]
    columns: dict[str, list[str]] = {}
    for name, size, recall, ndcg, rescored in rows:
        cells = {
            "quantizer": name,
            "bytes": f"{size:,}",
            f"recall@{TOP}": f"{recall:.3f}",
            f"nDCG@{TOP}": f"{ndcg:.3f}",
            f"rescored {RESCORED}": "" if rescored is None else f"{rescored:.3f}",
        }
        for heading, cell in cells.items():
            columns.setdefault(heading, [heading]).append(cell)
    table = _fitting(columns, width, without=(f"nDCG@{TOP}",))
    table.caption = f"Weaviate's quantisers of float vectors; rescored: recall@{TOP} then"
    table.caption_justify = "left"
    return table


def _fitting(columns: dict[str, list[str]], width: int, *, without: Iterable[str]) -> Table:
    """Return a table of columns, headings first; the terminal may be too narrow for some."""
    from rich import box
    from rich.table import Table

    for name in without:
        if sum(max(map(len, cells)) + 2 for cells in columns.values()) - 1 > width:
            del columns[name]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    words = ("stored as", "kinds", "fused", "quantizer", "")
    for name in columns:
        table.add_column(name, justify="left" if name in words else "right")
    for row in list(zip(*columns.values(), strict=True))[1:]:
        table.add_row(*row, style="dim" if row[0].startswith(" ") else None)
    return table


def _table(study: Tradeoff, width: int) -> Table:
    """Return a row for each way, with as many columns as fit beside the recommendation."""
    from nimbed_tradeoff import TOP
    from nimbed_tradeoff.result import readable_size

    optimal = study.pareto(rescored=True)
    columns: dict[str, list[str]] = {}
    for each in study.measured:
        spec, times = each.way.spec, each.way.oversampling
        low, high = each.quartiles
        cells = {
            "stored as": f"  rescored {each.way.candidates}" if times else spec.embedding_type,
            "size": "" if times else str(spec.dimensions),
            "bytes": "" if times else f"{each.bytes_per_vector:,}",
            "index": "" if times else readable_size(study.index_bytes(each)),
            f"recall@{TOP}": f"{each.recall:.3f}",
            f"nDCG@{TOP}": f"{each.ndcg:.3f}",
            "ms": f"{each.milliseconds:.3f}",
            "IQR": f"{high - low:.3f}",
            "": ("*" if each in optimal else " ") + (" <" if each is study.advice.best else ""),
        }
        for name, cell in cells.items():
            columns.setdefault(name, [name]).append(cell)
    table = _fitting(columns, width, without=("IQR", "index", f"nDCG@{TOP}", "bytes"))
    table.caption = "< recommended\n* on the Pareto line of bytes and recall"
    if "IQR" in columns:
        table.caption += "\nms: median time of a query; IQR: range between its quartiles"
    table.caption_justify = "left"
    return table
