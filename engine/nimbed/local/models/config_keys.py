"""Which keys of an encoder's config.json nimbed understands.

A key is read by the network, may only say what nimbed computes anyway, changes no vector, or is
refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nimbed.errors import CheckpointError

__all__ = ["understood"]

# Of training, of heads for other tasks, of generating text, of transformers' own book-keeping.
_MOOT = """
_attn_implementation _attn_implementation_autoset _name_or_path _num_labels architectures
attention_dropout attention_probs_dropout_prob attn_implementation attn_pdrop auto_map bos_token_id
classifier_activation classifier_bias classifier_dropout classifier_pooling cls_token_id
decoder_bias deterministic_flash_attn directionality dropout dtype embd_pdrop embedding_dropout
eos_token_id finetuning_task gradient_checkpointing hidden_dropout_prob id2label
initializer_cutoff_factor initializer_range label2id max_length mlp_dropout num_labels
output_attentions output_hidden_states output_past pooler_fc_size pooler_num_attention_heads
pooler_num_fc_layers pooler_size_per_head pooler_type problem_type qa_dropout resid_pdrop
return_dict sep_token_id seq_classif_dropout sparse_pred_ignore_index sparse_prediction
tie_weights_ tie_word_embeddings tokenizer_class torch_dtype torchscript transformers_version
use_cache xla_device
"""

# What nimbed reads of every model.
_READ = """
hidden_act hidden_size intermediate_size layer_norm_eps matryoshka_dimensions
max_position_embeddings model_type num_attention_heads num_hidden_layers pad_token_id pooling
vocab_size
"""

# What other values would make of every model is not computed here.
_FIXED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "position_embedding_type": ("absolute",),
    "pruned_heads": ({},),
    "quantization_config": (),
}


@dataclass(frozen=True, slots=True)
class _Keys:
    """A family's keys beside those of every model.

    Attributes:
        read: What its network reads.
        fixed: What may only have certain values, or null.
        moot: What changes no vector of it.
        aliases: Other names of usual keys.
    """

    read: str = ""
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    moot: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)


_BERT = _Keys("type_vocab_size", {"hidden_act": ("gelu",)})
_ROTARY = "rope_parameters rope_scaling rope_theta type_vocab_size"

_FAMILIES = {
    "bert": _BERT,
    "camembert": _BERT,
    "distilbert": _Keys(
        fixed={"hidden_act": ("gelu",)},
        moot="sinusoidal_pos_embds",  # the table is in the weights either way
        aliases={
            "activation": "hidden_act",
            "dim": "hidden_size",
            "hidden_dim": "intermediate_size",
            "n_heads": "num_attention_heads",
            "n_layers": "num_hidden_layers",
        },
    ),
    "gte": _Keys(_ROTARY),
    "jina_embeddings_v3": _Keys(
        _ROTARY, {"hidden_act": ("gelu",), "position_embedding_type": ("rotary",)}
    ),
    "modernbert": _Keys(
        "attention_bias global_attn_every_n_layers global_rope_theta layer_types local_attention "
        "local_rope_theta mlp_bias norm_bias norm_eps rope_parameters",
        {"position_embedding_type": ("absolute", "sans_pos"), "rope_scaling": ()},
        "reference_compile repad_logits_with_grad",
        {"hidden_activation": "hidden_act"},
    ),
    "mpnet": _Keys(
        fixed={
            "hidden_act": ("gelu",),
            "pad_token_id": (1,),
            "relative_attention_num_buckets": (32,),
        }
    ),
    "new": _Keys(
        _ROTARY,
        {
            "layer_norm_type": ("layer_norm",),
            "logn_attention_clip1": (False,),
            "logn_attention_scale": (False,),
            "position_embedding_type": ("rope",),
        },
        "pack_qkv unpad_inputs use_memory_efficient_attention",
    ),
    "nomic_bert": _Keys(
        "head_dim mlp_fc1_bias mlp_fc2_bias qkv_proj_bias rope_parameters rope_theta "
        "type_vocab_size",
        {
            "activation_function": ("swiglu", "geglu"),
            "causal": (False,),
            "num_experts": (0, 1),
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
        "dense_seq_output expert_choice_router ffn_div fused_bias_fc fused_dropout_add_ln "
        "max_trained_positions moe_every_n_layers moe_impl moe_normalize_expert_weights "
        "moe_resid_pdrop moe_top_k num_shared_experts pad_vocab_size_multiple "
        "parallel_block_tied_norm reorder_and_upcast_attn summary_activation "
        "summary_first_dropout summary_proj_to_labels summary_type summary_use_proj "
        "use_flash_attn use_xentropy",
        {
            "layer_norm_epsilon": "layer_norm_eps",
            "n_embd": "hidden_size",
            "n_head": "num_attention_heads",
            "n_inner": "intermediate_size",
            "n_layer": "num_hidden_layers",
            "n_positions": "max_position_embeddings",
            "rotary_emb_base": "rope_theta",
        },
    ),
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}


def understood(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Return an encoder's configuration under the usual names; any other as it is.

    Args:
        config: What a config.json holds.
        where: That file, for messages.

    Raises:
        CheckpointError: If it has a key that nimbed does not understand, a value that nimbed does
            not compute, or two of one meaning; the message names the key.
    """
    family = _FAMILIES.get(str(config.get("model_type")))
    if family is None:
        return dict(config)
    usual: dict[str, Any] = {}
    said: dict[str, str] = {}  # the file's own name of each
    for key, value in config.items():
        name = family.aliases.get(key, key)
        before = usual.get(name)
        if name == "max_position_embeddings" and isinstance(before, int) and value:
            value = max(before, value)  # rotations do not end; the larger is what texts may have
        elif before is not None and value is not None and before != value:
            raise CheckpointError(f"{where} gives {said[name]} {before!r}, but {key} {value!r}")
        usual[name], said[name] = before if value is None else value, key
    fixed = {**_FIXED, **family.fixed}
    known = " ".join((_READ, _MOOT, family.read, family.moot)).split()
    for key, value in usual.items():
        if key in fixed:
            if value is not None and value not in fixed[key]:
                choices = " or ".join([*map(repr, fixed[key]), "null"])
                raise CheckpointError(
                    f"{where} gives {said[key]} {value!r}; nimbed knows only {choices}"
                )
        elif key not in known:
            raise CheckpointError(
                f"{where} has the key {key!r} ({str(value)[:60]!r}), which nimbed does not "
                f"understand in a {config['model_type']}; without it the vectors might be others"
            )
    return usual
