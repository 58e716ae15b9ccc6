"""Tiny random BERT and XLM-R checkpoints, laid out on disk as the real ones are.

Tensors are named and shaped by hand, after the published files, so a loader that expects other
names fails here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.engine.local.tiny_tokenizers import bert_tokenizer, xlmr_tokenizer
from tokenizers import Tokenizer

WIDTH, INNER, LAYERS, HEADS = 32, 64, 2, 4


def tiny_bert(
    folder: Path,
    *,
    pooling: str = "mean",
    prompts: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Path:
    """Write a BERT checkpoint that sentence-transformers can load too; returns the folder.

    Args:
        folder: Made if it does not exist.
        pooling: ``mean`` or ``cls``.
        prompts: For config_sentence_transformers.json; None leaves that file out.
        seed: Of the weights.
    """
    tokenizer = bert_tokenizer()
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 128,
        "type_vocab_size": 2,
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    write(folder, config, random_weights(bert_shapes(config), seed=seed), tokenizer)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    sentence_transformers_files(folder, pooling=pooling, prompts=prompts, longest=128)
    return folder


def tiny_xlmr(
    folder: Path,
    *,
    pooling: str = "mean",
    prefix: str = "",
    pickled: bool = False,
    tokenizer: Tokenizer | None = None,
    seed: int = 0,
) -> Path:
    """Write an XLM-R checkpoint that sentence-transformers can load too; returns the folder.

    Args:
        folder: Made if it does not exist.
        pooling: ``mean`` or ``cls``.
        prefix: Put before every tensor's name, as some exporters do.
        pickled: Whether the weights are a pytorch_model.bin.
        tokenizer: Unigram if None.
        seed: Of the weights.
    """
    tokenizer = tokenizer or xlmr_tokenizer()
    config = {
        "model_type": "xlm-roberta",
        "architectures": ["XLMRobertaModel"],
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 66,
        "type_vocab_size": 1,
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    weights = random_weights(bert_shapes(config), seed=seed)
    write(folder, config, {prefix + name: value for name, value in weights.items()}, tokenizer)
    if pickled:
        torch.save(weights, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "XLMRobertaTokenizer",
            **dict(cls_token="<s>", bos_token="<s>", eos_token="</s>", sep_token="</s>"),
            **dict(unk_token="<unk>", pad_token="<pad>", mask_token="<mask>"),
        },
    )
    sentence_transformers_files(folder, pooling=pooling, prompts=None, longest=64)
    return folder


def tiny_m3(folder: Path, *, seed: int = 0) -> Path:
    """Write bge-m3 in small: pickled XLM-R, CLS pooling, sparse and ColBERT heads beside it."""
    tiny_xlmr(folder, pooling="cls", pickled=True, seed=seed)
    heads = random_weights(
        {"s.weight": (1, WIDTH), "s.bias": (1,), "c.weight": (WIDTH, WIDTH), "c.bias": (WIDTH,)},
        seed=seed + 1,
    )
    for name, file in (("s", "sparse_linear.pt"), ("c", "colbert_linear.pt")):
        linear = {part: heads[f"{name}.{part}"] for part in ("weight", "bias")}
        torch.save(linear, folder / file)
    return folder


def bert_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a BERT (or XLM-R) state dict."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
    }
    products, norms = {}, ["embeddings.LayerNorm"]
    for number in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{number}"
        products |= {f"{at}.attention.self.{x}": (width, width) for x in ("query", "key", "value")}
        products |= {
            f"{at}.attention.output.dense": (width, width),
            f"{at}.intermediate.dense": (inner, width),
            f"{at}.output.dense": (width, inner),
        }
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    for name, shape in products.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


def random_weights(
    shapes: Mapping[str, tuple[int, ...]], *, seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Return weights large enough that attention is far from uniform, norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator) * 0.2
        if "norm" in name.lower() and name.endswith("weight"):
            tensor += 1
        weights[name] = tensor.to(dtype)
    return weights


def write(
    folder: Path, config: Mapping[str, Any], weights: dict[str, torch.Tensor], tokenizer: Tokenizer
) -> None:
    """Write config.json, model.safetensors and tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=2), "utf-8")


def change_config(folder: Path, **facts: Any) -> None:
    """Change entries of config.json."""
    config = {**json.loads((folder / "config.json").read_text("utf-8")), **facts}
    write_json(folder / "config.json", config)


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Let a function change the tensors of model.safetensors in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def sentence_transformers_files(
    folder: Path,
    *,
    pooling: str,
    prompts: Mapping[str, str] | None,
    longest: int,
    dense: Mapping[str, tuple[int, int]] | None = None,
) -> None:
    """Write what sentence-transformers adds beside a model.

    Args:
        folder: Of the model.
        pooling: How its states become a vector.
        prompts: For config_sentence_transformers.json; None leaves that file out.
        longest: Tokens of the longest text.
        dense: Folders of dense modules without bias or activation, and their inputs and outputs.
    """
    dense = dense or {}
    last = f"{len(dense) + 2}"
    modules = [
        ("0", "", "Transformer"),
        ("1", "1_Pooling", "Pooling"),
        *((path[0], path, "Dense") for path in dense),
        (last, f"{last}_Normalize", "Normalize"),
    ]
    for seed, (path, (inputs, outputs)) in enumerate(dense.items()):
        (folder / path).mkdir(exist_ok=True)
        weight = random_weights({"linear.weight": (outputs, inputs)}, seed=seed)
        save_file(weight, folder / path / "model.safetensors")
        facts = {"in_features": inputs, "out_features": outputs, "bias": False}
        identity = {"activation_function": "torch.nn.modules.linear.Identity"}
        write_json(folder / path / "config.json", {**facts, **identity})
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": int(n),
                    "name": n,
                    "path": path,
                    "type": f"sentence_transformers.models.{kind}",
                }
                for n, path, kind in modules
            ]
        ),
        "utf-8",
    )
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False}
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": WIDTH,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_lasttoken": pooling == "lasttoken",
        },
    )
    if prompts is not None:
        write_json(
            folder / "config_sentence_transformers.json",
            {"prompts": dict(prompts), "default_prompt_name": None},
        )
