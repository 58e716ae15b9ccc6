"""``nimbed embed --ray``: parquet files to a folder of them with vectors, on a cluster."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nimbed_cli.embed import contract

if TYPE_CHECKING:
    from nimbed_ray import PartsReport

__all__ = ["embed_on_ray"]


def embed_on_ray(
    arguments: list[str],
    output: str,
    *,
    model: str | None,
    placement: dict[str, Any],
    wanted: dict[str, Any],
    progress: bool | None,
) -> None:
    """Embed parquet files on Ray, and print what became of them.

    Args:
        arguments: What was typed: the address of a cluster, if one was, and the files.
        output: The folder for the parts.
        model: As :func:`nimbed.load`.
        placement: Its options.
        wanted: Options of :class:`nimbed_ray.EmbedTexts`.
        progress: Whether a bar is shown; None: if a person watches.
    """
    import nimbed
    from nimbed.errors import ConfigurationError
    from nimbed_cli.terminal import progress_bar
    from nimbed_ray import EmbedTexts, embed_into_parts
    from nimbed_ray.cluster import connected, import_ray
    from nimbed_ray.folder import matching, opened

    if len(arguments) > 2:
        raise ConfigurationError(
            f"--ray takes the address of a cluster and one pattern; got {len(arguments)} words; "
            f"put the pattern in quotes, or the shell replaces it"
        )
    *address, pattern = arguments
    if model is not None and Path(model).is_dir():
        model = str(Path(model).resolve())  # the actors work in folders of their own
    gpus = False if placement["device"] == "cpu" else None
    system, files = opened(matching(pattern))
    started = time.perf_counter()
    with (
        nimbed.load(model, **placement) as embedder,
        connected(address[0] if address else None),
        progress_bar("embedding", before="starting", show=progress) as move,
    ):
        embed = EmbedTexts(embedder, **wanted)
        dataset = import_ray().data.read_parquet(files, filesystem=system)
        report = embed_into_parts(dataset, embed, output, gpus=gpus, progress=move)
    typer.echo(_summary(report, time.perf_counter() - started), err=True)


def _summary(report: PartsReport, seconds: float) -> str:
    lines = [
        f"vectors in {report.output}: {report.rows:,} in {report.parts:,} parts; made now: "
        f"{report.embedded:,} in {seconds:,.1f} s ({report.embedded / seconds:,.0f} texts/s, "
        f"{report.tokens / seconds:,.0f} tokens/s)",
        contract(report.spec),
    ]
    if report.left_out:
        lines.append(
            f"rows that were skipped: {report.left_out:,}, listed in {report.output}/_left_out"
        )
    return "\n".join(lines)
