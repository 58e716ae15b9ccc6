"""Every text family by name, and how its tiny checkpoint is loaded, in float32 on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests.engine.local.checkpoints import tiny_bert, tiny_m3, tiny_xlmr
from tests.engine.local.mistral3_checkpoint import tiny_mistral3
from tests.engine.local.tiny_decoders import (
    tiny_causal,
    tiny_gemma,
    tiny_llama,
    tiny_ministral,
    tiny_mistral,
    tiny_nvembed,
    tiny_qwen3,
)
from tests.engine.local.tiny_encoders import (
    tiny_distilbert,
    tiny_gte,
    tiny_modernbert,
    tiny_mpnet,
    tiny_nomic,
    tiny_nomic_moe,
)

import nimbed
from nimbed import ModelCard

TEXTS = [
    "What is NVIDIA?",
    "a cat sleeps under the warm sky in 東京 café",
    "quick",
    "the lazy dogs jumped over münchen, over york and over the river; why? нет",
    "a token",
    "naïve words\nwith a line under them",
]

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "bert": tiny_bert,
    "xlm-roberta": tiny_xlmr,
    "bge-m3": tiny_m3,
    "llama": tiny_llama,
    "mistral": tiny_mistral,
    "ministral3": tiny_ministral,
    "nvembed": tiny_nvembed,
    "qwen3": tiny_qwen3,
    "causal-llama": functools.partial(tiny_causal, kind="llama"),
    "causal-mistral": functools.partial(tiny_causal, kind="mistral"),
    "gemma3": tiny_gemma,
    "mistral3": tiny_mistral3,
    "qwen2": functools.partial(tiny_causal, kind="qwen2"),
    "modernbert": tiny_modernbert,
    "mpnet": tiny_mpnet,
    "distilbert": tiny_distilbert,
    "nomic-bert": tiny_nomic,
    "nomic-moe": tiny_nomic_moe,
    "gte": tiny_gte,
}


#: Those that ONNX Runtime runs too.
ON_ONNX = ("bert", "distilbert", "gte", "modernbert", "mpnet", "nomic-bert", "xlm-roberta")

#: What every test loads with, unless it says otherwise; a fixture sets another backend here.
OPTIONS: dict[str, Any] = {"device": "cpu", "dtype": "float32", "backend": "torch"}


def load(model: Path | ModelCard, **options: Any) -> Any:
    """Return the embedder of a checkpoint's folder, or of a card that names one."""
    which = model if isinstance(model, ModelCard) else str(model)
    return nimbed.load(which, **{**OPTIONS, **options})


def embed(
    model: Path | ModelCard, texts: Sequence[str] = TEXTS, *, role: str = "passage", **options: Any
) -> np.ndarray:
    """Return the vectors of a fresh embedder."""
    return load(model).embed(texts, input_type=role, **options).vectors
