"""A user's file that uses both adapters passes mypy's strict mode, and its mistakes do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

ROOT = Path(__file__).parents[3]
USER = """
from langchain_core.embeddings import Embeddings
from llama_index.core.base.embeddings.base import BaseEmbedding

from nimbed import EmbeddingBatch, VectorSpec
from nimbed_langchain import NimbedEmbeddings
from nimbed_llama_index import NimbedEmbedding

chain: Embeddings = NimbedEmbeddings(embedding_type="ubinary", truncate="END")
rows: list[list[float]] = chain.embed_documents(["a"])
typed: EmbeddingBatch = NimbedEmbeddings(dimensions=384).embed_query_typed("a")
index: BaseEmbedding = NimbedEmbedding(embedding_type="ubinary", truncate="END")
more: list[list[float]] = index.get_text_embedding_batch(["a"])
spec: VectorSpec = NimbedEmbedding(dimensions=384).spec
named: NimbedEmbedding = NimbedEmbedding(model="minilm")
"""
# Strict mode calls an ignore that ignores nothing an error: each of these is one.
MISTAKES = """
NimbedEmbeddings().embed_query(3)  # type: ignore[arg-type]
NimbedEmbeddings().cache_namespace("document")  # type: ignore[arg-type]
NimbedEmbedding.from_embedder("minilm")  # type: ignore[arg-type]
wrong: str = NimbedEmbedding().spec  # type: ignore[assignment]
"""


@pytest.mark.slow
def test_a_users_file_passes_mypy_strict(tmp_path: Path) -> None:
    user = tmp_path / "user.py"
    user.write_text(USER + MISTAKES)
    # The project's own settings and cache: what its check has read is not read again.
    said = subprocess.run(
        [sys.executable, "-m", "mypy", str(user)], capture_output=True, text=True, cwd=ROOT
    )
    assert said.returncode == 0, said.stdout + said.stderr
