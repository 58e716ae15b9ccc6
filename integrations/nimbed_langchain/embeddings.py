"""``NimbedEmbeddings``: LangChain's ``Embeddings`` on a local model or a server.

Holds settings only: the engine loads what they name, at the first call.
"""

from __future__ import annotations

from copy import copy
from typing import Any, Self
from uuid import uuid4

from langchain_core.callbacks import CallbackManager, UsageMetadataCallbackHandler
from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import ensure_config
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from nimbed.batch import EmbeddingBatch
from nimbed.embedder import Embedder
from nimbed.load import (
    Backend,
    Dtype,
    LazyEmbedder,
    LoadOptions,
    explain_arguments,
    key_for,
    refuse_to_pickle,
)
from nimbed.options import EmbedOptions, cached_options
from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate, VectorSpec

__all__ = ["NimbedEmbeddings"]


class NimbedEmbeddings(BaseModel, Embeddings):
    """Embeds documents as passages and queries as queries, on this machine or on a server.

    Construction reads no files and opens no connection. Vectors are lists of Python floats for
    every type, so that any store takes them: packed types come back as ±1 a dimension, whose dot
    product and cosine rank as the Hamming distance does; int8 and uint8 as the value of their
    level. For a store of packed vectors, use :meth:`embed_documents_typed`.

    There is no batch size to choose: a local model packs its batches by tokens, and a request to
    a server holds as many texts as it takes, with several requests in flight.

    A pickle holds neither weights, connections nor the key: the process that loads it reads the
    key from its own environment.

    Attributes:
        model: A folder, a catalogue name, a hub id, or a server's name for it; None for the
            embedded default (MiniLM), or for the only model of a server.
        base_url: Address of a server that runs the model.
        api_key: The server's key; None reads ``NVIDIA_API_KEY`` for NVIDIA's own hosts, else
            ``NIMBED_API_KEY``.
        headers: Headers that a gateway before the server wants; with them it cannot be pickled.
        dimensions: One of the sizes the model offers; None for the full vector.
        embedding_type: How precise a dimension is.
        truncate: What happens to a text that is too long: ``NONE`` raises and names its row.
        int8_scale: ``even`` (default) or ``nim``, for int8 and uint8.
        progress: Whether documents show a bar on standard error.
        revision: Branch, tag or commit on the hub.
        card: Which catalogued model a folder holds.
        prompt_name: A prompt of the model for another task than search, put before every text.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: Arithmetic of a local model.
        backend: What runs a local model: ``torch``, ``onnxruntime`` or ``auto``.
        dialect: A server's dialect; ``auto`` finds out.
        cache_dir: Folder of the Hugging Face cache, if it is not the usual one.
        concurrency: Requests in flight at a server at most; 32 if None.
        batch_size: Texts a request at most; None for as many as the server takes.
        timeout: Seconds that one request may take; 60 if None.
    """

    # A validation error would otherwise repeat its input, and the key is part of that.
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), hide_input_in_errors=True)

    model: str | None = None
    base_url: str | None = None
    api_key: SecretStr | None = Field(default=None, exclude=True)
    headers: dict[str, SecretStr] | None = Field(default=None, exclude=True)
    dimensions: int | None = None
    embedding_type: EmbeddingType = "float"
    truncate: Truncate = "NONE"
    int8_scale: Int8Scale | None = None
    progress: bool = False
    revision: str | None = None
    card: str | None = None
    prompt_name: str | None = None
    device: str = "auto"
    dtype: Dtype = "auto"
    backend: Backend = "auto"
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
        """Return embeddings that share an existing embedder, which the caller closes."""
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

    @model_validator(mode="before")
    @classmethod
    def _explain(cls, given: Any) -> Any:
        explain_arguments(given if isinstance(given, dict) else (), cls.model_fields)
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._source()
        self._read_key()
        return self

    @property
    def embedder(self) -> Embedder:
        """The engine's embedder, made at first use.

        Raises:
            UnknownModelError: If no folder, cache or hub holds the model.
            ConfigurationError: If the model cannot be loaded with these settings.
        """
        return self._lazy.get(self._source())

    @property
    def spec(self) -> VectorSpec:
        """The contract of the vectors: what an index must know about them."""
        return self.embedder.spec(**self._options("passage").of_spec)

    def cache_namespace(self, role: InputType) -> str:
        """Return a namespace for ``CacheBackedEmbeddings`` that no other space or role shares.

        Give the cache a second store for queries, never ``query_embedding_cache=True``: with
        that, a query gets the vector that a document of the same text left behind.
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
        options = self._options("passage").keywords()
        return _count_tokens(self.embedder.embed(texts, progress=self.progress, **options))

    def embed_query_typed(self, text: str) -> EmbeddingBatch:
        """Embed one text as a query; return a batch of one, with its contract."""
        return _count_tokens(self.embedder.embed([text], **self._options("query").keywords()))

    async def aembed_documents_typed(self, texts: list[str]) -> EmbeddingBatch:
        """Do what :meth:`embed_documents_typed` does without blocking the event loop."""
        options = self._options("passage").keywords()
        return _count_tokens(await self.embedder.aembed(texts, progress=self.progress, **options))

    async def aembed_query_typed(self, text: str) -> EmbeddingBatch:
        """Do what :meth:`embed_query_typed` does without blocking the event loop."""
        options = self._options("query").keywords()
        return _count_tokens(await self.embedder.aembed([text], **options))

    def _options(self, role: InputType) -> EmbedOptions:
        return cached_options(
            role, self.embedding_type, self.dimensions, self.truncate, self.int8_scale
        )

    def _source(self) -> LoadOptions:
        return LoadOptions.of(self)

    def _read_key(self) -> None:
        if self.base_url is not None:
            key = key_for(self.base_url, self._source().api_key)
            self.api_key = SecretStr(key) if key else None

    def __copy__(self) -> Self:
        """Copy the settings; the copy shares what is loaded for as long as they are the same."""
        copied = super().__copy__()
        copied._lazy = copy(self._lazy)
        return copied

    def __getstate__(self) -> dict[Any, Any]:
        """Return everything but weights, connections and the key.

        Raises:
            ConfigurationError: If there are headers, which do not travel.
        """
        refuse_to_pickle(self.headers)
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


def _count_tokens(batch: EmbeddingBatch) -> EmbeddingBatch:
    """Add a batch's tokens to every usage handler of the current context, and return the batch.

    LangChain has no callbacks for embeddings, so only handlers that add up tokens are told: a
    tracer would take the call for a chat.
    """
    manager = CallbackManager.configure(inheritable_callbacks=ensure_config().get("callbacks"))
    counters = [
        handler for handler in manager.handlers if isinstance(handler, UsageMetadataCallbackHandler)
    ]
    if not counters:
        return batch
    tokens = int(batch.token_counts.sum())
    message = AIMessage(
        content="",
        usage_metadata={"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens},
        response_metadata={"model_name": batch.spec.model},
    )
    result = LLMResult(generations=[[ChatGeneration(message=message)]])
    for counter in counters:
        counter.on_llm_end(result, run_id=uuid4())
    return batch
