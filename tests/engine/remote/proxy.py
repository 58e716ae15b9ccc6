"""A loopback proxy: requests in absolute form, CONNECT, and SOCKS 5, with a log of what it saw."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import threading
from urllib.parse import urlsplit


class LoopbackProxy:
    """Leads every connection to the place that is asked for, or to ``leads_to`` if it is given.

    ``refusal`` is answered instead, byte for byte. ``heads`` holds the heads of HTTP requests,
    ``asked`` the places that were asked for, ``logins`` what SOCKS clients logged in with.
    """

    def __init__(
        self,
        *,
        refusal: bytes = b"",
        leads_to: int | None = None,
        login: tuple[bytes, bytes] | None = None,
        socks_reply: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.heads: list[bytes] = []
        self.asked: list[str] = []
        self.logins: list[tuple[bytes, bytes]] = []
        self.refusal = refusal
        self.leads_to = leads_to
        self.login = login
        self.socks_reply = socks_reply
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def stop(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        async def start() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)

        self._loop.run_until_complete(start())
        self._loop.call_soon(started.set)
        self._loop.run_forever()
        self._server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError)
        with contextlib.suppress(*gone):
            first = await reader.readexactly(1)
            if first == b"\x05":
                await self._socks(reader, writer)
            else:
                await self._http(first, reader, writer)
        writer.close()

    async def _http(
        self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = first + await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        method, target, _ = head.split(b"\r\n")[0].decode("ascii").split(" ")
        self.asked.append(target)
        if self.refusal:
            writer.write(self.refusal)
            await writer.drain()
            return
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await self._lead(host.strip("[]"), int(port), reader, writer)
        else:
            await self._forward(head, reader, writer)

    async def _forward(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass one request after the other on, each by its path alone."""
        target = head.split(b" ")[1]
        place = urlsplit(target.decode("ascii"))
        host, port = place.hostname or "", place.port or 80
        if self.leads_to is not None:
            host, port = "127.0.0.1", self.leads_to
        answers, requests = await asyncio.open_connection(host, port)
        copying = asyncio.create_task(_copy(answers, writer))
        try:
            while True:
                requests.write(head.replace(target, place.path.encode("ascii"), 1))
                length = re.search(rb"(?i)content-length: (\d+)", head)
                requests.write(await reader.readexactly(int(length[1]) if length else 0))
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
        finally:
            requests.close()
            await copying

    async def _socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (count,) = await reader.readexactly(1)
        methods = await reader.readexactly(count)
        method = 2 if self.login else 0
        if method not in methods:
            writer.write(b"\x05\xff")
            return
        writer.write(bytes([5, method]))
        if self.login:
            user = await reader.readexactly((await reader.readexactly(2))[1])
            password = await reader.readexactly((await reader.readexactly(1))[0])
            self.logins.append((user, password))
            writer.write(bytes([1, (user, password) != self.login]))
        _, _, _, kind = await reader.readexactly(4)
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode("ascii")
        else:
            host = ".".join(map(str, await reader.readexactly(4 if kind == 1 else 16)))
        port = int.from_bytes(await reader.readexactly(2), "big")
        self.asked.append(f"{host}:{port}")
        writer.write(bytes([5, self.socks_reply, 0, 1, 127, 0, 0, 1, 0, 80]))
        if self.socks_reply == 0:
            await self._lead(host, port, reader, writer)

    async def _lead(
        self,
        host: str,
        port: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        if self.leads_to is not None:
            host, port = "127.0.0.1", self.leads_to
        answers, requests = await asyncio.open_connection(host, port)
        await asyncio.gather(_copy(reader, requests), _copy(answers, writer))


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    finally:
        sink.close()
