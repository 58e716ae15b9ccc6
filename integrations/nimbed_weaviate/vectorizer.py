"""The configuration of a collection's vector, embedded by a server or in this process.

The modules are configured through the client's ``custom`` vectorizer: its own functions for them
send a boolean ``truncate``, which Weaviate ignores, a slash behind the address, which doubles it,
and the collection's name as part of every text. Nothing is sent from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weaviate.classes.config import Configure

from nimbed import VectorSpec
from nimbed.errors import ConfigurationError
from nimbed.spec import EmbeddingType, MultiVectorSpec, Truncate, check_literal
from nimbed_weaviate.connection import Module, is_nvidia, served_at
from nimbed_weaviate.indexes import index_for, quantizer_for

if TYPE_CHECKING:
    from weaviate.collections.classes.config_vectors import (
        _VectorConfigCreate,  # pyright: ignore[reportPrivateUsage]
    )

    from nimbed_weaviate.indexes import Index, Quantizer

__all__ = ["Fields", "Module", "self_provided", "vectorizer"]

#: Names of properties, or their names and weights.
Fields = Sequence[str] | Mapping[str, float]


def vectorizer(
    model: str | None = None,
    *,
    base_url: str,
    module: Module = "text2vec-nvidia",
    name: str | None = None,
    embedding_type: EmbeddingType = "float",
    dimensions: int | None = None,
    truncate: Truncate | None = None,
    source_properties: Sequence[str] | None = None,
    text_fields: Fields = (),
    image_fields: Fields = (),
    quantizer: Quantizer | None = None,
    index: Index = "hnsw",
) -> _VectorConfigCreate:
    """Return a vector that Weaviate itself has embedded, for ``collections.create``.

    A vector's configuration cannot be changed later. Connect with
    :func:`nimbed_weaviate.headers`: without a key Weaviate sends no request.

    Args:
        model: Name or alias of the model on the server. ``text2vec-transformers`` sends none.
        base_url: A nimbed server as Weaviate sees it, or :data:`nimbed_weaviate.NVIDIA`.
        module: ``text2vec-cohere`` imports ten times as fast as ``text2vec-nvidia`` from a nimbed
            server: it sends 96 texts a request and as many requests as there are batches, the
            other one request of ten texts at a time, and both send the role.
            ``multi2vec-nvidia`` and ``multi2vec-cohere`` are for images beside texts; to neither
            is a question a query. ``text2vec-transformers`` for servers of that container's
            contract; it sends no key.
        name: The vector's name; None means ``default``.
        embedding_type: What the alias gives; it decides the metric. Weaviate cannot ask for a
            type, so anything but ``float`` needs an alias of ``nimbed serve``, packed types one
            with ``as=signs``.
        dimensions: For Cohere's modules, the size of a vector, one of those that the model offers.
        truncate: For ``text2vec-nvidia`` and ``text2vec-cohere``, what happens to a text that is
            too long; None means ``END``, since with ``NONE`` the others of its request fail too.
        source_properties: Properties whose texts are embedded; None takes all of type text.
        text_fields: For the multi2vec modules, properties of type text.
        image_fields: Likewise, properties of type blob.
        quantizer: ``none``, ``bq`` or weaviate-client's own object; None leaves it to the server,
            for packed types ``none``.
        index: ``hnsw``, ``flat`` or weaviate-client's own object, such as
            ``Configure.VectorIndex.dynamic(...)``; it is refused where it would rank wrongly.

    Raises:
        ConfigurationError: If the address cannot be reached by Weaviate, or the module cannot do
            what is asked.
    """
    check_literal("module", module, Module)
    check_literal("embedding_type", embedding_type, EmbeddingType)
    address = served_at(base_url)
    if "cohere" in module and is_nvidia(address):
        raise ConfigurationError(
            f"NVIDIA does not speak Cohere's API, as {module} does; take text2vec-nvidia, or the "
            f"address of a nimbed server"
        )
    if embedding_type != "float" and is_nvidia(address):
        raise ConfigurationError(
            f"Weaviate cannot ask NVIDIA for {embedding_type} vectors; point it to an alias of a "
            f"nimbed server, or take floats and quantizer='bq'"
        )
    fields = {"textFields": text_fields, "imageFields": image_fields}
    settings: dict[str, Any]
    if "cohere" not in module:
        _refuse(module, dimensions=dimensions)
    if module == "text2vec-transformers":
        _refuse(module, model=model, truncate=truncate, **fields)
        settings = {"inferenceUrl": address, "vectorizeClassName": False}
    else:
        if not model:
            raise ConfigurationError(
                "name the model or alias: without one Weaviate asks for a model of its own choice"
            )
        settings = {"baseURL": address, "model": model}
        if dimensions is not None:
            settings["dimensions"] = dimensions
        if module in ("text2vec-nvidia", "text2vec-cohere"):
            _refuse(module, **fields)
            check_literal("truncate", truncate or "END", Truncate)
            settings |= {"truncate": truncate or "END", "vectorizeClassName": False}
        else:
            _refuse(module, truncate=truncate, source_properties=source_properties)
            settings |= _fields(module, fields)
    # The metric depends on the type alone; the server knows how many dimensions there are.
    spec = VectorSpec.of(model=model or "", dimensions=8, embedding_type=embedding_type)
    return Configure.Vectors.custom(
        name=name,
        module_name=module,
        module_config=settings,
        source_properties=None if source_properties is None else list(source_properties),
        vector_index_config=index_for(spec, index=index, quantizer=quantizer),
    )


def self_provided(
    spec: VectorSpec | MultiVectorSpec,
    *,
    name: str | None = None,
    quantizer: Quantizer | None = None,
    index: Index = "hnsw",
    muvera: bool = False,
) -> _VectorConfigCreate:
    """Return a vector that the caller embeds, such as :func:`nimbed_weaviate.batch_import` does.

    Args:
        spec: The contract of the vectors, of ``embedder.spec(...)`` or, for multi-vectors
            (Weaviate 1.29), ``embedder.multi_spec(...)``.
        name: The vector's name; None means ``default``.
        quantizer: ``none``, ``bq`` or weaviate-client's own object; None leaves it to the server,
            for packed types ``none``.
        index: ``hnsw``, ``flat`` or weaviate-client's own object, such as
            ``Configure.VectorIndex.dynamic(...)``; it is refused where it would rank wrongly.
            Multi-vectors have hnsw alone.
        muvera: Whether Weaviate keeps a multi-vector as one dense vector in its index (1.31), a
            fraction of the memory; what it finds is ranked by all tokens again.

    Raises:
        ConfigurationError: If a choice is unknown, or would rank wrongly.
    """
    if isinstance(spec, MultiVectorSpec):
        plain = None if isinstance(index, str) else index
        if index != "hnsw" and (plain is None or plain.vector_index_type().value != "hnsw"):
            raise ConfigurationError("multi-vectors have the index hnsw alone; leave index out")
        encoding = Configure.VectorIndex.MultiVector.Encoding.muvera() if muvera else None
        return Configure.MultiVectors.self_provided(  # type: ignore[no-any-return]
            name=name,
            encoding=encoding,
            quantizer=quantizer_for(quantizer),
            vector_index_config=None if plain is None else plain.model_copy(),
        )
    if muvera:
        raise ConfigurationError("muvera is for multi-vectors; this spec is of one vector a text")
    config = index_for(spec, index=index, quantizer=quantizer)
    return Configure.Vectors.self_provided(name=name, vector_index_config=config)  # type: ignore[no-any-return]


def _fields(module: Module, fields: Mapping[str, Fields]) -> dict[str, Any]:
    """Return the settings for fields; if some have weights, Weaviate wants one for each."""
    given = {key: names for key, names in fields.items() if names}
    if not given:
        raise ConfigurationError(
            f"{module} embeds named properties alone; give text_fields or image_fields"
        )
    weighted = [isinstance(names, Mapping) for names in given.values()]
    if any(weighted) and not all(weighted):
        raise ConfigurationError(
            "give weights for the text fields and the image fields, or for neither"
        )
    settings: dict[str, Any] = {key: list(names) for key, names in given.items()}
    if any(weighted):
        settings["weights"] = {
            key: list(names.values()) for key, names in given.items() if isinstance(names, Mapping)
        }
    return settings


_INSTEAD = {
    "dimensions": "no size; let model name an alias of nimbed serve with dimensions=...",
    "model": "no model; the server's only one answers, or put a path for it into base_url",
    "truncate": "no truncate; set it at the server",
    "source_properties": "named fields alone; give text_fields and image_fields",
    "textFields": "all texts in one; use source_properties",
    "imageFields": "no images; use multi2vec-nvidia or multi2vec-cohere",
}


def _refuse(module: Module, **given: object) -> None:
    for name, value in given.items():
        if value:
            raise ConfigurationError(f"{module} sends {_INSTEAD[name]}")
