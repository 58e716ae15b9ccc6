"""Every key of a config.json that nimbed knows, architecture by architecture."""

from __future__ import annotations

from collections.abc import Mapping

from nimbed.local.json_files import FILES, NOTHING, Keys, words

__all__ = ["keys_of"]

# What compressed-tensors and ModelOpt say of the float8 weights that they saved. The scales that
# count lie beside the weights, and nimbed.local.tensors refuses those that it does not know.
_SAVED_IN_FLOAT8 = Keys(
    idle=words(
        """
        config_groups ignore kv_cache_scheme kv_cache_quant_algo quantization_status producer
        global_compression_ratio sparsity_config version exclude_modules modules_to_not_convert
        """
    ),
    only={
        "quant_method": ("compressed-tensors", "modelopt"),
        "format": ("float-quantized",),
        "quant_algo": ("FP8",),
        "transform_config": NOTHING,
    },
)

# What transformers writes into any config.json: how a model was made, trained and asked to
# generate, which an embedding does not depend on.
_ANY = Keys(
    read=words(
        "model_type architectures auto_map pooling matryoshka_dimensions output_hidden_states "
        # of the head of a masked language model, which SPLADE has
        "tie_word_embeddings classifier_bias classifier_activation decoder_bias"
    ),
    idle=words(
        """
        _name_or_path name_or_path _commit_hash transformers_version torch_dtype dtype
        use_cache output_attentions output_scores output_past return_dict
        return_dict_in_generate torchscript tie_encoder_decoder use_bfloat16
        initializer_range initializer_factor initializer_cutoff_factor gradient_checkpointing
        finetuning_task task_specific_params problem_type id2label label2id num_labels _num_labels
        hidden_dropout_prob attention_probs_dropout_prob hidden_dropout attention_dropout dropout
        embedding_dropout mlp_dropout classifier_dropout classifier_pooling
        pooler_type pooler_fc_size pooler_num_attention_heads
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
        sbert_ce_default_activation_function sparse_prediction sparse_pred_ignore_index xla_device
        """
    ),
    only={
        "is_decoder": (False,),
        "is_encoder_decoder": (False,),
        "add_cross_attention": (False,),
        "cross_attention_hidden_size": (),
        **dict.fromkeys(
            words("pruned_heads adapter_fusion"),
            NOTHING,
        ),
    },
    nested={
        **dict.fromkeys(words("quantization_config compression_config"), _SAVED_IN_FLOAT8),
        # The adapters library writes its tables into every model's file, empty where it has none.
        "adapters": Keys(
            only=dict.fromkeys(words("adapters config_map fusion_config_map fusions"), NOTHING)
        ),
    },
)

_ENCODER = _ANY | Keys(
    read=words(
        "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act "
        "max_position_embeddings type_vocab_size layer_norm_eps position_embedding_type"
    )
)

_TURN = Keys(
    read=words(
        "rope_type type rope_theta factor low_freq_factor high_freq_factor "
        "original_max_position_embeddings max_position_embeddings attention_factor beta_fast "
        "beta_slow mscale mscale_all_dim truncate llama_4_scaling_beta partial_rotary_factor"
    )
)
_ROPE = Keys(
    read=words("rope_theta partial_rotary_factor"),
    nested={
        name: Keys(read=_TURN.read, nested={"full_attention": _TURN, "sliding_attention": _TURN})
        for name in ("rope_parameters", "rope_scaling")
    },
)

_DECODER = (
    _ANY
    | _ROPE
    | Keys(
        read=words(
            "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads "
            "head_dim intermediate_size hidden_act max_position_embeddings rms_norm_eps "
            "attention_bias mlp_bias is_causal"
        )
    )
)
_MISTRAL = _DECODER | Keys(read=words("sliding_window"), idle=words("max_window_layers"))
_QWEN = _DECODER | Keys(
    read=words("use_sliding_window sliding_window max_window_layers layer_types")
)

_BERT = _ENCODER | Keys(only={"hidden_act": ("gelu",), "position_embedding_type": ("absolute",)})
_XLMR = _BERT | Keys(read=words("pad_token_id"))
_ROTARY = _ENCODER | _ROPE | Keys(read=words("pad_token_id"))

# By the file of local/models/ that runs the architecture, or by the model_type of those that have
# keys of their own.
_ARCHITECTURES: Mapping[str, Keys] = {
    "bert": _BERT,
    "distilbert": _BERT
    | Keys(
        idle=words("sinusoidal_pos_embds qa_dropout seq_classif_dropout tie_weights_"),
        aliases={
            "activation": "hidden_act",
            "dim": "hidden_size",
            "hidden_dim": "intermediate_size",
            "n_heads": "num_attention_heads",
            "n_layers": "num_hidden_layers",
        },
    ),
    "gemma3": _DECODER
    | Keys(
        read=words(
            "hidden_activation query_pre_attn_scalar sliding_window layer_types "
            "sliding_window_pattern rope_local_base_freq use_bidirectional_attention"
        ),
        # transformers keeps the pattern by its second name and makes nothing of it; the others
        # are a text generator's.
        idle=words("_sliding_window_pattern final_logit_softcapping cache_implementation"),
        only={"attn_logit_softcapping": ()},
    ),
    "gte": _ROTARY | Keys(only={"position_embedding_type": ("absolute",)}),
    "jina_v3": _ROTARY
    | Keys(
        read=words("adapter lora_adaptations lora_alpha lora_rank task_instructions"),
        idle=words("lora_dropout_p lora_main_params_trainable use_flash_attn use_reentrant"),
        only={
            "emb_pooler": ("mean",),
            "hidden_act": ("gelu",),
            "load_trained_adapters": (True, False),  # with adapters: checkpoint.py
            "position_embedding_type": ("rotary",),
            "truncate_dim": (),
        },
        aliases={"rotary_emb_base": "rope_theta"},
    ),
    "llama": _DECODER,
    "ministral3": _MISTRAL,
    "mistral": _MISTRAL,
    "mistral3": _ANY
    | Keys(
        read=words(
            "image_token_index image_token_id spatial_merge_size vision_feature_layer is_causal "
            "projector_hidden_act multimodal_projector_bias"
        ),
        nested={
            "text_config": _MISTRAL,
            "vision_config": _ANY
            | Keys(
                read=words(
                    "image_size patch_size hidden_size intermediate_size num_hidden_layers "
                    "num_attention_heads head_dim hidden_act num_channels rope_theta"
                ),
                idle=words("vocab_size"),  # transformers writes one for a tower, too
                nested={"rope_parameters": Keys(read=words("rope_theta rope_type"))},
            ),
        },
    ),
    "modernbert": _ENCODER
    | _ROPE
    | Keys(
        read=words(
            "pad_token_id attention_bias global_attn_every_n_layers global_rope_theta layer_types "
            "local_attention local_rope_theta mlp_bias norm_bias norm_eps"
        ),
        idle=words("reference_compile repad_logits_with_grad"),
        only={"position_embedding_type": ("absolute", "sans_pos"), "rope_scaling": ()},
        aliases={"hidden_activation": "hidden_act"},
    ),
    "mpnet": _BERT | Keys(only={"pad_token_id": (1,), "relative_attention_num_buckets": (32,)}),
    "nemotron_vl": _ANY
    | Keys(
        read=words(
            "force_image_size downsample_ratio select_layer ps_version dynamic_image_size "
            "use_thumbnail min_input_tiles max_input_tiles img_context_token_id p_max_length "
            "query_prefix passage_prefix bidirectional_attention"
        ),
        idle=words("template q_max_length hidden_size keep_aspect_ratio num_image_token"),
        nested={
            "llm_config": _DECODER,
            "vision_config": _ANY
            | Keys(
                read=words(
                    "image_size patch_size hidden_size intermediate_size num_hidden_layers "
                    "num_attention_heads hidden_act layer_norm_eps num_channels"
                ),
                idle=words("projection_dim vision_use_head projector_hidden_act use_flash_attn"),
            ),
        },
    ),
    "new": _ROTARY
    | Keys(
        idle=words("pack_qkv unpad_inputs use_memory_efficient_attention"),
        only={
            "layer_norm_type": ("layer_norm",),
            "logn_attention_clip1": (False,),
            "logn_attention_scale": (False,),
            "position_embedding_type": ("rope",),
        },
    ),
    "nomic_bert": _ROTARY
    | Keys(
        read=words(
            "head_dim mlp_fc1_bias mlp_fc2_bias qkv_proj_bias num_experts moe_top_k "
            "moe_every_n_layers"
        ),
        idle=words(
            "dense_seq_output fused_bias_fc fused_dropout_add_ln max_trained_positions moe_impl "
            "moe_resid_pdrop pad_vocab_size_multiple router_aux_loss_coef "
            "parallel_block_tied_norm reorder_and_upcast_attn summary_activation "
            "summary_first_dropout summary_proj_to_labels summary_type summary_use_proj "
            "use_flash_attn use_xentropy attn_pdrop embd_pdrop resid_pdrop"
        ),
        only={
            "activation_function": ("swiglu", "geglu", "gelu"),
            "causal": (False,),
            "expert_choice_router": (False,),
            "ffn_div": (1,),
            "moe_normalize_expert_weights": (False,),
            "num_shared_experts": (0,),
            "parallel_block": (False,),
            "prenorm": (False,),
            "rotary_emb_fraction": (1,),
            "rotary_emb_interleaved": (False,),
            "rotary_emb_scale_base": (),
            "rotary_scaling_factor": (),
            "scale_attn_by_inverse_layer_idx": (False,),
            "scale_attn_weights": (True,),
            "use_rms_norm": (False,),
        },
        aliases={
            "layer_norm_epsilon": "layer_norm_eps",
            "n_embd": "hidden_size",
            "n_head": "num_attention_heads",
            "n_inner": "intermediate_size",
            "n_layer": "num_hidden_layers",
            "n_positions": "max_position_embeddings",
            "rotary_emb_base": "rope_theta",
        },
    ),
    "nvembed": _ANY
    | Keys(
        read=words("add_eos is_mask_instruction hidden_size"),
        idle=words("add_pad_token mask_type padding_side"),
        nested={
            "text_config": _MISTRAL,
            "latent_attention_config": _ANY
            | Keys(
                read=words(
                    "num_latents_value num_cross_heads cross_dim_head hidden_dim latent_dim"
                ),
                idle=words("output_normalize"),  # vectors have unit length in any case
            ),
        },
    ),
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "static": FILES["StaticEmbedding"],
    "xlm_roberta": _XLMR,
}


def keys_of(architecture: str, model_type: str) -> Keys:
    """Return what is known of the config.json of an architecture, spelt as a type spells it."""
    return _ARCHITECTURES.get(model_type) or _ARCHITECTURES.get(architecture, _ANY)
