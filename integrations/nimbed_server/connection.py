"""uvicorn's side of one connection, with bounds on the head of a request.

By itself uvicorn waits for a head for ever, keeps whatever comes of it in memory, and says in
plain text what is no HTTP.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from nimbed_server.cycle import Cycle
from nimbed_server.exchange import fresh_id
from nimbed_server.patience import Patience
from nimbed_server.settings import Settings
from nimbed_server.wire.refusal import Refusal, render

__all__ = ["bounded"]

# Bytes of a head, and what the socket may give beyond them in one piece; nginx takes half.
_MOST_HEAD = 64 * 1024


def bounded(settings: Settings) -> type[asyncio.Protocol]:
    """Return the protocol of a server's connections."""
    patience = Patience(settings.body_timeout_s)

    class Bounded(HttpToolsProtocol):
        _whole = True
        _head = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            patience.begin(self)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._whole:
                return
            self._head += len(data)
            if self._head > _MOST_HEAD and not self.transport.is_closing():
                self._turn_away(431, f"the request's head is larger than {_MOST_HEAD} bytes")
            elif self._head == len(data):
                patience.begin(self)  # the first piece of a head; most come in one

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._whole = False
            self._head = 0

        def on_headers_complete(self) -> None:
            self._whole = True
            patience.end(self)
            super().on_headers_complete()
            self.cycle.__class__ = Cycle

        def connection_lost(self, exc: Exception | None) -> None:
            patience.end(self)
            super().connection_lost(exc)

        def late(self) -> None:
            self.transport.close()

        def send_400_response(self, msg: str) -> None:
            self._turn_away(400, "this is not HTTP/1.1; the connection ends here")

        def _turn_away(self, status: int, message: str) -> None:
            cycle = self.cycle
            if cycle is not None and not cycle.response_complete and not cycle.more_body:
                cycle.keep_alive = False  # what came whole before is answered first
                return
            name = fresh_id()
            body = render(Refusal(status, message), request_id=name, strict_nim=settings.strict_nim)
            head = (
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                f"x-request-id: {name}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(STATUS_LINE[status] + head.encode() + body)
            self.transport.close()

    return Bounded
