"""Sparse encoders that sentence-transformers saves, over tiny masked language models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router
from sentence_transformers.sparse_encoder.modules import (
    SparseAutoEncoder,
    SparseStaticEmbedding,
    SpladePooling,
)
from tests.engine.local.checkpoints import tiny_bert
from tests.engine.local.sentence_folders import edit, transformer
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

import nimbed


def masked(folder: Path, build: Any = tiny_bert, **facts: Any) -> Path:
    """Write a masked language model whose attention heads are of 16 numbers, as transformers does.

    Without what a dense model has beside its weights.
    """
    build(folder)
    for name in ("modules.json", "1_Pooling"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).unlink(missing_ok=True)
    edit(folder / "tokenizer_config.json", lambda content: {**content, "model_max_length": 40})
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(folder, num_attention_heads=2, **facts)
    model = AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 or "embeddings" not in name:
                weight.normal_(std=0.2).add_("orm.weight" in name)
    model.save_pretrained(folder)
    return folder


def mlm(folder: Path) -> Any:
    """Return the first module of a sparse encoder, of the network in a folder."""
    return transformer(folder, transformer_task="fill-mask")


def save(folder: Path, modules: list[Any], **options: Any) -> SparseEncoder:
    """Save modules as sentence-transformers does, and return it with what it gives."""
    model = SparseEncoder(modules=modules, device="cpu", **options).eval()
    model.save_pretrained(str(folder))
    return model


def array(batch: nimbed.SparseBatch) -> np.ndarray:
    """Return sparse vectors with their zeros, of shape (texts, tokens of the vocabulary)."""
    out = np.zeros((len(batch), batch.spec.dimensions), np.float32)
    for row, (ids, weights) in enumerate(batch.rows()):
        out[row, ids] = weights
    return out


def autoencoder(inputs: int, **facts: Any) -> SparseAutoEncoder:
    """Return an autoencoder of 96 latents with weights that it might have after training."""
    torch.manual_seed(2)
    module = SparseAutoEncoder(inputs, hidden_dim=96, **{"k": 12, "k_aux": 16, **facts})
    with torch.no_grad():
        module.pre_bias.normal_(std=0.3)
        module.latent_bias.normal_(std=0.1)
    return module


def inference_free(folder: Path) -> tuple[Path, SparseEncoder]:
    """Save a model with a table of weights for queries, and SPLADE for passages."""
    net = masked(folder / "network")
    tokenizer = AutoTokenizer.from_pretrained(net)
    table = torch.linspace(0, 3, len(tokenizer.get_vocab()))
    queries = SparseStaticEmbedding(tokenizer, table, frozen=True)
    passages = [mlm(net), SpladePooling(activation_function="log1p_relu")]
    router = Router.for_query_document([queries], passages)
    return folder / "model", save(folder / "model", [router], similarity_fn_name="dot")
