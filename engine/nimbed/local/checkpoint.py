"""Facts about a model, read from the JSON files of its folder.

``auto_map`` and any Python beside the weights are ignored: never imported, never asked about.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nimbed.cards import ModelCard, Pooling, known
from nimbed.errors import CheckpointError
from nimbed.local.hub import Located
from nimbed.local.models.config_keys import understood
from nimbed.local.models.fields import first_position, whole
from nimbed.local.pipeline import Pipeline, read_json, read_pipeline, role_prompts
from nimbed.local.vision.settings import vision_facts

__all__ = ["Checkpoint", "read_checkpoint"]

# model_type in config.json -> file of local/models/
_ARCHITECTURES = {
    "bert": "bert",
    "bidir_mistral": "mistral",
    "camembert": "xlm_roberta",
    "distilbert": "distilbert",
    "gte": "gte",
    "jina_embeddings_v3": "jina_v3",
    "llama": "llama",
    "llama_bidirec": "llama",
    "llama_nemotron_vl": "nemotron_vl",
    "ministral3": "ministral3",
    "mistral": "mistral",
    "modernbert": "modernbert",
    "mpnet": "mpnet",
    "new": "gte",
    "nomic_bert": "nomic_bert",
    "nvembed": "nvembed",
    "qwen3": "qwen3",
    "roberta": "xlm_roberta",
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

# Architectures whose positions begin behind the padding id.
_OFFSET = ("mpnet", "xlm_roberta")

# Architectures that also generate text, of which only the pooling shows that one embeds.
_DECODERS = ("qwen3",)

# NVIDIA's own configurations say how to pool, under a name of their own for the mean.
_POOLING_NAMES: dict[str, Pooling] = {"avg": "mean", "mean": "mean", "cls": "cls"}

_SAMPLE = 1 << 16


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk.

    Attributes:
        folder: Where the network's files are.
        config: What config.json holds, under the usual names.
        card: Facts, from the catalogue and the checkpoint's own files.
        revision: What pins the weights, for the spec.
        pipeline: What happens to a text besides the network.
    """

    folder: Path
    config: dict[str, Any]
    card: ModelCard
    revision: str | None
    pipeline: Pipeline


def read_checkpoint(
    located: Located,
    *,
    revision: str | None,
    override: object = None,
    told: ModelCard | None = None,
) -> Checkpoint:
    """Read the JSON files of a model folder.

    Args:
        located: Where they are.
        revision: What the caller pinned.
        override: A ModelCard whose facts outrank the files' and the catalogue's.
        told: The card of the model that a folder holds, as the caller says.

    Raises:
        CheckpointError: If a file is missing, malformed or of an architecture nimbed lacks, or if
            the configuration is not that of the model that the caller says it is.
    """
    if told is not None:
        # A catalogued card names weights that everybody has; any other says what this folder holds.
        pinned = known(told.id) == told
        located = dataclasses.replace(located, name=told.id, card=told, pinned=pinned)
    # A catalogued model's card says all this, and its publisher's files change.
    pipeline = Pipeline(folder=located.folder, weights=located.folder)
    if located.card is None:
        pipeline = read_pipeline(located.folder)
    folder = pipeline.weights
    config = read_json(folder / "config.json", required=True)
    model_type = config.get("model_type")
    architecture = _ARCHITECTURES.get(str(model_type))
    if architecture is None:
        raise CheckpointError(
            f"{folder / 'config.json'} says model_type {model_type!r}; nimbed runs "
            f"{', '.join(sorted(_ARCHITECTURES))}"
        )
    config = understood(config, folder / "config.json")
    if told is not None:
        _check_told(folder, config, architecture, told)
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; convert its tokenizer once with transformers: "
            f"AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    if isinstance(override, ModelCard):
        card = dataclasses.replace(override, architecture=architecture)
    else:
        card = located.card or _card_from_files(located, config, architecture, pipeline)
        card = dataclasses.replace(card, architecture=architecture, **_own_prompts(located.folder))
    if revision is None and not located.pinned:
        revision = _content_id(folder, pipeline)
    return Checkpoint(folder, config, card, revision, pipeline)


def _card_from_files(
    located: Located, config: dict[str, Any], architecture: str, pipeline: Pipeline
) -> ModelCard:
    folder = pipeline.weights
    language = config.get("text_config", config.get("llm_config", config))
    if not isinstance(language, dict):
        raise CheckpointError(f"{folder / 'config.json'} gives text_config {language!r}")
    positions = whole(language, "max_position_embeddings")
    if architecture in _OFFSET:
        positions -= first_position(config)
    query, passage = pipeline.query_prompt, pipeline.passage_prompt
    if not query and not passage:
        query, passage = _TRAINED_PROMPTS.get(str(config["model_type"]), ("", ""))
    if architecture in _DECODERS and pipeline.pooling is None:
        raise CheckpointError(
            f"{folder} says nowhere how its states are pooled; a {architecture} without a "
            f"modules.json is a text generator"
        )
    pooling = pipeline.card_pooling if pipeline.pooling else _pooling(folder, config)
    width = pipeline.width(whole(language, "hidden_size"))
    note = "read from the checkpoint's own files"
    if pipeline.other_prompts:
        note += f"; its prompts for {', '.join(pipeline.other_prompts)} belong to neither role"
    card = ModelCard(
        id=located.name,
        architecture=architecture,
        dimensions=min(width, pipeline.dimensions or width),
        max_tokens=min(pipeline.max_tokens or positions, positions),
        pooling="latent" if architecture == "nvembed" else pooling,
        asymmetric=query != passage,
        query_prompt=query,
        passage_prompt=passage,
        matryoshka=_matryoshka(folder, config, min(width, pipeline.dimensions or width)),
        note=note,
    )
    if architecture != "nemotron_vl":
        return card
    return dataclasses.replace(card, **{**vision_facts(config), **_own_prompts(located.folder)})


def _check_told(folder: Path, config: dict[str, Any], architecture: str, told: ModelCard) -> None:
    """Refuse a configuration that cannot be of the model that the caller says it is."""
    language = config.get("text_config", config.get("llm_config", config))
    width = language.get("hidden_size") if isinstance(language, dict) else None
    if (architecture, width) != (told.architecture, told.dimensions):
        raise CheckpointError(
            f"{folder / 'config.json'} describes a {architecture} of {width} dimensions; "
            f"{told.id}, which card= says it is, is a {told.architecture} of {told.dimensions}"
        )


def _pooling(folder: Path, config: dict[str, Any]) -> Pooling:
    named = config.get("pooling")
    pooling = "mean" if named is None else _POOLING_NAMES.get(str(named))
    if pooling is None:
        raise CheckpointError(
            f"{folder / 'config.json'} pools by {named}; nimbed knows "
            f"{', '.join(_POOLING_NAMES)} there"
        )
    return pooling


def _matryoshka(folder: Path, config: dict[str, Any], width: int) -> tuple[int, ...]:
    """Return the sizes below the full one that config.json offers."""
    given = config.get("matryoshka_dimensions") or []
    if not isinstance(given, list) or not all(
        isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in given
    ):
        raise CheckpointError(
            f"{folder / 'config.json'} gives matryoshka_dimensions {given!r}, expected sizes"
        )
    return tuple(sorted({size for size in given if size < width}))


def _own_prompts(folder: Path) -> dict[str, Any]:
    """Let a catalogued model's own files have the last word about its prompts."""
    query, passage = role_prompts(folder)
    if not query and not passage:
        return {}
    return {"query_prompt": query, "passage_prompt": passage, "asymmetric": query != passage}


def _content_id(folder: Path, pipeline: Pipeline) -> str:
    """Name what a folder holds: a hash of its configuration and samples of its weights.

    What follows the network is hashed too, where it is more than a mean.

    The name of a folder says nothing about its weights, and hashing all of them takes seconds a
    gigabyte. Size, head, tail and 64 samples between tell any two trained checkpoints apart.
    """
    digest = hashlib.sha256()
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    digest.update(pipeline.identity.encode())
    for path in [
        folder / "config.json",
        folder / "tokenizer.json",
        *weights,
        *pipeline.module_weights,
    ]:
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
