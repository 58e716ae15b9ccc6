"""What the remote client sends in each dialect, word for word, and what it reads from answers."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import nimbed
from nimbed import Image, ModelCard, cards

DIALECTS = ("nim", "nim-hosted", "nim-suffix", "openai", "vllm", "tei")
E5 = "nvidia/nv-embedqa-e5-v5"
TEXTS = ["a", "é\n東京", 'with "quotes"']
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
SMALL = ModelCard(
    id="golden/model",
    architecture="bert",
    dimensions=16,
    matryoshka=(8, 16),
    max_tokens=64,
    pooling="mean",
    asymmetric=True,
    query_prompt="query: ",
    passage_prompt="passage: ",
)
PICTURES = replace(SMALL, id="golden/pictures", modalities=("text", "image", "text_image"))
SYMMETRIC = replace(
    SMALL, id="golden/symmetric", asymmetric=False, query_prompt="", passage_prompt=""
)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "8 dimensions": {"dimensions": 8},
    "cut at the end": {"truncate": "END"},
    "cut at the start": {"truncate": "START"},
    "int8": {"embedding_type": "int8"},
    "int8 of nim": {"embedding_type": "int8", "int8_scale": "nim"},
    "uint8": {"embedding_type": "uint8"},
    "binary": {"embedding_type": "binary"},
    "ubinary": {"embedding_type": "ubinary"},
    "ubinary of 8": {"embedding_type": "ubinary", "dimensions": 8},
    "text said": {"modality": "text"},
}
_NUMBERS = itertools.count()
Answer = Callable[[dict[str, Any]], Any]


def record(folder: Path) -> Any:
    quiet = {name: "" for name in os.environ if name.lower().endswith(("_proxy", "_api_key"))}
    with mock.patch.dict(os.environ, quiet), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a card that nobody knows has no prompts
        for name in quiet:
            del os.environ[name]
        return {"asked": _asked(), "answered": _answered()}


def _asked() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for dialect in DIALECTS:
        for role in ("query", "passage"):
            for name, options in OPTIONS.items():
                found[f"{dialect}: {role}, {name}"] = _call(
                    SMALL, dialect, TEXTS, input_type=role, **options
                )
        found[f"{dialect}: a symmetric model"] = _call(
            SYMMETRIC, dialect, TEXTS, input_type="query"
        )
        found[f"{dialect}: of the catalogue"] = _call(
            cards.find(E5), dialect, TEXTS, input_type="passage", width=1024
        )
        found[f"{dialect}: a card that nobody knows"] = _call(
            "somebodys/model", dialect, TEXTS, input_type="passage"
        )
        many = [f"passage number {row}" for row in range(300)]
        requests = _call(SMALL, dialect, many, input_type="passage")["requests"]
        # Which of them already asks for base64 depends on who is answered first.
        found[f"{dialect}: 300 texts"] = sorted(
            [len(body["input"]), *sorted(body.keys() - {"encoding_format"})]
            for body in (json.loads(request["body"]) for request in requests)
        )
    for dialect in ("nim", "nim-hosted"):
        image = Image(PIXEL)
        found[f"{dialect}: images"] = _call(
            PICTURES, dialect, ["a cat", image, ("a cat", image)], input_type="passage"
        )
        found[f"{dialect}: an image"] = _call(PICTURES, dialect, [image], input_type="passage")
    return found


def _call(
    model: ModelCard | str, dialect: str, inputs: list[Any], *, width: int = 16, **options: Any
) -> dict[str, Any]:
    """Return the requests of one call, and how the answers were understood."""
    with _stub(lambda asked: _vectors(asked, width)) as (url, requests):
        try:
            with nimbed.load(model, base_url=url, dialect=dialect, api_key="secret") as embedder:
                batch = embedder.embed(inputs, **options)
        except nimbed.errors.NimbedError as error:
            return {"requests": requests, "error": type(error).__name__}
    if model is PICTURES or width > 16:
        return {"requests": requests}
    return {"requests": requests, "batch": _facts(batch)}


def _answered() -> dict[str, Any]:
    """Return what is read from answers of every shape that servers have."""
    answers: dict[str, Answer] = {
        "floats": lambda asked: _vectors({**asked, "encoding_format": "float"}, 16),
        "base64": lambda asked: _vectors({**asked, "encoding_format": "base64"}, 16),
        "backwards": lambda asked: _turned(_vectors(asked, 16)),
        "without usage": lambda asked: _without(_vectors(asked, 16), "usage"),
        "without object": lambda asked: _without(_vectors(asked, 16), "object", "model"),
        "one too few": lambda asked: _cut(_vectors(asked, 16)),
        "one twice": lambda asked: _doubled(_vectors(asked, 16)),
        "too wide": lambda asked: _vectors(asked, 24),
        "not finite": lambda asked: _vectors(asked, 16, value=float("nan")),
        "zeros": lambda asked: _vectors(asked, 16, value=0.0),
        "not of unit length": lambda asked: _vectors({**asked, "encoding_format": "float"}, 16, 2),
        "no vectors": lambda asked: {"object": "list", "data": []},
        "an error inside": lambda asked: {"error": {"message": "no", "type": "x"}},
        "a list": lambda asked: [1, 2],
    }
    found: dict[str, Any] = {}
    for name, answer in answers.items():
        for kind in ("float", "ubinary"):
            with _stub(_mended(answer)) as (url, requests):
                try:
                    with nimbed.load(SMALL, base_url=url, dialect="nim") as embedder:
                        batch = embedder.embed(TEXTS, input_type="query", embedding_type=kind)
                    found[f"{name}, {kind}"] = {"asks": len(requests), "batch": _facts(batch)}
                except nimbed.errors.NimbedError as error:
                    found[f"{name}, {kind}"] = {"error": type(error).__name__}
    return found


def _facts(batch: nimbed.EmbeddingBatch) -> dict[str, Any]:
    rows = batch.vectors[:3].tolist()
    return {
        "fingerprint": batch.spec.fingerprint,
        "tokens": batch.token_counts.tolist()[:3],
        "truncated": list(batch.truncated),
        "vectors": [[round(v, 6) if isinstance(v, float) else v for v in row] for row in rows],
    }


def _vectors(
    asked: dict[str, Any], width: int, length: float = 1.0, value: float | None = None
) -> dict[str, Any]:
    texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
    data: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        drawn = hashlib.shake_256(str(text).encode()).digest(width)
        row = np.frombuffer(drawn, np.uint8).astype(np.float64) - 127.5
        row = (row * length / np.linalg.norm(row))[: asked.get("dimensions", width)]
        row = row.astype(np.float32) if value is None else np.full_like(row, value, np.float32)
        if asked.get("embedding_type") == "ubinary":
            embedding: Any = np.packbits(row > 0).tolist()
        elif asked.get("encoding_format") == "base64":
            embedding = base64.b64encode(row.astype("<f4").tobytes()).decode()
        else:
            embedding = row.tolist()
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    usage = {"prompt_tokens": 7 * len(texts), "total_tokens": 7 * len(texts)}
    return {"object": "list", "data": data, "model": asked["model"], "usage": usage}


def _mended(answer: Answer) -> Answer:
    """Answer rightly from the second request on: what is tried again must not be for minutes."""
    asks = iter([answer])
    return lambda asked: next(asks, lambda again: _vectors(again, 16))(asked)


def _turned(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "data": body["data"][::-1]}


def _cut(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "data": body["data"][:-1]}


def _doubled(body: dict[str, Any]) -> dict[str, Any]:
    first, *rest = body["data"]
    return {**body, "data": [first, {**rest[0], "index": 0}, *rest[1:]]}


def _without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


@contextmanager
def _stub(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve embeddings on a free port; yield its address and the list of what was posted.

    No two addresses are alike even where a port is: the client remembers what a server taught it.
    """
    requests: list[dict[str, Any]] = []
    place = f"/{next(_NUMBERS)}"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._send(404, b"{}")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            for name in ("host", "content-length", "connection"):
                headers.pop(name, None)
            version = nimbed.__version__
            lines = sorted(f"{k}: {v}".replace(version, "VERSION") for k, v in headers.items())
            # How small a PNG becomes is up to the machine's zlib.
            said = re.sub("(?<=;base64,)[A-Za-z0-9+/=]+", "...", body.decode())
            path = self.path.removeprefix(place)
            requests.append({"path": path, "headers": lines, "body": said})
            self._send(200, json.dumps(answer(json.loads(body))).encode())

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}{place}/v1", requests
        finally:
            server.shutdown()
            thread.join()
