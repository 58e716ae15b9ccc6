"""Rows whose sparse vectors have no ties, their embedder, and what numpy finds among them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from typer.testing import CliRunner

from nimbed import EmbeddingKinds, FakeEmbedder, SparseSpec, fusion, search
from nimbed.spec import EmbeddingType
from nimbed_cli.load import load
from nimbed_cli.search import search as search_command

BOTH = ("dense", "sparse")
ROWS, K, REACH = 200, 8, 50
RNG = np.random.default_rng(7)
WORDS = [f"word{number}" for number in range(60)]
TEXTS = [" ".join(RNG.choice(WORDS, RNG.integers(4, 12))) for _ in range(ROWS)]
ITEMS = [(f"{n:03}", text, {"odd": n % 2}) for n, text in enumerate(TEXTS)]
QUESTION = "word1 word2 word2 word3"


class Weighed(FakeEmbedder):
    """Gives a token a weight of its own, as models do, so that there are no ties."""

    vocabulary = "hashed words"

    def sparse_spec(self, *, max_active: int | None = None) -> SparseSpec:
        spec = super().sparse_spec(max_active=max_active)
        return dataclasses.replace(spec, vocabulary=self.vocabulary)

    def embed_kinds(self, inputs: Sequence[str], **options: Any) -> EmbeddingKinds:
        found = super().embed_kinds(inputs, **options)
        if found.sparse is None:
            return found
        # A text's own factor too, by which texts of the same words differ.
        own = np.array([1 + len(text) % 89 / 997 for text in inputs])
        own = np.repeat(own, np.diff(found.sparse.offsets))
        weights = found.sparse.weights * (1 + found.sparse.ids / 40_000) * own
        sparse = dataclasses.replace(found.sparse, weights=weights.astype(np.float32))
        return dataclasses.replace(found, sparse=sparse)


def batches(embedder: Weighed, texts: list[str], role: Any, **options: Any) -> EmbeddingKinds:
    return embedder.embed_kinds(texts, kinds=BOTH, input_type=role, max_active=1_000, **options)


def expected(by: Any, weights: Any, where: slice, embedding_type: EmbeddingType = "float") -> Any:
    """The best rows by numpy alone."""
    embedder = Weighed()
    queries = batches(embedder, [QUESTION], "query", embedding_type=embedding_type)
    passages = batches(embedder, TEXTS[where], "passage", embedding_type=embedding_type)
    dense = search.nearest(queries.dense, passages.dense, REACH)
    sparse = fusion.with_shared_tokens(search.nearest(queries.sparse, passages.sparse, REACH))
    found = fusion.fuse([dense, sparse], by=by, weights=weights, k=K)
    return [f"{range(ROWS)[where][row]:03}" for row in found.rows[0]], -found.distances[0]


def commands() -> Callable[..., str]:
    """Write the rows to a file, and return what types a command and gives what it prints."""
    app = typer.Typer()
    app.command()(load)
    app.command("search")(search_command)

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, list(words))
        if done.exception is not None:
            raise done.exception
        return done.output

    lines = [json.dumps({"id": name, "text": text}) for name, text, _ in ITEMS]
    Path("rows.jsonl").write_text("\n".join(lines) + "\n")
    return run
