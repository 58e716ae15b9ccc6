"""LlamaIndex's ``BaseEmbedding`` on nimbed, with a local model or a server.

:class:`NimbedEmbedding` embeds nodes as passages and queries as queries;
:class:`NimbedTextSplitter` splits documents by the tokens of the same model.
"""

from nimbed.errors import missing_extra

try:
    from nimbed_llama_index.embedding import NimbedEmbedding
    from nimbed_llama_index.text_splitter import NimbedTextSplitter
except ModuleNotFoundError as error:
    # llama_index is a namespace that other packages fill too, so it may be its core that is absent.
    if (error.name or "").partition(".")[0] not in ("llama_index", "pydantic"):
        raise
    raise missing_extra("llama-index", needs="llama-index-core") from error

__all__ = ["NimbedEmbedding", "NimbedTextSplitter"]
