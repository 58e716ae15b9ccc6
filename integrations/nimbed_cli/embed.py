"""``nimbed embed``: a file of texts to a file of vectors, here or on a Ray cluster."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbed_cli import options

if TYPE_CHECKING:
    from nimbed import Embedder, VectorSpec

__all__ = ["embed"]


def embed(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="A .txt (a text a line), .jsonl, .json, .csv, .tsv, .xlsx, .parquet or .feather "
            "file (text formats also .gz, .bz2, .xz, .zst), a 'PATTERN*', a folder of .md, .txt "
            "and .html, s3://..., or - for standard input. "
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
            "--ray: a folder; parts that it already holds are kept.",
        ),
    ],
    input_type: Annotated[
        str,
        typer.Option(
            metavar="query|passage",
            help="What the texts are for. Models embed the two differently.",
        ),
    ],
    model: options.Model = None,
    card: options.Card = None,
    prompt_name: options.PromptName = None,
    text_field: options.TextFields = None,
    template: options.Template = None,
    id_field: options.IdField = None,
    input_format: options.InputFormat = None,
    encoding: options.Encoding = None,
    delimiter: options.Delimiter = None,
    embedding_type: options.EmbeddingType = "float",
    dimensions: options.Dimensions = None,
    truncate: options.Truncate = "NONE",
    chunk: options.Chunk = None,
    overlap: options.Overlap = 0,
    chunk_mode: options.ChunkMode = "plain",
    int8_scale: options.Int8Scale = None,
    base_url: options.BaseUrl = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    backend: options.Backend = "auto",
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
    progress: options.Progress = None,
) -> None:
    """Turn a file of texts into a file of vectors.

    The result appears when it is complete, or not at all.
    """
    from nimbed.errors import ConfigurationError
    from nimbed_cli.terminal import hint_if_stopped

    keywords: dict[str, Any] = {
        "input_type": input_type,
        "text_field": text_field or "text",
        "id_field": id_field,
        "embedding_type": embedding_type,
        "dimensions": dimensions,
        "truncate": truncate,
        "int8_scale": int8_scale,
        "on_error": on_error,
    }
    found: tuple[Any, list[str]] | None = None
    if ray:
        if chunk is not None:
            raise ConfigurationError("--ray embeds whole texts; split them before, or without it")
        if len(text_field or ()) > 1 or template or encoding or delimiter:
            raise ConfigurationError("--ray reads one column of parquet files as the text")
        keywords["text_field"] = text_field[0] if text_field else "text"
        if input_format not in (None, "parquet"):
            raise ConfigurationError(f"--ray reads parquet files; got format {input_format!r}")
        if len(arguments) > 2:
            raise ConfigurationError(
                f"--ray takes the address of a cluster and one pattern; got {len(arguments)} "
                f"words; put the pattern in quotes, or the shell replaces it"
            )
        if model is not None and Path(model).is_dir():
            model = str(Path(model).resolve())  # the actors work in folders of their own
        from nimbed_ray.folder import matching, opened

        found = opened(matching(arguments[-1]))  # before a model is loaded for nothing
    elif len(arguments) > 1:
        raise ConfigurationError(f"give one INPUT; got {len(arguments)}: {', '.join(arguments)}")
    with options.load_embedder(
        model,
        card=card,
        prompt_name=prompt_name,
        base_url=base_url,
        device=device,
        dtype=dtype,
        backend=backend,
    ) as embedder:
        if found is not None:
            address = arguments[0] if len(arguments) > 1 else None
            gpus = False if device == "cpu" else None
            kept = (
                f"the parts in {output} are kept, and the same command makes those that are missing"
            )
            with hint_if_stopped(kept):
                said = _embed_on_ray(embedder, address, found, output, keywords, gpus, progress)
        else:
            keywords |= {"template": template, "encoding": encoding, "delimiter": delimiter}
            keywords["splitter"] = options.splitter_for(
                embedder, chunk, overlap, chunk_mode, input_type=input_type
            )
            nothing = (
                f"{output} is as it was, and the same command begins anew; `nimbed load` into a "
                f"table goes on where it was stopped"
            )
            with hint_if_stopped(nothing):
                said = _embed_here(embedder, arguments[0], output, input_format, keywords, progress)
    typer.echo("\n".join(said), err=True)


def _embed_here(
    embedder: Embedder,
    source: str,
    output: str,
    kind: str | None,
    keywords: dict[str, Any],
    progress: bool | None,
) -> list[str]:
    """Embed a file in this process, and return lines that say what became of it."""
    from nimbed.files import embed_file
    from nimbed_cli.terminal import progress_bar

    started = time.perf_counter()
    with progress_bar("embedding", before="reading", show=progress) as move:
        report = embed_file(embedder, source, output, kind=kind, progress=move, **keywords)
    seconds = time.perf_counter() - started
    said = [
        f"vectors written to {report.output}: {report.rows:,} in {seconds:,.1f} s "
        f"({report.rows / seconds:,.0f} texts/s, {report.tokens / seconds:,.0f} tokens/s)",
        _contract(report.spec),
        *options.computed_in(embedder),
    ]
    if report.truncated:
        said.append(f"texts that were cut to what the model reads: {report.truncated:,}")
    if report.skipped:
        said.append(f"rows that were skipped: {report.skipped:,}, listed in {report.skipped_list}")
    return said


def _embed_on_ray(
    embedder: Embedder,
    address: str | None,
    found: tuple[Any, list[str]],
    output: str,
    keywords: dict[str, Any],
    gpus: bool | None,
    progress: bool | None,
) -> list[str]:
    """Embed parquet files on a cluster, and return lines that say what became of them."""
    from nimbed_cli.terminal import progress_bar
    from nimbed_ray import EmbedTexts, embed_into_parts
    from nimbed_ray.cluster import connected, import_ray

    system, files = found
    started = time.perf_counter()
    with (
        contextlib.redirect_stdout(sys.stderr),  # Ray prints its warnings, and somebody may pipe
        connected(address),
        progress_bar("embedding", before="starting", show=progress) as move,
    ):
        texts = EmbedTexts(embedder, **keywords)
        dataset = import_ray().data.read_parquet(files, filesystem=system)
        report = embed_into_parts(dataset, texts, output, gpus=gpus, progress=move)
    seconds = time.perf_counter() - started
    said = [
        f"vectors in {report.output}: {report.rows:,} in {report.parts:,} parts; made now: "
        f"{report.embedded:,} in {seconds:,.1f} s ({report.embedded / seconds:,.0f} texts/s, "
        f"{report.tokens / seconds:,.0f} tokens/s)",
        _contract(report.spec),
    ]
    if report.left_out:
        said.append(
            f"rows that were skipped: {report.left_out:,}, listed in {report.output}/_left_out"
        )
    return said


def _contract(spec: VectorSpec) -> str:
    return (
        f"{spec.model}, {spec.dimensions} dimensions, {spec.embedding_type}, "
        f"{spec.bytes_per_vector:,} bytes a vector; compare by {spec.metric}"
    )
