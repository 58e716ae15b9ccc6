"""Fields, exactly as given, to the server's verified answer or the reason it refused.

Knows nothing about dialects or cards: what the embedder would leave out or work around is sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nimbed.remote.address import Address
from nimbed.remote.decode import Answer, Malformed, decode
from nimbed.remote.faults import Fault
from nimbed.remote.secret import Secret
from nimbed.remote.tally import Tally
from nimbed.remote.transport import Reply, Transport

__all__ = ["Probe", "Refusal"]


class Refusal(Exception):
    """The server did not answer as asked; the message says how."""


class Probe:
    """Sends single requests, without retries, each on a connection of its own.

    Args:
        address: Where the server is.
        key: Its key.
        model: The model's name there.
        dialect: What the server was found to speak, for the record.
        timeout: Seconds that one request may take.
    """

    def __init__(
        self, address: Address, *, key: Secret | None, model: str, dialect: str, timeout: float
    ) -> None:
        self.api = address.api
        self.model = model
        self.dialect = dialect
        self._address = address
        self._key = key
        self._timeout = timeout

    def ask(self, texts: Sequence[str], **fields: Any) -> Answer:
        """Send texts with some fields and read the answer.

        Raises:
            Refusal: If there is none.
        """
        body = json.dumps({"input": list(texts), "model": self.model, **fields}).encode()
        reply = asyncio.run(self._send(body))
        if isinstance(reply, Fault):
            raise Refusal(f"[{reply.status}] {reply.message}" if reply.status else reply.message)
        try:
            return decode(reply.body, count=len(texts))
        except Malformed as error:
            raise Refusal(str(error)) from None

    def floats(self, texts: Sequence[str], **fields: Any) -> NDArray[np.float32]:
        """Return the vectors of texts, shape (n, width)."""
        vectors: NDArray[np.float32] = self.ask(texts, **fields).vectors
        return vectors

    async def _send(self, body: bytes) -> Reply | Fault:
        transport = Transport(
            self._address, key=self._key, timeout=self._timeout, polls=self.dialect == "nim-hosted"
        )
        try:
            return await transport.request("POST", self._address.embeddings, body, tally=Tally())
        finally:
            await transport.close()
