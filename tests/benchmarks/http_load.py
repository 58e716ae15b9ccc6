"""A load generator in one process: so many connections, each sending its next request at once.

Written on bare asyncio protocols, because it shares two cores with the server it measures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Load:
    """What a run saw: seconds each answer took, its status, and the whole run's length.

    ``cpu`` holds the seconds of CPU that the server took, where somebody measured them.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    lost: list[bytes] = field(default_factory=list)  # requests whose connection ended instead
    wall: float = 0.0
    cpu: float = 0.0

    def saw(self, sent: bytes, answer: bytes, seconds: float) -> None:
        """Note an answer; heirs look into it."""
        self.seconds.append(seconds)
        self.statuses.append(int(answer[9:12]))

    def pause(self) -> float:
        """Return the seconds that a connection waits before it sends again; heirs pace a run."""
        return 0.0

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.wall

    def percentile(self, q: float) -> float:
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(q * len(self.seconds)))]


def request(body: bytes, *, path: str = "/v1/embeddings", headers: Sequence[str] = ()) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json"]
    lines += [f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class _Connection(asyncio.Protocol):
    def __init__(self, load: Load, following: Callable[[], bytes | None]) -> None:
        self._load = load
        self._following = following
        self._buffer = bytearray()
        self._needed = 0
        self._last = False  # whether the server has said that it will answer no more
        self._sent: bytes | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        body = self._following()
        if body is None:
            self._transport.close()
            return
        self._sent = body
        self._begin = time.perf_counter()
        self._transport.write(body)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._needed:
            head = self._buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            lines = bytes(self._buffer[:head]).lower()
            at = lines.index(b"content-length:") + 15
            self._needed = head + 4 + int(lines[at:].split(b"\r\n", 1)[0])
            self._last = b"\r\nconnection: close" in lines
        if len(self._buffer) >= self._needed:
            sent, self._sent = self._sent, None
            assert sent is not None
            self._load.saw(sent, bytes(self._buffer), time.perf_counter() - self._begin)
            self._buffer.clear()
            self._needed = 0
            pause = self._load.pause()
            if self._last:
                self._transport.close()
            elif pause > 0:
                asyncio.get_running_loop().call_later(pause, self._send)
            else:
                self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if self._sent is not None:
            self._load.lost.append(self._sent)
            self._sent = None
        if not self.done.done():
            self.done.set_result(None)


async def drive(
    port: int,
    bodies: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    load: Load | None = None,
) -> Load:
    """Send the bodies round and round over keep-alive connections until the time is up."""
    load, loop = load or Load(), asyncio.get_running_loop()
    begin = time.perf_counter()
    turn = 0

    def following() -> bytes | None:
        nonlocal turn
        if time.perf_counter() - begin > seconds:
            return None
        turn += 1
        return bodies[turn % len(bodies)]

    opened = [
        await loop.create_connection(lambda: _Connection(load, following), "127.0.0.1", port)
        for _ in range(connections)
    ]
    await asyncio.gather(*(protocol.done for _, protocol in opened))
    load.wall = time.perf_counter() - begin
    return load
