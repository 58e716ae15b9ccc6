"""Retrieve passages of a real folder of text through LangChain, by floats and by bits.

    pip install 'nimbed[quickstart,langchain]'
    python examples/langchain_rag.py [FOLDER] [--question "..."] [--database FOLDER|DSN]

Without a folder, the texts are the docstrings of a package that Python ships (email). It prints
how many passages there are, the role that each call embeds for, the best three by cosine, and the
best three by Hamming distance on vectors 32 times smaller, both from memory. With --database the
bits are also stored in PostgreSQL, in a database of its own in that folder or in yours at that
DSN, and the best three are found there through an index.
"""

from __future__ import annotations

import argparse
import ast
import email
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore

from nimbed import search
from nimbed_langchain import NimbedEmbeddings
from nimbed_pgvector import VectorTable, connect
from nimbed_pgvector.embedded_server import embedded_server


def passages(folder: Path) -> Iterator[Document]:
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
                name = f"{path.relative_to(folder)}:{number}"
                yield Document(text, id=name, metadata={"source": path.name})


def shown(document: Document) -> str:
    """Return a document as one short line."""
    return f"{document.metadata['source']}: {document.page_content.strip().splitlines()[0][:70]}"


class TableRetriever(BaseRetriever):
    """Makes a table of PostgreSQL a link of any chain."""

    table: Any  # a VectorTable; pydantic would want to validate it
    k: int = 3

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        hits = self.table.search(query, k=self.k)  # embedded as a query
        return [Document(hit.text, id=hit.id, metadata=dict(hit.metadata)) for hit in hits]


def from_postgres(
    database: str, documents: list[Document], embeddings: NimbedEmbeddings, question: str
) -> list[Document]:
    """Store the bits, and floats of half precision to rank the best of them; retrieve."""
    with ExitStack() as stack:
        if "://" not in database:
            database = stack.enter_context(embedded_server(database))
        connection = stack.enter_context(connect(database))
        table = VectorTable(
            connection,
            "langchain_rag",
            embeddings.embedder,
            embedding_type="ubinary",
            also="halfvec",
        )
        # Run again, it embeds nothing that is there.
        table.load(
            ((document.id, document.page_content, document.metadata) for document in documents),
            truncate="END",
        )
        table.index()
        return TableRetriever(table=table).invoke(question)


def main() -> None:
    """Embed, store, retrieve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(email.__file__).parent)
    parser.add_argument("--question", default="which functions read a date?")
    parser.add_argument("--database", metavar="FOLDER|DSN")
    options = parser.parse_args()
    documents = list(passages(options.folder))

    # add_documents embeds passages and the retriever queries: nothing to remember.
    embeddings = NimbedEmbeddings(truncate="END")
    store = InMemoryVectorStore(embeddings)
    store.add_documents(documents)
    print(f"{len(documents)} passages, {embeddings.spec.dimensions} dimensions")
    print("by cosine:")
    for document in store.as_retriever(search_kwargs={"k": 3}).invoke(options.question):
        print(" ", shown(document))

    # The same model, one bit a dimension: the batch knows its role and its only metric.
    bits = embeddings.model_copy(update={"embedding_type": "ubinary"})
    stored = bits.embed_documents_typed([document.page_content for document in documents])
    asked = bits.embed_query_typed(options.question)
    print(f"by {stored.metric}, {stored.spec.bytes_per_vector} bytes a passage:")
    print(f"  asked as {asked.input_type}, stored as {stored.input_type}")
    for row in search.nearest(asked, stored, k=3).rows[0]:
        print(" ", shown(documents[row]))

    if options.database:
        print("from PostgreSQL, by hamming and then by cosine:")
        for document in from_postgres(options.database, documents, embeddings, options.question):
            print(" ", shown(document))


if __name__ == "__main__":
    main()
