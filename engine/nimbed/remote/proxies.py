"""Proxies that the environment names: which one leads to a host, and how to connect through it."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from nimbed.errors import ConfigurationError

__all__ = ["Proxies", "Proxy", "ProxyError", "connect_through", "race_delay"]

_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_MOST_HEAD = 65_536  # bytes of an answer to CONNECT
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
# RFC 1928, section 6.
_SOCKS_REPLIES = {
    1: "a general failure",
    2: "not allowed by its rules",
    3: "the network cannot be reached",
    4: "the host cannot be reached",
    5: "the connection was refused",
    6: "the connection took too long",
}


class ProxyError(Exception):
    """A proxy did not connect to a host.

    The message says what it did instead ("answered 403"); ``.final`` tells that asking again would
    not help.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy; printed without its password.

    Attributes:
        scheme: ``http``, ``https``, ``socks5`` or ``socks5h``.
        host: Its name or address.
        port: Its port.
        variable: Where it was named, for messages.
        user: Name to log in with, or None.
        password: The password that goes with it.
    """

    scheme: str
    host: str
    port: int
    variable: str
    user: str | None = field(default=None, repr=False)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"the proxy {self.scheme}://{host}:{self.port} of {self.variable}"

    @property
    def forwards(self) -> bool:
        """Whether it takes requests for ``http://`` addresses itself, without a tunnel."""
        return self.scheme in ("http", "https")

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that log in to it."""
        if self.user is None:
            return []
        return [(b"proxy-authorization", b"Basic " + self._token().encode("ascii"))]

    @property
    def secrets(self) -> list[str]:
        """What must not be printed."""
        return [] if self.user is None else [self._token(), *filter(None, [self.password])]

    def _token(self) -> str:
        return base64.b64encode(f"{self.user}:{self.password}".encode()).decode("ascii")


class Proxies:
    """The proxies of the environment, by the schemes of the addresses they are for.

    The variables are those of curl and httpx, in either case: ``HTTP_PROXY``, ``HTTPS_PROXY``,
    ``ALL_PROXY`` and, before any of them, ``NO_PROXY``: a list of host names (each with what lies
    below it), addresses, networks such as 10.0.0.0/8, all of them with or without a port; ``*``
    is every host. Where no variable is set, macOS and Windows are asked for their settings.
    """

    def __init__(self, named: Mapping[str, str] | None = None) -> None:
        """Take a mapping of scheme to address as :func:`urllib.request.getproxies` gives it."""
        self._named = getproxies() if named is None else named
        self._exempt = [each for each in re.split(r"[,\s]+", self._named.get("no", "")) if each]

    def find(self, scheme: str, host: str, port: int) -> Proxy | None:
        """Return the proxy through which a host is reached, or None.

        Raises:
            ConfigurationError: If the variable for it does not hold the address of a proxy.
        """
        name = next((name for name in (scheme, "all") if self._named.get(name)), None)
        if name is None or any(_matches(each, host, port) for each in self._exempt):
            return None
        return _parse(self._named[name].strip(), _variable(name), host)


def _variable(name: str) -> str:
    names = (f"{name}_proxy", f"{name.upper()}_PROXY")
    return next((each for each in names if os.environ.get(each)), "the system's settings")


def _parse(address: str, variable: str, host: str) -> Proxy:
    mend = f"correct or unset it, or put {host} into NO_PROXY"
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        name, port = parts.hostname, parts.port
    except ValueError:
        parts, name, port = urlsplit(""), None, None
    if not name:
        # The value is not repeated: it may hold a password.
        raise ConfigurationError(
            f"{variable} must be the address of a proxy, such as 'http://localhost:3128'; {mend}"
        )
    if parts.scheme not in _PORTS:
        raise ConfigurationError(
            f"{variable} names a proxy of the kind {parts.scheme}://, but only "
            f"{', '.join(f'{kind}://' for kind in _PORTS)} are possible; {mend}"
        )
    return Proxy(
        scheme=parts.scheme,
        host=name,
        port=_PORTS[parts.scheme] if port is None else port,
        variable=variable,
        user=None if parts.username is None else unquote(parts.username),
        password=unquote(parts.password or ""),
    )


def _matches(exempt: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY covers a host."""
    if exempt == "*":
        return True
    exempt = exempt.lower().rpartition("://")[2]
    name, number = exempt, ""
    if exempt.startswith("["):
        name, _, number = exempt[1:].partition("]")
        number = number.removeprefix(":")
    elif exempt.count(":") == 1:  # more are an IPv6 address
        name, _, number = exempt.partition(":")
    if number and number != str(port):
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:  # one of the two is a name
        name = name.removeprefix("*").removeprefix(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))


def race_delay(host: str) -> float | None:
    """Return the seconds after which the next address of a host is tried beside the first.

    There is no race for what is an address already: asyncio leaks the socket of one that is
    cancelled (Python 3.11), as a short timeout does.
    """
    is_address = ":" in host or host.replace(".", "").isdigit()
    return None if is_address else 0.25


async def connect_through(
    proxy: Proxy, host: str, port: int, *, tunnel: bool, context: ssl.SSLContext | None
) -> asyncio.Transport:
    """Connect to a proxy, and through it to a host.

    Args:
        proxy: The proxy.
        host: The host, in ASCII.
        port: Its port.
        tunnel: Whether bytes shall reach the host as they are; else the proxy reads requests.
        context: Certificates to trust, for a proxy that is itself reached by TLS.

    Returns:
        A transport whose protocol the caller must replace.

    Raises:
        OSError: If the proxy cannot be reached.
        ProxyError: If it does not connect to the host.
    """
    transport, handshake = await asyncio.get_running_loop().create_connection(
        _Handshake,
        proxy.host,
        proxy.port,
        ssl=context if proxy.scheme == "https" else None,
        happy_eyeballs_delay=race_delay(proxy.host),
    )
    try:
        if not proxy.forwards:
            await _ask_socks(transport, handshake, proxy, host, port)
        elif tunnel:
            await _ask_http(transport, handshake, proxy, host, port)
        if transport.is_closing():
            raise ProxyError("closed the connection")
        if handshake.received:
            raise ProxyError("sent more than was asked for")
    except BaseException:
        transport.abort()
        raise
    return transport


class _Handshake(asyncio.Protocol):
    """Collects what a proxy says before it connects to the host."""

    def __init__(self) -> None:
        self.received = bytearray()
        self._closed = False
        self._changed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._changed.set()

    async def read(self, count: int) -> bytes:
        """Return the next bytes, exactly so many."""
        while len(self.received) < count:
            await self._wait()
        taken = bytes(self.received[:count])
        del self.received[:count]
        return taken

    async def read_head(self) -> bytes:
        """Return everything up to an empty line."""
        while (end := self.received.find(b"\r\n\r\n")) < 0:
            if len(self.received) > _MOST_HEAD:
                raise ProxyError("sent headers without end", final=True)
            await self._wait()
        return await self.read(end + 4)

    async def _wait(self) -> None:
        if self._closed:
            raise ProxyError("closed the connection")
        self._changed.clear()
        await self._changed.wait()


async def _ask_http(
    transport: asyncio.Transport, handshake: _Handshake, proxy: Proxy, host: str, port: int
) -> None:
    """Have a proxy connect to a host by CONNECT (RFC 9110, section 9.3.6)."""
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {place} HTTP/1.1".encode("ascii"), f"Host: {place}".encode("ascii")]
    lines += [name + b": " + value for name, value in proxy.headers]
    transport.write(b"\r\n".join(lines) + b"\r\n\r\n")
    head = _STATUS.match(await handshake.read_head())
    if head is None:
        raise ProxyError("does not speak HTTP", final=True)
    status = int(head[1])
    if 200 <= status < 300:
        return
    mend = ""
    if status == 407:
        mend = f"; put a user and a password into {proxy.variable}, as in http://user:password@host"
    final = status < 500 and status not in (408, 429)
    raise ProxyError(f"answered {status} when asked for {place}{mend}", final=final)


async def _ask_socks(
    transport: asyncio.Transport, handshake: _Handshake, proxy: Proxy, host: str, port: int
) -> None:
    """Have a proxy connect to a host by SOCKS 5 (RFC 1928, with the login of RFC 1929)."""
    method = 0 if proxy.user is None else 2
    transport.write(bytes([5, 1, method]))
    version, chosen = await handshake.read(2)
    if version != 5:
        raise ProxyError("does not speak SOCKS 5", final=True)
    if chosen != method:
        raise ProxyError("asks for another way to log in", final=True)
    if proxy.user is not None:
        user, password = proxy.user.encode(), proxy.password.encode()
        if max(len(user), len(password)) > 255:
            raise ProxyError("takes no more than 255 bytes of user or password", final=True)
        transport.write(bytes([1, len(user)]) + user + bytes([len(password)]) + password)
        if (await handshake.read(2))[1] != 0:
            raise ProxyError("refuses its user or password", final=True)
    try:
        address = ipaddress.ip_address(host).packed
        kind = 1 if len(address) == 4 else 4
    except ValueError:  # the proxy looks the name up
        kind, address = 3, bytes([len(host)]) + host.encode("ascii")
    transport.write(bytes([5, 1, 0, kind]) + address + port.to_bytes(2, "big"))
    _, reply, _, kind = await handshake.read(4)
    if reply != 0:
        why = _SOCKS_REPLIES.get(reply, f"reply {reply}")
        raise ProxyError(f"does not connect to {host}:{port}: {why}", final=reply == 2)
    size = {1: 4, 4: 16}.get(kind) or (await handshake.read(1))[0]
    await handshake.read(size + 2)  # the address and port it connects from
