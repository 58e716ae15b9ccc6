"""``NimbedTextSplitter``: LangChain's ``TextSplitter`` that counts the model's own tokens."""

from __future__ import annotations

import copy
from typing import Any

from langchain_core.documents import Document
from langchain_text_splitters import TextSplitter

from nimbed.chunks import Chunk, Splitter
from nimbed.embedder import Embedder
from nimbed.load import token_counter
from nimbed_langchain.embeddings import NimbedEmbeddings

__all__ = ["NimbedTextSplitter"]


class NimbedTextSplitter(TextSplitter):
    """Splits documents into chunks that the model reads whole, and that end with a sentence.

    Nothing is stripped: without overlap the chunks joined are the document. Metadata say where a
    chunk begins (``start_index``).

    Args:
        embeddings: What will embed the chunks. Of a server's model the tokenizer is looked for on
            this machine, and on the hub.
        chunk_size: Tokens of a chunk at most, prompt and special tokens included; None for as
            many as the model reads.
        chunk_overlap: Tokens of a chunk's end that the next one begins with, at most.
        tokenizer: A folder, a catalogue name or a hub id that holds the tokenizer, if the
            model's own name does not lead to it.

    Raises:
        ConfigurationError: If a size cannot be, or no tokenizer is found.
    """

    def __init__(
        self,
        embeddings: NimbedEmbeddings | Embedder,
        *,
        chunk_size: int | None = None,
        chunk_overlap: int = 0,
        tokenizer: str | None = None,
    ) -> None:
        if isinstance(embeddings, NimbedEmbeddings):
            embeddings = embeddings.embedder
        self._splitter = Splitter(
            token_counter(embeddings, tokenizer), tokens=chunk_size, overlap=chunk_overlap
        )
        super().__init__(
            chunk_size=self._splitter.tokens,
            chunk_overlap=chunk_overlap,
            length_function=self._splitter.count,
            add_start_index=True,
            strip_whitespace=False,
        )

    def split_text(self, text: str) -> list[str]:
        """Return the texts of the chunks."""
        return [chunk.text for chunk in self._splitter.split(text)]

    def create_documents(
        self, texts: list[str], metadatas: list[dict[Any, Any]] | None = None
    ) -> list[Document]:
        """Return the chunks of every text, with its metadata and their ``start_index``."""
        given = metadatas or [{} for _ in texts]
        return [
            _document(chunk, metadata)
            for chunks, metadata in zip(self._splitter.split_all(texts), given, strict=True)
            for chunk in chunks
        ]


def _document(chunk: Chunk, metadata: dict[Any, Any]) -> Document:
    own = {**copy.deepcopy(metadata), "start_index": chunk.start}
    return Document(page_content=chunk.text, metadata=own)
