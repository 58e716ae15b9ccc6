"""Tiny random decoders, laid out on disk as the real ones are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.engine.local.checkpoints import (
    HEADS,
    INNER,
    LAYERS,
    WIDTH,
    random_weights,
    sentence_transformers_files,
    write,
    write_json,
)
from tests.engine.local.tiny_tokenizers import llama3_tokenizer, mistral_tokenizer, qwen_tokenizer
from tokenizers import Tokenizer, processors

__all__ = [
    "decoder_config",
    "decoder_shapes",
    "tiny_causal",
    "tiny_gemma",
    "tiny_llama",
    "tiny_ministral",
    "tiny_mistral",
    "tiny_nvembed",
    "tiny_qwen3",
]

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Far below the real 8192, so that short inputs already feel the scaling.
    "original_max_position_embeddings": 32,
}


def tiny_llama(
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    prefix: str = "",
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write a ``llama_bidirec`` checkpoint with remote code beside it; returns the folder.

    Args:
        folder: Made if it does not exist.
        tokenizer: Llama-3's kind if None.
        prefix: Put before every tensor's name, as some exporters do.
        seed: Of the weights.
        **changes: To config.json; None takes an entry out.
    """
    tokenizer = tokenizer or llama3_tokenizer()
    config = {
        "model_type": "llama_bidirec",
        "architectures": ["LlamaBidirectionalModel"],
        "auto_map": {
            "AutoConfig": "remote_code.LlamaBidirectionalConfig",
            "AutoModel": "remote_code.LlamaBidirectionalModel",
        },
        "pooling": "avg",
        **decoder_config(tokenizer),
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3_ROPE,
        "max_position_embeddings": 1024,
        **changes,
    }
    config = {name: value for name, value in config.items() if value is not None}
    weights = random_weights(decoder_shapes(config), seed=seed)
    write(folder, config, {prefix + name: value for name, value in weights.items()}, tokenizer)
    (folder / "remote_code.py").write_text("raise SystemExit('remote code ran')", "utf-8")
    return folder


def tiny_mistral(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a ``bidir_mistral`` checkpoint without rope scaling; returns the folder."""
    tokenizer = mistral_tokenizer()
    config = {
        "model_type": "bidir_mistral",
        "architectures": ["MistralBiModel"],
        **decoder_config(tokenizer),
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "sliding_window": 4,  # ignored by NVIDIA's models; one that obeys would show it
        **changes,
    }
    write(folder, config, random_weights(decoder_shapes(config), seed=seed), tokenizer)
    return folder


def tiny_qwen3(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a ``qwen3`` checkpoint that sentence-transformers can load too (Qwen3-Embedding)."""
    return tiny_causal(folder, "qwen3", seed=seed, **{"rope_theta": 1000000.0, **changes})


def tiny_causal(
    folder: Path, kind: str, *, pooling: str = "lasttoken", seed: int = 0, **changes: Any
) -> Path:
    """Write a stock decoder that embeds by its last token, the end of the text.

    Args:
        folder: Made if it does not exist.
        kind: ``llama``, ``mistral``, ``qwen2`` or ``qwen3``: its model_type.
        pooling: In 1_Pooling/config.json.
        seed: Of the weights.
        **changes: To config.json.
    """
    tokenizer = qwen_tokenizer() if kind == "qwen2" else llama3_tokenizer()
    end = tokenizer.token_to_id("<|end_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end_of_text|>", special_tokens=[("<|end_of_text|>", end)]
    )
    named = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    config = {
        "model_type": kind,
        "architectures": [f"{named}ForCausalLM"],
        **decoder_config(tokenizer),
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        **({"use_sliding_window": False, "attention_bias": False} if kind == "qwen3" else {}),
        "tie_word_embeddings": True,
        **changes,
    }
    if kind == "mistral":
        config = {"sliding_window": 5, **config}  # texts are longer
    if kind == "qwen2":
        config = {
            "use_sliding_window": False,
            "sliding_window": 5,
            "max_window_layers": 1,
            **config,
        }
    shapes = decoder_shapes(config)
    for number in range(config["num_hidden_layers"]):
        own = f"layers.{number}.self_attn"
        if kind == "qwen3":
            shapes |= {f"{own}.{x}_norm.weight": (config["head_dim"],) for x in "qk"}
        if kind == "qwen2":
            shapes |= {f"{own}.{x}_proj.bias": shapes[f"{own}.{x}_proj.weight"][:1] for x in "qkv"}
    write(folder, config, random_weights(shapes, seed=seed), tokenizer)
    special = {f"{use}_token": "<|end_of_text|>" for use in ("eos", "pad", "unk")}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left", **special},
    )
    prompts = {"query": "Instruct: find it\nQuery:", "document": ""}
    sentence_transformers_files(folder, pooling=pooling, prompts=prompts, longest=200)
    return folder


def tiny_gemma(folder: Path, *, dense: bool = True, seed: int = 0, **changes: Any) -> Path:
    """Write a ``gemma3_text`` checkpoint as EmbeddingGemma's, its two dense modules included.

    Args:
        folder: Made if it does not exist.
        dense: Whether the dense modules are there.
        seed: Of the weights.
        **changes: To config.json; None takes an entry out.
    """
    tokenizer = llama3_tokenizer(merged=True)
    sizes = decoder_config(tokenizer)
    del sizes["hidden_act"]
    config = {
        **{"model_type": "gemma3_text", "architectures": ["Gemma3TextModel"], **sizes},
        **{"num_hidden_layers": 3, "hidden_activation": "gelu_pytorch_tanh"},
        **{"query_pre_attn_scalar": 5, "use_bidirectional_attention": True},
        # With masks, torch's attention to heads of 8 depends on where its buffer lies.
        "head_dim": 16,
        # A token sees three on either side; texts are longer.
        **{"sliding_window": 6, "sliding_window_pattern": 2, "max_position_embeddings": 256},
        **{"rope_theta": 1000000.0, "rope_local_base_freq": 50.0},
        **{"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        **{"attn_logit_softcapping": None, "final_logit_softcapping": None},
        **changes,
    }
    config = {n: v for n, v in config.items() if v is not None or n.endswith("softcapping")}
    shapes = decoder_shapes(config)
    for number in range(config["num_hidden_layers"]):
        at = f"layers.{number}"
        shapes |= {f"{at}.self_attn.{x}_norm.weight": (config["head_dim"],) for x in "qk"}
        shapes |= {f"{at}.{x}_feedforward_layernorm.weight": (WIDTH,) for x in ("pre", "post")}
    weights = random_weights(shapes, seed=seed)
    for name, weight in weights.items():
        if "norm" in name:
            weight -= 1  # 1 is added
    write(folder, config, weights, tokenizer)
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|end_of_text|>", **special},
    )
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    extra = {"2_Dense": (WIDTH, 48), "3_Dense": (48, WIDTH)} if dense else {}
    sentence_transformers_files(folder, pooling="mean", prompts=prompts, longest=200, dense=extra)
    return folder


def tiny_ministral(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a bidirectional ``ministral3`` checkpoint (Nemotron-3-Embed); returns the folder."""
    tokenizer = mistral_tokenizer()
    config = {
        "model_type": "ministral3",
        "architectures": ["Ministral3Model"],
        "is_causal": False,
        **decoder_config(tokenizer),
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 16.0,
            # Short, so that the queries' growth shows within a sentence.
            "original_max_position_embeddings": 8,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.5,
        },
        **changes,
    }
    write(folder, config, random_weights(decoder_shapes(config), seed=seed), tokenizer)
    return folder


def tiny_nvembed(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write an NV-Embed checkpoint with remote code beside it; returns the folder."""
    tokenizer = mistral_tokenizer()
    language = {
        "model_type": "bidir_mistral",
        **decoder_config(tokenizer),
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "sliding_window": 4,  # NV-Embed ignores it, and a model that does not would show it
    }
    latent = {
        "model_type": "latent_attention",
        "num_latents_value": 16,
        "num_cross_heads": 2,
        "cross_dim_head": 16,
        "hidden_dim": WIDTH,
        "latent_dim": WIDTH,
        "output_normalize": True,
    }
    config = {
        "model_type": "nvembed",
        "architectures": ["NVEmbedModel"],
        "auto_map": {"AutoModel": "remote_code.NVEmbedModel"},
        "add_eos": True,
        "add_pad_token": True,
        "is_mask_instruction": True,
        "mask_type": "b",
        "padding_side": "right",
        "hidden_size": WIDTH,
        "text_config": language,
        "latent_attention_config": latent,
        **changes,
    }
    shapes = {f"embedding_model.{n}": s for n, s in decoder_shapes(language).items()}
    shapes |= {f"latent_attention_model.{n}": s for n, s in latent_shapes(latent).items()}
    write(folder, config, random_weights(shapes, seed=seed), tokenizer)
    (folder / "remote_code.py").write_text("raise SystemExit('remote code ran')", "utf-8")
    return folder


def latent_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of NV-Embed's latent attention."""
    width, latent = config["hidden_dim"], config["latent_dim"]
    inner = config["num_cross_heads"] * config["cross_dim_head"]
    attend, mlp = "cross_attend_blocks.0", "cross_attend_blocks.1"
    return {
        "latents": (config["num_latents_value"], latent),
        f"{attend}.norm.weight": (width,),
        f"{attend}.norm.bias": (width,),
        f"{attend}.norm_context.weight": (latent,),
        f"{attend}.norm_context.bias": (latent,),
        f"{attend}.fn.to_q.weight": (inner, width),
        f"{attend}.fn.to_kv.weight": (2 * inner, latent),
        f"{attend}.fn.to_out.weight": (width, inner),
        f"{mlp}.norm.weight": (width,),
        f"{mlp}.norm.bias": (width,),
        f"{mlp}.fn.net.0.weight": (8 * width, width),
        f"{mlp}.fn.net.0.bias": (8 * width,),
        f"{mlp}.fn.net.2.weight": (width, 4 * width),
        f"{mlp}.fn.net.2.bias": (width,),
    }


def decoder_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the sizes of a tiny Llama, Mistral or Ministral."""
    return {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "vocab_size": tokenizer.get_vocab_size(),
    }


def decoder_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a Llama, Mistral or Ministral state dict."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (config["vocab_size"], width),
        "norm.weight": (width,),
    }
    for number in range(config["num_hidden_layers"]):
        at = f"layers.{number}"
        attention = {"q_proj": (heads, width), "k_proj": (keys, width)}
        attention |= {"v_proj": (keys, width), "o_proj": (width, heads)}
        mlp = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
        for part, products, bias in [
            ("self_attn", attention, "attention_bias"),
            ("mlp", mlp, "mlp_bias"),
        ]:
            for name, shape in products.items():
                shapes[f"{at}.{part}.{name}.weight"] = shape
                if config.get(bias):
                    shapes[f"{at}.{part}.{name}.bias"] = shape[:1]
        shapes[f"{at}.input_layernorm.weight"] = (width,)
        shapes[f"{at}.post_attention_layernorm.weight"] = (width,)
    return shapes
