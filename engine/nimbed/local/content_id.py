"""What pins the weights of a checkpoint that no name and revision pin: an id of what it holds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from nimbed.errors import CheckpointError
from nimbed.local.head_config import AutoEncoder, Multi, Sparse
from nimbed.local.pipeline import Pipeline, weights_in

__all__ = ["content_id", "head_revision", "latent_hash"]

_SAMPLE = 1 << 16


def content_id(folder: Path, pipeline: Pipeline) -> str:
    """Name what a folder holds: a hash of its configuration and samples of its weights.

    What follows the network is hashed too, where it is more than a mean.

    The name of a folder says nothing about its weights, and hashing all of them takes seconds a
    gigabyte. Size, head, tail and 64 samples between tell any two trained checkpoints apart.
    """
    digest = hashlib.sha256()
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    digest.update(pipeline.identity.encode())
    configuration = [folder / "config.json"] if (folder / "config.json").is_file() else []
    for path in [
        *configuration,
        folder / "tokenizer.json",
        *weights,
        *pipeline.module_weights,
    ]:
        _add_content(digest, path)
    return f"content:{digest.hexdigest()[:16]}"


def _add_content(digest: Any, path: Path) -> None:
    if not path.is_file():  # opening a pipe would wait for ever
        raise CheckpointError(f"{path} is no file that could be read")
    size = path.stat().st_size
    digest.update(f"{path.name}:{size};".encode())
    with path.open("rb") as file:
        if size <= 64 * _SAMPLE:
            digest.update(file.read())
            return
        for part in range(65):
            file.seek(part * (size - _SAMPLE) // 64)
            digest.update(file.read(4096 if 0 < part < 64 else _SAMPLE))


def head_revision(revision: str | None, head: Sparse | Multi | None) -> str | None:
    """Return what pins the vectors of a head: what pins the model, and the head's own files."""
    if head is None or not head.files or revision is None or not revision.startswith("content:"):
        return revision
    digest = hashlib.sha256(revision.encode())
    for path in head.files:
        _add_content(digest, path)
    return f"content:{digest.hexdigest()[:16]}"


def latent_hash(autoencoder: AutoEncoder) -> str:
    """Return 16 hex digits that name an autoencoder's latents, which its weights alone define."""
    digest = hashlib.sha256()
    for path in weights_in(autoencoder.folder):
        _add_content(digest, path)
    return digest.hexdigest()[:16]
