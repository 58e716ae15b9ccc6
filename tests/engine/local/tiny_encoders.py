"""Tiny random checkpoints of the encoders that transformers has, written by transformers itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.engine.local.checkpoints import (
    HEADS,
    INNER,
    LAYERS,
    WIDTH,
    change_tensors,
    random_weights,
    sentence_transformers_files,
    write,
    write_json,
)
from tests.engine.local.sentence_folders import edit
from tests.engine.local.tiny_tokenizers import bert_tokenizer, xlmr_tokenizer
from tokenizers import Tokenizer

__all__ = [
    "ENCODERS",
    "tiny_camembert",
    "tiny_distilbert",
    "tiny_gte",
    "tiny_jina_adapters",
    "tiny_jina_colbert",
    "tiny_jina_v3",
    "tiny_modernbert",
    "tiny_mpnet",
    "tiny_nomic",
    "tiny_nomic_moe",
    "tiny_roberta",
]

PROMPTS = {"query": "query: ", "document": "passage: "}
_SIZES = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": HEADS}
_BERT_SPECIAL = {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]"}
_XLMR_SPECIAL = {
    **{"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>"},
    **{"unk": "<unk>", "pad": "<pad>", "mask": "<mask>"},
}


def tiny_modernbert(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a ModernBERT whose windows are shorter than most texts."""
    config = {**_SIZES, "num_hidden_layers": 3, "local_attention": 8, **changes}
    config |= {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2}
    config |= {"eos_token_id": 3, "max_position_embeddings": 256}
    return _write(folder, "ModernBert", config, bert_tokenizer(), pooling="cls", seed=seed)


def tiny_mpnet(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write an MPNet; its tokenizer is BERT's, with XLM-R's special tokens."""
    config = {**_SIZES, "num_hidden_layers": LAYERS, "max_position_embeddings": 202, **changes}
    return _write(folder, "MPNet", config, xlmr_tokenizer(), seed=seed)


def wide_mpnet(folder: Path) -> Path:
    """Write an MPNet whose heads are as wide as the kernels for CUDA want them."""
    return tiny_mpnet(folder, hidden_size=64, num_attention_heads=2)


def tiny_distilbert(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a DistilBERT."""
    config = {"dim": WIDTH, "hidden_dim": INNER, "n_heads": HEADS, "n_layers": LAYERS, **changes}
    return _write(folder, "DistilBert", config, bert_tokenizer(), seed=seed)


def tiny_roberta(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a RoBERTa."""
    config = {**_SIZES, "num_hidden_layers": LAYERS, "max_position_embeddings": 202, **changes}
    return _write(folder, "Roberta", config, xlmr_tokenizer(), seed=seed)


def tiny_camembert(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a CamemBERT."""
    config = {**_SIZES, "num_hidden_layers": LAYERS, "max_position_embeddings": 202, **changes}
    return _write(folder, "Camembert", config, xlmr_tokenizer(), seed=seed)


def tiny_nomic(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a NomicBERT."""
    config = {**_SIZES, "num_hidden_layers": LAYERS, **changes}
    return _write(folder, "NomicBert", config, bert_tokenizer(), seed=seed)


def tiny_nomic_moe(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a nomic-embed-text-v2-moe, which transformers has not, after its publisher's names."""
    tokenizer, experts = xlmr_tokenizer(), 6
    config = {
        **{"model_type": "nomic_bert", "activation_function": "gelu", "causal": False},
        **{"n_embd": WIDTH, "n_head": HEADS, "n_inner": INNER, "n_layer": 4, "n_positions": 2048},
        **{"num_experts": experts, "moe_top_k": 2, "moe_every_n_layers": 2, "prenorm": False},
        **{"qkv_proj_bias": True, "mlp_fc1_bias": True, "mlp_fc2_bias": True},
        **{"rotary_emb_base": 10000, "rotary_emb_fraction": 1.0, "type_vocab_size": 1},
        **{"layer_norm_epsilon": 1e-5, "vocab_size": tokenizer.get_vocab_size()},
        **{"moe_normalize_expert_weights": False, "moe_impl": "megablocks"},
        **changes,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], WIDTH),
        "embeddings.token_type_embeddings.weight": (1, WIDTH),
        **{"emb_ln.weight": (WIDTH,), "emb_ln.bias": (WIDTH,)},
    }
    for number in range(4):
        at = f"encoder.layers.{number}"
        products = {"attn.Wqkv": (3 * WIDTH, WIDTH), "attn.out_proj": (WIDTH, WIDTH)}
        if number % 2:
            shapes |= {f"{at}.mlp.router.layer.weight": (experts, WIDTH)}
            shapes |= {f"{at}.mlp.experts.mlp.w{n}": (experts * INNER, WIDTH) for n in (1, 2)}
            shapes |= {f"{at}.mlp.experts.bias": (WIDTH,)}
        else:
            products |= {"mlp.fc1": (INNER, WIDTH), "mlp.fc2": (WIDTH, INNER)}
        for name, shape in {**products, "norm1": (WIDTH,), "norm2": (WIDTH,)}.items():
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
    write(folder, config, random_weights(shapes, seed=seed), tokenizer)
    sentence_transformers_files(folder, pooling="mean", prompts=PROMPTS, longest=180)
    return folder


def tiny_gte(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a GTE (Alibaba's "new" encoder)."""
    config = {**_SIZES, "num_hidden_layers": LAYERS, **changes}
    return _write(folder, "Gte", config, xlmr_tokenizer(), pooling="cls", seed=seed)


def tiny_jina_v3(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a jina-embeddings-v3 without adapters."""
    config = {**_SIZES, "num_hidden_layers": LAYERS, **changes}
    return _write(folder, "JinaEmbeddingsV3", config, xlmr_tokenizer(), seed=seed)


TASKS = ["retrieval.query", "retrieval.passage", "separation"]


def tiny_jina_adapters(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Turn a tiny jina-embeddings-v3 into what is published, with adapters for three tasks."""
    tiny_jina_v3(folder, seed=seed)
    config = {
        **json.loads((folder / "config.json").read_text("utf-8")),
        **{"model_type": "xlm-roberta", "position_embedding_type": "rotary"},
        **{"lora_adaptations": TASKS, "lora_alpha": 1, "lora_rank": 2, "lora_dropout_p": 0.0},
        **{"lora_main_params_trainable": False, "load_trained_adapters": True},
        **{"rotary_emb_base": 20000.0, "use_flash_attn": True, "emb_pooler": None},
        **{"task_instructions": dict.fromkeys(TASKS, ""), "truncate_dim": None},
        **changes,
    }
    del config["rope_parameters"]
    write_json(folder / "config.json", config)
    tensors = {}
    for number, (name, tensor) in enumerate(load_file(folder / "model.safetensors").items()):
        base = f"roberta.{name.removesuffix('.weight')}"
        if not name.endswith(".weight") or tensor.ndim != 2:
            tensors[f"roberta.{name}"] = tensor
            continue
        outer, inner = tensor.shape
        table = "embeddings." in name
        shapes = {"A": (3, outer, 2) if table else (3, 2, inner)}
        shapes["B"] = (3, 2, inner) if table else (3, outer, 2)
        for part, made in random_weights(shapes, seed=number).items():
            tensors[f"{base}.parametrizations.weight.0.lora_{part}"] = made
        tensors[f"{base}.parametrizations.weight.original"] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "modules.json"
    modules = json.loads(path.read_text("utf-8"))
    modules[0] |= {"type": "custom_st.Transformer", "kwargs": ["task"]}
    path.write_text(json.dumps(modules), "utf-8")
    prompts = {"retrieval.query": "query: ", "retrieval.passage": "", "separation": ""}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts})
    return folder


def tiny_jina_colbert(folder: Path, **changes: Any) -> Path:
    """Write what jina-colbert-v2 is: Stanford's files over an XLM-R that turns its positions.

    The folder ``native`` inside has the same network as transformers names it.
    """
    native = tiny_jina_v3(folder / "native")
    tokenizer = Tokenizer.from_file(str(native / "tokenizer.json"))
    tokenizer.add_special_tokens(["[QueryMarker]", "[DocumentMarker]"])
    tokenizer.save(str(native / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    edit(native / "config.json", lambda config: {**config, "vocab_size": size})

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        name = "embeddings.word_embeddings.weight"
        width = tensors[name].shape[1]
        more = random_weights({name: (size - len(tensors[name]), width)}, seed=3)
        tensors[name] = torch.cat([tensors[name], more[name]])

    def project(tensors: dict[str, torch.Tensor]) -> None:
        width = tensors["embeddings.word_embeddings.weight"].shape[1]
        for name in list(tensors):
            tensors[f"roberta.{name}"] = tensors.pop(name)
        tensors["linear.weight"] = torch.randn(
            16, width, generator=torch.Generator().manual_seed(2)
        )

    change_tensors(native, widen)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        if (native / file).is_file():
            shutil.copy(native / file, folder / file)
    change_tensors(folder, project)

    def renamed(config: dict[str, Any]) -> dict[str, Any]:
        rope = config.pop("rope_parameters")
        said = {
            "architectures": ["HF_ColBERT"], "model_type": "xlm-roberta", "lora_rank": 4,
            "position_embedding_type": "rotary", "rotary_emb_base": rope["rope_theta"],
            "lora_adaptations": None, "lora_alpha": 1, "lora_dropout_p": 0.0, "emb_pooler": None,
            "lora_main_params_trainable": False, "load_trained_adapters": False,
            "use_flash_attn": True, "truncate_dim": None,
        }  # fmt: skip
        return {**config, **said, **changes}

    edit(folder / "config.json", renamed)
    settings = {
        "query_token_id": "[QueryMarker]", "doc_token_id": "[DocumentMarker]", "dim": 16,
        "query_maxlen": 20, "doc_maxlen": 30, "attend_to_mask_tokens": True, "similarity": "cosine",
        "mask_punctuation": True, "interaction": "colbert",
    }  # fmt: skip
    write_json(folder / "artifact.metadata", settings)
    return folder


ENCODERS = {
    "modernbert": tiny_modernbert,
    "mpnet": tiny_mpnet,
    "distilbert": tiny_distilbert,
    "roberta": tiny_roberta,
    "nomic-bert": tiny_nomic,
    "gte": tiny_gte,
    "jina-v3": tiny_jina_v3,
}


def _write(
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    *,
    pooling: str = "mean",
    seed: int,
) -> Path:
    """Have transformers write its model of a name, and what sentence-transformers adds."""
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    settings = getattr(transformers, f"{name}Config")(
        vocab_size=tokenizer.get_vocab_size(), **config
    )
    model = getattr(transformers, f"{name}Model")(settings).eval()
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    weights = random_weights(shapes, seed=seed)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(weights[key])
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = _XLMR_SPECIAL if tokenizer.token_to_id("<s>") == 0 else _BERT_SPECIAL
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{use}_token": token for use, token in special.items()},
        },
    )
    sentence_transformers_files(folder, pooling=pooling, prompts=PROMPTS, longest=180)
    return folder
