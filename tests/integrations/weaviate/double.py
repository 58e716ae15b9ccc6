"""A double of Weaviate on loopback: REST for the schema, gRPC for objects, both real sockets.

It stores what it is sent and can be told to refuse, to break off and to vanish. Its words are
Weaviate's own protobuf messages, as weaviate-client brings them.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
from google.protobuf.json_format import MessageToDict
from weaviate.proto.v1 import (
    batch_delete_pb2,
    batch_pb2,
    health_weaviate_pb2,
    search_get_pb2,
    weaviate_pb2_grpc,
)

from .searching import Object, asked_vector, distance, floats, matches, result, vector_in
from .stored import not_allowed, stored, stored_property, type_of

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
        aliases: The collections that aliases lead to.
        objects: By class and uuid: properties and vectors by name.
        updated: When an object was written, in milliseconds, if a test says so.
        batches: The uuids of each batch that came.
        asked_for: How many uuids each request for objects by their uuids named.
        refuse: The error for an object (its properties), or None.
        break_at: Number of the batch, from 0, at which the connection breaks before storing.
        on_batch: Called with a batch's number, from 0, once it is stored.
        away: How many calls by gRPC are still answered with UNAVAILABLE.
        embed: Makes the vector of a module (its settings, the text, the role), or raises what
            Weaviate would report; None leaves such vectors out.
    """

    def __init__(self) -> None:
        self.version = "1.38.11"
        self.modules = {name: {} for name in MODULES}
        self.default_quantization = ""
        self.default_index = "hnsw"
        self.allowed_compression: frozenset[str] = frozenset()
        self.classes: dict[str, dict[str, Any]] = {}
        self.aliases: dict[str, str] = {}
        self.objects: dict[str, dict[str, Object]] = {}
        self.updated: dict[str, int] = {}
        self.batches: list[list[str]] = []
        self.asked_for: list[int] = []
        self.headers: list[dict[str, str]] = []
        self.refuse: Callable[[dict[str, Any]], str | None] = lambda properties: None
        self.break_at: int | None = None
        self.on_batch: Callable[[int], None] = lambda number: None
        self.embed: Callable[[dict[str, Any], str, str], list[float]] | None = None
        self.patches = 0
        self.away = 0
        self.port = 0
        self.start_rest()
        self.start_grpc()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start_rest(self) -> None:
        self._rest = _Rest(("127.0.0.1", self.port), _rest_of(self))
        self._thread = threading.Thread(target=self._rest.serve_forever, args=(0.02,))
        self._thread.start()
        self.port = self._rest.server_address[1]

    def start_grpc(self, port: int = 0) -> None:
        """Listen on another port each time: a client waits seconds before it tries one again."""
        self._grpc = grpc.server(ThreadPoolExecutor(4))
        weaviate_pb2_grpc.add_WeaviateServicer_to_server(self, self._grpc)
        self._grpc.add_generic_rpc_handlers([_HEALTH])
        self.grpc_port: int = self._grpc.add_insecure_port(f"127.0.0.1:{port}")
        self._grpc.start()

    def stop_grpc(self) -> None:
        self._grpc.stop(None).wait()

    def stop(self) -> None:
        self.stop_grpc()
        self._rest.shutdown()
        self._thread.join()
        self._rest.server_close()

    def restart(self, *, away: float = 0.0, lose: int = 0) -> None:
        """Be killed, lose the last objects stored, and come back later at the same address."""
        self.stop()
        for held in self.objects.values():
            for uuid in list(held)[len(held) - lose :] if lose else []:
                del held[uuid]

        def come_back() -> None:
            self.start_rest()
            self.start_grpc(self.grpc_port)

        if away:
            threading.Timer(away, come_back).start()
        else:
            come_back()

    def create(self, sent: dict[str, Any]) -> dict[str, Any]:
        answer = stored(
            sent,
            default_quantization=self.default_quantization,
            default_index=self.default_index,
        )
        fault = self.allowed_compression and not_allowed(answer, self.allowed_compression)
        if fault:
            return fault
        self.classes[sent["class"]] = answer
        self.objects[sent["class"]] = {}
        return answer

    def _be_away(self, context: Any) -> None:
        if self.away:
            self.away -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "connection refused")

    def BatchObjects(self, request: Any, context: Any) -> Any:
        self._be_away(context)
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
        self.on_batch(len(self.batches) - 1)
        return batch_pb2.BatchObjectsReply(took=0.01, errors=errors)

    def _store(self, each: Any) -> str | None:
        properties = _properties(each.properties)
        vectors = {one.name: vector_in(one) for one in each.vectors}
        if each.vector_bytes:
            vectors["default"] = floats(each.vector_bytes)
        fault = self.refuse(properties) or self._vectorize(each.collection, properties, vectors)
        if fault is None:
            self._declare(each.collection, properties)
            held = self.objects[each.collection]
            held.pop(each.uuid, None)  # put anew, it is the latest
            held[each.uuid] = (properties, vectors)
        return fault

    def _declare(self, name: str, properties: dict[str, Any]) -> None:
        """Make the properties that came for the first time, as AUTOSCHEMA_ENABLED does."""
        known = {each["name"] for each in self.classes[name]["properties"]}
        for each in sorted(set(properties) - known):
            sent = {"name": each, "dataType": [type_of(properties[each])]}
            self.classes[name]["properties"].append(stored_property(sent))

    def _vectorize(
        self, name: str, properties: dict[str, Any], vectors: dict[str, Any]
    ) -> str | None:
        """Have the modules make the vectors that did not come with an object."""
        for vector, config in self.classes[name].get("vectorConfig", {}).items():
            ((module, settings),) = config["vectorizer"].items()
            if module == "none" or vector in vectors or self.embed is None:
                continue
            skipped = {
                each["name"]
                for each in self.classes[name]["properties"]
                if each.get("moduleConfig", {}).get(module, {}).get("skip")
            }
            wanted = settings.get("properties") or sorted(properties)
            texts = [properties.get(each) for each in sorted(wanted) if each not in skipped]
            text = " ".join(each for each in texts if isinstance(each, str))
            try:
                vectors[vector] = self.embed(settings, text, "passage")
            except ValueError as error:
                return str(error)
        return None

    def BatchDelete(self, request: Any, context: Any) -> Any:
        self._be_away(context)
        held = self.objects[request.collection]
        gone = [uuid for uuid, (each, _) in held.items() if matches(request.filters, uuid, each)]
        for uuid in gone:
            del held[uuid]
        return batch_delete_pb2.BatchDeleteReply(matches=len(gone), successful=len(gone))

    def Search(self, request: Any, context: Any) -> Any:
        self._be_away(context)
        held = self.objects[request.collection]
        declared = {each["name"] for each in self.classes[request.collection]["properties"]}
        strange = set(request.properties.non_ref_properties) - declared
        if strange:
            said = f"no such prop with name '{min(strange)}' found in class '{request.collection}'"
            context.abort(grpc.StatusCode.UNKNOWN, said)
        filtered = request.HasField("filters") and not _asks_for_ids(request)
        found: list[tuple[str, float | None]] = [
            (uuid, None)
            for uuid in self._candidates(request, held)
            if not filtered or matches(request.filters, uuid, held[uuid][0])
        ]
        if request.HasField("near_vector") or request.HasField("near_text"):
            found = self._nearest(request, [uuid for uuid, _ in found])
        elif request.HasField("hybrid_search"):
            found = self._fused(request, [uuid for uuid, _ in found])
        results = [
            result(request, uuid, held[uuid], far, self.updated)
            for uuid, far in found[: request.limit or 10]
        ]
        return search_get_pb2.SearchReply(took=0.01, results=results)

    def _candidates(self, request: Any, held: dict[str, Object]) -> Iterable[str]:
        """Return what can be found at all, in Weaviate's order."""
        if _asks_for_ids(request):
            self.asked_for.append(len(request.filters.value_text_array.values))
            return sorted(each for each in request.filters.value_text_array.values if each in held)
        if not request.after:
            return sorted(held) if request.limit > 1 else held
        order = sorted(held)
        return order[bisect.bisect_right(order, request.after) :][: request.limit]

    def _nearest(self, request: Any, uuids: list[str]) -> list[tuple[str, float | None]]:
        if request.HasField("near_vector"):
            target, asked = asked_vector(request.near_vector)
        else:
            near = request.near_text
            target = (list(near.targets.target_vectors) or ["default"])[0]
            asked = self._question(request.collection, target, near.query[0])
        return self._by_distance(request.collection, target, asked, uuids)

    def _fused(self, request: Any, uuids: list[str]) -> list[tuple[str, float | None]]:
        """Rank by Weaviate's relative scores: words (here, how many occur) beside distances."""
        near = request.hybrid_search
        target = (list(near.targets.target_vectors) or ["default"])[0]
        asked = self._question(request.collection, target, near.query)
        far = dict(self._by_distance(request.collection, target, asked, uuids))
        words, held = near.query.lower().split(), self.objects[request.collection]
        said = {uuid: " ".join(map(str, held[uuid][0].values())).lower() for uuid in far}
        hits = {uuid: sum(word in said[uuid] for word in words) for uuid in far}
        alpha = near.alpha_param if near.use_alpha_param else near.alpha

        def share(values: dict[str, Any], uuid: str) -> float:
            low, high = min(values.values()), max(values.values())
            return (values[uuid] - low) / (high - low) if high > low else 1.0

        score = {
            uuid: alpha * (1 - share(far, uuid)) + (1 - alpha) * share(hits, uuid) for uuid in far
        }
        return [(uuid, None) for uuid in sorted(far, key=score.__getitem__, reverse=True)]

    def _question(self, name: str, target: str, text: str) -> np.ndarray:
        ((_, settings),) = self.classes[name]["vectorConfig"][target]["vectorizer"].items()
        assert self.embed is not None
        return np.array(self.embed(settings, text, "query"))

    def _by_distance(
        self, name: str, target: str, asked: np.ndarray, uuids: list[str]
    ) -> list[tuple[str, float | None]]:
        config = self.classes[name].get("vectorConfig", {}).get(target) or self.classes[name]
        metric = config["vectorIndexConfig"]["distance"]
        held = self.objects[name]
        far = [
            (uuid, distance(metric, asked, np.array(held[uuid][1][target])))
            for uuid in uuids
            if target in held[uuid][1]
        ]
        return sorted(far, key=lambda each: each[1])  # type: ignore[return-value]


class _Rest(ThreadingHTTPServer):
    """REST on a port that may be taken again at once; killed, it breaks its connections."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any) -> None:
        self.open: set[Any] = set()
        super().__init__(*arguments)

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        try:
            super().finish_request(request, client_address)
        finally:
            self.open.discard(request)

    def server_close(self) -> None:
        super().server_close()
        for each in list(self.open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away."""


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


def _asks_for_ids(request: Any) -> bool:
    return bool(request.HasField("filters") and request.filters.target.property == "_id")


def _properties(sent: Any) -> dict[str, Any]:
    """Return the properties of an object, or of one within it."""
    found: dict[str, Any] = MessageToDict(sent.non_ref_properties)
    for lists in (sent.text_array_properties, sent.int_array_properties):
        found |= {one.prop_name: list(one.values) for one in lists}
    for one in sent.number_array_properties:
        found[one.prop_name] = _doubles(one.values_bytes)
    return found | {one.prop_name: _properties(one.value) for one in sent.object_properties}


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
            elif path.startswith("aliases/"):
                name = path.removeprefix("aliases/")
                found = {"alias": name, "class": double.aliases.get(name)}
                self._answer(200 if name in double.aliases else 404, found)
            elif path.removeprefix("schema/") in double.classes:
                self._answer(200, double.classes[path.removeprefix("schema/")])
            else:
                self._answer(404, {})

        def do_POST(self) -> None:
            sent, parts = self._sent()
            if parts == ["schema"]:
                answer = double.create(sent)
                self._answer(422 if "errorCode" in answer else 200, answer)
                return
            if parts == ["aliases"]:
                double.aliases[sent["alias"]] = sent["class"]
                self._answer(200, sent)
                return
            known = double.classes[parts[1]]["properties"]
            if any(each["name"] == sent["name"] for each in known):
                self._answer(422, {"error": [{"message": "conflict for property"}]})
                return
            known.append(stored_property(sent))
            self._answer(200, sent)

        def do_PATCH(self) -> None:
            sent, (_, name, uuid) = self._sent()
            held = double.objects[name].get(uuid)
            if held is None:
                self._answer(404, {})
                return
            double.patches += 1
            properties = held[0] | sent.get("properties", {})
            vectors = held[1] | sent.get("vectors", {})
            if "vector" in sent:
                vectors["default"] = sent["vector"]
            double.objects[name][uuid] = (properties, vectors)
            self._answer(204, {})

        def do_PUT(self) -> None:
            sent, (kind, name) = self._sent()
            if kind == "aliases":
                double.aliases[name] = sent["class"]
                self._answer(200, {"alias": name, "class": sent["class"]})
                return
            known = double.classes[name]
            for new, old in zip(sent["properties"], known["properties"], strict=True):
                old["description"] = new.get("description", "")
            if sent.get("vectorConfig", {}).keys() <= known.get("vectorConfig", {}).keys():
                self._answer(200, known)
                return
            if tuple(map(int, double.version.split(".")[:2])) < (1, 31):
                said = "additional vectors cannot be added to an existing collection"
                self._answer(422, {"error": [{"message": said}]})
                return
            for vector, config in sent["vectorConfig"].items():
                if vector not in known["vectorConfig"]:
                    made = stored({"class": name, "vectorConfig": {vector: config}})
                    allowed = double.allowed_compression
                    fault = allowed and not_allowed(made, allowed)
                    if fault:
                        self._answer(422, fault)
                        return
                    known["vectorConfig"][vector] = made["vectorConfig"][vector]
            self._answer(200, known)

        def do_DELETE(self) -> None:
            if self.path.startswith("/v1/objects/"):
                name, uuid = self.path.split("?")[0].split("/")[3:]
                gone = double.objects[name].pop(uuid, None)
                self._answer(404 if gone is None else 204, {})
                return
            if self.path.startswith("/v1/aliases/"):
                led = double.aliases.pop(self.path.removeprefix("/v1/aliases/"), None)
                self._answer(404 if led is None else 204, {})
                return
            name = self.path.removeprefix("/v1/schema/")
            double.classes.pop(name, None)
            double.objects.pop(name, None)
            self._answer(200, {})

        def _sent(self) -> tuple[Any, list[str]]:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            path = self.path.split("?")[0].removeprefix("/v1/")
            return sent, path.split("/")

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "0" if status == 204 else str(len(data)))
            self.end_headers()
            if status != 204:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Rest
