"""DistilBERT (msmarco-distilbert, distiluse): BERT without token types, under other names.

The state dict is that of ``transformers.DistilBertModel``.
"""

from __future__ import annotations

from typing import Any

from nimbed.local.device import Placement
from nimbed.local.models.bert import Bert
from nimbed.local.weights import Tensors

__all__ = ["distilbert"]

_NAMES = {
    "transformer.layer.": "encoder.layer.",
    "attention.q_lin.": "attention.self.query.",
    "attention.k_lin.": "attention.self.key.",
    "attention.v_lin.": "attention.self.value.",
    "attention.out_lin.": "attention.output.dense.",
    "sa_layer_norm.": "attention.output.LayerNorm.",
    "ffn.lin1.": "intermediate.dense.",
    "ffn.lin2.": "output.dense.",
    "output_layer_norm.": "output.LayerNorm.",
}


def distilbert(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Bert:
    """Read a DistilBERT encoder; see :class:`nimbed.local.models.bert.Bert`."""
    tensors = tensors.stripped("distilbert.", renamed=_NAMES)
    return Bert({**config, "type_vocab_size": 0}, tensors, placement)
