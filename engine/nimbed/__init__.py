"""Embeddings that carry their contract.

``nimbed.load(...)`` returns an embedder, and ``embedder.embed(texts, input_type=...)`` a batch of
vectors that knows its dimensions, type, metric, model and role.
"""

from nimbed import cards, chunks, errors, fusion, scheduling, search, stores
from nimbed.batch import EmbeddingBatch, concatenate
from nimbed.cards import ModelCard
from nimbed.embedder import Embedder, HybridEmbedder
from nimbed.fake import FakeEmbedder
from nimbed.images import Image
from nimbed.kinds import EmbeddingKinds, MultiVectorBatch, SparseBatch
from nimbed.load import load
from nimbed.muvera import Muvera
from nimbed.options import EmbedOptions
from nimbed.spec import MultiVectorSpec, SparseSpec, VectorSpec
from nimbed.version import __version__

__all__ = [
    "EmbedOptions",
    "Embedder",
    "EmbeddingBatch",
    "EmbeddingKinds",
    "FakeEmbedder",
    "HybridEmbedder",
    "Image",
    "ModelCard",
    "MultiVectorBatch",
    "MultiVectorSpec",
    "Muvera",
    "SparseBatch",
    "SparseSpec",
    "VectorSpec",
    "__version__",
    "cards",
    "chunks",
    "concatenate",
    "errors",
    "fusion",
    "load",
    "scheduling",
    "search",
    "stores",
]
