"""Embeddings that carry their contract.

``nimbed.load(...)`` returns an embedder, and ``embedder.embed(texts, input_type=...)`` a batch of
vectors that knows its dimensions, type, metric, model and role.
"""

from nimbed import cards, chunks, errors, scheduling, search, stores
from nimbed.batch import EmbeddingBatch, concatenate
from nimbed.cards import ModelCard
from nimbed.embedder import Embedder
from nimbed.fake import FakeEmbedder
from nimbed.images import Image
from nimbed.load import load
from nimbed.options import EmbedOptions
from nimbed.spec import VectorSpec
from nimbed.version import __version__

__all__ = [
    "EmbedOptions",
    "Embedder",
    "EmbeddingBatch",
    "FakeEmbedder",
    "Image",
    "ModelCard",
    "VectorSpec",
    "__version__",
    "cards",
    "chunks",
    "concatenate",
    "errors",
    "load",
    "scheduling",
    "search",
    "stores",
]
