"""Which architectures there are, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nimbed.local.batching import Model
from nimbed.local.device import Placement
from nimbed.local.models.bert import Bert, distilbert, mpnet, xlm_roberta
from nimbed.local.models.gemma3 import Gemma3
from nimbed.local.models.llama import llama, ministral3, mistral, qwen2, qwen3
from nimbed.local.models.mistral3 import Mistral3
from nimbed.local.models.modernbert import ModernBert
from nimbed.local.models.nemotron_vl import NemotronVL
from nimbed.local.models.nvembed import NvEmbed
from nimbed.local.models.rotary_bert import gte, jina_v3, nomic_bert
from nimbed.local.weights import Tensors

__all__ = ["MODELS", "TOO_COARSE"]


MODELS: dict[str, Callable[[dict[str, Any], Tensors, Placement], Model]] = {
    "bert": Bert,
    "distilbert": distilbert,
    "gemma3": Gemma3,
    "gte": gte,
    "jina_v3": jina_v3,
    "llama": llama,
    "ministral3": ministral3,
    "mistral": mistral,
    "mistral3": Mistral3,
    "modernbert": ModernBert,
    "mpnet": mpnet,
    "nemotron_vl": NemotronVL,
    "nomic_bert": nomic_bert,
    "nvembed": NvEmbed,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "xlm_roberta": xlm_roberta,
}

# Post-norm encoders, whose every layer rounds the whole state in float8: no choice of layers or
# products that leaves a gain keeps MiniLM's cosines above 0.999 (decision 0012). ModernBERT's size
# gains little, and nobody has measured what it loses.
TOO_COARSE = (
    *("bert", "distilbert", "gte", "jina_v3", "modernbert", "mpnet", "nomic_bert"),
    "xlm_roberta",
)
