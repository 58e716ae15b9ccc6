"""What can be set, its defaults, and what an environment variable of NIM's calls it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args

from nimbed.errors import ConfigurationError
from nimbed.spec import InputType, Int8Scale, Truncate, check_literal
from nimbed_server.aliases import Alias
from nimbed_server.logs import LogFormat

__all__ = ["Settings"]


def _set(default: Any, text: str, *nim: str, secret: bool = False) -> Any:
    """Return a dataclass field with its help and NIM's environment variables for it."""
    return dataclasses.field(default=default, metadata={"help": text, "nim": nim}, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server behaves; each field's meaning stands in its ``help``.

    A field is a flag of ``nimbed serve``, a key of ``nimbed.toml`` and, as ``NIMBED_`` and its
    name in capitals, an environment variable.
    """

    models: tuple[str, ...] = _set(
        (),
        "Models to serve: folders, catalogue names or hub ids; clients take the first by default.",
        "NIM_ENGINE_MODEL_PATH",
        "NIM_ENGINE_MODEL_NAME",
    )
    served_names: tuple[str, ...] = _set(
        (),
        "What clients call the models, in their order; the model's own name if not given.",
        "NIM_SERVER_SERVED_MODEL_NAME",
        "NIM_SERVED_MODEL_NAME",
    )
    base_url: str | None = _set(
        None, "Address of a server behind this one; its key is read as nimbed.load reads it."
    )
    aliases: tuple[Alias, ...] = _set((), "NAME=MODEL,option=value,...: options fixed by a name.")
    host: str = _set("127.0.0.1", "Address to bind.")
    port: int = _set(8000, "Port to bind; 0 takes a free one.", "NIM_HTTP_API_PORT")
    dtype: str = _set("auto", "float32, bfloat16, float16 or auto.", "NIM_ENGINE_PRECISION")
    devices: tuple[str, ...] = _set(("auto",), "cpu, cuda, cuda:N or auto; several share a queue.")
    api_keys: tuple[str, ...] = _set(
        (), "Keys of which a client must send one; none lets everybody in.", secret=True
    )
    requests_per_minute: int | None = _set(None, "How many a key may send; 429 beyond it.")
    input_type: InputType = _set(
        "query", "Role of texts that come without one; disclosed in a header of the answer."
    )
    require_input_type: bool = _set(
        False, "Answer 400 to texts without a role, where the model has two."
    )
    strict_nim: bool = _set(
        False, "Refuse dimensions together with a type, and trim errors to NIM 2.x's fields."
    )
    int8_scale: Int8Scale = _set("nim", "nim (trunc 127x, mixes with a real NIM's) or even.")
    truncate: Truncate | None = _set(
        None, "START or END: cut texts that are too long even where a client says NONE."
    )
    max_wait_ms: float = _set(
        10.0,
        "Longest that a batch is held back, right after another, for the callers who were just "
        "answered to join it; never longer than a batch costs whatever its size. A device that is "
        "idle waits for nothing; 0 holds nothing back.",
        "NIM_SERVER_MAX_WAIT_MS",
        "NIM_MAX_WAIT_MS",
    )
    max_queue: int = _set(
        4096,
        "Inputs under way for one model; 503 beyond it.",
        "NIM_SERVER_MAX_QUEUE_SIZE",
        "NIM_MAX_QUEUE_SIZE",
    )
    max_queue_tokens: int = _set(4_000_000, "Tokens that may wait for one model; 503 beyond it.")
    max_items: int = _set(2048, "Inputs of one request.")
    max_body_bytes: int = _set(
        64 * 2**20,
        "Bytes of one request; 413 beyond it.",
        "NIM_SERVER_HTTP_BODY_LIMIT_BYTES",
        "NIM_HTTP_BODY_LIMIT_BYTES",
    )
    max_image_bytes: int = _set(
        25 * 2**20,
        "Decoded bytes of one image.",
        "NIM_SERVER_MAX_IMAGE_BYTES",
        "NIM_MAX_IMAGE_BYTES",
    )
    request_timeout_s: float = _set(
        120.0,
        "Seconds after which a request that still waits is dropped; 504.",
        "NIM_SERVER_REQUEST_TIMEOUT_S",
        "NIM_REQUEST_TIMEOUT_S",
    )
    body_timeout_s: float = _set(
        60.0, "Seconds that a request's head, and then its body, may take."
    )
    keep_alive_s: int = _set(
        120, "Seconds that an idle connection stays open; Weaviate keeps its own for 90."
    )
    drain_s: float = _set(30.0, "Seconds that a stopping server gives the requests it has taken.")
    tls_cert: str | None = _set(
        None, "Certificate file, for https.", "NIM_SERVER_TLS_CERT_PATH", "NIM_TLS_CERT_PATH"
    )
    tls_key: str | None = _set(
        None, "Key file of the certificate.", "NIM_SERVER_TLS_KEY_PATH", "NIM_TLS_KEY_PATH"
    )
    log_format: LogFormat = _set("pretty", "pretty or json.", "LOG_FORMAT")
    log_level: str = _set("info", "debug logs every request; info those that fail.")

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
        if any(not key.strip() for key in self.api_keys):
            raise ConfigurationError("an API key must not be blank")

    @property
    def open_to_all(self) -> bool:
        """Whether strangers can reach it: bound beyond this machine, with no key."""
        return not self.api_keys and self.host not in ("127.0.0.1", "::1", "localhost")

    def shown(self) -> dict[str, Any]:
        """Return every setting as JSON types, keys blotted out."""
        facts = dataclasses.asdict(self)
        facts["api_keys"] = [f"({len(self.api_keys)} given)"] if self.api_keys else []
        return facts


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
