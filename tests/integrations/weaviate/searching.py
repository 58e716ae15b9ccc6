"""Weaviate's side of a search: filters, cursors, distances, and properties as it answers them."""

from __future__ import annotations

import fnmatch
import operator
import struct
from collections.abc import Callable
from typing import Any
from uuid import UUID

import numpy as np
from weaviate.proto.v1 import base_pb2, properties_pb2, search_get_pb2

Object = tuple[dict[str, Any], dict[str, Any]]

_COMPARED: dict[int, Callable[[Any, Any], bool]] = {
    base_pb2.Filters.OPERATOR_EQUAL: operator.eq,
    base_pb2.Filters.OPERATOR_NOT_EQUAL: operator.ne,
    base_pb2.Filters.OPERATOR_GREATER_THAN: operator.gt,
    base_pb2.Filters.OPERATOR_GREATER_THAN_EQUAL: operator.ge,
    base_pb2.Filters.OPERATOR_LESS_THAN: operator.lt,
    base_pb2.Filters.OPERATOR_LESS_THAN_EQUAL: operator.le,
}


def matches(filters: Any, uuid: str, properties: dict[str, Any]) -> bool:
    if filters.operator == base_pb2.Filters.OPERATOR_AND:
        return all(matches(each, uuid, properties) for each in filters.filters)
    name = filters.target.property
    if name == "_id":
        assert filters.operator == base_pb2.Filters.OPERATOR_CONTAINS_ANY
        return uuid in filters.value_text_array.values
    value = properties.get(name)
    wanted = getattr(filters, filters.WhichOneof("test_value"))
    if value is None:
        return False
    if filters.operator == base_pb2.Filters.OPERATOR_LIKE:
        return fnmatch.fnmatchcase(value, wanted)
    return _COMPARED[filters.operator](value, wanted)


def distance(metric: str, a: np.ndarray, b: np.ndarray) -> float:
    """Return what Weaviate's distancer gives."""
    if a.ndim == 2:  # multi-vectors, by dot product whatever the metric
        return -float((a @ b.T).max(1).sum())
    if metric == "hamming":
        return float((a != b).sum())
    if metric == "l2-squared":
        return float(((a - b) ** 2).sum())
    dot = float(a @ b)
    return -dot if metric == "dot" else 1 - dot / float(np.linalg.norm(a) * np.linalg.norm(b))


def floats(data: bytes) -> list[float]:
    return np.frombuffer(data, "<f4").tolist()


def vector_in(sent: Any) -> list[Any]:
    """Return a vector as it came, or the vectors of a multi-vector, before which their size is."""
    if sent.type != base_pb2.Vectors.VECTOR_TYPE_MULTI_FP32:
        return floats(sent.vector_bytes)
    (size,) = struct.unpack_from("<H", sent.vector_bytes)
    return np.frombuffer(sent.vector_bytes, "<f4", offset=2).reshape(-1, size).tolist()


def asked_vector(near: Any) -> tuple[str, np.ndarray]:
    """Return the target and the numbers of a near_vector, however the client sends them."""
    targets = list(near.targets.target_vectors) or list(near.target_vectors)
    for each in near.vector_for_targets:
        asked = floats(each.vector_bytes) if each.vector_bytes else vector_in(each.vectors[0])
        return each.name, np.array(asked)
    asked = floats(near.vector_bytes) if near.vector_bytes else vector_in(near.vectors[0])
    return (targets or ["default"])[0], np.array(asked)


def value_of(value: Any) -> Any:
    if isinstance(value, bool):
        return properties_pb2.Value(bool_value=value)
    if isinstance(value, (int, float)):
        return properties_pb2.Value(number_value=value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        texts = properties_pb2.TextValues(values=value)
        return properties_pb2.Value(list_value=properties_pb2.ListValue(text_values=texts))
    if isinstance(value, list):
        data = struct.pack(f"<{len(value)}d", *value)
        numbers = properties_pb2.NumberValues(values=data)
        return properties_pb2.Value(list_value=properties_pb2.ListValue(number_values=numbers))
    if isinstance(value, dict):
        fields = {name: value_of(each) for name, each in value.items()}
        return properties_pb2.Value(object_value=properties_pb2.Properties(fields=fields))
    return properties_pb2.Value(text_value=str(value))


def result(
    request: Any, uuid: str, held: Object, far: float | None, updated: dict[str, int]
) -> Any:
    """Return an object as the request wants it."""
    properties, vectors = held
    if not request.HasField("properties") or request.properties.return_all_nonref_properties:
        names = list(properties)
    else:
        names = list(request.properties.non_ref_properties)
    fields = {name: value_of(properties[name]) for name in names if name in properties}
    metadata = search_get_pb2.MetadataResult()
    if request.metadata.uuid:
        metadata.id_as_bytes = UUID(uuid).bytes
    if request.metadata.distance and far is not None:
        metadata.distance, metadata.distance_present = far, True
    if request.metadata.last_update_time_unix:
        metadata.last_update_time_unix = updated.get(uuid, 1_700_000_000_000)
        metadata.last_update_time_unix_present = True
    wanted = set(request.metadata.vectors) or (set(vectors) if request.metadata.vector else set())
    for name, vector in vectors.items():
        if name in wanted:
            numbers = np.array(vector, "<f4")
            metadata.vectors.append(
                base_pb2.Vectors(
                    name=name,
                    vector_bytes=numbers.tobytes()
                    if numbers.ndim == 1
                    else struct.pack("<H", numbers.shape[1]) + numbers.tobytes(),
                    type=base_pb2.Vectors.VECTOR_TYPE_SINGLE_FP32
                    if numbers.ndim == 1
                    else base_pb2.Vectors.VECTOR_TYPE_MULTI_FP32,
                )
            )
    shown = search_get_pb2.PropertiesResult(non_ref_props=properties_pb2.Properties(fields=fields))
    return search_get_pb2.SearchResult(properties=shown, metadata=metadata)
