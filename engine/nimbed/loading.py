"""One door to every embedder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from nimbed.cards import ModelCard
from nimbed.embedder import Embedder
from nimbed.errors import ConfigurationError, UnknownModelError

__all__ = ["load"]


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
    if base_url is not None:
        if (device, dtype, revision, devices, cache_dir) != ("auto", "auto", None, None, None):
            raise ConfigurationError(
                "device, devices, dtype, revision and cache_dir choose how a local model runs; "
                "leave them out with a base_url"
            )
        from nimbed.remote.embedder import RemoteEmbedder

        return RemoteEmbedder(model, base_url=base_url, api_key=api_key, dialect=dialect)
    if api_key is not None or dialect != "auto":
        raise ConfigurationError("api_key and dialect belong to a base_url; give one")
    if isinstance(model, str) and model.startswith(("http://", "https://")):
        raise UnknownModelError(f"{model!r} is an address; pass it as base_url=...")
    from nimbed.local.embedder import LocalEmbedder

    return LocalEmbedder(
        model,
        device=device,
        devices=devices,
        dtype=dtype,
        revision=revision,
        cache_dir=cache_dir,
    )
