"""Settings of a server: what can be set, and how flags, variables and a file set it.

A field of :class:`Settings` is the one declaration of a flag of ``nimbed serve``, of a key of
``nimbed.toml`` and, as ``NIMBED_`` and its name in capitals, of an environment variable.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from nimbed.errors import ConfigurationError
from nimbed.spec import InputType, Int8Scale, Truncate, check_literal
from nimbed_server.logging import LogFormat
from nimbed_server.models import Alias, parse_alias

__all__ = ["PREFIX", "Settings", "flag_of", "gather", "unused"]


def _setting(
    default: Any,
    text: str,
    *nim: str,
    flag: str | None = None,
    metavar: str | None = None,
    secret: bool = False,
) -> Any:
    """Return a dataclass field.

    Args:
        default: Its value where nothing sets it.
        text: Its help.
        nim: NIM's environment variables that mean the same.
        flag: What it is called on the command line, where that is not its own name.
        metavar: What stands for its value in the help.
        secret: Whether its value must never be shown.
    """
    metadata = {"help": text, "nim": nim, "flag": flag, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server behaves; the meaning of each field stands in its ``help``."""

    models: tuple[str, ...] = _setting(
        (),
        "A folder, a catalogue name or a hub id; give it again for more. Clients take the first by "
        "default. Default: MiniLM.",
        "NIM_ENGINE_MODEL_PATH",
        "NIM_ENGINE_MODEL_NAME",
        flag="--model",
        metavar="NAME",
    )
    cards: tuple[str, ...] = _setting(
        (),
        "Which catalogued model each folder of --model holds, in their order; - for none.",
        flag="--card",
        metavar="NAME",
    )
    prompt_names: tuple[str, ...] = _setting(
        (),
        "One of each model's prompts for tasks other than search, put before every text, in the "
        "order of --model; - for none.",
        flag="--prompt-name",
        metavar="NAME",
    )
    served_names: tuple[str, ...] = _setting(
        (),
        "What clients call the models, in their order; by default the model's own name.",
        "NIM_SERVER_SERVED_MODEL_NAME",
        "NIM_SERVED_MODEL_NAME",
        flag="--served-name",
        metavar="NAME",
    )
    aliases: tuple[Alias, ...] = _setting(
        (),
        "A name that fixes options: dimensions, embedding_type, as (signs), int8_scale, "
        "input_type, truncate, kinds (such as dense+sparse), max_active, token_type, pool_factor.",
        flag="--alias",
        metavar="NAME=MODEL,option=value,...",
    )
    base_url: str | None = _setting(
        None,
        "Serve what a server elsewhere embeds; its key is read as nimbed.load reads it.",
        metavar="URL",
    )
    host: str = _setting("127.0.0.1", "Address to bind.")
    port: int = _setting(8000, "Port to bind; 0 takes a free one.", "NIM_HTTP_API_PORT")
    uds: str | None = _setting(
        None,
        "Listen on a unix socket instead of an address; who may write to it is up to its folder.",
        metavar="PATH",
    )
    base_path: str = _setting(
        "",
        "What a reverse proxy puts before every path, such as /embed; X-Forwarded-Prefix is "
        "understood without.",
        metavar="PATH",
    )
    allow_origins: tuple[str, ...] = _setting(
        (),
        "A web origin whose pages may ask, such as https://app.example; * for all; give it again "
        "for more.",
        flag="--allow-origin",
        metavar="ORIGIN",
    )
    devices: tuple[str, ...] = _setting(
        ("auto",),
        "cpu, cuda, cuda:N or auto; several share one queue.",
        flag="--device",
        metavar="DEVICE",
    )
    dtype: str = _setting(
        "auto", "float32, bfloat16, float16, float8, int8 or auto.", "NIM_ENGINE_PRECISION"
    )
    backend: str = _setting(
        "auto", "What runs the models: torch, onnxruntime or auto, the faster of those installed."
    )
    api_keys: tuple[str, ...] = _setting(
        (),
        "A key that clients must send; give it again for more, or set NIMBED_API_KEYS, which no "
        "list of processes shows. Without any, everybody is let in.",
        flag="--api-key",
        metavar="KEY",
        secret=True,
    )
    metrics_key: str | None = _setting(
        None, "A key that reads the metrics and nothing else.", metavar="KEY", secret=True
    )
    open_metrics: bool = _setting(False, "Let everybody read the metrics, where keys are needed.")
    requests_per_minute: int | None = _setting(
        None, "How many requests a key may send; 429 beyond it."
    )
    input_type: InputType = _setting(
        "query", "Role of texts that come without one; a header of the answer says so."
    )
    require_input_type: bool = _setting(
        False, "Answer 400 to texts without a role, where the model has two."
    )
    truncate: Truncate | None = _setting(
        None, "END or START: cut texts that are too long even where a client says NONE."
    )
    int8_scale: Int8Scale = _setting(
        "nim", "nim (trunc 127x, which mixes with a real NIM's) or even."
    )
    queries_first: bool = _setting(
        True,
        "Short queries go before passages, so that an import delays none by more than a batch.",
    )
    strict_nim: bool = _setting(
        False, "Refuse dimensions together with a type, and trim errors to NIM 2.x's fields."
    )
    max_queue: int = _setting(
        4096,
        "Inputs under way for one model; 503 beyond it.",
        "NIM_SERVER_MAX_QUEUE_SIZE",
        "NIM_MAX_QUEUE_SIZE",
    )
    max_queue_tokens: int = _setting(
        4_000_000, "Tokens that may wait for one model; 503 beyond it."
    )
    max_wait_ms: float = _setting(
        10.0,
        "How long a batch may be held back, right after another, for the callers who were just "
        "answered; an idle device waits for nothing. 0 for never.",
        "NIM_SERVER_MAX_WAIT_MS",
        "NIM_MAX_WAIT_MS",
    )
    max_items: int = _setting(2048, "Inputs of one request; 400 beyond it.")
    max_body_bytes: int = _setting(
        64 * 2**20,
        "Bytes of one request; 413 beyond it.",
        "NIM_SERVER_HTTP_BODY_LIMIT_BYTES",
        "NIM_HTTP_BODY_LIMIT_BYTES",
    )
    max_image_bytes: int = _setting(
        25 * 2**20,
        "Decoded bytes of one image; 400 beyond it.",
        "NIM_SERVER_MAX_IMAGE_BYTES",
        "NIM_MAX_IMAGE_BYTES",
    )
    request_timeout_s: float = _setting(
        120.0,
        "Seconds after which a request that still waits is dropped; 504.",
        "NIM_SERVER_REQUEST_TIMEOUT_S",
        "NIM_REQUEST_TIMEOUT_S",
    )
    body_timeout_s: float = _setting(
        60.0,
        "Seconds that a request's head, its body, and the reading of its answer may take; 408.",
    )
    keep_alive_s: int = _setting(
        120, "Seconds that an idle connection stays open; Weaviate keeps its own for 90."
    )
    drain_s: float = _setting(
        30.0, "Seconds that a stopping server gives the requests it has accepted."
    )
    tls_cert: str | None = _setting(
        None,
        "Certificate file, for https.",
        "NIM_SERVER_TLS_CERT_PATH",
        "NIM_TLS_CERT_PATH",
        metavar="FILE",
    )
    tls_key: str | None = _setting(
        None,
        "Key file of the certificate.",
        "NIM_SERVER_TLS_KEY_PATH",
        "NIM_TLS_KEY_PATH",
        metavar="FILE",
    )
    log_format: LogFormat = _setting("pretty", "pretty or json.", "LOG_FORMAT")
    log_level: str = _setting(
        "info", "debug logs every request, info those that fail; or warning, or error."
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work, before a model is read."""
        for name, allowed in (
            ("input_type", InputType),
            ("int8_scale", Int8Scale),
            ("log_format", LogFormat),
        ):
            check_literal(name, getattr(self, name), allowed)
        if self.truncate not in (None, *get_args(Truncate)):
            check_literal("truncate", self.truncate, Truncate)
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ConfigurationError(
                f"log_level must be debug, info, warning or error; got {self.log_level!r}"
            )
        for name in ("cards", "prompt_names"):
            given = len(getattr(self, name))
            if given > len(self.models):
                raise ConfigurationError(
                    f"{name} belong to models, in their order; got {given} for "
                    f"{len(self.models)} models"
                )
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"port must be from 0 to 65535; got {self.port}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"{name} must be positive; got {value}")
        if self.max_wait_ms < 0:
            raise ConfigurationError(f"max_wait_ms must not be negative; got {self.max_wait_ms}")
        if not self.devices:
            raise ConfigurationError("devices must name at least one; leave it out for auto")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigurationError("https needs both tls_cert and tls_key")
        if len(self.served_names) > max(1, len(self.models)):
            raise ConfigurationError("there are more served_names than models")
        keys = (*self.api_keys, *([] if self.metrics_key is None else [self.metrics_key]))
        if any(not key.strip() for key in keys):
            raise ConfigurationError("an API key must not be blank")
        if self.base_path and not PREFIX.fullmatch(self.base_path):
            raise ConfigurationError(
                f"base_path must look like '/embed', without a slash at its end; got "
                f"{self.base_path!r}"
            )
        for origin in self.allow_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigurationError(
                    f"an allowed origin is a scheme and a host, such as https://app.example, or *; "
                    f"got {origin!r}"
                )
        if self.uds is not None and len(os.fsencode(self.uds)) > _MAX_SOCKET_PATH:
            raise ConfigurationError(
                f"uds must have at most {_MAX_SOCKET_PATH} bytes, which is the system's limit for "
                f"a socket's path"
            )

    @property
    def open_to_all(self) -> bool:
        """Whether strangers can reach it: bound beyond this machine, with no key."""
        local = self.uds is not None or self.host in ("127.0.0.1", "::1", "localhost")
        return not self.api_keys and not local

    def shown(self) -> dict[str, Any]:
        """Return every setting as JSON types, keys blotted out."""
        facts = dataclasses.asdict(self)
        facts["api_keys"] = [f"({len(self.api_keys)} given)"] if self.api_keys else []
        facts["metrics_key"] = "(given)" if self.metrics_key else None
        return facts


#: What may stand before every path: it is written into links of the documentation.
PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9._:\[\]-]+")
_MAX_SOCKET_PATH = 107  # with a zero behind it, as Linux has it; 103 on macOS
_FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
_VARIABLES = {name: f"NIMBED_{name.upper()}" for name in _FIELDS}
# What Kubernetes sets in every pod beside a service that is called nimbed.
_KUBERNETES = re.compile(r"NIMBED_(SERVICE_(HOST|PORT)|PORT_\d+_TCP)")
_POSITIVE = (
    "requests_per_minute",
    "max_queue",
    "max_queue_tokens",
    "max_items",
    "max_body_bytes",
    "max_image_bytes",
    "request_timeout_s",
    "body_timeout_s",
    "keep_alive_s",
    "drain_s",
)
# NIM's variables that mean something there and nothing here; said once at the start.
_UNUSED = {
    "NIM_PIPELINE_MAX_BATCH_SIZE": "batches are filled by tokens, not by items",
    "NIM_PIPELINE_MAX_SEQ_LEN": "the model's card says how long an input may be",
    "NIM_PERFORMANCE_MODE": "a batch starts when the device is free, which serves both ends",
    "NIM_ENGINE_COUNT": "name a device more than once for more replicas: --device cuda:0",
    "NIM_SERVER_GRPC_BIND_ADDR": "there is no gRPC endpoint",
}
_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def flag_of(name: str) -> str:
    """Return what a setting is called on the command line."""
    return _FIELDS[name].metadata["flag"] or f"--{name.replace('_', '-')}"


def gather(
    flags: Mapping[str, Any],
    *,
    environment: Mapping[str, str],
    file: str | Path | None = None,
) -> Settings:
    """Return the settings: flags go before variables, ours before NIM's, these before the file.

    Args:
        flags: What was typed; None stands for not typed. Aliases and numbers may be strings.
        environment: ``NIMBED_...`` variables, and those of NIM that mean the same.
        file: A TOML file with a key a setting.

    Raises:
        ConfigurationError: If a value cannot be read, or a key of the file is not a setting; the
            message names where it stands.
    """
    found = _from_file(Path(file)) if file is not None else {}
    found |= _from_environment(environment)
    for name, value in flags.items():
        if value is not None and value != () and value != []:
            found[name] = _read(name, value, flag_of(name))
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
            hint = _hint(name, {each: each for each in _FIELDS})
            raise ConfigurationError(f"{path}: {name!r} is not a setting; {hint}")
        found[name] = _read(name, value, f"{path}: {name}")
    return found


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for ours in filter(environment.get, environment):
        typed = ours.removeprefix("NIMBED_").lower()
        if (
            ours.startswith("NIMBED_")
            and typed not in _FIELDS
            and typed != "api_key"  # of the client; doctor and load read it
            and not _KUBERNETES.match(ours)
        ):
            raise ConfigurationError(f"{ours} is not a setting; {_hint(typed, _VARIABLES)}")
    for bound in ("NIM_BIND_ADDR", "NIM_SERVER_BIND_ADDR"):
        if value := environment.get(bound):
            host, _, port = value.rpartition(":")
            found["host"] = host.strip("[]") or "0.0.0.0"
            found["port"] = _read("port", port, bound)
    for name, field in _FIELDS.items():
        for variable in (*reversed(field.metadata["nim"]), f"NIMBED_{name.upper()}"):
            value = environment.get(variable)
            if value:
                if not variable.startswith("NIMBED_"):
                    value = _from_nim(name, value)
                found[name] = _read(name, value, variable)
    return found


def _hint(name: str, known: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {known[close[0]]}?" if close else f"there are {', '.join(known.values())}"


def _from_nim(name: str, value: str) -> str:
    """Return NIM's word as ours, where they differ."""
    if name == "dtype":
        return _PRECISIONS.get(value.lower(), value)
    if name == "log_format":
        return "json" if value.lower() in ("json", "jsonl") else "pretty"
    return value


def _read(name: str, value: Any, where: str) -> Any:
    """Return a value as its field's type, whether it was typed, exported or parsed."""
    kind = str(_FIELDS[name].type)
    expected, reader = next(
        (each for word, each in _READERS.items() if kind.startswith(word)), ("a text", str)
    )
    try:
        return tuple(_read_list(name, value)) if kind.startswith("tuple") else reader(value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    except (TypeError, ValueError) as error:
        got = f"; got {value!r}" if _FIELDS[name].repr else ""  # never a key
        raise ConfigurationError(f"{where} must be {expected}{got}") from error


def _read_list(name: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        # Options of an alias are parted by commas, so aliases are by semicolons.
        value = value.split(";" if name == "aliases" else ",")
    if not isinstance(value, (list, tuple)):
        raise ValueError("not a list")
    items = [str(item).strip() for item in value if str(item).strip()]
    return [parse_alias(item) for item in items] if name == "aliases" else items


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError(word)
    return word in ("1", "true", "yes", "on")


# What the type of a field is called in a message, and what makes one of it.
_READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "tuple": ("a list", tuple),
    "bool": ("true or false", _read_bool),
    "int": ("a whole number", int),
    "float": ("a number", float),
}
