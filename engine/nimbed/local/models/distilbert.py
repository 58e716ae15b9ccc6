"""DistilBERT (msmarco-distilbert, distiluse): BERT without token types, under other names.

The state dict is that of ``transformers.DistilBertModel``.
"""

from __future__ import annotations

from typing import Any

from nimbed.local.device import Placement
from nimbed.local.models.bert import Bert
from nimbed.local.models.fields import DISTILBERT_NAMES
from nimbed.local.weights import Tensors

__all__ = ["distilbert"]


def distilbert(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Bert:
    """Read a DistilBERT encoder; see :class:`nimbed.local.models.bert.Bert`."""
    tensors = tensors.stripped("distilbert.", renamed=DISTILBERT_NAMES)
    return Bert({**config, "type_vocab_size": 0}, tensors, placement)
