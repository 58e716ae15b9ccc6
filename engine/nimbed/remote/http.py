"""HTTP for one server: kept connections, directly or through a proxy, with one request at a time.

Bytes that follow an answer never become the answer to the next request: a connection on which
anything came unasked is not used again. Pools of HTTP libraries leave such bytes in their buffer,
and then a text gets the vector of another, which nothing shows.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import ssl
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urljoin, urlsplit

import h11

from nimbed.errors import ConfigurationError
from nimbed.remote.address import Address, ExtraHeaders, Secret, origin_of, refuse_redirect
from nimbed.remote.proxies import Proxies, Proxy, ProxyError, connect_through, race_delay
from nimbed.remote.retry import Failure
from nimbed.version import __version__

__all__ = ["Http", "Reply", "Traffic"]

_REQUEST_ID = re.compile(r"[\w.-]{1,200}")
_REDIRECTS, _REDIRECTIONS = 3, (301, 302, 303, 307, 308)
_POLL_FIRST, _POLL_LONGEST = 0.02, 1.0
_CONNECT, _IDLE = 10.0, 30.0  # seconds
# Where authorities are, for OpenSSL, and for requests and curl: the first that is set.
_AUTHORITIES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
# What OpenSSL says of a port that answers in plain text; the words differ by its version.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")
_MOST_HEADERS = 100 * 1024  # bytes
# 2,048 vectors of 8,192 numbers as text; without an end, a broken server fills the memory.
_MOST_BYTES = 1 << 28
_HEADERS = [
    (b"Connection", b"keep-alive"),
    (b"accept", b"application/json"),
    # The mantissas of floats do not compress: gzip would cost both ends time and save nothing.
    (b"accept-encoding", b"identity"),
    (b"user-agent", f"nimbed/{__version__}".encode("ascii")),
]

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(slots=True)
class Traffic:
    """What the requests of one call have cost so far; see :class:`nimbed.reports.Report`."""

    requests: int = 0
    retries: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether it is what was asked for: neither an error nor only accepted (202)."""
        return 200 <= self.status < 300 and self.status != 202


class _HttpError(Exception):
    """There is no whole answer; ``.kind`` is that of a :class:`Failure`."""

    def __init__(self, message: str, kind: Literal["network", "refused"] = "network") -> None:
        super().__init__(message)
        self.kind: Literal["network", "refused"] = kind


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL, taken apart."""

    scheme: str
    host: str
    port: int
    origin: str
    authority: bytes
    path: bytes


@functools.lru_cache(maxsize=32)
def _target(url: str) -> _Target:
    try:
        parts, origin = urlsplit(url), origin_of(url)
    except ValueError as error:
        raise _HttpError(f"the request cannot be sent ({error})", "refused") from None
    if parts.scheme not in ("http", "https"):
        raise _HttpError("the request cannot be sent (not a web address)", "refused")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        path += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    place = urlsplit(origin)
    return _Target(
        scheme=place.scheme,
        host=place.hostname or "",
        port=(443 if place.scheme == "https" else 80) if place.port is None else place.port,
        origin=origin,
        authority=place.netloc.encode("ascii"),
        path=path.encode("ascii"),
    )


class Http:
    """Sends requests to one server; lives on one event loop.

    Args:
        address: Where the server is.
        key: Its key, sent to that origin alone.
        headers: What a gateway wants besides; they go where the key goes.
        timeout: Seconds that one request may take, answer and polling included.
        polls: Whether 202 means that the answer must be fetched.

    Raises:
        ConfigurationError: If the variable that names a proxy for the server cannot be used.
    """

    def __init__(
        self,
        address: Address,
        *,
        key: Secret | None,
        headers: ExtraHeaders | None = None,
        timeout: float,
        polls: bool = False,
    ) -> None:
        self._address = address
        self._key = key
        self._extra = headers
        more = headers.reveal() if headers is not None else []
        names = {name for name, _ in more}
        self._own_headers = [pair for pair in _HEADERS if pair[0].lower() not in names] + more
        self._trusted = address.trusted_origins
        self._timeout = timeout
        self.polls = polls
        self._idle: dict[str, list[_Connection]] = {}
        self._proxies = Proxies()
        self._secrets: set[str] = set()
        proxy = self._proxy(_target(address.origin))
        #: Its address, and the proxy that leads there, for messages.
        self.server = address.api if proxy is None else f"{address.api} (through {proxy})"

    async def request(
        self, method: str, url: str, body: bytes | None = None, *, traffic: Traffic
    ) -> Reply | Failure:
        """Send one request, and follow it to its answer, whatever its status.

        Raises:
            ConfigurationError: If a variable that names a proxy or certificates cannot be used.
        """
        try:
            async with asyncio.timeout(self._timeout):
                return await self._follow(method, url, body, traffic)
        except TimeoutError:
            return Failure(kind="timeout", message=f"no answer within {self._timeout:g} seconds")
        except _HttpError as error:
            return Failure(kind=error.kind, message=str(error))

    async def close(self) -> None:
        """Close every idle connection."""
        for connections in self._idle.values():
            while connections:
                connections.pop().close()

    def scrub(self, text: str) -> str:
        """Return the text with the key and the passwords of proxies blotted out."""
        if self._key is not None:
            text = self._key.scrub(text)
        if self._extra is not None:
            text = self._extra.scrub(text)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    async def _follow(
        self, method: str, url: str, body: bytes | None, traffic: Traffic
    ) -> Reply | Failure:
        pause = _POLL_FIRST
        for _ in range(_REDIRECTS + 1):
            reply = await self._send(method, url, body, traffic)
            while reply.status == 202 and self.polls:
                request_id = reply.headers.get("nvcf-reqid", "")
                if not _REQUEST_ID.fullmatch(request_id):
                    return Failure(kind="malformed", message="202 without a valid NVCF-REQID")
                await asyncio.sleep(pause)
                pause = min(2 * pause, _POLL_LONGEST)
                method, url, body = "GET", self._address.status(request_id), None
                reply = await self._send(method, url, body, traffic)
            if reply.status not in _REDIRECTIONS or "location" not in reply.headers:
                return reply
            before = url
            try:
                url = urljoin(url, reply.headers["location"])
            except ValueError:  # no host has half a bracket
                url = ""
            refused = refuse_redirect(reply.status, method, before, url)
            if refused:
                return Failure(kind="refused", message=refused, status=reply.status)
        return Failure(kind="refused", message="the server redirects in circles")

    async def _send(self, method: str, url: str, body: bytes | None, traffic: Traffic) -> Reply:
        target = _target(url)
        trusted = target.origin in self._trusted
        headers = [(b"Host", target.authority), *(self._own_headers if trusted else _HEADERS)]
        if body is not None:
            headers.append((b"content-type", b"application/json"))
        if self._key is not None and trusted:
            headers.append((b"authorization", b"Bearer " + self._key.reveal().encode("ascii")))
        if body is not None:
            headers.append((b"Content-Length", b"%d" % len(body)))
        traffic.requests += 1
        traffic.bytes_sent += len(body or b"")
        connection = self._kept(target.origin) or await self._connect(target)
        try:
            reply = await connection.request(method, target.path, headers, body)
        except BaseException:
            # A connection that was cut off or cancelled in the middle is not used again.
            connection.close()
            raise
        self._idle.setdefault(target.origin, []).append(connection)
        traffic.bytes_received += len(reply.body)
        return reply

    def _kept(self, origin: str) -> _Connection | None:
        """Return an idle connection that may be used, the last used first."""
        idle = self._idle.get(origin)
        oldest = asyncio.get_running_loop().time() - _IDLE
        while idle:
            connection = idle.pop()
            if connection.usable(since=oldest):
                return connection
            connection.close()
        return None

    async def _connect(self, target: _Target) -> _Connection:
        proxy = self._proxy(target)
        encrypted = target.scheme == "https" or (proxy is not None and proxy.scheme == "https")
        context = self._certificates if encrypted else None
        limit = min(_CONNECT, self._timeout)
        place = "" if proxy is None else f" through {proxy}"
        try:
            async with asyncio.timeout(limit):
                return await _open(target, proxy, context)
        except TimeoutError:
            raise _HttpError(f"no connection{place} within {limit:g} seconds") from None
        except ProxyError as error:
            kind: Literal["network", "refused"] = "refused" if error.final else "network"
            raise _HttpError(f"{proxy} {error}", kind) from None
        except (OSError, UnicodeError) as error:  # the last: a label too long
            if any(word in str(error) for word in _NOT_TLS):
                raise _HttpError(
                    f"no TLS at this port{place} ({error}); if the server has none, write http:// "
                    f"in base_url",
                    "refused",
                ) from None
            if "CERTIFICATE_VERIFY_FAILED" not in str(error):
                raise _HttpError(f"cannot connect{place} ({error})") from None
            raise _HttpError(
                f"the server's certificate cannot be trusted{place} ({error}); if it is yours, "
                f"set SSL_CERT_FILE to the file of its authority",
                "refused",
            ) from None

    @functools.cached_property
    def _certificates(self) -> ssl.SSLContext:
        """The certificates to trust; reading them takes 20 to 40 ms, so once, and for TLS alone."""
        import certifi

        name = next((each for each in _AUTHORITIES if os.environ.get(each)), "")
        place = os.environ.get(name) or certifi.where()
        # A folder that is not there OpenSSL would not mind.
        folder = name == "SSL_CERT_DIR" or (name != "SSL_CERT_FILE" and os.path.isdir(place))
        try:
            if folder:
                os.listdir(place)
                context = ssl.create_default_context(capath=place)
            else:
                context = ssl.create_default_context(cafile=place)
        except OSError as error:
            raise ConfigurationError(
                f"{name} is {place!r}, from which no certificates can be read ({error}); set it to "
                f"a {'folder' if folder else 'PEM file'} of authorities, or unset it"
            ) from None
        context.set_alpn_protocols(["http/1.1"])
        return context

    def _proxy(self, target: _Target) -> Proxy | None:
        proxy = self._proxies.find(target.scheme, target.host, target.port)
        if proxy is not None:
            self._secrets.update(proxy.secrets)
        return proxy


async def _open(
    target: _Target, proxy: Proxy | None, context: ssl.SSLContext | None
) -> _Connection:
    """Connect to a server, directly or through a proxy."""
    connection, loop = _Connection(), asyncio.get_running_loop()
    if proxy is None:
        await loop.create_connection(
            lambda: connection,
            target.host,
            target.port,
            ssl=context,
            happy_eyeballs_delay=race_delay(target.host),
        )
        return connection
    secure = target.scheme == "https"
    transport: asyncio.Transport | None
    transport = await connect_through(
        proxy, target.host, target.port, tunnel=secure, context=context
    )
    if secure and context is not None:
        transport = await loop.start_tls(
            transport, connection, context, server_hostname=target.host
        )
        assert transport is not None
    else:
        transport.set_protocol(connection)
        if proxy.forwards:
            connection.forward(target.origin, proxy.headers)
    connection.connection_made(transport)
    return connection


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection; h11 reads its bytes.

    It reads as much as the kernel has, instead of the 64 KiB at a time and a timer for each that
    httpx takes: answers are 700 kB long, and a request costs half.
    """

    def __init__(self) -> None:
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEADERS)
        self._transport: asyncio.Transport | None = None
        self._prefix = b""
        self._more_headers: Headers = ()
        self._awaited: asyncio.Future[Reply] | None = None
        self._head: h11.Response | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._last_used = 0.0

    def forward(self, origin: str, headers: Headers) -> None:
        """Send whole addresses and log in with each request: a proxy reads them."""
        self._prefix = origin.encode("ascii")
        self._more_headers = headers

    def usable(self, *, since: float) -> bool:
        """Whether a request may be sent: open, used lately, and nothing came unasked."""
        is_open = self._transport is not None and not self._transport.is_closing()
        return is_open and self._parser.our_state is h11.IDLE and self._last_used >= since

    async def request(
        self, method: str, path: bytes, headers: Headers, body: bytes | None
    ) -> Reply:
        """Send a request and return its answer, read to the end.

        Raises:
            _HttpError: If there is no whole answer.
        """
        if self._transport is None or self._transport.is_closing():
            raise _closed(None)
        loop = asyncio.get_running_loop()
        head = h11.Request(
            method=method.encode("ascii"),
            target=self._prefix + path,
            headers=[*headers, *self._more_headers],
        )
        data = self._parser.send(head) or b""
        if body:
            data += self._parser.send(h11.Data(data=body)) or b""
        data += self._parser.send(h11.EndOfMessage()) or b""
        self._head, self._parts, self._size = None, [], 0
        awaited: asyncio.Future[Reply] = loop.create_future()
        self._awaited = awaited
        try:
            self._transport.write(data)
            return await awaited
        finally:
            self._awaited = None  # after a cancellation nobody waits
            self._last_used = loop.time()

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._last_used = asyncio.get_running_loop().time()

    def data_received(self, data: bytes) -> None:
        self._size += len(data)
        if self._awaited is None:
            self.close()  # an answer to no request
        elif self._size > _MOST_BYTES:
            self._fail(_too_large())
        else:
            self._read(data)

    def eof_received(self) -> None:
        if self._awaited is not None and self._head is not None:
            self._read(b"")  # the end of an answer that says no length

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(_closed(exc))

    def _read(self, data: bytes) -> None:
        try:
            self._parser.receive_data(data)
            while True:
                event = self._parser.next_event()
                if isinstance(event, h11.Response):
                    self._head = event
                elif isinstance(event, h11.Data):
                    self._parts.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    return self._answer()
                elif not isinstance(event, h11.InformationalResponse):
                    return None  # needs more
        except h11.RemoteProtocolError as error:
            if data[:2] == b"\x15\x03":
                message = "the server speaks TLS at this port; write https:// in base_url"
                return self._fail(_HttpError(message, "refused"))
            self._fail(_HttpError(f"an answer that is not HTTP ({error})"))

    def _answer(self) -> None:
        head, awaited, self._awaited = self._head, self._awaited, None
        if head is not None and awaited is not None and not awaited.done():
            try:
                awaited.set_result(_reply(head, b"".join(self._parts)))
            except _HttpError as error:
                awaited.set_exception(error)
        states = (self._parser.our_state, self._parser.their_state)
        if states == (h11.DONE, h11.DONE) and self._parser.trailing_data == (b"", False):
            self._parser.start_next_cycle()
        else:
            self.close()

    def _fail(self, error: _HttpError) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_exception(error)
        self.close()


def _reply(head: h11.Response, body: bytes) -> Reply:
    headers: dict[str, str] = {}
    for name, value in head.headers:
        key, text = name.decode("ascii"), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    encoding = headers.get("content-encoding", "identity").strip().lower()
    return Reply(head.status_code, headers, _unpack(body, encoding))


def _unpack(body: bytes, encoding: str) -> bytes:
    """Return a body without its compression; packed, a few bytes may become gigabytes."""
    if encoding == "identity" or not body:
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise _HttpError(f"an answer in the encoding {encoding!r}, without being asked", "refused")
    unpacker = zlib.decompressobj(wbits=47)  # by its first bytes: gzip's or zlib's form
    try:
        plain = unpacker.decompress(body, _MOST_BYTES + 1)
    except zlib.error as error:
        raise _HttpError(f"an answer whose compression is damaged ({error})") from None
    if len(plain) > _MOST_BYTES:
        raise _too_large()
    if not unpacker.eof:
        raise _HttpError("an answer whose compression is cut off")
    return plain


def _closed(error: Exception | None) -> _HttpError:
    why = f" ({error})" if error else ""
    return _HttpError(f"the connection was closed without a whole answer{why}")


def _too_large() -> _HttpError:
    return _HttpError(f"an answer of more than {_MOST_BYTES} bytes", "refused")
