"""The splitter is LlamaIndex's; its nodes with their metadata are what the model reads whole."""

from __future__ import annotations

import pickle

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import TextSplitter
from llama_index.core.schema import Document, MetadataMode

from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError
from nimbed_llama_index import NimbedEmbedding, NimbedTextSplitter

TEXT = "".join(
    f"Sentence number {n} is here, and it is said again. " * 3 + "\n\n" for n in range(40)
)


def splitter(**options):
    return NimbedTextSplitter(embed_model=NimbedEmbedding.from_embedder(FakeEmbedder()), **options)


def test_nodes_fit_with_their_metadata_in_a_pipeline():
    split = splitter(chunk_size=64)
    assert isinstance(split, TextSplitter)
    document = Document(text=TEXT, metadata={"title": "a title of some words", "page": 3})
    pipeline = IngestionPipeline(transformations=[split, split.embed_model], disable_cache=True)
    nodes = pipeline.run(documents=[document])
    assert "".join(node.text for node in nodes) == TEXT
    assert [TEXT[node.start_char_idx : node.end_char_idx] for node in nodes] == [
        node.text for node in nodes
    ]
    for node in nodes:
        assert len(node.get_content(MetadataMode.EMBED).split()) <= 63
        assert len(node.embedding) == 64
    bare = splitter(chunk_size=64).get_nodes_from_documents([Document(text=TEXT)])
    assert len(bare) < len(nodes)
    again = pickle.loads(pickle.dumps(splitter(chunk_size=64)))
    assert again.chunk_size == 64


def test_metadata_that_leave_no_room_are_refused():
    document = Document(text=TEXT, metadata={"abstract": "many words " * 60})
    with pytest.raises(ConfigurationError, match="metadata, so it needs at least"):
        splitter(chunk_size=64).get_nodes_from_documents([document])
