"""What weaviate-client sends for every configuration that ``nimbed_weaviate`` makes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import weaviate
from weaviate.connect import ConnectionParams

from nimbed import FakeEmbedder, VectorSpec
from nimbed_weaviate import NVIDIA, headers, self_provided, vectorizer

HOME = "http://nimbed:8000"
TYPES = ("float", "int8", "uint8", "binary", "ubinary")


def record(folder: Path) -> Any:
    configurations: dict[str, Any] = {
        **{f"{kind} of a server": _served(kind) for kind in TYPES},
        **{f"{kind} of our own": self_provided(_spec(kind)) for kind in TYPES},
        "nvidia": vectorizer("nvidia/nv-embedqa-e5-v5", base_url=NVIDIA, truncate="START"),
        "some properties": vectorizer("m", base_url=HOME, source_properties=["text"]),
        "flat, bq": vectorizer("m", base_url=HOME, quantizer="bq", index="flat"),
        "own, flat, bq": self_provided(_spec("float"), quantizer="bq", index="flat"),
        "transformers": vectorizer(base_url=HOME, module="text2vec-transformers"),
        "images": vectorizer(
            "clip",
            base_url=HOME,
            module="multi2vec-nvidia",
            text_fields={"title": 0.25},
            image_fields={"front": 0.75},
        ),
        "named": vectorizer("m", base_url=HOME, name="other"),
    }
    with _recording() as (client, sent):
        for configuration in configurations.values():
            client.collections.create("Docs", vector_config=configuration)
    return {
        "configurations": dict(zip(configurations, sent, strict=True)),
        "headers": headers(HOME, api_key="secret"),
        "headers, redirected": headers(HOME, api_key="secret", redirect=True),
    }


def _served(kind: Any) -> Any:
    return vectorizer("m", base_url=HOME, embedding_type=kind)


def _spec(kind: Any) -> VectorSpec:
    return FakeEmbedder().spec(embedding_type=kind)


@contextmanager
def _recording() -> Iterator[tuple[Any, list[Any]]]:
    """Yield a client, and the list of the schemas that it sends."""
    sent: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._send({"version": "1.33.0", "modules": {}, "hostname": ""})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            sent.append(asked)
            self._send(asked)

        def _send(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        place = {"http_host": "127.0.0.1", "http_port": server.server_port, "http_secure": False}
        # No search is made, so nobody listens there.
        grpc = {"grpc_host": "127.0.0.1", "grpc_port": 1, "grpc_secure": False}
        with weaviate.WeaviateClient(
            ConnectionParams.from_params(**place, **grpc), skip_init_checks=True
        ) as client:
            yield client, sent
        server.shutdown()
        thread.join()
