"""Folders that sentence-transformers saves, and what it gives for them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import WeightedLayerPooling

import nimbed
from nimbed.errors import ConfigurationError, TooLongError

TEXTS = ["what is nvidia", "a cat sleeps under the warm sky", "the lazy dogs jumped over york"]
#: Examples of the property tests of folders; for a search through the night, set it to thousands.
EXAMPLES = int(os.environ.get("FOLDER_EXAMPLES", "15"))
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
    passages: str = "document",
) -> Any:
    """Compare a folder's vectors with sentence-transformers', in both roles, packed and alone.

    The token ids, too, and what is cut at which end, and that nothing is cut unasked.

    Returns:
        Our embedder, of torch where there is a network.
    """
    embedders = list(_on_every_backend(folder))
    ours = embedders[0]
    unit = ours.card.metric == "cosine"
    for role, task in (("query", "query"), ("passage", passages)):
        prompt = next((p for n in _PROMPTS[role] if (p := theirs.prompts.get(n)) is not None), None)
        asked: dict[str, Any] = {"prompt": prompt, "task": task}
        expected = np.asarray(theirs.encode(list(texts), normalize_embeddings=unit, **asked))
        ids = [their_ids(theirs, text, **asked) for text in texts]
        for embedder in embedders:
            batch = embedder.embed(texts, input_type=role, truncate="END")
            got = batch.vectors
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=atol, rtol=1e-6)
            assert batch.token_counts.tolist() == [len(row) for row in ids]
            assert batch.spec == ours.spec()
            for row, text in enumerate(texts if alone else ()):
                one = embedder.embed([text], input_type=role, truncate="END").vectors[0]
                np.testing.assert_allclose(one, expected[row], atol=atol, rtol=1e-6)
                if embedder is not ours:
                    np.testing.assert_array_equal(one, got[row])
        whole = [[token.id for token in row] for row in ours.tokenize(texts, input_type=role)]
        for row, tokens in enumerate(whole):
            if len(tokens) > len(ids[row]):
                with pytest.raises(TooLongError):
                    ours.embed([texts[row]], input_type=role)
            else:
                assert tokens == ids[row]
    return ours


# The prompts of encode_query and encode_document, the first that there is.
_PROMPTS = {"query": ("query",), "passage": ("document", "passage", "corpus")}


def _on_every_backend(folder: Path) -> Iterator[Any]:
    """Yield a folder's embedder on each backend that runs it, torch's first."""
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
    ours: Any = nimbed.load(str(folder), **options)
    if ours.backend != "numpy":
        ours = nimbed.load(str(folder), **options, backend="torch")
    yield ours
    with contextlib.suppress(ConfigurationError):  # what it says is tested where it is made
        yield nimbed.load(str(folder), **options, backend="onnxruntime")


def their_ids(theirs: SentenceTransformer, text: str, **asked: Any) -> list[int]:
    """Return the token ids that sentence-transformers gives a text."""
    ids: list[int] = theirs.preprocess([text], **asked)["input_ids"].reshape(-1).tolist()
    return ids
