"""``nimbed tradeoff``: what each embedding type and size keeps, on somebody's own passages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from nimbed.tradeoff import Tradeoff

__all__ = ["tradeoff"]


def tradeoff(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Your passages: a .txt (one a line), .jsonl, .csv or .parquet file, or -.",
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
            help="Query id, passage id, grade: parted by tabs, or .jsonl with query_id, "
            "passage_id, grade. Default: what float finds is right.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="An .html page with the plots."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A name from `nimbed models`, a folder or a hub id. Default: MiniLM.",
        ),
    ] = None,
    dimensions: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Sizes to try. Default: all that the model offers."),
    ] = None,
    keep: Annotated[
        float, typer.Option(metavar="SHARE", help="How much of float's recall must be kept.")
    ] = 0.97,
    text_field: Annotated[
        str, typer.Option(metavar="NAME", help="Field or column of the text.")
    ] = "text",
    id_field: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Field or column of the id. Default: line numbers."),
    ] = None,
    input_format: Annotated[
        str | None,
        typer.Option(
            metavar="txt|jsonl|csv|parquet", help="Needed where the name of INPUT does not tell."
        ),
    ] = None,
    truncate: Annotated[
        str, typer.Option(metavar="NONE|START|END", help="Where a text that is too long is cut.")
    ] = "NONE",
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="A server that runs the model.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Where a local model runs.")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(metavar="auto|float32|bfloat16|float16", help="Its arithmetic.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
    progress: Annotated[
        bool | None, typer.Option(help="Show a bar. Default: if a person watches.")
    ] = None,
) -> None:
    """Measure what int8, bits and shorter vectors keep.

    Embeds your passages once, makes every type and size of the floats, and recommends one.
    """
    import nimbed
    from nimbed.tradeoff import page
    from nimbed.tradeoff import tradeoff as measured
    from nimbed_cli.terminal import progress_bar

    target = None if output is None else _writable(output)
    placement: dict[str, Any] = {"base_url": base_url, "device": device, "dtype": dtype}
    options: dict[str, Any] = {"truncate": truncate}  # the engine's word, which checks it
    with (
        nimbed.load(model, **placement) as embedder,
        progress_bar("embedding", before="reading", show=progress) as move,
    ):
        study = measured(
            embedder,
            source,
            queries=queries,
            judgements=judgements,
            text_field=text_field,
            id_field=id_field,
            kind=input_format,
            dimensions=None if dimensions is None else _sizes(dimensions),
            keep=keep,
            progress=move,
            **options,
        )
    if target is not None:
        from nimbed.files.writers import Staging

        with Staging(target) as staging:
            staging.place(target).write_text(page(study), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(study.to_dict(), ensure_ascii=False, indent=2))
    else:
        _show(study, target)


def _writable(output: str) -> Path:
    """Return the path of the page, before hours of embedding are spent on it."""
    from nimbed.errors import ConfigurationError

    target = Path(output)
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigurationError(f"the page is HTML; call it .html, not {target.name!r}")
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no folder {str(target.parent)!r} to write into")
    return target


def _sizes(typed: str) -> list[int]:
    from nimbed.errors import ConfigurationError

    try:
        return [int(size) for size in typed.split(",")]
    except ValueError:
        raise ConfigurationError(
            f"--dimensions takes sizes parted by commas, such as 128,256; got {typed!r}"
        ) from None


def _show(study: Tradeoff, target: Path | None) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    console.print(
        f"[bold]{study.passages:,} passages of {escape(study.source)}[/bold], "
        f"{study.queries:,} queries, {escape(study.model)}\n"
        f"embedded in {study.embedding_seconds:,.1f} s, "
        f"measured in {study.measuring_seconds:,.1f} s"
    )
    console.print(_table(study))
    console.print(f"[bold]{escape(study.advice.sentence)}[/bold]\n")
    for note in study.notes:
        console.print(f"[dim]{escape(note)}[/dim]")
    if target is None:
        console.print("\nadd -o page.html for the plots")
    else:
        console.print(f"\nplots written to {escape(str(target))}")


def _table(study: Tradeoff) -> Table:
    from rich import box
    from rich.table import Table

    from nimbed.tradeoff import TOP
    from nimbed.tradeoff.result import readable_size

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stored as", no_wrap=True)
    for heading in ("size", "bytes", "index", f"recall@{TOP}", f"nDCG@{TOP}", "ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    optimal = study.pareto(rescored=True)
    table.add_column("", no_wrap=True)
    for each in study.measured:
        spec, times = each.way.spec, each.way.oversampling
        table.add_row(
            f"[dim]  rescored {each.way.candidates}[/dim]" if times else spec.embedding_type,
            *(
                ("", "", "")
                if times
                else (
                    str(spec.dimensions),
                    f"{each.bytes_per_vector:,}",
                    readable_size(study.index_bytes(each)),
                )
            ),
            f"{each.recall:.3f}",
            f"{each.ndcg:.3f}",
            f"{each.milliseconds:.3f}",
            ("*" if each in optimal else " ") + (" <" if each is study.advice.best else ""),
        )
    table.caption = "* on the Pareto line of bytes and recall   < recommended"
    table.caption_justify = "left"
    return table
