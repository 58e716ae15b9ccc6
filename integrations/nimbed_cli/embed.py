"""``nimbed embed``: a file of texts to a file of vectors."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from nimbed import VectorSpec
    from nimbed.files import FileReport

__all__ = ["contract", "embed"]


def embed(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="A .txt (a text a line), .jsonl, .csv or .parquet file, or - for standard input. "
            "With --ray: [ADDRESS] 'FOLDER/*.parquet', here or in s3://...",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="A .parquet file (ids and other columns are carried along), .jsonl or .npy. With "
            "--ray: a folder, of which the parts that are there are kept.",
        ),
    ],
    input_type: Annotated[
        str,
        typer.Option(
            metavar="query|passage", help="What the texts are for. Models embed the two apart."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A name from `nimbed models`, a folder or a hub id. Default: MiniLM.",
        ),
    ] = None,
    text_field: Annotated[
        str, typer.Option(metavar="NAME", help="Field or column of the text.")
    ] = "text",
    id_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Field or column of the id.")
    ] = None,
    input_format: Annotated[
        str | None,
        typer.Option(
            metavar="txt|jsonl|csv|parquet", help="Needed where the name of INPUT does not tell."
        ),
    ] = None,
    embedding_type: Annotated[
        str, typer.Option(metavar="float|int8|uint8|binary|ubinary", help="How a number is stored.")
    ] = "float",
    dimensions: Annotated[
        int | None, typer.Option(metavar="N", help="A shorter vector, if the model offers it.")
    ] = None,
    truncate: Annotated[
        str, typer.Option(metavar="NONE|START|END", help="Where a text that is too long is cut.")
    ] = "NONE",
    int8_scale: Annotated[
        str | None, typer.Option(metavar="even|nim", help="Scale of int8 and uint8. Default: even.")
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
    on_error: Annotated[
        str,
        typer.Option(
            metavar="raise|skip",
            help="Stop at a bad row, or list it in FILE.skipped.jsonl (--ray: FILE/_left_out).",
        ),
    ] = "raise",
    ray: Annotated[
        bool,
        typer.Option(
            "--ray", help="Embed on the Ray cluster at ADDRESS, or on one made of this machine."
        ),
    ] = False,
    progress: Annotated[
        bool | None, typer.Option(help="Show a bar. Default: if a person watches.")
    ] = None,
) -> None:
    """Turn a file of texts into a file of vectors.

    The result appears when it is complete, or not at all.
    """
    import nimbed
    from nimbed.errors import ConfigurationError
    from nimbed.files import embed_file
    from nimbed_cli.terminal import progress_bar

    # Words of the engine: it checks them itself, before anything is read.
    options: dict[str, Any] = {
        "input_type": input_type,
        "text_field": text_field,
        "id_field": id_field,
        "embedding_type": embedding_type,
        "dimensions": dimensions,
        "truncate": truncate,
        "int8_scale": int8_scale,
        "on_error": on_error,
    }
    placement: dict[str, Any] = {"base_url": base_url, "device": device, "dtype": dtype}
    if ray:
        from nimbed_cli.embed_ray import embed_on_ray

        if input_format not in (None, "parquet"):
            raise ConfigurationError(f"--ray reads parquet files; got format {input_format!r}")
        embed_on_ray(
            arguments, output, model=model, placement=placement, wanted=options, progress=progress
        )
        return
    if len(arguments) > 1:
        raise ConfigurationError(f"give one INPUT; got {len(arguments)}: {', '.join(arguments)}")
    started = time.perf_counter()
    with (
        nimbed.load(model, **placement) as embedder,
        progress_bar("embedding", before="reading", show=progress) as move,
    ):
        report = embed_file(
            embedder,
            arguments[0],
            output,
            kind=input_format,
            progress=move,
            **options,
        )
    typer.echo(_summary(report, time.perf_counter() - started), err=True)


def contract(spec: VectorSpec) -> str:
    """Return a line that says what vectors are."""
    return (
        f"{spec.model}, {spec.dimensions} dimensions, {spec.embedding_type}, "
        f"{spec.bytes_per_vector:,} bytes a vector; compare by {spec.metric}"
    )


def _summary(report: FileReport, seconds: float) -> str:
    lines = [
        f"vectors written to {report.output}: {report.rows:,} in {seconds:,.1f} s "
        f"({report.rows / seconds:,.0f} texts/s, {report.tokens / seconds:,.0f} tokens/s)",
        contract(report.spec),
    ]
    if report.truncated:
        lines.append(f"texts that were cut to what the model reads: {report.truncated:,}")
    if report.skipped:
        lines.append(f"rows that were skipped: {report.skipped:,}, listed in {report.skipped_list}")
    return "\n".join(lines)
