"""Facts about a model, read from the JSON files of its folder.

``auto_map`` and any Python beside the weights are ignored: never imported, never asked about.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nimbed.cards import ModelCard, Pooling
from nimbed.errors import CheckpointError
from nimbed.local.hub import Located
from nimbed.local.models.fields import first_position, whole
from nimbed.local.vision.settings import vision_facts

__all__ = ["Checkpoint", "read_checkpoint"]

# model_type in config.json -> file of local/models/
_ARCHITECTURES = {
    "bert": "bert",
    "bidir_mistral": "mistral",
    "llama": "llama",
    "llama_bidirec": "llama",
    "llama_nemotron_vl": "nemotron_vl",
    "ministral3": "ministral3",
    "mistral": "mistral",
    "nvembed": "nvembed",
    "xlm-roberta": "xlm_roberta",
}

# Prompts that NVIDIA's own types were trained with, for checkpoints that declare none.
_TRAINED_PROMPTS = {
    "bidir_mistral": ("query: ", "passage: "),
    "llama_bidirec": ("query: ", "passage: "),
    "nvembed": (
        "Instruct: Given a question, retrieve passages that answer the question\nQuery: ",
        "",
    ),
}

_POOLING: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}
_POOLING_NAMES: dict[str, Pooling] = {"avg": "mean", "mean": "mean", "cls": "cls"}

_SAMPLE = 1 << 16


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk.

    Attributes:
        folder: Where its files are.
        config: config.json as it stands.
        card: Facts, from the catalogue and the checkpoint's own files.
        revision: What pins the weights, for the spec.
    """

    folder: Path
    config: dict[str, Any]
    card: ModelCard
    revision: str | None


def read_checkpoint(
    located: Located, *, revision: str | None, override: object = None
) -> Checkpoint:
    """Read the JSON files of a model folder.

    Args:
        located: Where they are.
        revision: What the caller pinned.
        override: A ModelCard whose facts outrank the files' and the catalogue's.

    Raises:
        CheckpointError: If a file is missing, malformed or of an architecture nimbed lacks.
    """
    folder = located.folder
    config = read_json(folder / "config.json", required=True)
    model_type = config.get("model_type")
    architecture = _ARCHITECTURES.get(str(model_type))
    if architecture is None:
        raise CheckpointError(
            f"{folder / 'config.json'} says model_type {model_type!r}; nimbed runs "
            f"{', '.join(sorted(_ARCHITECTURES))}"
        )
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; convert its tokenizer once with transformers: "
            f"AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    if isinstance(override, ModelCard):
        card = dataclasses.replace(override, architecture=architecture)
    else:
        card = located.card or _card_from_files(located, config, architecture)
        card = dataclasses.replace(card, architecture=architecture, **_own_prompts(folder))
    if revision is None and not located.pinned:
        revision = _content_id(folder)
    return Checkpoint(folder, config, card, revision)


def read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    """Return a JSON object, or an empty one if an optional file is absent."""
    if not path.is_file():
        if required:
            raise CheckpointError(f"{path} is missing; is this the folder of a model?")
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected an object")
    return content


def _card_from_files(located: Located, config: dict[str, Any], architecture: str) -> ModelCard:
    folder = located.folder
    language = config.get("text_config", config.get("llm_config", config))
    if not isinstance(language, dict):
        raise CheckpointError(f"{folder / 'config.json'} gives text_config {language!r}")
    positions = whole(language, "max_position_embeddings")
    if architecture == "xlm_roberta":
        positions -= first_position(config)
    longest = whole(
        read_json(folder / "sentence_bert_config.json"), "max_seq_length", default=positions
    )
    declared = _declared_prompts(folder)
    query, passage = declared["query_prompt"], declared["passage_prompt"]
    if not query and not passage:
        query, passage = _TRAINED_PROMPTS.get(str(config["model_type"]), ("", ""))
    card = ModelCard(
        id=located.name,
        architecture=architecture,
        dimensions=whole(language, "hidden_size"),
        max_tokens=min(longest, positions),
        pooling="latent" if architecture == "nvembed" else _pooling(folder, config),
        asymmetric=query != passage,
        query_prompt=query,
        passage_prompt=passage,
        note="read from the checkpoint's own files",
    )
    if architecture != "nemotron_vl":
        return card
    return dataclasses.replace(card, **{**vision_facts(config), **_own_prompts(folder)})


def _pooling(folder: Path, config: dict[str, Any]) -> Pooling:
    modes = read_json(folder / "1_Pooling" / "config.json")
    chosen = [mode for mode, on in modes.items() if mode.startswith("pooling_mode_") and on is True]
    named = modes.get("pooling_mode") or config.get("pooling")
    if not chosen and named is None:
        return "mean"
    pooling = _POOLING.get(chosen[0]) if len(chosen) == 1 else _POOLING_NAMES.get(str(named))
    if pooling is None:
        raise CheckpointError(
            f"{folder} pools by {chosen or named}; nimbed pools by {', '.join(_POOLING_NAMES)}"
        )
    return pooling


def _declared_prompts(folder: Path) -> dict[str, str]:
    """Return the prompts of config_sentence_transformers.json; both common spellings count."""
    found = read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / 'config_sentence_transformers.json'} has bad prompts")
    passage = found.get("passage") or found.get("document") or ""
    return {"query_prompt": str(found.get("query") or ""), "passage_prompt": str(passage)}


def _own_prompts(folder: Path) -> dict[str, Any]:
    """Let a catalogued model's own files have the last word about its prompts."""
    declared = _declared_prompts(folder)
    if not any(declared.values()):
        return {}
    return {**declared, "asymmetric": declared["query_prompt"] != declared["passage_prompt"]}


def _content_id(folder: Path) -> str:
    """Name what a folder holds: a hash of its configuration and samples of its weights.

    The name of a folder says nothing about its weights, and hashing all of them takes seconds a
    gigabyte. Size, head, tail and 64 samples between tell any two trained checkpoints apart.
    """
    digest = hashlib.sha256()
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    for path in [folder / "config.json", folder / "tokenizer.json", *weights]:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            if size <= 64 * _SAMPLE:
                digest.update(file.read())
                continue
            for part in range(65):
                file.seek(part * (size - _SAMPLE) // 64)
                digest.update(file.read(4096 if 0 < part < 64 else _SAMPLE))
    return f"content:{digest.hexdigest()[:16]}"
