"""Numbers and choices of a config.json, checked as they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nimbed.errors import CheckpointError

__all__ = ["first_position", "heads_fit", "only", "real", "understood", "whole"]

# What a config.json says of training, of text generation, of heads and labels, of files and
# versions: nothing there moves a state of the last layer. Older transformers write all of it.
_IRRELEVANT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path
    _pre_quantization_dtype add_cross_attention architectures attention_dropout attn_implementation
    auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    classifier_dropout cross_attention_hidden_size decoder_start_token_id diversity_penalty
    do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    id2label initializer_range is_encoder_decoder label2id length_penalty matryoshka_dimensions
    max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id pooling
    prefix pretraining_tp problem_type pruned_heads quantization_config remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p
    unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict
    """.split()  # noqa: SIM905
)


def whole(config: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    """Return a positive integer.

    Raises:
        CheckpointError: If it is absent and has no default, or is something else.
    """
    value = config.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"config.json gives {name} {value!r}, expected a positive integer")
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
        or not math.isfinite(value)
        or value <= 0
    ):
        raise CheckpointError(f"config.json gives {name} {value!r}, expected a positive number")
    return float(value)


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


def understood(config: Mapping[str, Any], *names: str, where: str = "config.json") -> None:
    """Refuse a key that might change a vector in a way that nobody here knows of.

    Args:
        config: config.json, or the part of it that describes a network.
        names: The keys that the network follows. Those of training, generation and files are known
            to be irrelevant; a key that says null says nothing.
        where: What to call it in the message.

    Raises:
        CheckpointError: If there is one; the message names it.
    """
    for name, value in config.items():
        if value is not None and name not in names and name not in _IRRELEVANT:
            raise CheckpointError(
                f"{where} has the key {name!r} ({str(value)[:60]!r}), which nimbed does not "
                f"understand; without it the vectors might be others. If it changes none, take it "
                f"out"
            )


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


def first_position(config: Mapping[str, Any]) -> int:
    """Return the row of an XLM-R's position table that the first token takes.

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
