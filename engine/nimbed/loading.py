"""One door to every embedder.

Which arguments belong to a local model and which to a server is decided here alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from nimbed.cards import ModelCard
from nimbed.embedder import Embedder
from nimbed.errors import ConfigurationError, UnknownModelError

__all__ = ["Source", "load"]

_LOCAL = ("device", "devices", "dtype", "revision", "cache_dir")
_REMOTE = ("api_key", "dialect", "concurrency", "batch_size", "timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where vectors come from: the arguments of :func:`load`, and a client's knobs.

    Attributes:
        model: As for :func:`load`.
        base_url: As for :func:`load`.
        api_key: As for :func:`load`; never shown.
        device: As for :func:`load`.
        devices: As for :func:`load`.
        dtype: As for :func:`load`.
        revision: As for :func:`load`.
        dialect: As for :func:`load`.
        cache_dir: As for :func:`load`.
        concurrency: Requests in flight at most; 32 if None.
        batch_size: Texts a request at most; as many as the server takes if None.
        timeout: Seconds that one request may take; 60 if None.

    Raises:
        ConfigurationError: If something was given that the other kind of model would ignore.
    """

    model: str | ModelCard | None = None
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    device: str = "auto"
    devices: tuple[str, ...] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    revision: str | None = None
    dialect: str = "auto"
    cache_dir: str | Path | None = None
    concurrency: int | None = None
    batch_size: int | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        """Refuse what the other kind of model would ignore."""
        defaults = {each.name: each.default for each in fields(self)}
        foreign = _LOCAL if self.base_url is not None else _REMOTE
        given = [name for name in foreign if getattr(self, name) != defaults[name]]
        if not given:
            return
        if self.base_url is None:
            raise ConfigurationError(f"these belong to a base_url: {', '.join(given)}; give one")
        raise ConfigurationError(
            f"these belong to a local model: {', '.join(given)}; leave them or base_url out"
        )

    def load(self) -> Embedder:
        """Return a new embedder; raises as :func:`load` does."""
        if self.base_url is not None:
            from nimbed.remote.embedder import RemoteEmbedder

            return RemoteEmbedder(
                self.model,
                base_url=self.base_url,
                api_key=self.api_key,
                dialect=self.dialect,
                concurrency=32 if self.concurrency is None else self.concurrency,
                batch_size=self.batch_size,
                timeout=60.0 if self.timeout is None else self.timeout,
            )
        if isinstance(self.model, str) and self.model.startswith(("http://", "https://")):
            raise UnknownModelError(f"{self.model!r} is an address; pass it as base_url=...")
        from nimbed.local.embedder import LocalEmbedder

        return LocalEmbedder(
            self.model,
            device=self.device,
            devices=self.devices,
            dtype=self.dtype,
            revision=self.revision,
            cache_dir=self.cache_dir,
        )


def load(
    model: str | ModelCard | None = None,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    device: str = "auto",
    devices: Sequence[str] | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    revision: str | None = None,
    dialect: str = "auto",
    cache_dir: str | Path | None = None,
) -> Embedder:
    """Return an embedder for a model, local or remote.

    A local model's files are found here; its weights are read at the first ``embed`` or
    ``warmup``.

    Args:
        model: A folder, a catalogue name or a hub id; None for the embedded default (MiniLM). A
            :class:`nimbed.ModelCard` (say, ``dataclasses.replace`` of a catalogue card) overrides
            prompts and pooling.
        base_url: Address of a server; given, the model runs there.
        api_key: The server's key; None takes it from the environment.
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        devices: Several devices, one replica each; instead of ``device``.
        dtype: Arithmetic of the model; ``auto`` is bfloat16 where the device is fast at it.
        revision: Branch, tag or commit on the hub; part of the vectors' fingerprint.
        dialect: The server's dialect; ``auto`` tells it from the address and the answers.
        cache_dir: Folder of the Hugging Face cache, if not the usual one.

    Raises:
        UnknownModelError: If no folder, cache or hub holds the model.
        MissingExtraError: If the part that runs it is not installed.
        ConfigurationError: If the arguments contradict each other.
    """
    return Source(
        model=model,
        base_url=base_url,
        api_key=api_key,
        device=device,
        devices=None if devices is None else tuple(devices),
        dtype=dtype,
        revision=revision,
        dialect=dialect,
        cache_dir=cache_dir,
    ).load()
