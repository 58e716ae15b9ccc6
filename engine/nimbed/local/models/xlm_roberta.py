"""RoBERTa, CamemBERT, XLM-R: BERT whose positions begin behind the padding id.

bge-m3, multilingual-e5, all-distilroberta. The state dicts are those of
``transformers.RobertaModel`` and its kin.
"""

from __future__ import annotations

from typing import Any

from nimbed.local.device import Placement
from nimbed.local.models.bert import Bert
from nimbed.local.models.fields import first_position
from nimbed.local.weights import Tensors

__all__ = ["xlm_roberta"]


def xlm_roberta(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Bert:
    """Read a RoBERTa, CamemBERT or XLM-R encoder; see :class:`nimbed.local.models.bert.Bert`."""
    return Bert(
        config,
        tensors.stripped("roberta.", "xlm_roberta."),
        placement,
        padding=first_position(config) - 1,
    )
