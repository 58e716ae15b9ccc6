"""Tiny random checkpoints of the encoders that transformers has, written by transformers itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.engine.local.checkpoints import (
    HEADS,
    INNER,
    LAYERS,
    WIDTH,
    random_weights,
    sentence_transformers_files,
    write_json,
)
from tests.engine.local.tiny_tokenizers import bert_tokenizer, xlmr_tokenizer
from tokenizers import Tokenizer

__all__ = [
    "ENCODERS",
    "tiny_camembert",
    "tiny_distilbert",
    "tiny_gte",
    "tiny_jina_v3",
    "tiny_modernbert",
    "tiny_mpnet",
    "tiny_nomic",
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


def tiny_gte(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a GTE (Alibaba's "new" encoder)."""
    config = {**_SIZES, "num_hidden_layers": LAYERS, **changes}
    return _write(folder, "Gte", config, xlmr_tokenizer(), pooling="cls", seed=seed)


def tiny_jina_v3(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a jina-embeddings-v3 without adapters."""
    config = {**_SIZES, "num_hidden_layers": LAYERS, **changes}
    return _write(folder, "JinaEmbeddingsV3", config, xlmr_tokenizer(), seed=seed)


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
