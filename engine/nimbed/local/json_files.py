"""The JSON files of a checkpoint, and every key in them that nimbed knows.

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
    "ARCHITECTURES",
    "FILES",
    "PIXTRAL_FILES",
    "Keys",
    "check_keys",
    "read_any_json",
    "read_json",
    "size_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What is known of the keys of one kind of file.

    Attributes:
        read: Keys that something in nimbed reads, and answers for their values.
        idle: Keys that change no vector.
        only: Keys whose value must be one of those given, which ask for nothing.
        nested: Keys that hold objects, by what is known of their keys.
    """

    read: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict[str, tuple[object, ...]])
    nested: Mapping[str, Keys] = field(default_factory=dict[str, "Keys"])

    def __or__(self, other: Keys) -> Keys:
        """Return what is known of a file that has the keys of both."""
        return Keys(
            read=self.read | other.read,
            idle=self.idle | other.idle,
            only={**self.only, **other.only},
            nested={**self.nested, **other.nested},
        )


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NOTHING: tuple[object, ...] = (None, False, "", [], {})
_SENTENCE: tuple[object, ...] = (None, "sentence_embedding")

# What a module of sentence-transformers reads and gives; nimbed's work on one vector a text.
_MODULE = Keys(only={"module_input_name": _SENTENCE, "module_output_name": _SENTENCE})

_ROUTER = Keys(
    read=_words("types structure parameters"),
    nested={
        "parameters": Keys(
            idle=_words("default_route allow_empty_key"), only={"route_mappings": _NOTHING}
        )
    },
)

#: What is known of the files beside config.json, by the name of the file or of the module.
FILES: Mapping[str, Keys] = {
    "modules.json": Keys(
        read=_words("path type"), idle=_words("idx name"), only={"kwargs": _NOTHING}
    ),
    "config_sentence_transformers.json": Keys(
        read=_words("prompts default_prompt_name similarity_fn_name truncate_dim"),
        idle=_words("__version__"),
        only={"model_type": (None, "SentenceTransformer")},
    ),
    # sentence_bert_config.json and its siblings
    "Transformer": Keys(
        read=_words("max_seq_length do_lower_case modality_config"),
        idle=_words("unpad_inputs"),
        only={
            "transformer_task": (None, "feature-extraction"),
            "module_output_name": (None, "token_embeddings"),
            **dict.fromkeys(
                _words(
                    "processing_kwargs query_length document_length query_expansion model_args "
                    "tokenizer_args config_args processor_args track_media_counts"
                ),
                _NOTHING,
            ),
        },
    ),
    "Pooling": Keys(
        read=_words(
            "pooling_mode include_prompt pooling_mode_cls_token pooling_mode_max_tokens "
            "pooling_mode_mean_tokens pooling_mode_mean_sqrt_len_tokens "
            "pooling_mode_weightedmean_tokens pooling_mode_lasttoken"
        ),
        idle=_words("embedding_dimension word_embedding_dimension"),
    ),
    "Dense": _MODULE
    | Keys(read=_words("in_features out_features bias activation_function use_residual")),
    "LayerNorm": Keys(read=_words("dimension")),
    "Normalize": _MODULE,
    "Dropout": Keys(idle=_words("dropout")),
    "WeightedLayerPooling": Keys(
        read=_words("embedding_dimension word_embedding_dimension layer_start num_hidden_layers")
    ),
    "StaticEmbedding": Keys(
        # model2vec's own, and what it was distilled with.
        read=_words("normalize hidden_dim"),
        idle=_words(
            "model_type architectures tokenizer_name apply_pca apply_zipf sif_coefficient "
            "seq_length embedding_dtype vocabulary_quantization pooling max_length"
        ),
    ),
    "Router": _ROUTER,
    "Asym": _ROUTER,
    "tokenizer_config.json": Keys(
        read=_words(
            "model_max_length do_lower_case strip_accents tokenize_chinese_chars tokenizer_class "
            "added_tokens_decoder add_prefix_space bos_token eos_token unk_token sep_token "
            "pad_token cls_token mask_token additional_special_tokens extra_special_tokens"
        ),
        # Beginning and end tokens are as tokenizer.json has them (transformers takes the two
        # switches out where that file is); nothing is padded, and the caller says which end is cut.
        idle=_words(
            "add_bos_token add_eos_token padding padding_side pad_to_multiple_of pad_token_type_id "
            "pad_token_id truncation truncation_side truncation_strategy max_length stride max_len "
            "clean_up_tokenization_spaces spaces_between_special_tokens name_or_path auto_map "
            "special_tokens_map_file tokenizer_file full_tokenizer_file vocab_file merges_file "
            "backend is_local local_files_only chat_template model_input_names legacy from_slow "
            "sp_model_kwargs use_default_system_prompt processor_class use_fast init_inputs errors "
            "trim_offsets do_basic_tokenize cls_token_type_id image_token boi_token eoi_token "
            "image_break_token image_end_token model_specific_special_tokens response_schema "
            "tokenizer_type model_type padding_token unk_id remove_space keep_accents "
            "image_token_id video_token audio_token vision_bos_token vision_eos_token"
        ),
        only={
            "split_special_tokens": _NOTHING,
            "never_split": _NOTHING,
            "fix_mistral_regex": _NOTHING,
            "wordpieces_prefix": (None, "##"),
            "clean_text": (None, True),
        },
    ),
}

_PIXELS = Keys(
    read=_words(
        "do_resize do_rescale do_normalize do_center_crop rescale_factor resample size image_mean "
        "image_std"
    ),
    # Images are made RGB, and nothing is padded; patches have the processor's size.
    idle=_words(
        "processor_class image_processor_type feature_extractor_type do_convert_rgb do_pad "
        "default_to_square patch_size crop_size data_format input_data_format device "
        "image_seq_length"
    ),
)
#: What is known of the files that say how Pixtral's images are made ready.
PIXTRAL_FILES: Mapping[str, Keys] = {
    "processor_config.json": Keys(
        read=_words(
            "patch_size spatial_merge_size image_token image_break_token image_end_token "
            "chat_template"
        ),
        idle=_words("processor_class"),
        nested={"image_processor": _PIXELS},
    ),
    "preprocessor_config.json": _PIXELS,
}

# What transformers writes into any config.json: how a model was made, trained and asked to
# generate, which an embedding does not depend on.
_ANY = Keys(
    read=_words("model_type architectures pooling matryoshka_dimensions"),
    idle=_words(
        """
        _name_or_path name_or_path _commit_hash auto_map transformers_version torch_dtype dtype
        use_cache output_hidden_states output_attentions output_scores output_past return_dict
        return_dict_in_generate torchscript tie_word_embeddings tie_encoder_decoder use_bfloat16
        initializer_range initializer_factor initializer_cutoff_factor gradient_checkpointing
        finetuning_task task_specific_params problem_type id2label label2id num_labels _num_labels
        hidden_dropout_prob attention_probs_dropout_prob hidden_dropout attention_dropout dropout
        embedding_dropout mlp_dropout classifier_dropout classifier_pooling classifier_bias
        classifier_activation pooler_type pooler_fc_size pooler_num_attention_heads
        pooler_num_fc_layers pooler_size_per_head directionality chunk_size_feed_forward
        pretraining_tp tokenizer_class processor_class model_max_length prefix bos_token_id
        eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id mask_token_id
        decoder_start_token_id max_length min_length max_new_tokens do_sample early_stopping
        num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
        repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
        bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id
        remove_invalid_values exponential_decay_length_penalty suppress_tokens
        begin_suppress_tokens tf_legacy_loss attn_implementation _attn_implementation
        _attn_implementation_autoset _attn_implementation_internal deterministic_flash_attn
        unsloth_version unsloth_fixed sentence_transformers model_name
        sbert_ce_default_activation_function sparse_prediction sparse_pred_ignore_index
        """
    ),
    only={
        "is_decoder": (None, False),
        "is_encoder_decoder": (None, False),
        "add_cross_attention": (None, False),
        "cross_attention_hidden_size": (None,),
        **dict.fromkeys(
            _words("pruned_heads quantization_config compression_config adapters adapter_fusion"),
            _NOTHING,
        ),
    },
)

_ENCODER = _ANY | Keys(
    read=_words(
        "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act "
        "max_position_embeddings type_vocab_size layer_norm_eps position_embedding_type"
    )
)

_TURN = Keys(
    read=_words(
        "rope_type type rope_theta factor low_freq_factor high_freq_factor "
        "original_max_position_embeddings max_position_embeddings attention_factor beta_fast "
        "beta_slow mscale mscale_all_dim truncate llama_4_scaling_beta partial_rotary_factor"
    )
)
_ROPE = Keys(
    read=_words("rope_theta partial_rotary_factor"),
    nested={
        name: Keys(read=_TURN.read, nested={"full_attention": _TURN, "sliding_attention": _TURN})
        for name in ("rope_parameters", "rope_scaling")
    },
)

_DECODER = (
    _ANY
    | _ROPE
    | Keys(
        read=_words(
            "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads "
            "head_dim intermediate_size hidden_act max_position_embeddings rms_norm_eps "
            "attention_bias mlp_bias is_causal"
        )
    )
)
_MISTRAL = _DECODER | Keys(read=_words("sliding_window"), idle=_words("max_window_layers"))
_QWEN = _DECODER | Keys(
    read=_words("use_sliding_window sliding_window max_window_layers layer_types")
)

#: What is known of config.json, by the file of local/models/ that runs the architecture.
ARCHITECTURES: Mapping[str, Keys] = {
    "bert": _ENCODER,
    "gemma3": _DECODER
    | Keys(
        read=_words(
            "hidden_activation query_pre_attn_scalar sliding_window layer_types "
            "sliding_window_pattern rope_local_base_freq use_bidirectional_attention"
        ),
        # transformers keeps the pattern by its second name and makes nothing of it; the others
        # are a text generator's.
        idle=_words("_sliding_window_pattern final_logit_softcapping cache_implementation"),
        only={"attn_logit_softcapping": (None,)},
    ),
    "llama": _DECODER,
    "ministral3": _MISTRAL,
    "mistral": _MISTRAL,
    "mistral3": _ANY
    | Keys(
        read=_words(
            "image_token_index image_token_id spatial_merge_size vision_feature_layer is_causal "
            "projector_hidden_act multimodal_projector_bias"
        ),
        nested={
            "text_config": _MISTRAL,
            "vision_config": _ANY
            | Keys(
                read=_words(
                    "image_size patch_size hidden_size intermediate_size num_hidden_layers "
                    "num_attention_heads head_dim hidden_act num_channels rope_theta"
                ),
                nested={"rope_parameters": Keys(read=_words("rope_theta rope_type"))},
            ),
        },
    ),
    "nemotron_vl": _ANY
    | Keys(
        read=_words(
            "force_image_size downsample_ratio select_layer ps_version dynamic_image_size "
            "use_thumbnail min_input_tiles max_input_tiles img_context_token_id p_max_length "
            "query_prefix passage_prefix bidirectional_attention"
        ),
        idle=_words("template q_max_length hidden_size keep_aspect_ratio num_image_token"),
        nested={
            "llm_config": _DECODER,
            "vision_config": _ANY
            | Keys(
                read=_words(
                    "image_size patch_size hidden_size intermediate_size num_hidden_layers "
                    "num_attention_heads hidden_act layer_norm_eps num_channels"
                ),
                idle=_words("projection_dim vision_use_head projector_hidden_act use_flash_attn"),
            ),
        },
    ),
    "nvembed": _ANY
    | Keys(
        read=_words("add_eos is_mask_instruction hidden_size"),
        idle=_words("add_pad_token mask_type padding_side"),
        nested={
            "text_config": _MISTRAL,
            "latent_attention_config": _ANY
            | Keys(
                read=_words(
                    "num_latents_value num_cross_heads cross_dim_head hidden_dim latent_dim"
                ),
                idle=_words("output_normalize"),  # vectors have unit length in any case
            ),
        },
    ),
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "xlm_roberta": _ENCODER | Keys(read=_words("pad_token_id")),
}


def check_keys(config: Mapping[str, Any], where: object, keys: Keys) -> None:
    """Refuse a key that is not known, or a value that asks for what nimbed does not do.

    Args:
        config: What the file holds.
        where: The file, for messages.
        keys: What is known of such a file.

    Raises:
        CheckpointError: If there is one; the message names it.
    """
    for key, value in config.items():
        if key in keys.read or key in keys.idle:
            continue
        if key in keys.only:
            if value not in keys.only[key]:
                asked = f"{where} gives {key} {str(value)[:60]!r}"
                raise CheckpointError(f"{asked}; nimbed knows only {keys.only[key][-1]!r} there")
        elif key in keys.nested:
            if isinstance(value, dict):
                check_keys(value, f"{where}, {key},", keys.nested[key])
            elif value is not None:
                raise CheckpointError(f"{where} gives {key} {value!r}, expected an object")
        else:
            raise CheckpointError(
                f"{where} has the key {key!r} ({str(value)[:60]!r}), which nimbed does not "
                f"understand; without it the vectors might be others"
            )


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
