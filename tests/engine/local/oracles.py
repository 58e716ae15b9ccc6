"""What other people's code says about a tiny checkpoint: transformers, and numpy where it has none.

Nothing of nimbed is used here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer

CLASSES = {
    "bert": ("BertConfig", "BertModel"),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel"),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3TextModel"),
    "llama": ("LlamaConfig", "LlamaModel"),
    "llama_bidirec": ("LlamaConfig", "LlamaModel"),
    "mistral": ("MistralConfig", "MistralModel"),
    "bidir_mistral": ("MistralConfig", "MistralModel"),
    "ministral3": ("Ministral3Config", "Ministral3Model"),
    "qwen2": ("Qwen2Config", "Qwen2Model"),
    "qwen3": ("Qwen3Config", "Qwen3Model"),
}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text("utf-8"))


def weights_of(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin so, without that beginning."""
    pickled = folder / "pytorch_model.bin"
    weights = torch.load(pickled) if pickled.exists() else load_file(folder / "model.safetensors")
    return {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}


def network(
    config: Mapping[str, Any], weights: Mapping[str, torch.Tensor], *, causal: bool = False
) -> torch.nn.Module:
    """Return transformers' model with these weights, all of them and no others."""
    config_class, model_class = (getattr(transformers, n) for n in CLASSES[config["model_type"]])
    facts = {n: v for n, v in config.items() if n not in ("model_type", "auto_map", "is_causal")}
    if config["model_type"] == "bidir_mistral":
        facts["sliding_window"] = None  # NVIDIA's bidirectional models ignore it
    settings = config_class(**facts, attn_implementation="eager")
    decoder = config["model_type"] not in ("bert", "xlm-roberta")
    if decoder and config["model_type"] != "gemma3_text":
        settings.is_causal = causal  # as an argument to from_pretrained it would be dropped
    model = model_class(settings) if decoder else model_class(settings, add_pooling_layer=False)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def oracle(folder: Path, *, causal: bool = False, prefix: str = "") -> torch.nn.Module:
    """Return transformers' model of a checkpoint."""
    return network(config_of(folder), weights_of(folder, prefix), causal=causal)


def token_ids(folder: Path, texts: Sequence[str], *, prompt: str = "") -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(prompt + text).ids for text in texts]


def states(model: torch.nn.Module, ids: Sequence[int]) -> np.ndarray:
    """Return the last layer's states of one sequence, (tokens, width)."""
    with torch.inference_mode():
        return model(torch.tensor([ids])).last_hidden_state[0].numpy()


def mean_vectors(model: torch.nn.Module, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Return unit vectors, one sequence at a time."""
    return unit(np.stack([states(model, row).mean(0) for row in rows]))


def cls_vectors(model: torch.nn.Module, rows: Sequence[Sequence[int]]) -> np.ndarray:
    return unit(np.stack([states(model, row)[0] for row in rows]))


def padded_mean_vectors(
    model: torch.nn.Module, rows: Sequence[Sequence[int]], *, side: str, pad: int
) -> np.ndarray:
    """Return unit vectors of one padded batch."""
    longest = max(map(len, rows))
    ids, mask = np.full((len(rows), longest), pad), np.zeros((len(rows), longest), np.int64)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(len(row))
        ids[number, place], mask[number, place] = row, 1
    with torch.inference_mode():
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        hidden = model(**given).last_hidden_state.numpy()
    return unit((hidden * mask[:, :, None]).sum(1) / mask.sum(1)[:, None])


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def latent_attention(
    hidden: np.ndarray, weights: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> np.ndarray:
    """Run NV-Embed's latent attention as it was trained, projections and all, in float64."""
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    heads, size = config["num_cross_heads"], config["cross_dim_head"]
    attend, mlp = "cross_attend_blocks.0", "cross_attend_blocks.1"

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    hidden = hidden.astype(np.float64)
    q = norm(hidden, f"{attend}.norm") @ w[f"{attend}.fn.to_q.weight"].T
    kv = norm(w["latents"], f"{attend}.norm_context") @ w[f"{attend}.fn.to_kv.weight"].T
    k, v = np.split(kv, 2, axis=-1)
    q, k, v = (x.reshape(len(x), heads, size).transpose(1, 0, 2) for x in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) * size**-0.5
    share = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (share / share.sum(-1, keepdims=True)) @ v
    joined = mixed.transpose(1, 0, 2).reshape(len(hidden), heads * size)
    x = joined @ w[f"{attend}.fn.to_out.weight"].T + hidden
    both = norm(x, f"{mlp}.norm") @ w[f"{mlp}.fn.net.0.weight"].T + w[f"{mlp}.fn.net.0.bias"]
    value, gate = np.split(both, 2, axis=-1)
    erf = np.vectorize(math.erf)(gate / math.sqrt(2))
    inner = value * gate * 0.5 * (1 + erf)
    return inner @ w[f"{mlp}.fn.net.2.weight"].T + w[f"{mlp}.fn.net.2.bias"] + x
