"""Settings from flags, the environment and a file; what is nearer to the hand wins."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nimbed.errors import ConfigurationError
from nimbed_server.aliases import parse_alias
from nimbed_server.settings import Settings

__all__ = ["gather", "unused"]

_FIELDS = {field.name: field for field in dataclasses.fields(Settings)}

# NIM's variables that mean something there and nothing here; said once at the start.
_UNUSED = {
    "NIM_PIPELINE_MAX_BATCH_SIZE": "batches are filled by tokens, not by items",
    "NIM_PIPELINE_MAX_SEQ_LEN": "the model's card says how long an input may be",
    "NIM_PERFORMANCE_MODE": "a batch starts when the device is free, which serves both ends",
    "NIM_ENGINE_COUNT": "name a device more than once for more replicas: --device cuda:0",
    "NIM_SERVER_GRPC_BIND_ADDR": "there is no gRPC endpoint",
}
_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def gather(
    flags: Mapping[str, Any],
    *,
    environment: Mapping[str, str],
    file: str | Path | None = None,
) -> Settings:
    """Return the settings.

    Args:
        flags: What was typed; None stands for not typed. Aliases and numbers may be strings.
        environment: ``NIMBED_...`` variables, and those of NIM that mean the same.
        file: A TOML file with a key a setting.

    Raises:
        ConfigurationError: If a value cannot be read, or the file has a key that there is not;
            the message names where it stands.
    """
    found = _from_file(Path(file)) if file is not None else {}
    found |= _from_environment(environment)
    for name, value in flags.items():
        if value is not None and value != () and value != []:
            found[name] = _read(name, value, f"--{name.replace('_', '-')}")
    return Settings(**found)


def unused(environment: Mapping[str, str]) -> dict[str, str]:
    """Return NIM's variables that are set and have no effect, each with the reason."""
    return {name: why for name, why in _UNUSED.items() if environment.get(name)}


def _from_file(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    found: dict[str, Any] = {}
    for name, value in table.items():
        if name not in _FIELDS:
            close = difflib.get_close_matches(name, _FIELDS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigurationError(f"{path} has a key {name!r} that there is not{hint}")
        found[name] = _read(name, value, f"{path}: {name}")
    return found


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for bound in ("NIM_BIND_ADDR", "NIM_SERVER_BIND_ADDR"):
        if value := environment.get(bound):
            host, _, port = value.rpartition(":")
            found["host"] = host.strip("[]") or "0.0.0.0"
            found["port"] = _read("port", port, bound)
    for name, field in _FIELDS.items():
        for variable in (*reversed(field.metadata["nim"]), f"NIMBED_{name.upper()}"):
            value = environment.get(variable)
            if value:
                ours = variable.startswith("NIMBED_")
                found[name] = _read(name, value if ours else _translated(name, value), variable)
    return found


def _translated(name: str, value: str) -> str:
    """Return NIM's word as ours, where they differ."""
    if name == "dtype":
        return _PRECISIONS.get(value.lower(), value)
    if name == "log_format":
        return "json" if value.lower() in ("json", "jsonl") else "pretty"
    return value


def _read(name: str, value: Any, where: str) -> Any:
    """Return a value as its field's type, whether it was typed, exported or parsed."""
    kind = str(_FIELDS[name].type)
    try:
        if kind.startswith("tuple"):
            return tuple(_many(name, value))
        for word, reader in _READERS.items():
            if kind.startswith(word):
                return reader(value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    except (TypeError, ValueError) as error:
        shown = repr(value) if _FIELDS[name].repr else "what is given"  # never a key
        raise ConfigurationError(f"{where} cannot be {shown}; it is {kind}") from error
    return str(value)


def _many(name: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        # Options of an alias are parted by commas, so aliases are by semicolons.
        value = value.split(";" if name == "aliases" else ",")
    if not isinstance(value, (list, tuple)):
        raise ValueError("not a list")
    items = [str(item).strip() for item in value if str(item).strip()]
    return [parse_alias(item) for item in items] if name == "aliases" else items


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError(word)
    return word in ("1", "true", "yes", "on")


_READERS: dict[str, Callable[[Any], Any]] = {"bool": _truth, "int": int, "float": float}
