"""Let Weaviate embed with a nimbed server, and see whether an existing collection does it right.

    pip install -e '.[weaviate]'  # in a clone
    python examples/weaviate_vectorizer.py [--weaviate http://localhost:8080]

Prints what Weaviate is told for each of its modules that a nimbed server can stand behind, then
the traps that collections are in. Without --weaviate a collection as the module's documentation
makes it is served from this process, so that everything runs offline.

With a Weaviate at hand a collection is made, filled and searched like this:

    with nimbed_weaviate.connect("http://localhost:8080", headers=headers) as client:
        docs = client.collections.create("Docs", vector_config=served)
        docs.query.near_text("a question")             # Weaviate asks the nimbed server

        own = client.collections.create("Own", vector_config=given)
        nimbed_weaviate.batch_import(own, rows, embedder)
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import nimbed
import nimbed_weaviate

# As Weaviate sees it: inside a container, localhost is the container itself.
SERVER = "http://nimbed:8000"

# What `Configure.Vectors.text2vec_nvidia(base_url=".../v1", truncate=True)` is stored as.
DOCUMENTED: dict[str, Any] = {
    "class": "Documented",
    "properties": [],
    "vectorConfig": {
        "default": {
            "vectorizer": {
                "text2vec-nvidia": {
                    "baseURL": f"{SERVER}/v1",
                    "baseUrl": "https://integrate.api.nvidia.com",
                    "model": "nvidia/nv-embedqa-e5-v5",
                    "truncate": True,
                    "vectorizeClassName": True,
                }
            },
            "vectorIndexType": "flat",
            "vectorIndexConfig": {"distance": "cosine", "vectorCacheMaxObjects": 1_000_000},
        }
    },
    "invertedIndexConfig": {
        "bm25": {"b": 0.75, "k1": 1.2},
        "cleanupIntervalSeconds": 60,
        "stopwords": {"preset": "en", "additions": None, "removals": None},
    },
    "replicationConfig": {"factor": 1},
    "shardingConfig": {
        "virtualPerPhysical": 128,
        "desiredCount": 1,
        "actualCount": 1,
        "desiredVirtualCount": 128,
        "actualVirtualCount": 128,
        "key": "_id",
        "strategy": "hash",
        "function": "murmur3",
    },
}


class Schema(BaseHTTPRequestHandler):
    """As much of Weaviate's REST interface as reading a configuration needs."""

    def do_GET(self) -> None:
        """Answer with the version, the schema or one collection."""
        answers: dict[str, Any] = {
            "/v1/meta": {"version": "1.38.11", "modules": {"text2vec-nvidia": {}}},
            "/v1/schema": {"classes": [DOCUMENTED]},
            "/v1/schema/Documented": DOCUMENTED,
        }
        answer = answers.get(self.path)
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer or {}).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def stand_in() -> Generator[str]:
    """Serve the schema of one collection on a free port."""
    server = HTTPServer(("127.0.0.1", 0), Schema)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def configurations() -> dict[str, Any]:
    """Return a vector configuration for each way to embed."""
    spec = nimbed.cards.find("minilm").spec(embedding_type="ubinary")
    return {
        "a nimbed server": nimbed_weaviate.vectorizer("small", base_url=SERVER),
        # The server runs with --alias bits=MODEL,embedding_type=binary,as=signs
        "its alias of bits": nimbed_weaviate.vectorizer(
            "bits", base_url=SERVER, embedding_type="binary"
        ),
        "NVIDIA itself": nimbed_weaviate.vectorizer(
            "nvidia/nv-embedqa-e5-v5", base_url=nimbed_weaviate.NVIDIA
        ),
        "images and texts": nimbed_weaviate.vectorizer(
            "clip",
            base_url=SERVER,
            module="multi2vec-nvidia",
            text_fields=["title"],
            image_fields=["photo"],
        ),
        "the container contract": nimbed_weaviate.vectorizer(
            base_url=SERVER, module="text2vec-transformers"
        ),
        "vectors made in this process": nimbed_weaviate.self_provided(spec),
    }


def check(url: str, grpc_port: int) -> None:
    """Print the traps that the collections of a Weaviate are in."""
    marks = {"ok": "  ", "note": "! ", "fail": "✗ "}
    with nimbed_weaviate.connect(url, grpc_port=grpc_port) as client:
        for name, findings in nimbed_weaviate.check_all(client).items():
            print(f"\n{name}")
            for finding in findings:
                print(f"  {marks[finding.verdict]}{finding.name}: {finding.detail}")


def main() -> None:
    """Print configurations, then check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weaviate", help="its address; default: a stand-in in this process")
    parser.add_argument("--grpc-port", type=int, default=50051)
    options = parser.parse_args()

    for name, config in configurations().items():
        print(f"{name}\n  {json.dumps(config._to_dict())}")  # what the client will send
    print(f"headers\n  {sorted(nimbed_weaviate.headers(SERVER))}")
    if options.weaviate:
        check(options.weaviate, options.grpc_port)
        return
    with stand_in() as url:
        check(url, options.grpc_port)


if __name__ == "__main__":
    main()
