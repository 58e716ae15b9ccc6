"""The JSON files of a checkpoint, and every key in them that nimbed knows; see config_keys, too.

A key is read by something in nimbed, or is known to change no vector, or must have the value that
asks for nothing; any other is refused by name, since a setting that is left out gives other vectors
without a word. A file that is not named here is read by nobody: neither by nimbed, nor by
sentence-transformers or transformers when they embed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nimbed.errors import CheckpointError

__all__ = [
    "FILES",
    "NOTHING",
    "PIXTRAL_FILES",
    "Keys",
    "check_keys",
    "read_any_json",
    "read_json",
    "refuse_other_kinds",
    "size_of",
    "usual_names",
    "words",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What is known of the keys of one kind of file.

    Attributes:
        read: Keys that something in nimbed reads, and answers for their values.
        idle: Keys that change no vector.
        only: Keys whose value must be null or one of those given: what nimbed computes anyway.
        nested: Keys that hold objects, by what is known of their keys.
        aliases: Other names of keys, by which some publishers call them.
    """

    read: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict[str, tuple[object, ...]])
    nested: Mapping[str, Keys] = field(default_factory=dict[str, "Keys"])
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])

    def __or__(self, other: Keys) -> Keys:
        """Return what is known of a file that has the keys of both."""
        return Keys(
            read=self.read | other.read,
            idle=self.idle | other.idle,
            only={**self.only, **other.only},
            nested={**self.nested, **other.nested},
            aliases={**self.aliases, **other.aliases},
        )


def words(text: str) -> frozenset[str]:
    """Return the words of a text, which are keys."""
    return frozenset(text.split())


#: Values of a key that asks for something which nimbed does not do.
NOTHING: tuple[object, ...] = (False, "", [], {})
_SENTENCE: tuple[object, ...] = ("sentence_embedding",)

# What a module of sentence-transformers reads and gives; nimbed's work on one vector a text.
_MODULE = Keys(only={"module_input_name": _SENTENCE, "module_output_name": _SENTENCE})
_TOKENS = Keys(
    only=dict.fromkeys(("module_input_name", "module_output_name"), ("token_embeddings",))
)
_DENSE = Keys(read=words("in_features out_features bias activation_function use_residual"))

_OF_ROLES = words("query_length document_length query_expansion")
_TRANSFORMER = Keys(
    read=words("max_seq_length do_lower_case modality_config transformer_task"),
    idle=words("unpad_inputs"),
    only={
        "module_output_name": ("token_embeddings",),
        **dict.fromkeys(
            words(
                "processing_kwargs model_args tokenizer_args config_args processor_args "
                "model_kwargs config_kwargs processor_kwargs track_media_counts"
            ),
            NOTHING,
        ),
    },
)

_ROUTER = Keys(
    read=words("types structure parameters"),
    nested={
        "parameters": Keys(
            idle=words("default_route allow_empty_key"), only={"route_mappings": NOTHING}
        )
    },
)

#: What is known of the files beside config.json, by the name of the file or of the module.
FILES: Mapping[str, Keys] = {
    "modules.json": Keys(read=words("path type"), idle=words("idx name"), only={"kwargs": NOTHING}),
    "config_sentence_transformers.json": Keys(
        read=words("prompts default_prompt_name similarity_fn_name truncate_dim"),
        idle=words("__version__ requirements"),
        only={"model_type": ("SentenceTransformer",)},
    ),
    # The same file of a SparseEncoder
    "SparseEncoder": Keys(
        read=words("prompts default_prompt_name similarity_fn_name max_active_dims"),
        idle=words("__version__ requirements"),
        only={"model_type": ("SparseEncoder",)},
    ),
    # The same file of a MultiVectorEncoder, or of PyLate's ColBERT
    "MultiVectorEncoder": Keys(
        read=words(
            "prompts default_prompt_name similarity_fn_name query_prefix document_prefix "
            "query_length document_length do_query_expansion attend_to_expansion_tokens "
            "skiplist_words"
        ),
        idle=words("__version__ requirements"),
        only={
            "model_type": ("MultiVectorEncoder", "ColBERT", "SentenceTransformer"),
            "truncate_dim": (),
        },
    ),
    # Stanford's settings of training, indexing and searching, and those of embedding
    "artifact.metadata": Keys(
        read=words(
            "query_token_id doc_token_id query_maxlen doc_maxlen dim mask_punctuation "
            "attend_to_mask_tokens"
        ),
        idle=words(
            "query_token doc_token checkpoint model_name triples collection queries index_name "
            "index_path index_root index_bsize nbits kmeans_niters overwrite root experiment name "
            "rank nranks amp gpus avoid_fork_if_possible ncells centroid_score_threshold ndocs "
            "load_index_with_mmap nprobe ncandidates bsize accumsteps lr maxsteps save_every "
            "resume warmup warmup_bert nway use_ib_negatives distillation_alpha ignore_scores "
            "epochs wandb_project meta version"
        ),
        # On unit vectors both rank alike.
        only={
            "similarity": ("cosine", "l2"),
            "interaction": ("colbert",),
            "relu": (False,),
            "reranker": (False,),
        },
    ),
    "MultiVectorMask": Keys(
        read=words("skiplist_words skiplist_tasks"), only={"keep_only_token_ids": NOTHING}
    ),
    "HierarchicalTokenPooling": Keys(
        read=words("pool_factor num_protected_tokens normalize_embeddings tasks")
    ),
    "token Dense": _TOKENS | _DENSE,
    "token Normalize": _TOKENS,
    # sentence_bert_config.json and its siblings
    "Transformer": _TRANSFORMER | Keys(only=dict.fromkeys(_OF_ROLES, NOTHING)),
    "token Transformer": _TRANSFORMER | Keys(read=_OF_ROLES),
    "WeightedLayerPooling": Keys(
        read=words("layer_start num_hidden_layers"),
        idle=words("embedding_dimension word_embedding_dimension"),
    ),
    "Pooling": Keys(
        read=words(
            "pooling_mode include_prompt pooling_mode_cls_token pooling_mode_max_tokens "
            "pooling_mode_mean_tokens pooling_mode_mean_sqrt_len_tokens "
            "pooling_mode_weightedmean_tokens pooling_mode_lasttoken"
        ),
        idle=words("embedding_dimension word_embedding_dimension"),
    ),
    "Dense": _MODULE | _DENSE,
    "LayerNorm": Keys(read=words("dimension")),
    "Normalize": _MODULE,
    "Dropout": Keys(idle=words("dropout")),
    "StaticEmbedding": Keys(
        # model2vec's own: what it was distilled with. Vectors have unit length in any case.
        idle=words(
            "model_type architectures normalize hidden_dim tokenizer_name apply_pca apply_zipf "
            "sif_coefficient seq_length embedding_dtype vocabulary_quantization pooling max_length"
        ),
    ),
    "SpladePooling": Keys(
        read=words("pooling_strategy activation_function"),
        idle=words("embedding_dimension word_embedding_dimension chunk_size"),
    ),
    "SparseStaticEmbedding": Keys(read=words("path"), idle=words("frozen")),
    # The idle ones count only when it is trained.
    "SparseAutoEncoder": Keys(
        read=words("input_dim hidden_dim k normalize"), idle=words("k_aux dead_threshold")
    ),
    "Router": _ROUTER,
    "Asym": _ROUTER,
    "special_tokens_map.json": Keys(
        read=words(
            "bos_token eos_token unk_token sep_token pad_token cls_token mask_token image_token "
            "boi_token eoi_token additional_special_tokens extra_special_tokens"
        )
    ),
    "tokenizer_config.json": Keys(
        read=words(
            "model_max_length max_len do_lower_case strip_accents tokenize_chinese_chars "
            "tokenizer_class added_tokens_decoder add_prefix_space bos_token eos_token unk_token "
            "sep_token pad_token cls_token mask_token additional_special_tokens "
            "extra_special_tokens"
        ),
        # Beginning and end tokens are as tokenizer.json has them (transformers takes the two
        # switches out where that file is); nothing is padded, and the caller says which end is cut.
        idle=words(
            "add_bos_token add_eos_token padding padding_side pad_to_multiple_of pad_token_type_id "
            "pad_token_id truncation truncation_side truncation_strategy max_length stride "
            "clean_up_tokenization_spaces spaces_between_special_tokens name_or_path auto_map "
            "special_tokens_map_file tokenizer_file full_tokenizer_file vocab_file merges_file "
            "backend is_local local_files_only chat_template model_input_names legacy from_slow "
            "sp_model_kwargs use_default_system_prompt processor_class use_fast init_inputs errors "
            "trim_offsets do_basic_tokenize cls_token_type_id image_token boi_token eoi_token "
            "image_break_token image_end_token model_specific_special_tokens response_schema "
            "tokenizer_type model_type padding_token unk_id remove_space keep_accents "
            "transformers_version trust_remote_code revision use_auth_token verbose "
            "return_token_type_ids bos_token_id eos_token_id unk_token_id sep_token_id "
            "cls_token_id mask_token_id image_token_id video_token audio_token vision_bos_token "
            "vision_eos_token"
        ),
        only={
            "split_special_tokens": NOTHING,
            "never_split": NOTHING,
            "fix_mistral_regex": NOTHING,
            "wordpieces_prefix": ("##",),
            "clean_text": (True,),
        },
    ),
}

_PIXELS = Keys(
    read=words(
        "do_resize do_rescale do_normalize do_center_crop rescale_factor resample size image_mean "
        "image_std"
    ),
    # Images are made RGB, and nothing is padded; patches have the processor's size.
    idle=words(
        "processor_class image_processor_type feature_extractor_type do_convert_rgb do_pad "
        "default_to_square patch_size crop_size data_format input_data_format device "
        "image_seq_length"
    ),
)
#: What is known of the files that say how Pixtral's images are made ready.
PIXTRAL_FILES: Mapping[str, Keys] = {
    "processor_config.json": Keys(
        read=words(
            "patch_size spatial_merge_size image_token image_break_token image_end_token "
            "chat_template"
        ),
        idle=words("processor_class"),
        nested={"image_processor": _PIXELS},
    ),
    "preprocessor_config.json": _PIXELS,
}


def check_keys(
    config: Mapping[str, Any], where: object, keys: Keys, *, unknown: bool = False
) -> None:
    """Refuse a key that is not known, or a value that asks for what nimbed does not do.

    Args:
        config: What the file holds.
        where: The file, for messages.
        keys: What is known of such a file.
        unknown: Whether keys that are not known are let pass.

    Raises:
        CheckpointError: If there is one; the message names it.
    """
    for key, value in config.items():
        name = keys.aliases.get(key, key)
        if name in keys.only:
            allowed = keys.only[name]
            if value is not None and value not in allowed:
                choices = " or ".join(dict.fromkeys([*map(repr, allowed), "null"]))
                raise CheckpointError(
                    f"{where} gives {key} {value!r:.60}; nimbed knows only {choices}"
                )
        elif name in keys.nested:
            if isinstance(value, dict):
                check_keys(value, f"{where}, {key},", keys.nested[name], unknown=unknown)
            elif value is not None:
                raise CheckpointError(f"{where} gives {key} {value!r}, expected a table of values")
        elif not unknown and name not in keys.read and name not in keys.idle:
            raise CheckpointError(
                f"{where} has the key {key!r} ({str(value)[:60]!r}), which nimbed does not "
                f"understand; without it the vectors might be others"
            )


def usual_names(config: Mapping[str, Any], where: object, keys: Keys) -> dict[str, Any]:
    """Return a configuration whose keys have their usual names.

    Raises:
        CheckpointError: If two names of one key have different values.
    """
    usual: dict[str, Any] = {}
    said: dict[str, str] = {}  # the file's own name of each
    for key, value in config.items():
        name = keys.aliases.get(key, key)
        before = usual.get(name)
        if name == "max_position_embeddings" and isinstance(before, int) and value:
            value = max(before, value)  # rotations do not end; the larger is what texts may have
        elif before is not None and value is not None and before != value:
            raise CheckpointError(f"{where} gives {said[name]} {before!r}, but {key} {value!r}")
        usual[name], said[name] = before if value is None else value, key
    return usual


def read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    """Return a JSON object, or an empty one if an optional file is absent.

    Raises:
        CheckpointError: If it is missing, no JSON or no object.
    """
    content = read_any_json(path, required=required)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected an object")
    return content


def read_any_json(path: Path, *, required: bool = False, empty: Callable[[], Any] = dict) -> Any:
    """Return what a JSON file holds, or ``empty()`` if an optional file is absent.

    Raises:
        CheckpointError: If it is missing or no JSON.
    """
    if not path.is_file():
        if required:
            raise CheckpointError(f"{path} is missing; is this the folder of a model?")
        return empty()
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error


def size_of(config: Mapping[str, Any], where: object, key: str) -> int:
    """Return a positive integer of a file.

    Raises:
        CheckpointError: If it is something else.
    """
    size = config.get(key)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise CheckpointError(f"{where} gives {key} {size!r}, expected a positive integer")
    return size


def refuse_other_kinds(folder: Path) -> None:
    """Refuse what looks like a checkpoint but gives no vectors."""
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds an adapter (adapter_config.json), not a model; merge it into its base "
            f"model first, with peft's merge_and_unload()"
        )
    named = read_json(folder / "config.json").get("architectures") or []
    for name in map(str, named if isinstance(named, list) else []):
        if name.endswith("ForSequenceClassification") and not (folder / "modules.json").is_file():
            raise CheckpointError(
                f"{folder} holds a {name}: a classifier or cross-encoder, which scores texts or "
                f"pairs and gives no vectors"
            )
