"""Folders that sentence-transformers saves, and what it gives for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import WeightedLayerPooling

import nimbed
from nimbed.local.backends import why_torch

TEXTS = ["what is nvidia", "a cat sleeps under the warm sky", "the lazy dogs jumped over york"]
MODES = ["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


def transformer(folder: Path, **options: Any) -> Transformer:
    """Return the first module of a model, of the network in a folder."""
    return Transformer(str(folder), **options)


def weighted_layers(folder: Path, first: int) -> list[Any]:
    """Return a network and weights of its layers from one on, as modules."""
    network = transformer(folder, config_kwargs={"output_hidden_states": True})
    width, last = network.model.config.hidden_size, network.model.config.num_hidden_layers
    layers = WeightedLayerPooling(width, num_hidden_layers=last, layer_start=first)
    with torch.no_grad():
        layers.layer_weights.copy_(torch.linspace(-0.2, 1.9, last + 1 - first))
    return [network, layers]


def width_of(folder: Path) -> int:
    """Return the width of the states of the network in a folder."""
    return int(json.loads((folder / "config.json").read_text("utf-8"))["hidden_size"])


def saved(folder: Path, modules: Sequence[Any], **options: Any) -> SentenceTransformer:
    """Save modules as sentence-transformers does, and return it with what it gives."""
    torch.manual_seed(0)
    model = SentenceTransformer(modules=list(modules), device="cpu", **options).eval()
    model.save(str(folder))
    return model


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Let a function change what a JSON file holds."""
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(change(content) or content), "utf-8")


def assert_same(
    folder: Path,
    theirs: SentenceTransformer,
    *,
    texts: Sequence[str] = TEXTS,
    atol: float = 1e-5,
    alone: bool = True,
) -> Any:
    """Compare a folder's vectors with sentence-transformers', in both roles, packed and alone.

    Returns:
        Our embedder, of torch where there is a network.
    """
    ours: Any = nimbed.load(str(folder), device="cpu", dtype="float32")
    if ours.backend != "numpy":
        ours = nimbed.load(str(folder), device="cpu", dtype="float32", backend="torch")
    unit = ours.card.metric == "cosine"
    embedders = [ours]
    if not why_torch(ours._checkpoint, devices=("cpu",), dtype="float32"):
        embedders.append(nimbed.load(str(folder), backend="onnxruntime"))
    for role, encode in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
        expected = np.asarray(encode(list(texts), normalize_embeddings=unit))
        for embedder in embedders:
            got = embedder.embed(texts, input_type=role, truncate="END").vectors
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=atol, rtol=1e-6)
            for row, text in enumerate(texts if alone else ()):
                one = embedder.embed([text], input_type=role, truncate="END").vectors[0]
                np.testing.assert_allclose(one, expected[row], atol=atol, rtol=1e-6)
                if embedder is not ours:
                    np.testing.assert_array_equal(one, got[row])
    return ours
