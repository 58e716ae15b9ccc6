"""A double of Weaviate on loopback: REST for the schema, gRPC for objects, both real sockets.

It stores what it is sent and can be told to refuse, to break off and to vanish. Its words are
Weaviate's own protobuf messages, as weaviate-client brings them.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import grpc
from google.protobuf.json_format import MessageToDict
from weaviate.proto.v1 import (
    base_pb2,
    batch_pb2,
    health_weaviate_pb2,
    properties_pb2,
    search_get_pb2,
    weaviate_pb2_grpc,
)

from .stored import stored, stored_property

MODULES = (
    "text2vec-nvidia",
    "multi2vec-nvidia",
    "text2vec-transformers",
    "text2vec-cohere",
    "multi2vec-cohere",
)


class Double(weaviate_pb2_grpc.WeaviateServicer):
    """What it holds and what it does wrong, to be set by a test.

    Attributes:
        classes: Schema answers by name.
        objects: By class and uuid: properties and vectors by name.
        updated: When an object was written, in milliseconds, if a test says so.
        batches: The uuids of each batch that came.
        refuse: The error for an object (its properties), or None.
        break_at: Number of the batch, from 0, at which the connection breaks before storing.
    """

    def __init__(self) -> None:
        self.version = "1.38.11"
        self.modules = {name: {} for name in MODULES}
        self.default_quantization = ""
        self.classes: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, dict[str, tuple[dict[str, Any], dict[str, list[float]]]]] = {}
        self.updated: dict[str, int] = {}
        self.batches: list[list[str]] = []
        self.headers: list[dict[str, str]] = []
        self.refuse: Callable[[dict[str, Any]], str | None] = lambda properties: None
        self.break_at: int | None = None
        self._rest = ThreadingHTTPServer(("127.0.0.1", 0), _rest_of(self))
        self._thread = threading.Thread(target=self._rest.serve_forever, args=(0.02,))
        self._thread.start()
        self.port: int = self._rest.server_address[1]
        self.start_grpc()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start_grpc(self) -> None:
        """Listen on another port each time: a client waits seconds before it tries one again."""
        self._grpc = grpc.server(ThreadPoolExecutor(4))
        weaviate_pb2_grpc.add_WeaviateServicer_to_server(self, self._grpc)
        self._grpc.add_generic_rpc_handlers([_HEALTH])
        self.grpc_port: int = self._grpc.add_insecure_port("127.0.0.1:0")
        self._grpc.start()

    def stop_grpc(self) -> None:
        self._grpc.stop(None).wait()

    def stop(self) -> None:
        self.stop_grpc()
        self._rest.shutdown()
        self._thread.join()
        self._rest.server_close()

    def create(self, sent: dict[str, Any]) -> dict[str, Any]:
        answer = stored(sent, default_quantization=self.default_quantization)
        self.classes[sent["class"]] = answer
        self.objects[sent["class"]] = {}
        return answer

    def BatchObjects(self, request: Any, context: Any) -> Any:
        self.batches.append([each.uuid for each in request.objects])
        if self.break_at is not None and len(self.batches) > self.break_at:
            # A reset in the middle: nobody answers this port any more.
            threading.Thread(target=self._grpc.stop, args=(None,)).start()
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        errors = []
        for place, each in enumerate(request.objects):
            fault = self._store(each)
            if fault:
                errors.append(batch_pb2.BatchObjectsReply.BatchError(index=place, error=fault))
        return batch_pb2.BatchObjectsReply(took=0.01, errors=errors)

    def _store(self, each: Any) -> str | None:
        properties = MessageToDict(each.properties.non_ref_properties)
        for lists in (each.properties.text_array_properties, each.properties.int_array_properties):
            properties |= {one.prop_name: list(one.values) for one in lists}
        for one in each.properties.number_array_properties:
            properties[one.prop_name] = _doubles(one.values_bytes)
        vectors = {one.name: _floats(one.vector_bytes) for one in each.vectors}
        if each.vector_bytes:
            vectors["default"] = _floats(each.vector_bytes)
        fault = self.refuse(properties)
        if fault is None:
            self.objects[each.collection][each.uuid] = (properties, vectors)
        return fault

    def Search(self, request: Any, context: Any) -> Any:
        held = self.objects[request.collection]
        wanted = list(held)
        if request.HasField("filters"):
            assert request.filters.operator == base_pb2.Filters.OPERATOR_CONTAINS_ANY
            assert request.filters.target.property == "_id"
            wanted = [each for each in request.filters.value_text_array.values if each in held]
        names = request.properties.non_ref_properties
        if not request.HasField("properties"):  # all of them
            names = {name for properties, _ in held.values() for name in properties}
        results = []
        wanted = [each for each in sorted(wanted) if each > request.after]
        for uuid in wanted[: request.limit]:
            properties, vectors = held[uuid]
            fields = {
                name: properties_pb2.Value(text_value=str(properties[name]))
                for name in names
                if name in properties
            }
            metadata = search_get_pb2.MetadataResult()
            if request.metadata.uuid:
                metadata.id_as_bytes = UUID(uuid).bytes
            if request.metadata.last_update_time_unix:
                metadata.last_update_time_unix = self.updated.get(uuid, 1_700_000_000_000)
                metadata.last_update_time_unix_present = True
            if request.metadata.vector:
                metadata.vectors.extend(
                    base_pb2.Vectors(
                        name=name,
                        vector_bytes=struct.pack(f"<{len(vector)}f", *vector),
                        type=base_pb2.Vectors.VECTOR_TYPE_SINGLE_FP32,
                    )
                    for name, vector in vectors.items()
                )
            shown = search_get_pb2.PropertiesResult(
                non_ref_props=properties_pb2.Properties(fields=fields)
            )
            results.append(search_get_pb2.SearchResult(properties=shown, metadata=metadata))
        return search_get_pb2.SearchReply(took=0.01, results=results)


_HEALTH = grpc.method_handlers_generic_handler(
    "grpc.health.v1.Health",
    {
        "Check": grpc.unary_unary_rpc_method_handler(
            lambda request, context: health_weaviate_pb2.WeaviateHealthCheckResponse(
                status=health_weaviate_pb2.WeaviateHealthCheckResponse.SERVING
            ),
            health_weaviate_pb2.WeaviateHealthCheckRequest.FromString,
            health_weaviate_pb2.WeaviateHealthCheckResponse.SerializeToString,
        )
    },
)


def _floats(data: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def _doubles(data: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(data) // 8}d", data))


def _rest_of(double: Double) -> type[BaseHTTPRequestHandler]:
    class Rest(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet, or each answer takes 40 ms

        def do_GET(self) -> None:
            double.headers.append(dict(self.headers))
            path = self.path.split("?")[0].removeprefix("/v1/")
            if path == ".well-known/live":
                self._answer(200, {})
            elif path == "meta":
                known = {"version": double.version, "modules": double.modules}
                self._answer(200, known if double.version else {})
            elif path == "schema":
                self._answer(200, {"classes": list(double.classes.values())})
            elif path.removeprefix("schema/") in double.classes:
                self._answer(200, double.classes[path.removeprefix("schema/")])
            else:
                self._answer(404, {})

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            parts = self.path.removeprefix("/v1/").split("/")
            if parts == ["schema"]:
                self._answer(200, double.create(sent))
                return
            known = double.classes[parts[1]]["properties"]
            if any(each["name"] == sent["name"] for each in known):
                self._answer(422, {"error": [{"message": "conflict for property"}]})
                return
            known.append(stored_property(sent))
            self._answer(200, sent)

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Rest
