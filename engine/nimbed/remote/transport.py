"""A request to an answer or a fault, over connections that are kept.

Knows nothing about embeddings. Lives on one event loop.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urljoin
from urllib.request import getproxies

import httpx

from nimbed.remote.address import Address, origin_of
from nimbed.remote.connection import KeptConnection, OversizedError
from nimbed.remote.faults import Fault, read_fault
from nimbed.remote.retry import asked_wait
from nimbed.remote.secret import Secret
from nimbed.remote.tally import Tally
from nimbed.version import __version__

__all__ = ["Reply", "Transport"]

_REQUEST_ID = re.compile(r"[\w.-]{1,200}")
_REDIRECTS, _REDIRECTIONS = 3, (301, 302, 303, 307, 308)
_POLL_FIRST, _POLL_LONGEST = 0.02, 1.0
_CONNECT, _IDLE = 10.0, 30.0  # seconds
# 2,048 vectors of 8,192 numbers as text; without an end, a broken server fills the memory.
_MOST_BYTES = 1 << 28
_HEADERS = {
    "accept": "application/json",
    # The mantissas of floats do not compress: gzip would cost both ends time and save nothing.
    "accept-encoding": "identity",
    "user-agent": f"nimbed/{__version__}",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Sends requests to one server.

    Every request in flight has a *lane*, an httpx client with one connection of its own. One client
    with a pool of 32 connections spends half of its time asking each of them, at each request,
    whether it is idle and alive (measured: 15,000 passages a second, with lanes 27,000).

    Args:
        address: Where the server is.
        key: Its key, sent to that origin alone.
        timeout: Seconds that one request may take, answer and polling included.
        polls: Whether 202 means that the answer must be fetched.
    """

    def __init__(
        self, address: Address, *, key: Secret | None, timeout: float, polls: bool = False
    ) -> None:
        self._address = address
        self._key = key
        self._timeout = timeout
        self.polls = polls
        self._lanes: dict[str, list[httpx.AsyncClient]] = {"http": [], "https": []}
        self._contexts: dict[str, ssl.SSLContext] = {}
        # Each client that looks for proxies itself takes 0.5 ms, most of what a lane costs.
        self._proxied = not {"http", "https", "all"}.isdisjoint(getproxies())

    async def request(
        self, method: str, url: str, body: bytes | None = None, *, tally: Tally
    ) -> Reply | Fault:
        """Send one request, and follow it to its answer."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._follow(method, url, body, tally)
        except (TimeoutError, httpx.TimeoutException):
            return Fault(kind="timeout", message=f"no answer within {self._timeout:g} seconds")
        except OversizedError as error:
            return Fault(kind="refused", message=str(error))
        except (httpx.TransportError, httpx.DecodingError, httpx.InvalidURL) as error:
            return _fault_of(error)

    async def close(self) -> None:
        """Close every idle connection."""
        for lanes in self._lanes.values():
            while lanes:
                await lanes.pop().aclose()

    async def _follow(
        self, method: str, url: str, body: bytes | None, tally: Tally
    ) -> Reply | Fault:
        pause = _POLL_FIRST
        for _ in range(_REDIRECTS + 1):
            reply = await self._send(method, url, body, tally)
            while reply.status == 202 and self.polls:
                request_id = reply.headers.get("nvcf-reqid", "")
                if not _REQUEST_ID.fullmatch(request_id):
                    return Fault(kind="malformed", message="202 without a valid NVCF-REQID")
                await asyncio.sleep(pause)
                pause = min(2 * pause, _POLL_LONGEST)
                method, url, body = "GET", self._address.status(request_id), None
                reply = await self._send(method, url, body, tally)
            if reply.status not in _REDIRECTIONS or "location" not in reply.headers:
                return self._read(reply)
            target = urljoin(url, reply.headers["location"])
            refused = self._refuse(reply.status, method, url, target)
            if refused:
                return refused
            url = target
        return Fault(kind="refused", message="the server redirects in circles")

    def _refuse(self, status: int, method: str, url: str, target: str) -> Fault | None:
        """Return why a redirect is not followed, if it is not."""
        try:
            place = origin_of(target)
        except ValueError:
            place = "an address that is none"
        why = ""
        if method == "POST" and status not in (307, 308):
            why = "which would turn the request into a GET"
        elif url.startswith("https:") and not target.startswith("https:"):
            why = "which is not encrypted"
        elif not place.startswith(("http://", "https://")):
            why = "which is no web address"
        if not why:
            return None
        said = f"a redirect ({status}) to {place}, {why}; set base_url to the server's own address"
        return Fault(kind="refused", message=said, status=status)

    async def _send(self, method: str, url: str, body: bytes | None, tally: Tally) -> Reply:
        headers = {"content-type": "application/json"} if body is not None else {}
        if self._key is not None and self._address.trusts(url):
            headers["authorization"] = f"Bearer {self._key.reveal()}"
        lanes = self._lanes["https" if url.startswith("https:") else "http"]
        lane = lanes.pop() if lanes else self._lane(url)
        tally.requests += 1
        tally.bytes_sent += len(body or b"")
        try:
            async with lane.stream(method, url, content=body, headers=headers) as response:
                reply = await _whole(response)
        except BaseException:
            # A connection that was cut off or cancelled in the middle is not used again.
            await lane.aclose()
            raise
        lanes.append(lane)
        tally.bytes_received += len(reply.body)
        return reply

    def _lane(self, url: str) -> httpx.AsyncClient:
        connect, context = min(_CONNECT, self._timeout), self._context(url)
        if not self._proxied:
            kept = KeptConnection(context, connect=connect, idle=_IDLE, most=_MOST_BYTES)
            return httpx.AsyncClient(headers=_HEADERS, transport=kept, timeout=None)
        return httpx.AsyncClient(
            headers=_HEADERS,
            verify=context,
            trust_env=True,
            # The deadline of the whole request covers the rest: httpx sets a timer a read.
            timeout=httpx.Timeout(None, connect=connect),
            limits=httpx.Limits(
                max_connections=1, max_keepalive_connections=1, keepalive_expiry=_IDLE
            ),
        )

    def _context(self, url: str) -> ssl.SSLContext:
        """Return the certificates to trust; reading them takes 20 to 40 ms, so only for https."""
        scheme = "https" if url.startswith("https:") else "http"
        if scheme not in self._contexts:
            self._contexts[scheme] = (
                httpx.create_ssl_context()
                if scheme == "https"
                else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, should it be used
            )
        return self._contexts[scheme]

    def _read(self, reply: Reply) -> Reply | Fault:
        if 200 <= reply.status < 300 and reply.status != 202:
            return reply
        wait = asked_wait(reply.headers)
        return read_fault(reply.status, reply.headers, reply.body, key=self._key, wait=wait)


async def _whole(response: httpx.Response) -> Reply:
    """Return an answer, read and unpacked; packed, a few bytes may become gigabytes."""
    parts, size = [], 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise OversizedError(f"an answer of more than {_MOST_BYTES} bytes")
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Reply(response.status_code, headers, b"".join(parts))


def _fault_of(error: Exception) -> Fault:
    """Return the fault of a transport error. The error itself holds the request, and the key."""
    name = type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Fault(
            kind="refused",
            message=f"the server's certificate cannot be trusted ({error}); if it is yours, "
            f"set SSL_CERT_FILE to the file of its authority",
        )
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL)):
        return Fault(kind="refused", message=f"the request cannot be sent ({name}: {error})")
    return Fault(kind="network", message=f"{name}: {error}" if str(error) else name)
