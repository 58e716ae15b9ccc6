"""The splitter is LangChain's, and its chunks are what the model reads whole."""

from __future__ import annotations

import pytest

pytest.importorskip("langchain_text_splitters")

from langchain_core.documents import Document
from langchain_text_splitters import TextSplitter

from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError
from nimbed_langchain import NimbedEmbeddings, NimbedTextSplitter

TEXT = "".join(
    f"Sentence number {n} is here, and it is said again. " * 3 + "\n\n" for n in range(40)
)


@pytest.mark.parametrize("overlap", [0, 12])
def test_documents_are_split_as_langchain_does_with_exact_starts(overlap):
    embeddings = NimbedEmbeddings.from_embedder(FakeEmbedder())
    splitter = NimbedTextSplitter(embeddings, chunk_size=64, chunk_overlap=overlap)
    assert isinstance(splitter, TextSplitter)
    documents = [Document(TEXT, metadata={"page": n}) for n in range(2)]
    found = splitter.split_documents(documents)
    assert {each.metadata["page"] for each in found} == {0, 1}
    for each in found:
        start = each.metadata["start_index"]
        assert TEXT[start : start + len(each.page_content)] == each.page_content
        assert len(each.page_content.split()) <= 63
    assert documents[0].metadata == {"page": 0}
    embeddings.embed_documents([each.page_content for each in found])
    if not overlap:
        assert "".join(splitter.split_text(TEXT)) == TEXT


def test_without_a_size_a_chunk_is_as_long_as_the_model_reads():
    texts = NimbedTextSplitter(FakeEmbedder()).split_text(TEXT)
    assert max(len(text.split()) for text in texts) in range(480, 512)
    with pytest.raises(ConfigurationError, match="the model reads 512"):
        NimbedTextSplitter(FakeEmbedder(), chunk_size=600)
