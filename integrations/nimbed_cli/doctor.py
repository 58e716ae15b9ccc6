"""The ``nimbed doctor`` command: checks an embedding server or a Weaviate, and prints findings."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from nimbed_cli import options

if TYPE_CHECKING:
    from nimbed.reports import Finding

__all__ = ["doctor"]


def doctor(
    base_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The server; its key is read from NVIDIA_API_KEY or NIMBED_API_KEY.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The server's name for the model. Default: all that it lists."
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
    weaviate: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A Weaviate whose collections are checked; its key is read from WEAVIATE_API_KEY.",
        ),
    ] = None,
    collection: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="One of its collections; may be repeated. Default: all."),
    ] = None,
    grpc_port: options.GrpcPort = 50051,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For one request.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Try what a server can do, or name the traps that collections of a Weaviate are in.

    The exit code is 1 if something must be mended.
    """
    from nimbed.errors import ConfigurationError
    from nimbed_cli.terminal import print_findings, program_typed

    found: dict[str, list[Finding]] = {}
    if base_url is None and weaviate is None:
        raise ConfigurationError("say what to examine: --base-url URL or --weaviate URL")
    if base_url is not None:
        found |= _server(base_url, model, dialect, against, timeout)
    if weaviate is not None:
        checked = _collections(weaviate, collection, grpc_port)
        if not checked:
            typer.echo("this Weaviate has no collections yet", err=True)
        found |= checked
    if as_json:
        what = "model" if weaviate is None else "collection"
        typer.echo(json.dumps(_facts(found, what), indent=2))
    else:
        for name, findings in found.items():
            print_findings(name, findings)
    if any(each.verdict == "fail" for findings in found.values() for each in findings):
        raise typer.Exit(1)
    if base_url is not None and dialect == "auto" and not as_json:
        named = model or next(iter(found))
        which = f" --model {named}" if named else ""
        typer.echo(
            f"nothing stands in the way; to use it, type: {program_typed()} embed texts.txt -o "
            f"vectors.npy --input-type passage --base-url {base_url}{which}",
            err=True,
        )


def _server(
    base_url: str, model: str | None, dialect: str, against: str | None, timeout: float
) -> dict[str, list[Finding]]:
    import nimbed
    from nimbed_cli.server_check import examine, examine_all

    local = nimbed.load(against) if against is not None else None
    try:
        if model is None:
            return examine_all(base_url, dialect=dialect, against=local, timeout=timeout)
        found = examine(base_url, model, dialect=dialect, against=local, timeout=timeout)
        return {"": found}
    finally:
        if local is not None:
            local.close()


def _collections(url: str, names: list[str] | None, grpc_port: int) -> dict[str, list[Finding]]:
    from nimbed_weaviate import check, check_all, connect

    with connect(url, grpc_port=grpc_port) as client:
        return {name: check(client, name) for name in names} if names else check_all(client)


def _facts(found: dict[str, list[Finding]], what: str) -> list[dict[str, str]]:
    """Return the findings as JSON types, each with the model or collection that it concerns."""
    return [
        ({what: name} if name else {}) | dataclasses.asdict(each)
        for name, findings in found.items()
        for each in findings
    ]
