"""LangChain's ``Embeddings`` on nimbed, with a local model or a server.

:class:`NimbedEmbeddings` embeds documents as passages and queries as queries.
"""

from nimbed.errors import missing_extra

try:
    from nimbed_langchain.embeddings import NimbedEmbeddings
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("langchain_core", "pydantic"):
        raise
    raise missing_extra("langchain", needs="langchain-core") from error

__all__ = ["NimbedEmbeddings"]
