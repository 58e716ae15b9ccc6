"""The contract of a collection's vectors, kept in the collection itself.

It stands in the description of the property ``nimbed_digest``, which holds each object's digest:
the two cannot be parted, and Weaviate has no other place that a property's type does not claim.
"""

from __future__ import annotations

from typing import Any

from weaviate.classes.config import DataType, Property, Tokenization
from weaviate.collections import Collection
from weaviate.exceptions import UnexpectedStatusCodeError, WeaviateInvalidInputError
from weaviate.outputs.config import CollectionConfig

from nimbed import VectorSpec
from nimbed.errors import ConfigurationError
from nimbed.spec import require_same_space

__all__ = ["DIGEST", "ID", "contract_of", "seal"]

#: The property that holds what an object was made from.
DIGEST = "nimbed_digest"
#: The property that holds the row's id; Weaviate keeps ``id`` for itself.
ID = "nimbed_id"


def contract_of(config: CollectionConfig) -> VectorSpec | None:
    """Return the contract of a collection's vectors, or None if it has none.

    Raises:
        ConfigurationError: If it has the property without the contract.
    """
    found = next((each for each in config.properties if each.name == DIGEST), None)
    if found is None:
        return None
    try:
        return VectorSpec.from_json(found.description or "")
    except ConfigurationError as error:
        raise ConfigurationError(
            f"the collection {config.name} has a property {DIGEST} that nimbed did not make, or "
            f"whose description was changed ({error}); import into another collection"
        ) from error


def seal(collection: Collection[Any, Any], spec: VectorSpec) -> None:
    """Write a contract into a collection, or make sure that the one there is the same.

    Raises:
        SpaceMismatchError: If the collection holds vectors of another space.
    """
    config = collection.config.get()
    names = {each.name for each in config.properties}
    if ID not in names:
        _add(collection, _property(ID, "the row's id", filterable=True))
    if DIGEST not in names:
        _add(collection, _property(DIGEST, spec.to_json(), filterable=False))
        config = collection.config.get()  # another import may have been faster
    there = contract_of(config)
    if there is not None:
        require_same_space(there, spec, doing=f"import into the collection {config.name}")


def _property(name: str, description: str, *, filterable: bool) -> Property:
    return Property(
        name=name,
        data_type=DataType.TEXT,
        description=description,
        index_filterable=filterable,
        index_searchable=False,
        tokenization=Tokenization.FIELD,
        skip_vectorization=True,
        vectorize_property_name=False,
    )


def _add(collection: Collection[Any, Any], wanted: Property) -> None:
    try:
        collection.config.add_property(wanted)
    except (WeaviateInvalidInputError, UnexpectedStatusCodeError):
        # There after all: another import was faster. Anything else fails again when it is read.
        if all(each.name != wanted.name for each in collection.config.get().properties):
            raise
