"""Properties of an object: a row's fields as Weaviate stores them, and the two that nimbed adds.

The contract of a collection's vectors stands in the description of the property ``nimbed_digest``,
which holds each object's digest: the two cannot be parted, and Weaviate has no other place that a
property's type does not claim.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from weaviate.classes.config import DataType, Property, Tokenization
from weaviate.collections import Collection
from weaviate.exceptions import UnexpectedStatusCodeError, WeaviateInvalidInputError
from weaviate.outputs.config import CollectionConfig

from nimbed import VectorSpec
from nimbed.errors import ConfigurationError
from nimbed.inputs import encodable
from nimbed.spec import require_same_space

__all__ = ["DIGEST", "ID", "UnfitError", "contract_of", "module_options", "properties_of", "seal"]

#: The property that holds what an object was made from.
DIGEST = "nimbed_digest"
#: The property that holds the row's id; Weaviate keeps ``id`` for itself.
ID = "nimbed_id"

_NAME = re.compile(r"[_A-Za-z][_0-9A-Za-z]{0,230}")
_RESERVED = frozenset({"id", "_id", "_additional", "vector", "vectors"})
# A number travels as a double: a larger integer would come out as another one.
_EXACT = 2**53


class UnfitError(ValueError):
    """A field that Weaviate would refuse, or change without a word."""


def properties_of(columns: Mapping[str, Any], fields: Sequence[str] | None) -> dict[str, Any]:
    """Return fields as properties, in the order of their names.

    Dates become RFC 3339 (without a zone: UTC), decimals and other things text, as loaders of
    files give them; an empty field is left out.

    Args:
        columns: The fields.
        fields: Those to keep, where the row has them; None keeps all.

    Raises:
        UnfitError: If a name or a value cannot be stored.
    """
    names = columns if fields is None else [name for name in fields if name in columns]
    return {
        name: _plain(name, columns[name]) for name in sorted(names) if _kept(name, columns[name])
    }


def _kept(name: object, value: object) -> bool:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UnfitError(
            f"{name!r} cannot be the name of a property, which has letters, digits and _ and "
            f"does not begin with a digit; rename the field"
        )
    if name in _RESERVED:
        raise UnfitError(f"Weaviate keeps the name {name!r} for itself; rename the field")
    return value is not None


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > _EXACT:
            raise UnfitError(
                f"{name} is {value}; numbers travel to Weaviate as doubles, which are exact to "
                f"2^53: store it as text"
            )
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UnfitError(f"{name} is {value}, which Weaviate does not store")
        return value
    if isinstance(value, datetime.datetime):
        return value.isoformat() + ("" if value.tzinfo else "Z")
    if isinstance(value, datetime.date):
        return f"{value.isoformat()}T00:00:00Z"
    if isinstance(value, Mapping):
        return {
            key: _plain(f"{name}.{key}", each)
            for key, each in sorted(value.items())
            if _kept(key, each)
        }
    if isinstance(value, (list, tuple)):
        return _plain_list(name, value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise UnfitError(f"{name} holds bytes; store them as text in base64")
    text = str(value)
    if not encodable(text):
        raise UnfitError(f"{name} is not valid Unicode")
    return text


def _plain_list(name: str, values: Sequence[Any]) -> list[Any]:
    """Return a list as one of a single kind: Weaviate's arrays know no other."""
    plain: list[Any] = [None if each is None else _plain(name, each) for each in values]
    kinds = {type(each) for each in plain}
    if kinds == {int, float}:
        return [float(each) for each in plain]
    if len(kinds) > 1 or kinds & {list, type(None)}:
        listed = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UnfitError(
            f"{name} is a list of {listed}; a list in Weaviate holds values of one plain type"
        )
    return plain


def module_options(each: Any) -> list[tuple[str, Any]]:
    """Return a property's options for each module; an unnamed vector has one module."""
    options = dict(each.vectorizer_configs or {})
    if each.vectorizer is not None and each.vectorizer_config is not None:
        options.setdefault(str(each.vectorizer), each.vectorizer_config)
    return list(options.items())


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


def _add(collection: Collection[Any, Any], new: Property) -> None:
    try:
        collection.config.add_property(new)
    except (WeaviateInvalidInputError, UnexpectedStatusCodeError):
        # There after all: another import was faster. Anything else fails again when it is read.
        if all(each.name != new.name for each in collection.config.get().properties):
            raise
