"""Texts of one request to a verified answer, or to the fault that no retry mended.

Knows nothing about rows, specs or batches. Lives on one event loop; holds what is known of one
server and model there: connections, limits, capabilities.
"""

from __future__ import annotations

import asyncio
import logging
import random
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from nimbed.cards import ModelCard
from nimbed.remote.address import Address
from nimbed.remote.capabilities import Capabilities, Memo, learn, shrink
from nimbed.remote.decode import Answer, Malformed, decode
from nimbed.remote.dialects import Dialect, by_host
from nimbed.remote.faults import Fault, error_of, scrubbed
from nimbed.remote.hosted import card_of
from nimbed.remote.identity import ask_dialect, ask_model
from nimbed.remote.limiter import Limiter
from nimbed.remote.payload import Ask, body_of
from nimbed.remote.planner import Limits, TokenMeter
from nimbed.remote.retry import RetryPolicy
from nimbed.remote.secret import Secret
from nimbed.remote.tally import Tally
from nimbed.remote.transport import Reply, Transport
from nimbed.remote.wish import Wish, stranger, translate, widths_of

__all__ = ["MEMO", "Courier"]

#: Shared by every embedder of the process: what a server does not know, it tells once.
MEMO = Memo()

_LOG = logging.getLogger("nimbed.remote")
_FIRST_IN_FLIGHT = 8
_LESSONS = 8
_SAME_BITS = 0.97  # of two half-precision runs of one text; a wrong bit order agrees on 0.5


class Courier:
    """Sends requests to one server until each is answered or hopeless."""

    def __init__(
        self,
        *,
        address: Address,
        key: Secret | None,
        model: str | None,
        card: ModelCard | None,
        dialect: Dialect | None,
        timeout: float,
        retry: RetryPolicy,
        concurrency: int,
        batch_size: int | None,
    ) -> None:
        self.address = address
        self.keyless = key is None
        self._key = key
        self.model = model
        self.card = card
        self.dialect = dialect or by_host(address)
        self.width: int | None = None
        self.meter = TokenMeter()
        self.limiter = Limiter(first=_FIRST_IN_FLIGHT, most=concurrency)
        self.transport = Transport(address, key=key, timeout=timeout)
        self._batch_size = batch_size
        self._retry = retry
        self._jitter = random.Random()
        self._identifying = asyncio.Lock()
        self._packing = asyncio.Lock()
        self._answered = False
        self._trying = False
        self._warned = False

    @property
    def capabilities(self) -> Capabilities:
        """What is known of this server and model."""
        return MEMO.get(self.address.api, self.model or "")

    @property
    def limits(self) -> Limits:
        """What one request may hold."""
        dialect, known = self._speak()[0], self.capabilities
        most = self._batch_size or dialect.max_items
        return Limits(
            items=min(most, dialect.max_items, known.max_items or most),
            tokens=min(dialect.max_tokens, known.max_tokens or dialect.max_tokens),
            bytes=dialect.max_bytes,
        )

    async def identify(self, tally: Tally) -> None:
        """Find out what was not told: the model that is served, and the dialect."""

        async def get(url: str) -> bytes | None:
            return await self.page(url, tally)

        async with self._identifying:
            if self.model is None:
                self.model = await ask_model(self.address, get)
                self.card = card_of(self.model)
            if self.dialect is None:
                self.dialect = await ask_dialect(self.address, get, model=self.model)
            self.transport.polls = self.dialect.polls

    async def deliver(self, wish: Wish, texts: Sequence[str], tally: Tally) -> Answer | Fault:
        """Send texts until they are answered, or until trying again makes no sense.

        Raises:
            ConfigurationError: If the role cannot reach an asymmetric model.
        """
        tried = lessons = 0
        spent = 0.0
        guess: Capabilities | None = None
        while True:
            known = guess or self.capabilities
            encoding, trial = self._encoding(known)
            ask = self._ask(wish, known, encoding)
            self._trying = self._trying or trial
            try:
                outcome, seconds = await self._once(ask, texts, tally)
            finally:
                self._trying = self._trying and not trial
            if isinstance(outcome, Answer):
                self._remember(ask, outcome, lesson=guess)
                return outcome
            if trial and not (outcome.overload or outcome.kind == "network"):
                self._know(base64=False)  # whatever it said: this server wants it plain
                continue
            lesson = learn(outcome, ask.sent, known) if lessons < _LESSONS else None
            if lesson is not None:
                lessons += 1
                guess = lesson
                continue
            tried += 1
            spent += seconds
            pause = self._pause(outcome, tried, spent)
            if pause is None:
                return outcome
            tally.retries += 1
            spent += pause
            await asyncio.sleep(pause)

    async def page(self, url: str, tally: Tally) -> bytes | None:
        """Return a page of the server, or None if it has no such page.

        Raises:
            RemoteError: If the server cannot be reached.
        """
        clock = asyncio.get_running_loop().time
        began, tried = clock(), 0
        while True:
            reply = await self.transport.request("GET", url, tally=tally)
            if isinstance(reply, Reply):
                return reply.body
            fault = scrubbed(reply, self._key)
            tried += 1
            pause = self._pause(fault, tried, clock() - began)
            if pause is None and fault.status is not None:
                return None
            if pause is None:
                raise error_of(fault, api=self.address.api, rows=(), keyless=self.keyless)
            tally.retries += 1
            await asyncio.sleep(pause)

    async def packs(self, wish: Wish, text: str, tally: Tally) -> bool:
        """Whether the server packs bits, and as nimbed does: most significant bit first, x > 0.

        No public source says how NIM orders its bits, so one text is embedded both ways.
        """
        async with self._packing:
            known, card = self.capabilities, self.card
            if card is None or card.dimensions % 8 or "ubinary" not in card.served_types:
                return False
            if not self._speak()[0].packed or "embedding_type" in known.refused:
                return False
            if known.packed is None:
                bits = await self.deliver(replace(wish, packed=True), [text], tally)
                plain = replace(wish, packed=False, dimensions=None)
                floats = await self.deliver(plain, [text], tally)
                if isinstance(bits, Fault) or isinstance(floats, Fault):
                    return False  # the texts themselves will meet the fault, and report it
                if bits.vectors.dtype != np.uint8:
                    return False
                same = np.unpackbits(bits.vectors, axis=1) == (floats.vectors > 0)
                self._know(packed=bool(same.mean() > _SAME_BITS))
            return bool(self.capabilities.packed)

    def shrink(self, fault: Fault, *, items: int) -> None:
        """Remember the limits that a refused request of so many texts teaches."""
        if fault.status != 413:  # its bytes were too many, which says nothing of other texts
            self._keep(shrink(fault, self.capabilities, items=items))

    async def _once(
        self, ask: Ask, texts: Sequence[str], tally: Tally
    ) -> tuple[Answer | Fault, float]:
        """Return what came of one try, and the seconds that it took."""
        clock = asyncio.get_running_loop().time
        body = body_of(ask, texts)
        era = await self.limiter.acquire()
        began = clock()
        try:
            reply = await self.transport.request("POST", self.address.embeddings, body, tally=tally)
            outcome = self._read(reply, ask, len(texts)) if isinstance(reply, Reply) else reply
            if isinstance(outcome, Fault):
                outcome = scrubbed(outcome, self._key)
            if isinstance(outcome, Answer):
                self.limiter.grow(clock() - began)
            elif outcome.overload:
                hold = outcome.retry_after or 0.0
                self.limiter.shed(era, hold=hold if hold <= self._retry.patience else 0.0)
        finally:
            self.limiter.release()
        return outcome, clock() - began

    def _read(self, reply: Reply, ask: Ask, count: int) -> Answer | Fault:
        widths = widths_of(ask, card=self.card, learnt=self.width)
        request_id = reply.headers.get("x-request-id")
        try:
            answer = decode(reply.body, count=count, widths=widths, packed=ask.packed)
        except Malformed as error:
            return Fault(
                kind="malformed",
                message=str(error),
                request_id=request_id,
                positions=error.positions,
            )
        other = stranger(answer, self.card)
        if other:
            said = f"vectors of {other} instead of {self.model}; check model and base_url"
            return Fault(kind="refused", message=said, request_id=request_id)
        return answer

    def _ask(
        self, wish: Wish, known: Capabilities, encoding: Literal["base64", "float"] | None
    ) -> Ask:
        dialect, model = self._speak()
        ask = translate(
            wish, dialect=dialect, known=known, model=model, card=self.card, encoding=encoding
        )
        role_travels = "input_type" in ask.fields or ask.fields["model"] != model
        if self.card is None and not role_travels and not self._warned:
            self._warned = True
            warnings.warn(
                f"nothing is known about {model!r}, so its texts are sent without a role prompt; "
                f"if it treats queries and passages differently, pass a ModelCard with its prompts",
                stacklevel=2,
            )
        return ask

    def _encoding(self, known: Capabilities) -> tuple[Literal["base64", "float"] | None, bool]:
        """Return which encoding to ask for, and whether that is a trial."""
        if self._speak()[0].encoding == "known":
            return ("float" if known.base64 is False else "base64"), False
        if known.base64 is None and self._answered and not self._trying:
            return "base64", True
        return ("base64" if known.base64 else None), False

    def _remember(self, ask: Ask, answer: Answer, *, lesson: Capabilities | None) -> None:
        """Keep what an answer proves."""
        self._answered = True
        if lesson is not None:
            known = self.capabilities
            refused = known.refused | lesson.refused
            self._keep(replace(known, refused=refused, role=lesson.role or known.role))
        if ask.base64:
            self._know(base64=answer.base64)
        if not ask.packed and ask.dimensions is None and self.width is None:
            self.width = answer.vectors.shape[1]

    def _know(self, *, base64: bool | None = None, packed: bool | None = None) -> None:
        known = self.capabilities
        self._keep(
            replace(
                known,
                base64=known.base64 if base64 is None else base64,
                packed=known.packed if packed is None else packed,
            )
        )

    def _keep(self, capabilities: Capabilities) -> None:
        MEMO.set(self.address.api, self.model or "", capabilities)

    def _pause(self, fault: Fault, tried: int, elapsed: float) -> float | None:
        pause = self._retry.pause(fault, tried=tried, elapsed=elapsed, jitter=self._jitter)
        if pause is not None:
            _LOG.debug("%s: %s; again in %.2f s", self.address.api, fault.message, pause)
        return pause

    def _speak(self) -> tuple[Dialect, str]:
        if self.dialect is None or self.model is None:
            raise RuntimeError("identify() comes before the first request")
        return self.dialect, self.model
