"""A scriptable HTTP server on a real socket, that plays embedding servers and their faults."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

JSON = dict[str, Any]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> JSON:
        said: JSON = json.loads(self.body)
        return said

    @property
    def texts(self) -> list[str]:
        given = self.json["input"]
        return [given] if isinstance(given, str) else list(given)


@dataclass(frozen=True)
class Response:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # send so many bytes of the body, then reset the connection
    stall: float = 0.0  # seconds before anything is sent
    close: bool = False  # close the kept connection without an answer


Handler = Callable[[Request], Response]


def as_json(body: Any, status: int = 200, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(
        status, json.dumps(body).encode(), {"content-type": "application/json", **named}
    )


def error(message: str, status: int = 400, **headers: str) -> Response:
    """The error body of NIM 2.x."""
    return as_json({"object": "error", "message": message, "type": "invalid"}, status, **headers)


def vector(text: str, dimensions: int = 16) -> NDArray[np.float32]:
    """The unit vector that every model here gives to a prompted text."""
    seed = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)
    drawn = np.random.default_rng(seed).standard_normal(dimensions)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def vectors(texts: Sequence[str], dimensions: int = 16) -> NDArray[np.float32]:
    return np.array([vector(text, dimensions) for text in texts]).reshape(-1, dimensions)


def encoded(row: NDArray[Any], encoding: str | None) -> Any:
    if encoding == "base64":
        return base64.b64encode(np.ascontiguousarray(row).astype("<f4").tobytes()).decode()
    return row.tolist()


def answer(
    rows: NDArray[Any], *, encoding: str | None = None, model: str = "m", tokens: int | None = None
) -> Response:
    data = [
        {"object": "embedding", "index": index, "embedding": encoded(row, encoding)}
        for index, row in enumerate(rows)
    ]
    body: JSON = {"object": "list", "data": data, "model": model}
    if tokens is not None:
        body["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return as_json(body)


def edited(response: Response, edit: Callable[[JSON], object]) -> Response:
    """The response with its JSON body changed in place by ``edit``."""
    body = json.loads(response.body)
    edit(body)
    return replace(response, body=json.dumps(body).encode())


def gzipped(response: Response) -> Response:
    headers = {**response.headers, "content-encoding": "gzip"}
    return replace(response, body=gzip.compress(response.body), headers=headers)


def failing_after(handler: Handler, requests: int, path: str) -> Handler:
    """Answer some requests of a path, and then refuse the key."""
    left = [requests]

    def handle(request: Request) -> Response:
        if request.path == path and request.method == "POST":
            left[0] -= 1
            if left[0] < 0:
                return error("the key has expired", 401)
        return handler(request)

    return handle


class Double:
    """Serves a handler, and remembers what it was asked.

    ``handler`` may be exchanged at any time; ``script`` holds responses, or functions of the
    request, that are used up first, one for each POST.
    """

    def __init__(self, handler: Handler, *, tls: ssl.SSLContext | None = None) -> None:
        self.handler = handler
        self.script: list[Response | Handler] = []
        self.seen: list[Request] = []
        self.connections = 0
        self.most_at_once = 0
        self._at_once = 0
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)

    @property
    def origin(self) -> str:
        port = self._server.sockets[0].getsockname()[1]
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/v1"

    @property
    def posts(self) -> list[Request]:
        return [request for request in self.seen if request.method == "POST"]

    def stop(self) -> None:
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        async def start() -> None:
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", 0, ssl=self._tls, limit=2**24
            )

        self._loop.run_until_complete(start())
        self._loop.call_soon(started.set)
        self._loop.run_forever()
        self._server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while (request := await _read(reader, number)) is not None:
                self.seen.append(request)
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                try:
                    if not await self._respond(request, writer):
                        return
                finally:
                    self._at_once -= 1
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _respond(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        step: Response | Handler = self.handler
        if request.method == "POST" and self.script:
            step = self.script.pop(0)
        response = step if isinstance(step, Response) else step(request)
        if response.stall:
            await asyncio.sleep(response.stall)
        if response.close:
            return False
        headers = {"content-length": str(len(response.body)), **response.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {response.status} X\r\n{head}\r\n".encode("latin-1"))
        writer.write(response.body[: response.cut])
        await writer.drain()
        if response.cut is None:
            return True
        # Lingering for zero seconds sends a reset instead of a proper end.
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
        return False


async def _read(reader: asyncio.StreamReader, connection: int) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, body, connection)
