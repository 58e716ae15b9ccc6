"""Bytes as they are over a socket, for requests that no client would send."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)


class Wire:
    """One connection."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._file.close()
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def answer(self):
        """Read one answer; None if the connection was closed instead."""
        line = self._file.readline()
        if not line:
            return None
        headers = {}
        while (header := self._file.readline().strip()) != b"":
            name, _, value = header.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        body = self._file.read(int(headers.get("content-length", 0)))
        return Answer(int(line.split()[1]), headers, body)

    @property
    def closed(self):
        """Wait until the server closes, or until it says something instead."""
        return self._file.read(1) == b""


def post(body, *headers, path="/v1/embeddings", length=None):
    said = len(body) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {said}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(chunks, *headers, path="/v1/embeddings", end=True):
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "transfer-encoding: chunked", *headers]
    parts = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]
    return "\r\n".join([*lines, "", ""]).encode() + b"".join(parts) + (b"0\r\n\r\n" if end else b"")
