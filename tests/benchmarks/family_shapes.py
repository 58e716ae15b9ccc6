"""The real shapes of the model families, and checkpoints of random weights in them.

Speed does not depend on the weights, so they are random, and vocabularies are MiniLM's, whose
tokenizer everyone uses.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from latent_attention import LATENT, LatentAttention
from safetensors.torch import save_file

from nimbed.local.hub import locate

VOCABULARY = 30522
LLAMA = {
    "model_type": "llama",
    "is_causal": False,
    "vocab_size": VOCABULARY,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
MISTRAL = {
    **LLAMA,
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 2,
    "head_dim": 128,
    "sliding_window": None,
}
QWEN3 = {  # Qwen3-Embedding-0.6B
    **LLAMA,
    "model_type": "qwen3",
    "is_causal": True,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
}
GEMMA3 = {  # EmbeddingGemma-300m, without its two dense modules
    "model_type": "gemma3_text",
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 24,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "max_position_embeddings": 2048,
    "use_bidirectional_attention": True,
    "pad_token_id": 0,
}
BERT = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
MINILM = {
    **BERT,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
}
MPNET = {
    "model_type": "mpnet",
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 514,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "relative_attention_num_buckets": 32,
}
MODERNBERT = {
    "model_type": "modernbert",
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "max_position_embeddings": 8192,
    "local_attention": 128,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Shape:
    """What is measured: a network, how many texts of which length, in which dtypes.

    Attributes:
        config: Of the network.
        texts: How many a round.
        join: How many passages make a text.
        dtypes: Of both sides; the first is the file's.
        batches: Sizes that the competitor may choose its best from.
        latent: Whether NV-Embed's latent attention stands behind it.
        pooling: ``mean`` or ``lasttoken``.
    """

    config: dict[str, Any]
    texts: int
    join: int
    dtypes: tuple[str, ...]
    batches: tuple[int, ...]
    latent: bool = False
    pooling: str = "mean"


ON_CPU = {
    "e5-large": Shape(BERT, 16, 1, ("float32", "bfloat16"), (1, 2, 4)),
    "llama-1b": Shape(LLAMA, 8, 1, ("bfloat16",), (1, 2, 4, 8)),
    "qwen3-0.6b": Shape(QWEN3, 8, 1, ("float32", "bfloat16"), (1, 2, 4), pooling="lasttoken"),
    "embedding-gemma": Shape(GEMMA3, 16, 1, ("float32", "bfloat16"), (1, 2, 4)),
    "mpnet-base": Shape(MPNET, 16, 1, ("float32", "bfloat16"), (1, 2, 4)),
    "modernbert-base": Shape(MODERNBERT, 16, 1, ("float32", "bfloat16"), (1, 2, 4)),
    "modernbert-long": Shape(MODERNBERT, 4, 12, ("float32", "bfloat16"), (1, 2)),
    "nvembed": Shape(MISTRAL, 8, 1, ("bfloat16",), (1, 2, 4, 8), latent=True),
    # Pages: an image of a page costs 1800 tokens, as much as a dozen passages.
    "vl": Shape({**LLAMA, "num_hidden_layers": 4}, 4, 10, ("bfloat16",), (1, 2, 4)),
}
ON_CUDA = {
    "minilm": Shape(MINILM, 65536, 1, ("bfloat16",), (128, 512)),
    "e5-large": Shape(BERT, 16384, 1, ("bfloat16",), (32, 128)),
    "llama-1b": Shape(LLAMA, 4096, 1, ("bfloat16", "float8"), (32, 128)),
    "nvembed": replace(
        ON_CPU["nvembed"],
        config={**MISTRAL, "num_hidden_layers": 32},
        texts=1024,
        dtypes=("bfloat16", "float8"),
        batches=(8,),
    ),
    **{
        name: replace(ON_CPU[name], texts=texts, dtypes=("bfloat16",), batches=(32, 128))
        for name, texts in (
            ("mpnet-base", 16384),
            ("modernbert-base", 16384),
            ("embedding-gemma", 8192),
            ("qwen3-0.6b", 8192),
        )
    },
}


def weights(shape: Shape, dtype: torch.dtype, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Return random weights in a shape, the same ones whenever they are asked for on a device."""
    config = transformers.AutoConfig.for_model(**shape.config)
    with torch.device("meta"):
        tensors = dict(transformers.AutoModel.from_config(config).state_dict())
        if shape.latent:
            latent = LatentAttention(shape.config["hidden_size"]).state_dict()
            tensors = {f"embedding_model.{n}": t for n, t in tensors.items()}
            tensors |= {f"latent_attention_model.{n}": t for n, t in latent.items()}
    generator = torch.Generator(device).manual_seed(0)
    made = {}
    for name, tensor in tensors.items():
        # On a GPU in the narrow type at once; it has few others in a 7B model's memory.
        made[name] = torch.empty(tensor.shape, dtype=dtype, device=device).normal_(
            std=0.02, generator=generator
        )
        if "norm" in name.lower() and name.endswith("weight"):
            made[name] += 1
    return made


def write(folder: Path, shape: Shape, *, tokenizer: Path | None = None) -> None:
    """Write a checkpoint of random weights in the first dtype that is measured."""
    describe(folder, shape, tokenizer=tokenizer)
    save_file(
        weights(shape, getattr(torch, shape.dtypes[0])),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def describe(folder: Path, shape: Shape, *, tokenizer: Path | None = None) -> None:
    """Write all files of a checkpoint but its weights.

    Args:
        folder: Where they go.
        shape: What they describe.
        tokenizer: A tokenizer.json of MiniLM's; that of the installed package if None.
    """
    facts: dict[str, Any] = shape.config
    if shape.latent:
        facts = {
            "model_type": "nvembed",
            "text_config": {**shape.config, "model_type": "bidir_mistral"},
            "latent_attention_config": {**LATENT, "latent_dim": shape.config["hidden_size"]},
            "add_eos": False,  # the others see the same tokens
        }
    (folder / "config.json").write_text(json.dumps(facts), "utf-8")
    if shape.pooling != "mean":
        (folder / "1_Pooling").mkdir()
        pooling = json.dumps({"pooling_mode": shape.pooling})
        (folder / "1_Pooling" / "config.json").write_text(pooling, "utf-8")
    shutil.copy(tokenizer or locate(None).folder / "tokenizer.json", folder / "tokenizer.json")
    # It is MiniLM's, whatever tokenizer the network's family has.
    as_it_is = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "tokenizer_config.json").write_text(as_it_is, "utf-8")


def operations(shape: Shape) -> float:
    """Return multiply-adds times two that a token needs, attention's own products left out."""
    config = transformers.AutoConfig.for_model(**shape.config)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    weights = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n)
    if shape.latent:
        width = shape.config["hidden_size"]
        folded = 2 * width * LATENT["num_cross_heads"] * LATENT["num_latents_value"]
        weights += folded + 12 * width**2
    return 2.0 * weights
