"""Every text family by name, for tests that all of them must pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.engine.local.checkpoints import tiny_bert, tiny_m3, tiny_xlmr
from tests.engine.local.tiny_decoders import (
    tiny_llama,
    tiny_ministral,
    tiny_mistral,
    tiny_nvembed,
)

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
}
