"""``nimbed serve``: models behind the API of NVIDIA's NIM and of OpenAI's embeddings.

Its flags are the fields of :class:`nimbed_server.settings.Settings`, so they are made when it is
called: to import them takes the engine, which ``nimbed --help`` can do without.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import signal
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from nimbed.embedder import Embedder
    from nimbed_server.settings import Settings

__all__ = ["SERVE_OPTIONS", "serve"]

#: How the command is registered: everything that is typed after it reaches it as it stands.
SERVE_OPTIONS: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True},
}


def serve(context: typer.Context) -> None:
    """Serve models to every client of NVIDIA's NIM and of OpenAI's embeddings."""
    from nimbed.errors import missing_extra

    # A server that was told to stop has not failed, from its first moment to its last.
    signal.signal(signal.SIGTERM, _leave)
    try:
        from nimbed_server import app
        from nimbed_server.logging import LOG, set_up
        from nimbed_server.settings import Settings, gather, unused
        from nimbed_server.uvicorn_server import run
    except ImportError as error:
        raise missing_extra("server", needs=error.name or "uvicorn") from error

    def command(config: str | None, check: bool, **flags: Any) -> None:
        settings = gather(flags, environment=os.environ, file=config)
        application = app.create_app(_embedders(settings), settings)
        if check:
            typer.echo(json.dumps(settings.shown(), indent=2))
            return
        set_up(settings.log_format, level=settings.log_level)
        for name, why in unused(os.environ).items():
            LOG.warning("%s has no effect: %s", name, why)
        run(application, settings)

    command.__doc__ = (
        f"{serve.__doc__}\n\nFlags go before NIMBED_... variables, these before NIM's own, these "
        f"before the file. A variable is NIMBED_ and the setting's name in capitals."
    )
    parameters = [_flag(field) for field in dataclasses.fields(Settings)]
    parameters += [
        _option("config", str | None, None, "FILE", "nimbed.toml: any setting by its name."),
        _option("check", bool, False, None, "Print the settings as they would be, and end."),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    flags_only = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    flags_only.command()(command)
    flags_only(args=context.args, prog_name=context.command_path)


def _flag(field: dataclasses.Field[Any]) -> inspect.Parameter:
    """Return the command-line option of a setting; values are read and checked by the settings."""
    from nimbed_server.settings import flag_of

    kind = str(field.type)
    annotation: Any = str | None
    if kind.startswith("tuple"):
        annotation = list[str] | None
    else:
        for each in (bool, int, float):
            if kind.startswith(each.__name__):
                annotation = each | None
    text: str = field.metadata["help"]
    if field.default not in (None, False, ()):
        default = field.default
        shown = f"{default:g}" if isinstance(default, float) else default
        text = f"{text} Default: {', '.join(default) if isinstance(default, tuple) else shown}."
    return _option(
        field.name, annotation, None, field.metadata["metavar"], text, flag_of(field.name)
    )


def _option(
    name: str, annotation: Any, default: Any, metavar: str | None, text: str, flag: str = ""
) -> inspect.Parameter:
    option = typer.Option(flag or f"--{name}", metavar=metavar, help=text, show_default=False)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation, option],
    )


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _embedders(settings: Settings) -> dict[str, Embedder]:
    """Return the models by the names that clients use; weights are read later."""
    from nimbed.errors import ConfigurationError

    made: dict[str, Embedder] = {}
    for place, model in enumerate(settings.models or (None,)):
        card, prompt = (
            None if place >= len(each) or each[place] == "-" else each[place]
            for each in (settings.cards, settings.prompt_names)
        )
        embedder = _load(settings, model, card=card, prompt_name=prompt)
        names = settings.served_names
        name = names[place] if place < len(names) else _name(model, embedder)
        if name in made:
            raise ConfigurationError(f"the name {name!r} is given to two models")
        made[name] = embedder
    return made


def _load(settings: Settings, model: str | None, **told: Any) -> Embedder:
    import nimbed

    if settings.base_url is not None:
        return nimbed.load(model, **told, base_url=settings.base_url)
    devices: Any = (
        {"device": settings.devices[0]}
        if len(settings.devices) == 1
        else {"devices": settings.devices}
    )
    dtype: Any = settings.dtype
    backend: Any = settings.backend
    return nimbed.load(model, **told, dtype=dtype, backend=backend, **devices)


def _name(model: str | None, embedder: Embedder) -> str:
    from nimbed import cards

    listed = cards.known(model) if model else None
    return listed.id if listed else embedder.card.id
