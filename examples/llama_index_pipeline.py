"""Ingest a real folder of text with LlamaIndex and search it, by floats and by bits.

    pip install 'nimbed[quickstart,llama-index]'
    python examples/llama_index_pipeline.py [FOLDER] [--question "..."]

Without a folder, the texts are the docstrings of a package that Python ships (email). It prints
how many nodes were embedded as passages, how many a second run embeds again (none: the pipeline's
cache knows them), and the best three for the question by float and by one bit a dimension.
"""

from __future__ import annotations

import argparse
import ast
import email
from collections.abc import Iterator
from pathlib import Path

from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode

import nimbed
from nimbed.spec import EmbeddingType
from nimbed_llama_index import NimbedEmbedding


def nodes_of(folder: Path) -> Iterator[TextNode]:
    """Yield the docstrings of Python files and the paragraphs of .txt and .md files."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".py":
            tree = ast.parse(path.read_text("utf-8"))
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
            texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        elif path.suffix in (".txt", ".md"):
            texts = list(path.read_text("utf-8", errors="replace").split("\n\n"))
        else:
            continue
        for number, text in enumerate(texts):
            if text and text.strip():
                yield TextNode(text=text, id_=f"{path.relative_to(folder)}:{number}")


def main() -> None:
    """Ingest twice, search twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(email.__file__).parent)
    parser.add_argument("--question", default="which functions read a date?")
    options = parser.parse_args()
    nodes = list(nodes_of(options.folder))
    kinds: tuple[EmbeddingType, ...] = ("float", "ubinary")

    with nimbed.load() as model:
        for kind in kinds:
            # Bits come as ±1 a dimension, so that any store's cosine ranks them by Hamming.
            embedding = NimbedEmbedding.from_embedder(model, embedding_type=kind, truncate="END")
            pipeline = IngestionPipeline(transformations=[embedding])
            embedded = pipeline.run(nodes=nodes)  # nodes are passages
            metric = embedding.spec.metric
            print(f"{len(embedded)} nodes embedded as passages, {kind}, compared by {metric}")
            again = pipeline.run(nodes=nodes)
            print(f"  again: {'all' if again == embedded else 'not all'} from the pipeline's cache")

            index = VectorStoreIndex(list(embedded), embed_model=embedding)
            print("  asked as a query:")
            for hit in index.as_retriever(similarity_top_k=3).retrieve(options.question):
                print(f"  {hit.score:.3f}  {hit.node_id}  {hit.text.strip().splitlines()[0][:60]}")


if __name__ == "__main__":
    main()
