"""LangChain's texts to lists of floats, documents as passages and queries as queries.

Knows nothing about models or HTTP: what it is told to load, the engine loads at the first call.
"""

from __future__ import annotations

from copy import copy
from typing import Any, Literal, Self

from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from nimbed.batch import EmbeddingBatch
from nimbed.embedder import Embedder
from nimbed.load import LazyEmbedder, LoadOptions, key_for
from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate, VectorSpec
from nimbed_langchain.usage import tell_usage

__all__ = ["NimbedEmbeddings"]


class NimbedEmbeddings(BaseModel, Embeddings):
    """Embeds documents as passages and queries as queries, on this machine or on a server.

    Construction reads no files and opens no connection. Vectors are lists of Python floats for
    every type, so that any store takes them: packed types come back as ±1 a dimension, whose dot
    product and cosine rank as Hamming does; int8 and uint8 as the value of their level. What a
    store of packed vectors needs, :meth:`embed_documents_typed` gives.

    No batch size need be chosen: a local model packs its batches by tokens, and requests to a
    server hold as many texts as it takes, several of them under way at once.

    A pickle holds neither weights, connections nor the key: where it is loaded, the key is read
    from the environment again.

    Attributes:
        model: A folder, a catalogue name, a hub id, or a server's name for it; None for the
            embedded default (MiniLM), or for the only model of a server.
        base_url: Address of a server; given, the model runs there.
        api_key: The server's key; None reads ``NVIDIA_API_KEY`` for NVIDIA's own hosts, else
            ``NIMBED_API_KEY``.
        dimensions: One of the sizes the model offers; None for the full vector.
        embedding_type: How precise a dimension is.
        truncate: What happens to a text that is too long: ``NONE`` raises and names its row.
        int8_scale: ``even`` (default) or ``nim``, for int8 and uint8.
        progress: Whether documents show a bar on standard error.
        revision: Branch, tag or commit on the hub.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: Arithmetic of a local model.
        dialect: A server's dialect; ``auto`` finds it out.
        cache_dir: Folder of the Hugging Face cache, if not the usual one.
        concurrency: Requests in flight at a server at most; 32 if None.
        batch_size: Texts a request at most; None for as many as the server takes.
        timeout: Seconds that one request may take; 60 if None.
    """

    # A validation error repeats its input otherwise, and the key is part of that.
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), hide_input_in_errors=True)

    model: str | None = None
    base_url: str | None = None
    api_key: SecretStr | None = Field(default=None, exclude=True)
    dimensions: int | None = None
    embedding_type: EmbeddingType = "float"
    truncate: Truncate = "NONE"
    int8_scale: Int8Scale | None = None
    progress: bool = False
    revision: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    dialect: str = "auto"
    cache_dir: str | None = None
    concurrency: int | None = Field(default=None, gt=0)
    batch_size: int | None = Field(default=None, gt=0)
    timeout: float | None = Field(default=None, gt=0)

    _lazy: LazyEmbedder = PrivateAttr(default_factory=LazyEmbedder)

    @classmethod
    def from_embedder(
        cls,
        embedder: Embedder,
        *,
        dimensions: int | None = None,
        embedding_type: EmbeddingType = "float",
        truncate: Truncate = "NONE",
        int8_scale: Int8Scale | None = None,
        progress: bool = False,
    ) -> Self:
        """Return embeddings on an embedder that exists; it is shared, and the caller closes it."""
        made = cls(
            model=embedder.card.id,
            dimensions=dimensions,
            embedding_type=embedding_type,
            truncate=truncate,
            int8_scale=int8_scale,
            progress=progress,
        )
        made._lazy = LazyEmbedder(embedder)
        return made

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._source()
        self._read_key()
        return self

    @property
    def embedder(self) -> Embedder:
        """The engine's embedder; made at first use.

        Raises:
            UnknownModelError: If no folder, cache or hub holds the model.
            ConfigurationError: If the model cannot be had so.
        """
        return self._lazy.get(self._source())

    @property
    def spec(self) -> VectorSpec:
        """The contract of the vectors: what an index must know of them."""
        return self.embedder.spec(
            embedding_type=self.embedding_type,
            dimensions=self.dimensions,
            int8_scale=self.int8_scale,
        )

    def cache_namespace(self, role: InputType) -> str:
        """Return a namespace for ``CacheBackedEmbeddings`` that no other space or role shares.

        Give it a second store for queries, never ``query_embedding_cache=True``: that reads a
        query's vector from where a document of the same text left its own.
        """
        return f"nimbed-{self.spec.fingerprint}-{self.truncate}-{role}-"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts as passages.

        Raises:
            InputError: If texts are blank, too long or no strings; ``.rows`` names them.
            BackendError: If the model or the server failed.
        """
        return self.embed_documents_typed(texts).lists()

    def embed_query(self, text: str) -> list[float]:
        """Embed one text as a query; raises as :meth:`embed_documents` does."""
        return self.embed_query_typed(text).lists()[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Do what :meth:`embed_documents` does without blocking the event loop."""
        return (await self.aembed_documents_typed(texts)).lists()

    async def aembed_query(self, text: str) -> list[float]:
        """Do what :meth:`embed_query` does without blocking the event loop."""
        return (await self.aembed_query_typed(text)).lists()[0]

    def embed_documents_typed(self, texts: list[str]) -> EmbeddingBatch:
        """Embed texts as passages; return them as they are stored, with their contract."""
        batch = self.embedder.embed(texts, **self._options("passage"))
        tell_usage(batch)
        return batch

    def embed_query_typed(self, text: str) -> EmbeddingBatch:
        """Embed one text as a query; return a batch of one, with its contract."""
        batch = self.embedder.embed([text], **self._options("query"))
        tell_usage(batch)
        return batch

    async def aembed_documents_typed(self, texts: list[str]) -> EmbeddingBatch:
        """Do what :meth:`embed_documents_typed` does without blocking the event loop."""
        batch = await self.embedder.aembed(texts, **self._options("passage"))
        tell_usage(batch)
        return batch

    async def aembed_query_typed(self, text: str) -> EmbeddingBatch:
        """Do what :meth:`embed_query_typed` does without blocking the event loop."""
        batch = await self.embedder.aembed([text], **self._options("query"))
        tell_usage(batch)
        return batch

    def _options(self, role: InputType) -> dict[str, Any]:
        return {
            "input_type": role,
            "embedding_type": self.embedding_type,
            "dimensions": self.dimensions,
            "truncate": self.truncate,
            "int8_scale": self.int8_scale,
            "progress": self.progress and role == "passage",
        }

    def _source(self) -> LoadOptions:
        return LoadOptions(
            model=self.model,
            base_url=self.base_url,
            api_key=self.api_key.get_secret_value() if self.api_key else None,
            device=self.device,
            dtype=self.dtype,
            revision=self.revision,
            dialect=self.dialect,
            cache_dir=self.cache_dir,
            concurrency=self.concurrency,
            batch_size=self.batch_size,
            timeout=self.timeout,
        )

    def _read_key(self) -> None:
        if self.base_url is not None:
            key = key_for(self.base_url, self._source().api_key)
            self.api_key = SecretStr(key) if key else None

    def __copy__(self) -> Self:
        """Copy the settings; what is loaded is shared while they are the same."""
        copied = super().__copy__()
        copied._lazy = copy(self._lazy)
        return copied

    def __getstate__(self) -> dict[Any, Any]:
        """Return everything but weights, connections and the key."""
        return {
            "__dict__": {**self.__dict__, "api_key": None},
            "__pydantic_extra__": None,
            "__pydantic_fields_set__": set(self.model_fields_set),
            "__pydantic_private__": {"_lazy": self._lazy},
        }

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Read the key from the environment of the process that loads the pickle."""
        super().__setstate__(state)
        self._read_key()
