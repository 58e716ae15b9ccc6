"""``NimbedTextSplitter``: LlamaIndex's text splitter that counts the model's own tokens."""

from __future__ import annotations

from typing import Any

from llama_index.core.node_parser import MetadataAwareTextSplitter
from pydantic import Field, PrivateAttr

from nimbed.chunks import Splitter, TokenCounter
from nimbed.load import token_counter
from nimbed_llama_index.embedding import NimbedEmbedding

__all__ = ["NimbedTextSplitter"]


class NimbedTextSplitter(MetadataAwareTextSplitter):
    """Splits documents into nodes that the model reads whole, and that end with a sentence.

    LlamaIndex embeds a node's metadata before its text; they are counted too. Without overlap the
    nodes' texts joined are the document.

    Attributes:
        embed_model: What will embed the nodes. Of a server's model the tokenizer is looked for on
            this machine, and on the hub.
        chunk_size: Tokens of a node at most, metadata, prompt and special tokens included; None
            for as many as the model reads.
        chunk_overlap: Tokens of a node's end that the next one begins with, at most.
        tokenizer: A folder, a catalogue name or a hub id that holds the tokenizer, if the
            model's own name does not lead to it.
    """

    embed_model: NimbedEmbedding
    chunk_size: int | None = Field(default=None, gt=0)
    chunk_overlap: int = Field(default=0, ge=0)
    tokenizer: str | None = None

    _counter: TokenCounter | None = PrivateAttr(default=None)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex keeps in serialised pipelines."""
        return "NimbedTextSplitter"

    def split_text(self, text: str) -> list[str]:
        """Return the texts of the nodes."""
        return self.split_text_metadata_aware(text, "")

    def split_text_metadata_aware(self, text: str, metadata_str: str) -> list[str]:
        """Return the texts of the nodes, each short enough to stand behind the metadata.

        Raises:
            ConfigurationError: If the metadata leave no room, or no tokenizer is found.
        """
        if not text:  # as LlamaIndex's own: a document of an image has none, and stays
            return [text]
        if self._counter is None:
            self._counter = token_counter(self.embed_model.embedder, self.tokenizer)
        splitter = Splitter(
            self._counter,
            tokens=self.chunk_size,
            overlap=self.chunk_overlap,
            # As LlamaIndex joins the two.
            before=f"{metadata_str}\n\n" if metadata_str else "",
        )
        return [chunk.text for chunk in splitter.split(text)]

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the tokenizer, which the other process reads itself."""
        state: dict[str, Any] = super().__getstate__()
        private = {**(state.get("__pydantic_private__") or {}), "_counter": None}
        return {**state, "__pydantic_private__": private}
