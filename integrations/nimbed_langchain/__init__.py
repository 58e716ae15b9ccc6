"""LangChain's ``Embeddings`` on nimbed, with a local model or a server.

:class:`NimbedEmbeddings` embeds documents as passages and queries as queries;
:class:`NimbedTextSplitter` splits documents by the tokens of the same model.
"""

from nimbed.errors import missing_extra

try:
    from nimbed_langchain.embeddings import NimbedEmbeddings
    from nimbed_langchain.text_splitter import NimbedTextSplitter
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in (
        "langchain_core",
        "langchain_text_splitters",
        "pydantic",
    ):
        raise
    raise missing_extra("langchain", needs="langchain-core and langchain-text-splitters") from error

__all__ = ["NimbedEmbeddings", "NimbedTextSplitter"]
