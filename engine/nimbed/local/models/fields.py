"""Numbers and choices of a config.json, checked as they are read, and other names of tensors.

Which way a decoder's attention looks is one of the choices. Needs no torch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nimbed.errors import CheckpointError

__all__ = [
    "DISTILBERT_NAMES",
    "FLASH_NAMES",
    "FULL",
    "GTE_NAMES",
    "MPNET_BUCKETS",
    "MPNET_NAMES",
    "NOMIC_NAMES",
    "SLIDING",
    "decoder_of",
    "first_position",
    "gate_activation",
    "gemma3_is_causal",
    "gte_settings",
    "heads_fit",
    "is_causal",
    "language_of",
    "longest_texts",
    "mistral3_language",
    "modernbert_layers",
    "modernbert_rotation",
    "mpnet_buckets",
    "nomic_settings",
    "only",
    "real",
    "refuse_causal",
    "rope_parameters",
    "scaled_rotation",
    "whole",
]

# A size beyond is nobody's, and tables of it would be made before the weights contradict it.
_MOST = 2**24

#: What DistilBERT calls the tensors that BERT has.
DISTILBERT_NAMES = {
    "transformer.layer.": "encoder.layer.",
    "attention.q_lin.": "attention.self.query.",
    "attention.k_lin.": "attention.self.key.",
    "attention.v_lin.": "attention.self.value.",
    "attention.out_lin.": "attention.output.dense.",
    "sa_layer_norm.": "attention.output.LayerNorm.",
    "ffn.lin1.": "intermediate.dense.",
    "ffn.lin2.": "output.dense.",
    "output_layer_norm.": "output.LayerNorm.",
}

#: What encoders after FlashAttention's own code call theirs, in place of transformers' names.
FLASH_NAMES = {
    "encoder.layers.": "layers.",
    "emb_ln.": "embeddings.LayerNorm.",
    ".attn.Wqkv.": ".self_attn.qkv_proj.",
    ".attn.out_proj.": ".self_attn.o_proj.",
    ".mixer.Wqkv.": ".self_attn.qkv_proj.",
    ".mixer.out_proj.": ".self_attn.o_proj.",
    ".norm1.": ".post_attention_layernorm.",
    ".norm2.": ".post_mlp_layernorm.",
}

#: And NomicBERT.
NOMIC_NAMES = {
    **FLASH_NAMES,
    "mlp.fc11.": "mlp.up_proj.",
    "mlp.fc12.": "mlp.gate_proj.",
    "mlp.fc2.": "mlp.down_proj.",
}

#: What Alibaba's encoder calls the tensors that transformers names otherwise.
GTE_NAMES = {
    "encoder.layer.": "layers.",
    ".attention.": ".self_attn.",
    "attn_ln.": "post_attention_layernorm.",
    "mlp_ln.": "post_mlp_layernorm.",
}

#: What MPNet calls the tensors that BERT has.
MPNET_NAMES = {
    "attention.attn.q.": "attention.self.query.",
    "attention.attn.k.": "attention.self.key.",
    "attention.attn.v.": "attention.self.value.",
    "attention.attn.o.": "attention.output.dense.",
    "attention.LayerNorm.": "attention.output.LayerNorm.",
}


#: What a layer of ModernBERT sees: the whole text, or what is near each token.
FULL, SLIDING = "full_attention", "sliding_attention"

# transformers has both numbers in its code and ignores config.json's.
MPNET_BUCKETS, _FURTHEST = 32, 128


def whole(config: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    """Return a positive integer.

    Raises:
        CheckpointError: If it is absent and has no default, or is something else.
    """
    value = config.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST:
        raise CheckpointError(
            f"config.json gives {name} {_short(value)}, expected a positive integer of at most "
            f"{_MOST}"
        )
    return value


def real(config: Mapping[str, Any], name: str, *, default: float | None = None) -> float:
    """Return a positive finite number.

    Raises:
        CheckpointError: If it is absent and has no default, or is something else.
    """
    value = config.get(name)
    if value is None:
        value = default
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not 0 < value <= sys.float_info.max
    ):
        raise CheckpointError(
            f"config.json gives {name} {_short(value)}, expected a positive number"
        )
    return float(value)


def _short(value: object) -> str:
    return repr(value)[:80]


def only(config: Mapping[str, Any], **values: object) -> None:
    """Refuse a configuration that asks for something other than the values given.

    A name that the configuration leaves out is taken to have the value given.

    Raises:
        CheckpointError: If a value differs.
    """
    for name, value in values.items():
        asked = config.get(name, value)
        if asked != value:
            raise CheckpointError(
                f"config.json asks for {name} {asked!r}; this model has {value!r}"
            )


def gate_activation(config: Mapping[str, Any]) -> Literal["gelu", "silu"]:
    """Return what a gated MLP activates its gate with; GELU if the configuration does not say.

    Raises:
        CheckpointError: If it is something else.
    """
    asked = config.get("hidden_act", "gelu")
    if asked not in ("gelu", "silu"):
        raise CheckpointError(
            f"config.json asks for hidden_act {asked!r}; nimbed's gates have gelu and silu"
        )
    return "silu" if asked == "silu" else "gelu"


def heads_fit(width: int, heads: int) -> int:
    """Return width / heads.

    Raises:
        CheckpointError: If the division leaves a remainder.
    """
    if width % heads:
        raise CheckpointError(
            f"config.json divides {width} dimensions among {heads} heads, which leaves a remainder"
        )
    return width // heads


def language_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that describes the network which reads texts.

    Raises:
        CheckpointError: If it is no table of values.
    """
    language = config.get("text_config", config.get("llm_config", config))
    if not isinstance(language, dict):
        raise CheckpointError(f"config.json gives text_config {language!r}")
    return language


def longest_texts(config: Mapping[str, Any], asked: int | None, *, offset: bool) -> tuple[int, int]:
    """Return the tokens of the longest text, and how many the network has positions for.

    Args:
        config: Of the network.
        asked: The longest text by other files; None if they do not say.
        offset: Whether positions begin behind the padding id.
    """
    positions = whole(language_of(config), "max_position_embeddings")
    if offset:
        positions -= first_position(config)
    return min(asked or positions, positions), positions


def first_position(config: Mapping[str, Any]) -> int:
    """Return the row of the position table that the first token of an XLM-R or MPNet takes.

    fairseq numbers positions as it numbers tokens, from behind the padding id.

    Raises:
        CheckpointError: If that id is no number.
    """
    padding = config.get("pad_token_id")
    if padding is None:
        return 2
    if not isinstance(padding, int) or padding < 0:
        raise CheckpointError(f"config.json gives pad_token_id {padding!r}, expected a token id")
    return padding + 1


def mpnet_buckets(longest: int) -> NDArray[np.int64]:
    """Return the bucket of every distance in MPNet: T5's, exact nearby, then logarithmic.

    In transformers' order of operations, in float32, so that none lies on the other side of a
    border.

    Args:
        longest: Tokens of the longest text.

    Returns:
        Of a key from longest - 1 before its query to as many behind it.
    """
    behind = np.arange(1 - longest, longest)
    half, exact = MPNET_BUCKETS // 2, MPNET_BUCKETS // 4
    distance = np.abs(behind)
    with np.errstate(divide="ignore"):
        logarithm = np.log(distance.astype(np.float32) / np.float32(exact))
    further = logarithm / np.float32(math.log(_FURTHEST / exact)) * np.float32(half - exact)
    far = np.minimum(exact + np.maximum(further, 0).astype(np.int64), half - 1)
    buckets: NDArray[np.int64] = np.where(distance < exact, distance, far) + (behind > 0) * half
    return buckets


def gte_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a GTE's configuration with the base of the rotation, where it says none."""
    return {"rope_theta": 160000.0 if config["model_type"] == "gte" else 10000.0, **config}


def nomic_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a NomicBERT's configuration with what its publisher's code takes for granted.

    Raises:
        CheckpointError: If it asks for heads that do not make up the width.
    """
    own = {"swiglu": "silu", "geglu": "gelu"}.get(config.get("activation_function", ""))
    only(
        config,
        head_dim=heads_fit(whole(config, "hidden_size"), whole(config, "num_attention_heads")),
    )
    return {
        **{"rope_theta": 1000.0, "type_vocab_size": 2},
        **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), False),
        **config,
        "hidden_act": own or config.get("hidden_act", "silu"),
    }


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration's rotary parameters in one flat form, whichever way it gives them.

    Raises:
        CheckpointError: If they are malformed, differ by layer, or rotate part of a head only.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise CheckpointError(f"config.json gives rotary parameters {given!r}, expected one table")
    asked: dict[str, Any] = {
        "rope_theta": config.get("rope_theta"),
        "original_max_position_embeddings": config.get("max_position_embeddings"),
        "partial_rotary_factor": config.get("partial_rotary_factor"),
        **{name: value for name, value in given.items() if value is not None},
    }
    asked["rope_type"] = given.get("rope_type") or given.get("type") or "default"
    if asked["partial_rotary_factor"] not in (None, 1):
        raise CheckpointError("config.json rotates only part of each head; nimbed rotates it whole")
    if asked.get("mixed_b") is not None:
        raise CheckpointError("config.json mixes its rotary scaling by mixed_b; nimbed does not")
    return asked


def scaled_rotation(config: Mapping[str, Any]) -> str | None:
    """Return how rotations are scaled, if otherwise than by NTK's rule.

    One table, or one for each kind of layer, is looked at; whoever reads the model refuses what
    cannot be understood.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    tables = given.values() if isinstance(given, dict) else []
    kinds = [
        each.get("rope_type") or each.get("type") or "default"
        for each in (given, *tables)
        if isinstance(each, dict)
    ]
    return next((str(kind) for kind in kinds if kind not in ("default", "ntk")), None)


def modernbert_layers(config: Mapping[str, Any]) -> list[str]:
    """Return what each layer of a ModernBERT sees; older files say how often it is everything.

    Raises:
        CheckpointError: If they are not known, or as many as there are layers.
    """
    count = whole(config, "num_hidden_layers")
    given = config.get("layer_types")
    if given is None:
        every = whole(config, "global_attn_every_n_layers", default=3)
        return [SLIDING if number % every else FULL for number in range(count)]
    if not isinstance(given, list) or len(given) != count or not {FULL, SLIDING} >= set(given):
        raise CheckpointError(
            f"config.json gives layer_types {given!r}, expected {FULL} or {SLIDING} for each of "
            f"{count} layers"
        )
    return given


def modernbert_rotation(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the rotation of a ModernBERT's kind of layer, as a configuration of its own.

    Raises:
        CheckpointError: If they are no table a kind.
    """
    theta = config.get("global_rope_theta", 160000.0)
    if kind == SLIDING and config.get("local_rope_theta", 10000.0) is not None:
        theta = config.get("local_rope_theta", 10000.0)
    given = config.get("rope_parameters")
    own = {} if given is None else given.get(kind) if isinstance(given, dict) else None
    if not isinstance(own, dict):
        raise CheckpointError(
            f"config.json gives rope_parameters {given!r}, expected a table for {FULL} and one "
            f"for {SLIDING}"
        )
    return {
        "max_position_embeddings": config.get("max_position_embeddings"),
        "rope_parameters": {"rope_theta": theta, **own},
    }


# Types whose very name says that their attention looks both ways.
_BIDIRECTIONAL = ("llama_bidirec", "bidir_mistral", "ministral3_bidirec")
# What a Mistral 3 may have behind its tower.
_LANGUAGES = ("ministral3", "ministral3_bidirec", "mistral")


def decoder_of(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Return the part of a config.json that describes a decoder, as the functions below read it."""
    if architecture == "mistral3":
        return mistral3_language(config)
    if architecture == "gemma3":
        return {**config, "is_causal": gemma3_is_causal(config)}
    return config


def gemma3_is_causal(config: Mapping[str, Any]) -> bool:
    """Whether a Gemma 3's tokens see their past alone; its configuration has its own word for it.

    Raises:
        CheckpointError: If the word that other decoders have for it stands there, too; transformers
            would make another window of the two.
    """
    if config.get("is_causal") is not None:
        raise CheckpointError(
            f"config.json gives is_causal {config['is_causal']!r}; a gemma3 says by "
            f"use_bidirectional_attention alone which way it looks: take is_causal out"
        )
    both = config.get("use_bidirectional_attention") or False
    if not isinstance(both, bool):
        raise CheckpointError(
            f"config.json gives use_bidirectional_attention {both!r}, expected true or false"
        )
    return not both


def is_causal(config: dict[str, Any]) -> bool:
    """Whether a decoder's tokens see their past alone, as its configuration says.

    Raises:
        CheckpointError: If code beside the weights, which nimbed does not run, may say otherwise:
            gte-Qwen2's makes the attention of a stock Qwen2 look both ways.
    """
    causal = config.get("is_causal")
    if causal is None and _names_both_directions(config):
        return False
    remote = config.get("auto_map")
    if causal is None and isinstance(remote, dict) and "AutoModel" in remote:
        raise CheckpointError(
            f"config.json leaves to code of its own ({remote['AutoModel']!r}), which nimbed does "
            f'not run, whether a token sees what stands behind it; put "is_causal": true or '
            f"false into it, as the model's card says (false for gte-Qwen2)"
        )
    if causal not in (None, True, False):
        raise CheckpointError(f"config.json gives is_causal {causal!r}, expected true or false")
    return causal is not False


def refuse_causal(config: dict[str, Any]) -> None:
    """Refuse a network whose tokens see only their past, or that may be one.

    A decoder's weights run through bidirectional attention without a fault and give vectors that
    mean nothing, so something in the configuration has to say that it was trained both ways.

    Raises:
        CheckpointError: If nothing says so.
    """
    causal = config.get("is_causal")
    if causal is False or (causal is None and _names_both_directions(config)):
        return
    gemma = config.get("model_type") == "gemma3_text"
    says = '"use_bidirectional_attention": true' if gemma else '"is_causal": false'
    raise CheckpointError(
        f"config.json describes a causal {config.get('model_type')}, a text generator, and no file "
        f"says how its states are pooled. If its attention looks both ways, put "
        f"{says} into its config.json; if it embeds by its last token, say so in "
        f"modules.json and 1_Pooling/config.json, as sentence-transformers writes them"
    )


def _names_both_directions(config: dict[str, Any]) -> bool:
    return config.get("model_type") in _BIDIRECTIONAL or any(
        "bidirec" in str(name).lower() for name in config.get("architectures") or ()
    )


def mistral3_language(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config.json that describes the language model.

    Raises:
        CheckpointError: If it is of another kind, or contradicts the whole about which
            way attention looks.
    """
    language: dict[str, Any] = config["text_config"]
    kind = language.get("model_type")
    if kind not in _LANGUAGES:
        raise CheckpointError(
            f"config.json has a text_config of model_type {kind!r}; nimbed reads "
            f"{', '.join(_LANGUAGES)} there"
        )
    outer, inner = config.get("is_causal"), language.get("is_causal")
    if outer is not None and inner is not None and outer != inner:
        raise CheckpointError(
            f"config.json gives is_causal {outer!r}, and its text_config {inner!r}; leave one"
        )
    if inner is None and (outer is not None or config.get("model_type") == "mistral3_bidirec"):
        return {**language, "is_causal": outer or False}
    return language
