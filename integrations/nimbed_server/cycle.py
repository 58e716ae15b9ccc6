"""uvicorn's side of one request and its answer, sent in one piece.

uvicorn writes head and body apart, which are two calls of the system and two packets; for a short
answer the second costs more than making it.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

__all__ = ["Cycle"]


class Cycle(RequestResponseCycle):
    """Holds the head of an answer until its body comes, as ASGI allows."""

    _held: Any = None

    async def send(self, message: Any) -> None:
        """Take an event of the answer; see ASGI."""
        if not self.response_started and message["type"] == "http.response.start":
            self._held = message
            return
        start, self._held = self._held, None
        if start is not None:
            whole = self._whole(start, message)
            if whole is not None:
                self._finish(whole)
                return
            await super().send(start)
        await super().send(message)

    def _whole(self, start: Any, message: Any) -> bytes | None:
        """Return an answer as it goes over the wire, or None if it is for uvicorn to send."""
        if (
            message.get("more_body", False)
            or self.flow.write_paused
            or not self.keep_alive
            or self.scope["method"] == "HEAD"
        ):
            return None
        body: bytes = message.get("body", b"")
        lines = [STATUS_LINE[start["status"]]]
        said = b""
        for name, value in [*self.default_headers, *start["headers"]]:
            if name == b"content-length":
                said = value
            elif name == b"connection":
                return None
            lines.append(b"%b: %b\r\n" % (name, value))
        if said != b"%d" % len(body):
            return None
        breaks = len(lines) + 1
        whole = b"".join([*lines, b"\r\n", body])
        # No header may hold a line break; uvicorn says what is wrong with one that does.
        return whole if whole.count(b"\n", 0, len(whole) - len(body)) == breaks else None

    def _finish(self, whole: bytes) -> None:
        if self.disconnected:
            return
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.message_event.set()
        self.transport.write(whole)
        self.on_response()
