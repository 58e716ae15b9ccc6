"""transformers as it is used: sorted by length, padded, masked, pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from family_shapes import Shape
from latent_attention import LatentAttention
from safetensors.torch import load_file
from tokenizers import Tokenizer


class Padded:
    """A family's checkpoint under transformers' own classes, with SDPA.

    sentence-transformers does the same around the same modules; this leaves out what it does
    besides, so the comparison is the harder one.
    """

    def __init__(
        self,
        folder: Path,
        shape: Shape,
        dtype: torch.dtype,
        device: str,
        *,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._latent: LatentAttention | None = None
        config = transformers.AutoConfig.for_model(**shape.config)
        self._last = shape.pooling == "lasttoken"
        if not self._last and shape.config["model_type"] != "gemma3_text":
            config.is_causal = False
        model_class = transformers.AutoModel._model_mapping[type(config)]
        tensors = dict(weights or load_file(folder / "model.safetensors"))
        with torch.device(device):  # its buffers are not in the file
            self._model = model_class(config)
        if shape.latent:
            with torch.device("meta"):
                latent = LatentAttention(shape.config["hidden_size"])
            parts = {
                part: {n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)}
                for part in ("embedding_model.", "latent_attention_model.")
            }
            latent.load_state_dict(parts["latent_attention_model."], assign=True)
            self._latent = latent.to(device, dtype).eval()
            tensors = parts["embedding_model."]
        self._model.load_state_dict(tensors, assign=True)
        self._model = self._model.to(device, dtype).eval()
        self._device = device
        # MPNet, whose scores have a bias, attends by plain products alone.
        assert self._model.config._attn_implementation == "sdpa" or config.model_type == "mpnet"
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # MPNet's first positions are those of its padding.
        longest = config.max_position_embeddings - 2 * (config.model_type == "mpnet")
        self._tokenizer.enable_truncation(min(8192, longest))
        self._tokenizer.no_padding()

    def count(self, texts: Sequence[str]) -> int:
        """Return how many tokens the texts have."""
        return sum(len(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts)))

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], batch: int) -> np.ndarray:
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        found = [
            self._embed([rows[n] for n in order[i : i + batch]])
            for i in range(0, len(order), batch)
        ]
        out = np.empty((len(rows), self._model.config.hidden_size), np.float32)
        out[order] = torch.cat(found).cpu().numpy()
        return out

    def _embed(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        hidden = hidden if self._latent is None else self._latent(hidden)
        if self._last:
            last = torch.arange(len(rows), device=mask.device), mask.sum(1) - 1
            return F.normalize(hidden[last].float(), dim=1)
        pooled = (hidden.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(pooled, dim=1)
