"""``NimbedEmbedding``: LlamaIndex's ``BaseEmbedding`` on a local model or a server.

Holds settings only: the engine loads what they name, at the first call.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from copy import copy
from io import BytesIO
from typing import Any, Self

from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import BaseNode, ImageDocument, ImageNode, ImageType
from llama_index.core.storage.kvstore.types import BaseKVStore
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from nimbed.cards import DEFAULT_MODEL
from nimbed.embedder import Embedder
from nimbed.errors import ConfigurationError, InputError, RemoteError, renumber
from nimbed.images import Image
from nimbed.inputs import Input
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

__all__ = ["NimbedEmbedding"]

_Vector = list[float]
_IMAGES = (ImageNode, ImageDocument)
# Bound to their process; and the key, which a pickle must not hold.
_NOT_PICKLED = ("api_key", "cache", "callback_manager", "rate_limiter")


class NimbedEmbedding(MultiModalEmbedding):
    """Embeds nodes as passages and queries as queries, on this machine or on a server.

    Construction reads no files and opens no connection. Packed types come back as ±1 a
    dimension, whose dot product and cosine rank as the Hamming distance does; int8 and uint8 as
    the value of their level.

    ``to_dict`` and the hash of an ingestion pipeline contain what decides the vectors, and
    nothing that only decides how fast they are made.

    A pickle holds neither weights, connections, cache, callbacks, rate limiter nor the key: the
    process that loads it reads the key from its own environment.

    Attributes:
        model_name: A folder, a catalogue name, a hub id, or a server's name for it.
        model: Accepted in place of ``model_name``, as in NVIDIA's adapter; None once it is.
        base_url: Address of a server that runs the model.
        api_key: The server's key; None reads ``NVIDIA_API_KEY`` for NVIDIA's own hosts, else
            ``NIMBED_API_KEY``.
        headers: Headers that a gateway before the server wants; with them it cannot be pickled.
        dimensions: One of the sizes the model offers; None for the full vector.
        embedding_type: How precise a dimension is.
        truncate: What happens to a text that is too long: ``NONE`` raises and names its row.
        int8_scale: ``even`` (default) or ``nim``, for int8 and uint8.
        revision: Branch, tag or commit on the hub.
        card: Which catalogued model a folder holds.
        prompt_name: A prompt of the model for another task than search, put before every text.
        dialect: A server's dialect; ``auto`` finds out.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: Arithmetic of a local model.
        backend: What runs a local model: ``torch``, ``onnxruntime`` or ``auto``.
        cache_dir: Folder of the Hugging Face cache, if it is not the usual one.
        progress: Whether passages show a bar on standard error.
        cache: A key-value store for vectors. A store given as ``embeddings_cache`` is used in
            the same way, since LlamaIndex's own use of it confuses the roles.
        embed_batch_size: Texts in one call of the engine, which makes its own batches of them,
            and in one event.
        num_workers: How many such calls run at once in asynchronous batches; None for all, since
            the engine limits itself.
        concurrency: Requests in flight at a server at most; 32 if None.
        timeout: Seconds that one request may take; 60 if None.
    """

    # A validation error would otherwise repeat its input, and the key is part of that.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, validate_assignment=True)

    model_name: str = DEFAULT_MODEL
    model: str | None = Field(default=None, exclude=True)
    base_url: str | None = None
    api_key: SecretStr | None = Field(default=None, exclude=True)
    headers: dict[str, SecretStr] | None = Field(default=None, exclude=True)
    dimensions: int | None = None
    embedding_type: EmbeddingType = "float"
    truncate: Truncate = "NONE"
    int8_scale: Int8Scale | None = None
    revision: str | None = None
    card: str | None = None
    prompt_name: str | None = None
    dialect: str = "auto"
    device: str = Field(default="auto", exclude=True)
    dtype: Dtype = Field(default="auto", exclude=True)
    backend: Backend = Field(default="auto", exclude=True)
    cache_dir: str | None = Field(default=None, exclude=True)
    progress: bool = Field(default=False, exclude=True)
    cache: BaseKVStore | None = Field(default=None, exclude=True)
    embeddings_cache: Any | None = Field(default=None, exclude=True)
    embed_batch_size: int = Field(default=2048, gt=0, le=2048, exclude=True)
    num_workers: int | None = Field(default=None, exclude=True)
    concurrency: int | None = Field(default=None, gt=0, exclude=True)
    timeout: float | None = Field(default=None, gt=0, exclude=True)

    _lazy: LazyEmbedder = PrivateAttr(default_factory=LazyEmbedder)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that ``to_dict`` gives this class."""
        return "NimbedEmbedding"

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
        cache: BaseKVStore | None = None,
    ) -> Self:
        """Return an embedding that shares an existing embedder, which the caller closes."""
        made = cls(
            model_name=embedder.card.id,
            revision=embedder.spec().revision,
            dimensions=dimensions,
            embedding_type=embedding_type,
            truncate=truncate,
            int8_scale=int8_scale,
            progress=progress,
            cache=cache,
        )
        made._lazy = LazyEmbedder(embedder)
        return made

    @model_validator(mode="before")
    @classmethod
    def _explain(cls, given: Any) -> Any:
        explain_arguments(given if isinstance(given, dict) else (), cls.model_fields)
        return given

    @model_validator(mode="after")
    def _settle(self) -> Self:
        # Not by assignment, which would validate, and so come here, again.
        if self.embeddings_cache is not None:
            object.__setattr__(self, "cache", self.embeddings_cache)
            object.__setattr__(self, "embeddings_cache", None)
        if self.model is not None:
            self._rename_model(self.model)
        source = self._source()
        if self.base_url is None:
            return self
        if "model_name" not in self.model_fields_set:
            raise ConfigurationError(
                "model_name is required with a base_url: give the server's name for the model"
            )
        key = key_for(self.base_url, source.api_key)
        object.__setattr__(self, "api_key", SecretStr(key) if key else None)
        return self

    def _rename_model(self, name: str) -> None:
        object.__setattr__(self, "model", None)
        self.model_fields_set.discard("model")
        if "model_name" in self.model_fields_set and name != self.model_name:
            raise ConfigurationError(
                f"model and model_name mean the same and differ: {name!r} and "
                f"{self.model_name!r}; use model_name"
            )
        object.__setattr__(self, "model_name", name)
        self.model_fields_set.add("model_name")

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

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Set the vectors of nodes, as a pipeline does: of images as what they show.

        A text beside an image is embedded with it, by a model that takes such pairs.

        Raises:
            InputError: If a node cannot be embedded, or its image would have to be fetched.
            ConfigurationError: If the model takes no images.
        """
        read, shown = _places_of_texts(nodes), self._shown(nodes)
        with _named_as(read):
            super().__call__([nodes[place] for place in read], **kwargs)
        if shown:
            with _named_as(list(shown)):
                batch = self.embedder.embed(list(shown.values()), **self._keywords("passage"))
            _set_vectors(nodes, shown, batch.lists())
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Do what a pipeline's call does without blocking the event loop."""
        read, shown = _places_of_texts(nodes), self._shown(nodes)
        with _named_as(read):
            await super().acall([nodes[place] for place in read], **kwargs)
        if shown:
            images = list(shown.values())
            with _named_as(list(shown)):
                batch = await self.embedder.aembed(images, **self._keywords("passage"))
            _set_vectors(nodes, shown, batch.lists())
        return nodes

    def _shown(self, nodes: Sequence[BaseNode]) -> dict[int, Input]:
        """Return what there is to embed of the nodes of images, by their place."""
        found: dict[int, Input] = {}
        for place, node in enumerate(nodes):
            if not isinstance(node, _IMAGES):
                continue
            if node.image is None and node.image_path is None:
                raise InputError(
                    f"the image of node {node.node_id} is not here, and an address is not fetched; "
                    f"load it, and give the node its image_path",
                    rows=[place],
                )
            found[place] = image = _image(node.resolve_image())
            text = node.text
            if text and not text.isspace():
                if "text_image" not in self.embedder.card.modalities:
                    raise InputError(
                        f"node {node.node_id} has a text beside its image, and "
                        f"{self.embedder.card.id} takes no pairs; give it a node of its own",
                        rows=[place],
                    )
                found[place] = (text, image)
        return found

    def get_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[_Vector]:
        """Embed texts as passages; an error names their rows in this call.

        Raises:
            InputError: If texts are blank, too long or no strings; ``.rows`` names them.
            BackendError: If the model or the server failed.
        """
        try:
            return super().get_text_embedding_batch(texts, show_progress, **kwargs)
        except (InputError, RemoteError) as error:
            self._name_rows_of_the_call(error, texts)
            raise

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[_Vector]:
        """Do what :meth:`get_text_embedding_batch` does without blocking the event loop."""
        try:
            return await super().aget_text_embedding_batch(texts, show_progress, **kwargs)
        except (InputError, RemoteError) as error:
            self._name_rows_of_the_call(error, texts)
            raise

    def _name_rows_of_the_call(self, error: InputError | RemoteError, texts: list[str]) -> None:
        # LlamaIndex cuts a call into batches and tells nobody where one begins: it is looked for.
        failed, size = vars(error).pop("batch", texts), self.embed_batch_size
        for start in range(0, len(texts), size):
            if texts[start : start + size] == failed:
                renumber(error, range(start, start + size))
                return

    def _get_query_embedding(self, query: str) -> _Vector:
        return self._embed([query], "query")[0]

    async def _aget_query_embedding(self, query: str) -> _Vector:
        return (await self._aembed([query], "query"))[0]

    def _get_text_embedding(self, text: str) -> _Vector:
        return self._embed([text], "passage")[0]

    async def _aget_text_embedding(self, text: str) -> _Vector:
        return (await self._aembed([text], "passage"))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[_Vector]:
        return self._embed(texts, "passage")

    async def _aget_text_embeddings(self, texts: list[str]) -> list[_Vector]:
        return await self._aembed(texts, "passage")

    def _get_image_embedding(self, img_file_path: ImageType) -> _Vector:
        return self._get_image_embeddings([img_file_path])[0]

    async def _aget_image_embedding(self, img_file_path: ImageType) -> _Vector:
        return (await self._aget_image_embeddings([img_file_path]))[0]

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[_Vector]:
        images = [_image(file) for file in img_file_paths]
        return self.embedder.embed(images, **self._keywords("passage")).lists()

    async def _aget_image_embeddings(self, img_file_paths: list[ImageType]) -> list[_Vector]:
        images = [_image(file) for file in img_file_paths]
        return (await self.embedder.aembed(images, **self._keywords("passage"))).lists()

    def _embed(self, texts: Sequence[str], role: InputType) -> list[_Vector]:
        cache = self.cache
        if cache is None:
            with _batch_noted(texts, texts):
                return self.embedder.embed(texts, **self._keywords(role)).lists()
        collection = self._collection(role)
        entries = {text: cache.get(text, collection) for text in dict.fromkeys(texts)}
        absent = [text for text, entry in entries.items() if not entry]
        if absent:
            with _batch_noted(texts, absent):
                batch = self.embedder.embed(absent, **self._keywords(role))
            for text, vector in zip(absent, batch.lists(), strict=True):
                entry = entries[text] = {"embedding": vector}
                cache.put(text, entry, collection)
        return _vectors(texts, entries)

    async def _aembed(self, texts: Sequence[str], role: InputType) -> list[_Vector]:
        cache = self.cache
        if cache is None:
            with _batch_noted(texts, texts):
                return (await self.embedder.aembed(texts, **self._keywords(role))).lists()
        collection = self._collection(role)
        entries = {text: await cache.aget(text, collection) for text in dict.fromkeys(texts)}
        absent = [text for text, entry in entries.items() if not entry]
        if absent:
            with _batch_noted(texts, absent):
                batch = await self.embedder.aembed(absent, **self._keywords(role))
            for text, vector in zip(absent, batch.lists(), strict=True):
                entry = entries[text] = {"embedding": vector}
                await cache.aput(text, entry, collection)
        return _vectors(texts, entries)

    def _collection(self, role: InputType) -> str:
        """Return the part of the cache for one vector space, role and way to truncate.

        LlamaIndex's own cache is keyed by the text alone: a query finds the vector of a passage
        with the same text, and one model finds the vectors of another.
        """
        return f"nimbed-{self.spec.fingerprint}-{self.truncate}-{role}"

    def _options(self, role: InputType) -> EmbedOptions:
        return cached_options(
            role, self.embedding_type, self.dimensions, self.truncate, self.int8_scale
        )

    def _keywords(self, role: InputType) -> dict[str, Any]:
        progress = self.progress and role == "passage"
        return {**self._options(role).keywords(), "progress": progress}

    def _source(self) -> LoadOptions:
        return LoadOptions.of(self, model=self.model_name)

    def __copy__(self) -> Self:
        """Copy the settings; the copy shares what is loaded for as long as they are the same."""
        copied = super().__copy__()
        copied._lazy = copy(self._lazy)
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copy the settings; cache, callbacks and what is loaded stay shared."""
        return self.__copy__()

    def __getstate__(self) -> dict[Any, Any]:
        """Return the settings alone; LlamaIndex's own method would try to pickle weights first.

        Raises:
            ConfigurationError: If there are headers, which do not travel.
        """
        refuse_to_pickle(self.headers)
        fields = {name: value for name, value in self.__dict__.items() if name not in _NOT_PICKLED}
        return {
            "__dict__": fields,
            "__pydantic_extra__": None,
            "__pydantic_fields_set__": set(self.model_fields_set),
            "__pydantic_private__": {"_lazy": self._lazy},
        }

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Build anew, with the key from the environment of the process that loads the pickle."""
        self.__init__(**state["__dict__"])  # type: ignore[misc]
        self._lazy = state["__pydantic_private__"]["_lazy"]


@contextmanager
def _named_as(rows: Sequence[int]) -> Generator[None]:
    """Have an error name these rows in the place of 0, 1, 2, ..."""
    try:
        yield
    except (InputError, RemoteError) as error:
        renumber(error, rows)
        raise


@contextmanager
def _batch_noted(texts: Sequence[str], sent: Sequence[str]) -> Generator[None]:
    """Have an error name rows of a batch, of which the cache left some to be sent, and keep it."""
    try:
        yield
    except (InputError, RemoteError) as error:
        if sent is not texts:
            renumber(error, [texts.index(text) for text in sent])
        vars(error)["batch"] = texts
        raise


def _places_of_texts(nodes: Sequence[BaseNode]) -> list[int]:
    return [place for place, node in enumerate(nodes) if not isinstance(node, _IMAGES)]


def _set_vectors(
    nodes: Sequence[BaseNode], places: Iterable[int], vectors: Sequence[_Vector]
) -> None:
    for place, vector in zip(places, vectors, strict=True):
        nodes[place].embedding = vector


def _image(file: ImageType) -> Image:
    return Image(file.getvalue() if isinstance(file, BytesIO) else file)


def _vectors(texts: Sequence[str], entries: dict[str, Any]) -> list[_Vector]:
    return [entries[text]["embedding"] for text in texts]
