"""The linters, type checkers and layer contracts, run as tests so that one command is enough."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKS = (
    "ruff check .",
    "ruff format --check .",
    "mypy",
    f"pyright --pythonpath {sys.executable}",
    "lint-imports --no-cache",
)
# A user's file that uses both adapters.
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


@pytest.mark.parametrize("command", CHECKS, ids=lambda command: " ".join(command.split()[:2]))
def test_the_house_rules_hold(command):
    program, *arguments = command.split()
    beside = Path(sys.executable).parent / program
    done = subprocess.run([beside, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_users_file_of_both_adapters_passes_mypy_strict_and_its_mistakes_do_not(tmp_path):
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    user = tmp_path / "user.py"
    user.write_text(USER + MISTAKES)
    # The project's own settings and cache: what its check above has read is not read again.
    said = subprocess.run(
        [sys.executable, "-m", "mypy", str(user)], capture_output=True, text=True, cwd=ROOT
    )
    assert said.returncode == 0, said.stdout + said.stderr
