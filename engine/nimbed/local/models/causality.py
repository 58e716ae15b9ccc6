"""Which way a decoder's attention looks, as its config.json says; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nimbed.errors import CheckpointError

__all__ = ["decoder_of", "gemma3_is_causal", "is_causal", "mistral3_language", "refuse_causal"]

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
