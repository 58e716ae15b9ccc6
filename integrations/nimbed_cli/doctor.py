"""``nimbed doctor``: the address of a server in, what can be trusted there out."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nimbed.remote.doctor import Finding

__all__ = ["doctor"]

_MARKS = {"ok": ("✓", "green"), "note": ("!", "yellow"), "fail": ("✗", "red")}


def doctor(
    base_url: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="The server; its key is read from NVIDIA_API_KEY or NIMBED_API_KEY.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The server's name for the model. Default: its only one."
        ),
    ] = None,
    dialect: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="nim, nim-hosted, nim-suffix, openai, vllm or tei; auto asks."
        ),
    ] = "auto",
    against: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A local checkpoint of the model, to compare with."),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For one request.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Try what a server can do, and whether roles reach its model.

    The exit code is 1 if something must be mended.
    """
    import nimbed
    from nimbed.remote.doctor import examine

    local = nimbed.load(against) if against is not None else None
    try:
        findings = examine(base_url, model, dialect=dialect, against=local, timeout=timeout)
    finally:
        if local is not None:
            local.close()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(each) for each in findings], indent=2))
    else:
        _show(findings)
    if any(finding.verdict == "fail" for finding in findings):
        raise typer.Exit(1)


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for finding in findings:
        mark, colour = _MARKS[finding.verdict]
        # Text, not markup: a server's message may hold brackets.
        table.add_row(Text(mark, style=colour), finding.name, Text(finding.detail))
    Console(highlight=False).print(table)
