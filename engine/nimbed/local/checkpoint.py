"""Facts about a model, read from the JSON files of its folder.

``auto_map`` and any Python beside the weights are ignored: never imported, never asked about.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from nimbed.cards import ModelCard, Pooling, known
from nimbed.errors import CheckpointError, ConfigurationError
from nimbed.local.colbert import is_colbert, prefixed, read_colbert, within
from nimbed.local.config_keys import keys_of
from nimbed.local.head_config import (
    AutoEncoder,
    ColBert,
    Splade,
    TokenTable,
    check_masked_model,
    m3_heads,
    table_width,
)
from nimbed.local.hub import Located, content_id
from nimbed.local.json_files import check_keys, read_any_json, read_json, usual_names
from nimbed.local.models.fields import (
    decoder_of,
    is_causal,
    language_of,
    longest_texts,
    refuse_causal,
    whole,
)
from nimbed.local.pipeline import DenseModule, LayerWeights, Pipeline, read_pipeline
from nimbed.local.sentence_config import Prompts, read_prompts
from nimbed.local.tokenizer_config import read_tokenizer_changes
from nimbed.local.vision.settings import templated, vision_facts
from nimbed.spec import InputType

__all__ = ["Checkpoint", "read_checkpoint"]

# model_type in config.json -> file of local/models/
_ARCHITECTURES = {
    "bert": "bert",
    "bidir_mistral": "mistral",
    "gemma3_text": "gemma3",
    "camembert": "xlm_roberta",
    "distilbert": "distilbert",
    "gte": "gte",
    "jina_embeddings_v3": "jina_v3",
    "llama": "llama",
    "llama_bidirec": "llama",
    "llama_nemotron_vl": "nemotron_vl",
    "ministral3": "ministral3",
    "ministral3_bidirec": "ministral3",
    "mistral": "mistral",
    "mistral3": "mistral3",
    "mistral3_bidirec": "mistral3",
    "model2vec": "static",
    "modernbert": "modernbert",
    "mpnet": "mpnet",
    "new": "gte",
    "nomic_bert": "nomic_bert",
    "nvembed": "nvembed",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "roberta": "xlm_roberta",
    "xlm-roberta": "xlm_roberta",
}

# Networks that a configuration describes apart, each in a table.
_PARTS = {
    "mistral3": ("text_config", "vision_config"),
    "nemotron_vl": ("llm_config", "vision_config"),
    "nvembed": ("text_config", "latent_attention_config"),
}

# Prompts that NVIDIA's own types were trained with, for checkpoints that declare none.
_TRAINED_PROMPTS = {
    "bidir_mistral": ("query: ", "passage: "),
    "llama_bidirec": ("query: ", "passage: "),
    "ministral3_bidirec": ("query: ", "passage: "),
    "mistral3_bidirec": ("query: ", "passage: "),
    "nvembed": (
        "Instruct: Given a question, retrieve passages that answer the question\nQuery: ",
        "",
    ),
}

# Architectures that also generate text.
_DECODERS = ("gemma3", "llama", "ministral3", "mistral", "mistral3", "qwen2", "qwen3")

# Architectures whose positions begin behind the padding id.
_OFFSET = ("mpnet", "xlm_roberta")

# Architectures whose layers give their states, for a weighted mean of them.
_LAYERED = (
    *("bert", "distilbert", "gemma3", "gte", "jina_v3", "llama", "ministral3", "mistral"),
    *("modernbert", "mpnet", "nomic_bert", "qwen2", "qwen3", "xlm_roberta"),
)

# NVIDIA's own configurations say how to pool, under a name of their own for the mean.
_POOLING_NAMES: dict[str, Pooling] = {
    "avg": "mean",
    "mean": "mean",
    "cls": "cls",
    "last": "lasttoken",
}

# Sparse encoders that take more than one logarithm, where no module says so: their publisher's
# own formula.
_LOGARITHMS = {"opensearch-neural-sparse-encoding-doc-v3-distill": 2}

# A table of words reads texts of any length; what is tokenized at once has to end somewhere.
_STATIC_TOKENS = 32_768


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
    prompt_name: str | None = None,
    role: InputType | None = None,
) -> Checkpoint:
    """Read the JSON files of a model folder.

    Args:
        located: Where they are.
        revision: What the caller pinned.
        override: A ModelCard whose facts outrank the files' and the catalogue's.
        told: The card of the model that a folder holds, as the caller says.
        prompt_name: Which of the model's prompts goes before every text, instead of its role's.
        role: Whose modules are followed where queries and passages have their own.

    Raises:
        CheckpointError: If a file is missing, malformed or of an architecture nimbed lacks, or if
            the configuration is not that of the model that the caller says it is.
        ConfigurationError: If the caller says so of what is no folder.
    """
    if told is not None and located.card is not None:
        raise ConfigurationError(
            f"card= says what a folder holds; {located.name} is no folder but has a card"
        )
    if told is not None:
        # A catalogued card names weights that everybody has; any other says what this folder holds.
        pinned = known(told.id) == told
        located = dataclasses.replace(located, name=told.id, card=told, pinned=pinned)
    card = override if isinstance(override, ModelCard) else located.card
    if card is not None and card.kinds == ("sparse",):
        pipeline = _sparse_pipeline(located.folder, card, role)
    elif is_colbert(located.folder) or (card is not None and card.kinds == ("multi",)):
        pipeline = read_colbert(located.folder, card)
    else:
        pipeline = _pipeline_of(located, told=told is not None, role=role)
    folder = pipeline.weights
    table = isinstance(pipeline.sparse, TokenTable)
    config = {} if table else read_json(folder / "config.json", required=not pipeline.static)
    model_type = "model2vec" if pipeline.static else config.get("model_type")
    architecture = _ARCHITECTURES.get(str(model_type))
    if architecture == "xlm_roberta" and config.get("lora_adaptations"):
        architecture = "jina_v3"  # which calls itself an XLM-R
        config["adapter"] = _adapter(folder, config, prompt_name, role)
    elif architecture == "xlm_roberta" and config.get("position_embedding_type") == "rotary":
        architecture = "jina_v3"  # the same network without adapters, as jina-colbert-v2 has it
        if config.get("rotary_emb_base") is None:
            raise CheckpointError(
                f"{folder / 'config.json'} turns positions, and gives no rotary_emb_base; add it"
            )
    if architecture is None:
        raise CheckpointError(
            f"{folder / 'config.json'} says model_type {model_type!r}; nimbed runs "
            f"{', '.join(sorted(_ARCHITECTURES))}"
        )
    missing = [part for part in _PARTS.get(architecture, ()) if config.get(part) is None]
    if missing:
        raise CheckpointError(f"{folder / 'config.json'} lacks {' and '.join(missing)}")
    known_keys = keys_of(architecture, str(model_type))
    catalogued = located.card is not None or isinstance(override, ModelCard)
    check_keys(config, folder / "config.json", known_keys, unknown=catalogued)
    config = usual_names(config, folder / "config.json", known_keys)
    if pipeline.layers is not None:
        _check_layers(folder, config, architecture, pipeline.layers)
    if isinstance(pipeline.sparse, Splade):
        check_masked_model(folder, config, architecture)
    if told is not None and not table:
        _check_told(pipeline, config, architecture, told)
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; convert its tokenizer once with transformers: "
            f"AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    prompts = read_prompts(located.folder, told=prompt_name is not None)
    if isinstance(pipeline.multi, ColBert):
        prompts = prefixed(pipeline.multi, prompts)
        longest, positions = longest_texts(
            config, pipeline.max_tokens, offset=architecture in _OFFSET
        )
        late = within(pipeline.multi, longest=longest, positions=positions)
        pipeline = dataclasses.replace(pipeline, multi=late)
    if architecture == "mistral3":
        prompts = templated(located.folder, prompts)
    if isinstance(override, ModelCard):
        card = override
    elif located.card is not None:
        tasks = prompts.tasks or located.card.task_prompts
        card = dataclasses.replace(located.card, task_prompts=tasks, **prompts.of_roles())
        width = table_width(pipeline.weights, pipeline.sparse) if architecture == "static" else 0
        if width not in (0, card.dimensions):
            raise CheckpointError(
                f"{folder} holds a table of {width} dimensions; {card.id} has {card.dimensions}"
            )
    elif architecture == "static":
        if table:
            changes = read_tokenizer_changes(folder, model_type="", do_lower_case=False)
            pipeline = dataclasses.replace(pipeline, tokenizer=changes)
        card = _static_card(located, pipeline, prompts)
    else:
        changes = read_tokenizer_changes(
            folder, model_type=str(model_type), do_lower_case=pipeline.do_lower_case
        )
        pipeline = dataclasses.replace(pipeline, tokenizer=changes)
        card = _card_from_files(located, config, architecture, pipeline, prompts)
    if pipeline.dense and architecture != "static":
        sparse, multi = m3_heads(located.folder)
        pipeline = dataclasses.replace(
            pipeline, sparse=pipeline.sparse or sparse, multi=pipeline.multi or multi
        )
    card = dataclasses.replace(card, architecture=architecture, kinds=pipeline.kinds)
    if isinstance(pipeline.multi, ColBert) and not isinstance(override, ModelCard):
        card = dataclasses.replace(
            card, asymmetric=True, max_tokens=pipeline.multi.passage_tokens or card.max_tokens
        )
    if card.bidirectional is not None and config.get("is_causal") is None:
        config = {**config, "is_causal": not card.bidirectional}
    if architecture in _DECODERS:
        _refuse_generators(config, architecture, card, pipeline)
    if prompt_name is not None:
        card = card.with_prompt(prompt_name)
    if revision is None and not located.pinned:
        revision = content_id(folder, pipeline)
    if "adapter" in config and (prompt_name is not None or not located.pinned):
        # Other weights; a model's name alone means the adapters of its roles.
        adapter = str(config["adapter"])
        revision = adapter if revision is None else f"{revision}, {adapter}"
    return Checkpoint(folder, config, card, revision, pipeline)


def _pipeline_of(located: Located, *, told: bool, role: InputType | None) -> Pipeline:
    """Follow a folder's modules; those of a catalogued model beyond the pooling on its card.

    Args:
        located: The folder, and the catalogue's card.
        told: Whether the card is what the caller says of the folder, and has to fit it.
        role: Whose modules are followed where there are several.
    """
    card = located.card
    if card is None:
        return read_pipeline(located.folder, role=role)
    bare = Pipeline(folder=located.folder, weights=located.folder)
    listed = read_any_json(located.folder / "modules.json", empty=list)
    kinds = [str(module.get("type")) for module in listed if isinstance(module, dict)]
    more = (".Dense", ".LayerNorm", ".WeightedLayerPooling")
    if not kinds or not (told or any(kind.endswith(more) for kind in kinds)):
        return bare  # the card says all this, and its publisher's files change
    followed = read_pipeline(located.folder)
    if followed.layers is not None:
        raise CheckpointError(f"{followed.layers.folder} weights layers; {card.id} does not")
    if followed.card_pooling != card.pooling:
        raise CheckpointError(
            f"{located.folder} pools by {followed.card_pooling}; {card.id} pools by {card.pooling}"
        )
    if followed.metric != card.metric:
        raise CheckpointError(
            f"{located.folder} ranks by {followed.metric}; {card.id} ranks by {card.metric}"
        )
    last = [module.outputs for module in followed.modules if isinstance(module, DenseModule)][-1:]
    if last and last[0] != card.dimensions:
        raise CheckpointError(
            f"{located.folder} gives {last[0]} dimensions; {card.id} gives {card.dimensions}"
        )
    return dataclasses.replace(
        bare,
        weights=followed.weights,
        include_prompt=followed.include_prompt,
        modules=followed.modules,
        module_weights=followed.module_weights,
    )


def _sparse_pipeline(folder: Path, card: ModelCard, role: InputType | None) -> Pipeline:
    """Follow a folder's modules, or take its masked language model as SPLADE does.

    Raises:
        CheckpointError: If its modules give other vectors than its card says.
    """
    followed, plain = read_pipeline(folder, role=role), not (folder / "modules.json").is_file()
    if isinstance(followed.sparse, Splade) and plain and card.id in _LOGARITHMS:
        sparse = dataclasses.replace(followed.sparse, logarithms=_LOGARITHMS[card.id])
        return dataclasses.replace(followed, sparse=sparse)
    if followed.sparse is None and plain:
        return dataclasses.replace(followed, sparse=Splade(), dense=False, metric="dot")
    if followed.sparse is None:
        raise CheckpointError(
            f"{folder} gives dense vectors by its modules.json; {card.id} gives sparse ones"
        )
    return followed


def _card_from_files(
    located: Located,
    config: dict[str, Any],
    architecture: str,
    pipeline: Pipeline,
    prompts: Prompts,
) -> ModelCard:
    folder = pipeline.weights
    language = language_of(config)
    longest, _ = longest_texts(config, pipeline.max_tokens, offset=architecture in _OFFSET)
    query, passage = prompts.query, prompts.passage
    if not query and not passage and config.get("task_instructions"):
        told = config["task_instructions"]
        query, passage = (str(told.get(f"retrieval.{role}", "")) for role in ("query", "passage"))
    if not query and not passage:
        query, passage = _TRAINED_PROMPTS.get(str(config["model_type"]), ("", ""))
    pooling = pipeline.card_pooling if pipeline.pooling else _pooling(folder, config)
    width = pipeline.width(whole(language, "hidden_size"))
    if isinstance(pipeline.sparse, AutoEncoder):
        width = pipeline.sparse.latents
    elif pipeline.kinds == ("sparse",):
        width = whole(language, "vocab_size")
    size = min(width, pipeline.dimensions or width)
    card = ModelCard(
        id=located.name,
        architecture=architecture,
        dimensions=size,
        max_tokens=longest,
        pooling="latent" if architecture == "nvembed" else pooling,
        asymmetric=query != passage,
        query_prompt=query,
        passage_prompt=passage,
        task_prompts=prompts.tasks,
        matryoshka=_matryoshka(folder, config, size),
        metric=pipeline.metric,
        note="read from the checkpoint's own files",
    )
    if architecture == "mistral3":
        return dataclasses.replace(card, modalities=("text", "image", "text_image"))
    if architecture != "nemotron_vl":
        return card
    return dataclasses.replace(card, **{**vision_facts(config), **prompts.of_roles()})


def _refuse_generators(
    config: dict[str, Any], architecture: str, card: ModelCard, pipeline: Pipeline
) -> None:
    """Refuse a causal network of which nothing shows that it embeds.

    A Llama's or Qwen's files are those of a text generator; a pooling beside them, or the last
    token on a card, shows that it was trained for vectors.
    """
    language = decoder_of(config, architecture)
    if pipeline.pooling is None and card.pooling != "lasttoken":
        refuse_causal(language)
    is_causal(language)


def _static_card(located: Located, pipeline: Pipeline, prompts: Prompts) -> ModelCard:
    width = table_width(pipeline.weights, pipeline.sparse)
    width = pipeline.width(width) if pipeline.dense else width
    return ModelCard(
        id=located.name,
        architecture="static",
        dimensions=min(width, pipeline.dimensions or width),
        max_tokens=pipeline.max_tokens or _STATIC_TOKENS,
        pooling="mean",
        asymmetric=prompts.query != prompts.passage,
        query_prompt=prompts.query,
        passage_prompt=prompts.passage,
        task_prompts=prompts.tasks,
        metric=pipeline.metric,
        note="read from the checkpoint's own files",
    )


def _adapter(
    folder: Path, config: dict[str, Any], prompt_name: str | None, role: InputType | None
) -> str:
    """Return which of a network's adapters goes with a prompt or a role.

    Raises:
        CheckpointError: If there is none of its name.
    """
    adapters = config["lora_adaptations"]
    if config.get("load_trained_adapters") is False:
        where = folder / "config.json"
        raise CheckpointError(f"{where} gives load_trained_adapters False with lora_adaptations")
    asked = prompt_name or role or "passage"
    name = f"retrieval.{asked}" if asked in get_args(InputType) else asked
    if not isinstance(adapters, list) or name not in adapters:
        raise CheckpointError(
            f"{folder / 'config.json'} gives lora_adaptations {adapters!r}, without {name!r}"
        )
    return name


def _check_layers(
    folder: Path, config: dict[str, Any], architecture: str, layers: LayerWeights
) -> None:
    """Refuse weights of layers that the network does not have, or does not give."""
    if architecture not in _LAYERED:
        raise CheckpointError(
            f"{layers.folder} weights the layers of a {architecture} (WeightedLayerPooling), which "
            f"nimbed does of {', '.join(_LAYERED)}; embed with sentence-transformers itself"
        )
    if config.get("num_hidden_layers") != layers.last:
        raise CheckpointError(
            f"{layers.folder / 'config.json'} gives num_hidden_layers {layers.last}, but "
            f"{folder / 'config.json'} {config.get('num_hidden_layers')}"
        )
    if config.get("output_hidden_states") is not True:
        raise CheckpointError(
            f"{folder / 'config.json'} does not give output_hidden_states true, without which "
            f"sentence-transformers passes over WeightedLayerPooling; set it if the model was "
            f"trained so, or take the module out of modules.json"
        )


def _check_told(pipeline: Pipeline, config: Any, architecture: str, told: ModelCard) -> None:
    """Refuse a configuration that cannot be of the model that the caller says it is."""
    folder = pipeline.weights
    language = config.get("text_config", config.get("llm_config", config))
    width = language.get("hidden_size") if isinstance(language, dict) else None
    if architecture == "static":
        width = table_width(folder, None)
    elif isinstance(pipeline.sparse, AutoEncoder):
        width = pipeline.sparse.latents
    elif told.kinds == ("sparse",):
        width = config.get("vocab_size")
    elif told.kinds == ("multi",):
        width = told.dimensions  # compared with its modules
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
