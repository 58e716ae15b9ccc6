"""Answers of the server to a fixed set of requests, through ASGI alone.

Numbers stand beside the text that they were taken from, since their last digit is the processor's.
Sentences are an editor's, so of an error only its status, words for programs and shape are kept.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import nimbed
from nimbed import FakeEmbedder
from nimbed_server import Settings, create_app, parse_alias

CARD = replace(FakeEmbedder().card, id="nvidia/nv-embed-v1", max_tokens=20)
PICTURES = replace(CARD, id="nvidia/nvclip", modalities=("text", "image", "text_image"))
MODEL = CARD.id
ALIASES = (
    "small=nvidia/nv-embed-v1,dimensions=16",
    "bits=nvidia/nv-embed-v1,embedding_type=binary,as=signs",
    "cut=nvidia/nv-embed-v1,truncate=END",
    "stored=nvidia/nvclip,input_type=passage",
)
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmM"
    "IQAAAABJRU5ErkJggg=="
)
LONG = "word " * 50
SENTENCES = ("message", "title", "detail")
VOLATILE = (b"x-request-id", b"content-length", b"date", b"server")

FINE: dict[str, dict[str, Any]] = {
    "a query": {"input": ["a cat"], "input_type": "query"},
    "a passage": {"input": ["a cat", "東京"], "input_type": "passage", "dimensions": 16},
    "a bare text": {"input": "a cat", "dimensions": 16},
    "a suffix": {"model": f"{MODEL}-passage", "input": ["a cat"], "dimensions": 16},
    "base64": {"input": ["a cat"], "input_type": "query", "encoding_format": "base64"},
    "cut at its end": {
        "input": [LONG], "input_type": "query", "truncate": "END", "dimensions": 16,
    },
    "cut at its start": {
        "input": [LONG + "last"], "input_type": "query", "truncate": "START", "dimensions": 16,
    },
    "nulls": {"input": ["a cat"], "input_type": "query", "dimensions": 16, "user": None,
              "encoding_format": None, "truncate": None, "modality": None},
    "fields nobody knows": {"input": ["a"], "input_type": "query", "dimensions": 16, "x": [1]},
    "an alias": {"model": "small", "input": ["a cat"], "input_type": "query"},
    "signs": {"model": "bits", "input": ["a cat"], "input_type": "query"},
    "an alias that cuts": {"model": "cut", "input": [LONG], "input_type": "query",
                           "dimensions": 16},
    "an image": {"model": PICTURES.id, "input": [PIXEL], "dimensions": 16},
    "a text with an image": {"model": PICTURES.id, "input": [f"a cat {PIXEL}"],
                             "input_type": "passage", "modality": "text_image",
                             "dimensions": 16},
    "modalities": {"model": "stored", "input": ["a cat", PIXEL], "dimensions": 16,
                   "modality": ["text", "image"]},
    **{
        f"{kind} {encoding}": {"input": ["a cat"], "input_type": "passage", "dimensions": 16,
                               "embedding_type": kind, "encoding_format": encoding}
        for kind in ("int8", "uint8", "binary", "ubinary")
        for encoding in ("float", "base64")
    },
}  # fmt: skip
WRONG: dict[str, dict[str, Any]] = {
    "no model": {"model": None, "input": ["a"]},
    "another model": {"model": "nvidia/other", "input": ["a"]},
    "no input": {},
    "an empty list": {"input": []},
    "a blank text": {"input": ["a", " "]},
    "a number": {"input": ["a", 1]},
    "a role that is none": {"input": ["a"], "input_type": "document"},
    "a size that is none": {"input": ["a"], "input_type": "query", "dimensions": 17},
    "a size of 0": {"input": ["a"], "input_type": "query", "dimensions": 0},
    "a size in words": {"input": ["a"], "input_type": "query", "dimensions": "16"},
    "a type that is none": {"input": ["a"], "input_type": "query", "embedding_type": "half"},
    "an encoding that is none": {"input": ["a"], "encoding_format": "hex"},
    "a truncation that is none": {"input": ["a"], "truncate": "MIDDLE"},
    "a text too long": {"input": ["a", LONG], "input_type": "query"},
    "an image for a model of texts": {"input": [PIXEL], "input_type": "passage"},
    "an image as a query": {"model": PICTURES.id, "input": [PIXEL], "input_type": "query"},
}
OTHERS: dict[str, tuple[str, str, bytes]] = {
    "models": ("GET", "/v1/models", b""),
    "live": ("GET", "/v1/health/live", b""),
    "ready": ("GET", "/v1/health/ready", b""),
    "metadata": ("GET", "/v1/metadata", b""),
    "manifest": ("GET", "/v1/manifest", b""),
    "licence": ("GET", "/v1/license", b""),
    "version": ("GET", "/v1/version", b""),
    "meta": ("GET", "/meta", b""),
    "meta of an alias": ("GET", "/small/meta", b""),
    "weaviate lives": ("GET", "/.well-known/live", b""),
    "weaviate is ready": ("GET", "/.well-known/ready", b""),
    "head": ("HEAD", "/v1/models", b""),
    "no such path": ("GET", "/v2/embeddings", b""),
    "the wrong verb": ("GET", "/v1/embeddings", b""),
    "no json": ("POST", "/v1/embeddings", b"{"),
    "no object": ("POST", "/v1/embeddings", b"[]"),
    "weaviate's import": (
        "POST",
        "/v1//v1/embeddings",
        b'{"input":["OpenAI is a \\u003cresearch\\u003e company"],"model":"nvidia/nv-embed-v1",'
        b'"encoding_format":"float","input_type":"passage","truncate":"NONE"}',
    ),
    "a model in the path": (
        "POST",
        "/small/v1/embeddings",
        b'{"input":["a cat"],"model":"x","input_type":"passage"}',
    ),
    **{
        f"a transformer's {role or 'text'}": (
            "POST",
            "/t2v/small/vectors",
            json.dumps({"text": "a cat", "config": {"task_type": role}}).encode(),
        )
        for role in ("query", "passage", "")
    },
    "cohere's, two types": (
        "POST",
        "/v2/embed",
        b'{"model":"small","texts":["a cat"],"input_type":"search_document",'
        b'"embedding_types":["float","ubinary"]}',
    ),
    "cohere's first version": (
        "POST",
        "/v1/embed",
        b'{"model":"small","texts":["a cat"],"input_type":"search_query"}',
    ),
    "cohere's fault": ("POST", "/v2/embed", b'{"model":"small","texts":["a cat"]}'),
    "a transformer's fault": ("POST", "/vectors", b'{"text":""}'),
}


def record(folder: Path) -> Any:
    return asyncio.run(_record())


async def _record() -> dict[str, Any]:
    aliases = tuple(map(parse_alias, ALIASES))
    found: dict[str, Any] = {}
    async with _Asking(Settings(aliases=aliases)) as ask:
        for name, body in {**FINE, **WRONG}.items():
            found[name] = await ask.post(body)
        for name, (method, path, sent) in OTHERS.items():
            found[name] = await ask(method, path, sent)
        found["metrics"] = _families(await ask.raw("GET", "/v1/metrics"))
        found["openapi"] = _shape(json.loads((await ask.raw("GET", "/openapi.json"))[2]))
    async with _Asking(Settings(strict_nim=True, require_input_type=True)) as ask:
        both = {"input": ["a"], "embedding_type": "int8", "input_type": "query"}
        found["strict: a type alone"] = await ask.post(both)
        found["strict: a size beside a type"] = await ask.post({**both, "dimensions": 16})
        found["strict: no role"] = await ask.post({"input": ["a"]})
    async with _Asking(Settings(api_keys=("secret",), int8_scale="even")) as ask:
        found["keys: none"] = await ask.post({"input": ["a"]})
        key = ((b"authorization", b"Bearer secret"),)
        body = {"input": ["a"], "input_type": "query", "embedding_type": "int8"}
        found["keys: the right one"] = await ask.post(body, headers=key)
        found["keys: a client of OpenAI's"] = await ask.post(
            {"input": ["a"], "dimensions": 16}, headers=(*key, (b"x-stainless-lang", b"python"))
        )
    return found


class _Asking:
    """One application, started and stopped as ASGI's lifespan has it."""

    def __init__(self, settings: Settings) -> None:
        embedders = {CARD.id: FakeEmbedder(CARD), PICTURES.id: FakeEmbedder(PICTURES)}
        self._app = create_app(embedders, settings)
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._said: asyncio.Queue[Any] = asyncio.Queue()

    async def __aenter__(self) -> _Asking:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}}
        self._life = asyncio.create_task(self._app(scope, self._events.get, self._said.put))
        await self._events.put({"type": "lifespan.startup"})
        assert (await self._said.get())["type"] == "lifespan.startup.complete"
        while (await self.raw("GET", "/v1/health/ready"))[0] != 200:
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._events.put({"type": "lifespan.shutdown"})
        assert (await self._said.get())["type"] == "lifespan.shutdown.complete"
        await self._life

    async def raw(
        self, method: str, path: str, sent: bytes = b"", headers: Any = ()
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"host", b"localhost"),
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(sent)),
                *headers,
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": {},
        }
        given: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        given.put_nowait({"type": "http.request", "body": sent, "more_body": False})
        answered: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            answered.append(message)

        await self._app(scope, given.get, send)
        body = b"".join(message.get("body", b"") for message in answered[1:])
        return answered[0]["status"], list(answered[0]["headers"]), body

    async def __call__(
        self, method: str, path: str, sent: bytes = b"", headers: Any = ()
    ) -> dict[str, Any]:
        status, lines, body = await self.raw(method, path, sent, headers)
        kept = sorted(
            f"{name.decode()}: {value.decode()}" for name, value in lines if name not in VOLATILE
        )
        return {"status": status, "headers": kept, **_told(status, body)}

    async def post(self, body: dict[str, Any], headers: Any = ()) -> dict[str, Any]:
        sent = json.dumps({"model": MODEL, **body}, ensure_ascii=False).encode()
        return await self("POST", "/v1/embeddings", sent, headers)


def _told(status: int, body: bytes) -> dict[str, Any]:
    if status >= 400:
        return {"body": _unsaid(json.loads(body))}
    text = body.decode().replace(nimbed.__version__, "VERSION")
    text = re.sub(r'"created":\d+', '"created":0', text)
    text = re.sub(r'"(sha|size)":("\w+"|\d+)', r'"\1":0', text)
    numbers: list[float] = []

    def number(match: re.Match[str]) -> str:
        numbers.append(round(float(match[0]), 7))
        return "#"

    def floats(match: re.Match[str]) -> str:
        raw = base64.b64decode(match[1])
        if len(raw) < 64:  # the bytes of an integer type
            return match[0]
        numbers.extend(round(value, 7) for value in np.frombuffer(raw, "<f4").tolist())
        return '"embedding":"@"'

    text = re.sub(r'"embedding":"([^"]+)"', floats, text)
    text = re.sub(r'"id":"[0-9a-f]+-[0-9a-f]+"', '"id":"of the request"', text)
    text = re.sub(r"-?\d+\.\d+(?:[eE][-+]?\d+)?", number, text)
    return {"text": text, "numbers": numbers}


def _unsaid(body: Any) -> Any:
    """Return the body of an error without its sentences."""
    if not isinstance(body, dict):
        return body
    found = {key: _unsaid(value) for key, value in body.items() if key != "requestId"}
    for key in SENTENCES:
        if key in found:
            found[key] = "a sentence" if found[key] else ""
    if isinstance(found.get("error"), str):
        found["error"] = "a sentence"
    return found


def _families(answer: tuple[int, Any, bytes]) -> list[str]:
    """Return the names and kinds of the metrics, and the labels of each."""
    found: set[str] = set()
    for line in answer[2].decode().splitlines():
        if line.startswith("# TYPE"):
            found.add(line)
        elif not line.startswith("#"):
            name, _, labels = line.partition("{")
            keys = re.findall(r'(\w+)="', labels) if labels else []
            found.add(f"{name.split(' ')[0]} {' '.join(sorted(keys))}".strip())
    return sorted(line for line in found if "nimbed" in line or "nim" in line)


def _shape(value: Any) -> Any:
    """Return the OpenAPI document without its prose."""
    if isinstance(value, dict):
        prose = ("description", "summary", "title", "version")
        return {
            key: _shape(each)
            for key, each in sorted(value.items())
            if key not in prose or isinstance(each, dict)
        }
    return [_shape(each) for each in value] if isinstance(value, list) else value
