"""``nimbed serve``: models and settings in, a server that NIM's clients take for NIM out."""

from __future__ import annotations

import json
import os
import signal
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from nimbed.embedder import Embedder
    from nimbed_server.settings import Settings

__all__ = ["serve"]


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A folder, a catalogue name or a hub id; may be given again. Default: MiniLM.",
        ),
    ] = None,
    served_name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What clients call it; in the models' order."),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL,option=value,...",
            help="A name that fixes options: dimensions, embedding_type, as (signs), int8_scale, "
            "input_type, truncate.",
        ),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Serve what a server elsewhere embeds.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: 8000; 0 takes a free one.")] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N; several share one queue."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Clients must send one; better: NIMBED_API_KEYS."),
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="For each key; then 429.")] = None,
    input_type: Annotated[
        str | None, typer.Option(help="Role of texts that come without one. Default: query.")
    ] = None,
    require_input_type: Annotated[
        bool | None, typer.Option("--require-input-type", help="Answer 400 to them instead.")
    ] = None,
    truncate: Annotated[
        str | None, typer.Option(help="END or START: cut what is too long, whatever clients say.")
    ] = None,
    int8_scale: Annotated[str | None, typer.Option(help="nim (default) or even.")] = None,
    strict_nim: Annotated[
        bool | None, typer.Option("--strict-nim", help="Refuse what NIM refuses, in its words.")
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(help="Inputs under way for a model; then 503. Default: 4096.")
    ] = None,
    max_wait_ms: Annotated[
        float | None,
        typer.Option(
            help="How long a batch may be held back, right after another, for the callers just "
            "answered; an idle device waits for nothing. 0 for never. Default: 10."
        ),
    ] = None,
    request_timeout_s: Annotated[
        float | None, typer.Option(help="What still waits then is dropped. Default: 120.")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="pretty or json.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug shows every request.")] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="nimbed.toml: any setting by its name.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Print the settings as they would be, and end.")
    ] = False,
) -> None:
    """Serve models to every client of NVIDIA's NIM and of OpenAI's embeddings.

    Flags go before NIMBED_... variables, these before NIM's own, these before the file.
    """
    from nimbed.errors import missing_extra

    # A server that was told to stop has not failed, from its first moment to its last.
    signal.signal(signal.SIGTERM, _leave)
    try:
        from nimbed_server import logging as logs
        from nimbed_server import settings as sources
        from nimbed_server.app import create_app
        from nimbed_server.uvicorn_server import run
    except ImportError as error:
        raise missing_extra("server", needs=error.name or "uvicorn") from error

    flags: dict[str, Any] = {
        "models": model,
        "served_names": served_name,
        "aliases": alias,
        "base_url": base_url,
        "host": host,
        "port": port,
        "devices": device,
        "dtype": dtype,
        "api_keys": api_key,
        "requests_per_minute": requests_per_minute,
        "input_type": input_type,
        "require_input_type": require_input_type,
        "truncate": truncate,
        "int8_scale": int8_scale,
        "strict_nim": strict_nim,
        "max_queue": max_queue,
        "max_wait_ms": max_wait_ms,
        "request_timeout_s": request_timeout_s,
        "log_format": log_format,
        "log_level": log_level,
    }
    settings = sources.gather(flags, environment=os.environ, file=config)
    embedders = _embedders(settings)
    app = create_app(embedders, settings)
    if check:
        typer.echo(json.dumps(settings.shown(), indent=2))
        return
    logs.set_up(settings.log_format, level=settings.log_level)
    for name, why in sources.unused(os.environ).items():
        logs.LOG.warning("%s has no effect: %s", name, why)
    run(app, settings)


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _embedders(settings: Settings) -> dict[str, Embedder]:
    """Return the models by the names that clients use; weights are read later."""
    from nimbed.errors import ConfigurationError

    made: dict[str, Embedder] = {}
    for place, model in enumerate(settings.models or (None,)):
        embedder = _load(settings, model)
        names = settings.served_names
        name = names[place] if place < len(names) else _name(model, embedder)
        if name in made:
            raise ConfigurationError(f"the name {name!r} is given to two models")
        made[name] = embedder
    return made


def _load(settings: Settings, model: str | None) -> Embedder:
    import nimbed

    if settings.base_url is not None:
        return nimbed.load(model, base_url=settings.base_url)
    devices: Any = (
        {"device": settings.devices[0]}
        if len(settings.devices) == 1
        else {"devices": settings.devices}
    )
    dtype: Any = settings.dtype
    return nimbed.load(model, dtype=dtype, **devices)


def _name(model: str | None, embedder: Embedder) -> str:
    from nimbed import cards

    listed = cards.known(model) if model else None
    return listed.id if listed else embedder.card.id
