"""Properties of an object: a row's fields as Weaviate stores them, and the two that nimbed adds.

The contract of a collection's vectors stands in the description of the property ``nimbed_digest``,
which holds each object's digest: the two cannot be parted, and Weaviate has no other place that a
property's type does not claim.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import math
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from weaviate.classes.config import DataType, Property, Tokenization, Vectorizers
from weaviate.collections import Collection
from weaviate.exceptions import UnexpectedStatusCodeError, WeaviateInvalidInputError
from weaviate.outputs.config import CollectionConfig

from nimbed import VectorSpec
from nimbed.errors import ConfigurationError
from nimbed.inputs import encodable
from nimbed.spec import MultiVectorSpec, require_same_space
from nimbed_weaviate.calls import Calls

__all__ = [
    "DIGEST",
    "ID",
    "Digest",
    "Places",
    "StoredSpec",
    "UnfitError",
    "contract_of",
    "dense_contract",
    "digest",
    "digest_properties",
    "digest_property",
    "encoded_row",
    "ensure_id",
    "module_options",
    "note_places",
    "object_uuid",
    "places_of",
    "properties_of",
    "require_unmoved",
    "seal",
    "space_of",
]

#: A vector a text, or one a token.
StoredSpec = VectorSpec | MultiVectorSpec
#: The property that holds what an object's vector was made from; of a named vector ``_NAME``
#: comes behind.
DIGEST = "nimbed_digest"
#: The property that holds the row's id; Weaviate keeps ``id`` for itself.
ID = "nimbed_id"

_NAME = re.compile(r"[_A-Za-z][_0-9A-Za-z]{0,230}")
_RESERVED = frozenset({"id", "_id", "_additional", "vector", "vectors"})
# A number travels as a double: a larger integer would come out as another one.
_EXACT = 2**53
_ID_IS = "the row's id"
# One encoder for all rows: json.dumps makes one for each, a tenth of an import's time.
_SORTED = json.JSONEncoder(sort_keys=True).encode
_DIGEST_BYTES = 16
_SAMPLE = 20
_VARIANTS = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))


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
    names = tuple(columns if fields is None else [name for name in fields if name in columns])
    return {
        name: _plain(name, value)
        for name in _in_order(names)
        if (value := columns[name]) is not None
    }


@functools.lru_cache(256)
def _in_order(names: tuple[Any, ...]) -> tuple[str, ...]:
    """Return names of properties in their order, each judged; once, for rows share theirs."""
    ordered = tuple(sorted(names))
    for name in ordered:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UnfitError(
                f"{name!r} cannot be the name of a property, which has letters, digits and _ and "
                f"does not begin with a digit; rename the field"
            )
        if name in _RESERVED:
            raise UnfitError(f"Weaviate keeps the name {name!r} for itself; rename the field")
    return ordered


def _plain(name: str, value: Any) -> Any:
    if type(value) is str and value.isascii():  # what most are, and no kind of anything below
        return value
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
            for key in _in_order(tuple(value))
            if (each := value[key]) is not None
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


def digest_property(vector: str) -> str:
    """Return the property that holds the digests, and the contract, of a vector."""
    return DIGEST if vector in ("", "default") else f"{DIGEST}_{vector}"


def digest_properties(
    calls: Calls,
    collection: Collection[Any, Any],
    config: CollectionConfig,
    *,
    sample: bool = True,
) -> dict[str, str]:
    """Return the property with the digests of each vector that has one, by the vector's name.

    Earlier versions filled one vector of a collection, and knew one property whatever its name:
    it belongs to the vector that the objects have.

    Args:
        calls: Makes the calls.
        collection: The collection.
        config: Its configuration.
        sample: Whether objects may be looked at where the configuration does not tell.

    Raises:
        ConfigurationError: If it could belong to several.
    """
    there = {each.name for each in config.properties}
    vectors = dict(config.vector_config or {})
    found = {name: digest_property(name) for name in vectors or [""]}
    found = {name: own for name, own in found.items() if own in there}
    if DIGEST not in there or DIGEST in found.values():
        return found
    left = {name: it for name, it in vectors.items() if name not in found}
    given = [name for name, it in left.items() if it.vectorizer.vectorizer == Vectorizers.NONE]
    candidates = given or list(left)
    if len(candidates) > 1 and sample:
        fetch = functools.partial(
            collection.query.fetch_objects,
            limit=_SAMPLE,
            return_properties=[DIGEST],
            include_vector=candidates,
        )
        filled = [each for each in calls(fetch).objects if each.properties.get(DIGEST)]
        candidates = [name for name in candidates if any(each.vector.get(name) for each in filled)]
    if len(candidates) > 1:
        raise ConfigurationError(
            f"an earlier version of nimbed filled a vector of the collection {config.name}, and "
            f"which one of {', '.join(map(repr, candidates))} is not known any more; import into "
            f"another collection"
        )
    return found | dict.fromkeys(candidates, DIGEST)


@dataclass(frozen=True, slots=True)
class Places:
    """Which vectors and collections a migration has to do with; None where there is none.

    Attributes:
        searched: The name of the vector that is searched, where several are filled.
        previous: The vector that was searched before.
        next: The vector that is being filled.
        collection: The collection that took the place of this one.
        previous_collection: The collection whose place this one took.
        next_collection: The collection that is being filled to take this one's place.
        since: When the last object was stored before this collection took that place, in
            milliseconds by Weaviate's clock.
    """

    searched: str | None = None
    previous: str | None = None
    next: str | None = None
    collection: str | None = None
    previous_collection: str | None = None
    next_collection: str | None = None
    since: int | None = None

    @property
    def description(self) -> str:
        """What the property of rows' ids is described by."""
        noted = {name: value for name, value in asdict(self).items() if value is not None}
        return f"{_ID_IS} {json.dumps(noted)}" if noted else _ID_IS


def places_of(config: CollectionConfig) -> Places:
    """Return what migrations have noted in a collection."""
    said = next((each.description or "" for each in config.properties if each.name == ID), "")
    try:
        noted = json.loads(said[said.index("{") :])
        return Places(**noted)
    except (ValueError, TypeError):
        return Places()


def require_unmoved(config: CollectionConfig) -> None:
    """Raise a ConfigurationError if another collection took the place of this one."""
    moved = places_of(config).collection
    if moved is not None:
        raise ConfigurationError(
            f"the collection {config.name} was migrated to {moved}; open that one, as "
            f"nimbed_weaviate.current_collection(client, {config.name!r}) does"
        )


def note_places(calls: Calls, collection: Collection[Any, Any], places: Places) -> None:
    """Write down what a migration has done."""
    said = {ID: places.description}
    calls(lambda: collection.config.update(property_descriptions=said))


def contract_of(config: CollectionConfig, name: str = DIGEST) -> StoredSpec | None:
    """Return the contract that a property holds, or None if there is no such property.

    Raises:
        ConfigurationError: If there is the property without the contract.
    """
    found = next((each for each in config.properties if each.name == name), None)
    if found is None:
        return None
    try:
        facts = json.loads(found.description or "")
        kind = MultiVectorSpec if facts.get("kind") == MultiVectorSpec.kind else VectorSpec
        return kind.from_dict(facts)
    except (ConfigurationError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"the collection {config.name} has a property {name} that nimbed did not make, or "
            f"whose description was changed ({error}); import into another collection"
        ) from error


def dense_contract(config: CollectionConfig, name: str, *, doing: str) -> VectorSpec | None:
    """Return the contract that a property holds, for what takes one vector a text.

    Raises:
        ConfigurationError: If it is that of multi-vectors; see also :func:`contract_of`.
    """
    found = contract_of(config, name)
    if isinstance(found, MultiVectorSpec):
        raise ConfigurationError(
            f"the vector of the collection {config.name} whose digests are in {name} is a "
            f"multi-vector; {doing} takes those of one vector a text"
        )
    return found


def seal(
    calls: Calls,
    collection: Collection[Any, Any],
    config: CollectionConfig,
    spec: StoredSpec,
    name: str,
) -> CollectionConfig:
    """Write a contract into a property, or make sure that the one there is the same.

    Args:
        calls: Makes the calls.
        collection: The collection.
        config: Its configuration.
        spec: The contract.
        name: The property that holds a vector's digests.

    Returns:
        The configuration, read again where something was added to it.

    Raises:
        SpaceMismatchError: If the collection holds vectors of another space.
    """
    added = ensure_id(calls, collection, config)
    if all(each.name != name for each in config.properties):
        _add(calls, collection, _property(name, spec.to_json(), filterable=False))
        added = True
    if added:
        config = calls(collection.config.get)  # another import may have been faster
    sealed = contract_of(config, name)
    if sealed is not None:
        require_same_space(sealed, spec, doing=f"import into the collection {config.name}")
    return config


def ensure_id(calls: Calls, collection: Collection[Any, Any], config: CollectionConfig) -> bool:
    """Make the property of rows' ids, and return True, where the configuration has it not."""
    if any(each.name == ID for each in config.properties):
        return False
    _add(calls, collection, _property(ID, _ID_IS, filterable=True))
    return True


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


def _add(calls: Calls, collection: Collection[Any, Any], new: Property) -> None:
    try:
        calls(lambda: collection.config.add_property(new))
    except (WeaviateInvalidInputError, UnexpectedStatusCodeError):
        # There after all: another import was faster. Anything else fails again when it is read.
        if all(each.name != new.name for each in calls(collection.config.get).properties):
            raise


@dataclass(frozen=True, slots=True)
class Digest:
    """What a vector was made from: its text, and the whole row where a row was imported.

    Attributes:
        text: Names the text and the space that it was embedded in.
        row: Names all that is stored of the row; empty for an object that nimbed did not make.
    """

    text: bytes
    row: bytes = b""

    @classmethod
    def parse(cls, stored: object) -> Digest:
        """Return a digest as it is stored; an empty one where something else wrote it."""
        try:
            data = bytes.fromhex(str(stored or ""))
        except ValueError:
            data = b""
        return cls.of(data)

    @classmethod
    def of(cls, value: bytes) -> Digest:
        """Return the digest that has a value."""
        return cls(value[:_DIGEST_BYTES], value[_DIGEST_BYTES:])

    @property
    def value(self) -> bytes:
        """Both parts, one behind the other."""
        return self.text + self.row


def object_uuid(name: str) -> str:
    """Return the uuid of a row's object: RFC 4122's fifth version, made of the row's id.

    It is what ``weaviate.util.generate_uuid5(name)`` gives, in a fifth of the time.
    """
    hashed = hashlib.sha1(uuid.NAMESPACE_DNS.bytes + name.encode(), usedforsecurity=False)
    h = hashed.hexdigest()
    return f"{h[:8]}-{h[8:12]}-5{h[13:16]}-{_VARIANTS[h[16]]}{h[17:20]}-{h[20:32]}"


def digest(data: bytes, space: bytes = b"") -> bytes:
    """Return the digest of some bytes, in a space of vectors if one is given."""
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES, key=space).digest()


def encoded_row(properties: Mapping[str, Any]) -> bytes:
    """Return the bytes that a row's digest is made of."""
    return _SORTED(properties).encode()


def space_of(spec: StoredSpec) -> bytes:
    """Return the key of a space's digests."""
    return digest(spec.fingerprint.encode())
