"""The client of one server: sends each request until it is answered or cannot be.

Lives on one event loop and holds what is known there of one server and model: connections, limits,
capabilities.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np

from nimbed.cards import Modality, ModelCard
from nimbed.errors import RemoteError
from nimbed.options import EmbedOptions
from nimbed.remote.address import Address, ExtraHeaders, Secret
from nimbed.remote.dialects import (
    CAPABILITIES,
    DIALECTS,
    Capabilities,
    Dialect,
    by_host,
    learn,
    names_number,
    refuse_lesson,
    shrink,
)
from nimbed.remote.discovery import (
    ask_dialect,
    ask_model,
    ask_tei,
    find_card,
    find_space,
    other_model,
    refuse_fixed_type,
)
from nimbed.remote.http import Http, Reply, Traffic
from nimbed.remote.rate_limit import Limiter, shared_rate
from nimbed.remote.request import (
    RequestLimits,
    RequestTemplate,
    TokenEstimator,
    compose,
    warn_without_role,
)
from nimbed.remote.response import Answer, read_answer, read_failure
from nimbed.remote.retry import Failure, RetryPolicy, Tries, error_of
from nimbed.spec import VectorSpec

__all__ = ["Client"]

A = TypeVar("A")
_LOG = logging.getLogger("nimbed.remote")
_FIRST_IN_FLIGHT = 8
_LESSONS = 8
_PROBE_SECONDS = 3.0
_WORTH_TELLING = 3.0  # seconds; who waits longer is told why
_SAME_BITS = 0.97  # of two half-precision runs of one text; a wrong bit order agrees on 0.5
_NOTHING_KNOWN = Capabilities()


class Client:
    """Sends requests to one server until each is answered or hopeless.

    Args:
        address: Where the server is.
        key: Its key, or None.
        headers: What a gateway wants besides.
        model: Its name for the model; None for the only one it serves.
        card: Facts about the model, if it is known.
        dialect: What it speaks; None tells it from the address or asks the server.
        timeout: Seconds that one request may take.
        retry: When to try again.
        concurrency: Requests in flight at most.
        batch_size: Texts a request at most; None for as many as the server takes.
    """

    def __init__(
        self,
        address: Address,
        *,
        key: Secret | None,
        headers: ExtraHeaders | None = None,
        model: str | None,
        card: ModelCard | None,
        dialect: Dialect | None,
        timeout: float,
        retry: RetryPolicy,
        concurrency: int,
        batch_size: int | None,
    ) -> None:
        self.address = address
        self.model = model
        self.card = card
        self.dialect = dialect or by_host(address)
        #: Dimensions of an unknown model's full vector, once one has come.
        self.width: int | None = None
        self.tokens = TokenEstimator()
        who = "".join(secret.digest() for secret in (key, headers) if secret is not None)
        rate = shared_rate(address.api, who)
        self.limiter = Limiter(first=_FIRST_IN_FLIGHT, most=concurrency, rate=rate)
        self.http = Http(address, key=key, headers=headers, timeout=timeout)
        self._api, self._url = address.api, address.embeddings
        self._keyless = key is None
        self._batch_size = batch_size
        self._retry = retry
        self._jitter = random.Random()
        self._identifying, self._packing = asyncio.Lock(), asyncio.Lock()
        self._answered = self._trying_base64 = self._warned = False
        self._unreachable = self._unsure = False
        self._told_until, self._asked = 0.0, 0
        self._spaces: list[VectorSpec | None] = []  # of the model's name, once it was asked for

    @property
    def capabilities(self) -> Capabilities:
        """What is known of this server and model."""
        return CAPABILITIES.get((self._api, self.model or ""), _NOTHING_KNOWN)

    @property
    def limits(self) -> RequestLimits:
        """What one request may hold."""
        dialect, known = self._identified()[0], self.capabilities
        most = self._batch_size or dialect.max_items
        return RequestLimits(
            items=min(most, dialect.max_items, known.max_items or most),
            tokens=min(dialect.max_tokens, known.max_tokens or dialect.max_tokens),
            bytes=dialect.max_bytes,
        )

    async def identify(self, traffic: Traffic) -> None:
        """Find out what was not told: the model that is served, and the dialect."""
        need = functools.partial(self.get, traffic=traffic)
        probe = functools.partial(self._probe, traffic=traffic)
        async with self._identifying:
            if self.model is None:
                self.model = await ask_model(self.address, need)
                self.card = find_card(self.model)
            # A dialect that was guessed while the server did not answer is asked for again, twice.
            if self.dialect is None or (self._unsure and self._asked < 3):
                self._asked += 1
                self._unreachable = self._unsure = False
                self.dialect = await ask_dialect(self.address, probe, model=self.model)
            elif self.dialect is DIALECTS["tei"] and not self._asked:
                self._asked = 1
                self.dialect = await ask_tei(self.address, probe)
            self.http.polls = self.dialect.polls
            if self.dialect.a_minute is not None:
                self.limiter.rate.expect(self.dialect.a_minute)

    async def refuse_alias(self, traffic: Traffic) -> None:
        """Raise ConfigurationError for a name of nimbed's own server that fixes another type."""
        if self.card is None and self._identified()[0].name == "nim":
            self._spaces = self._spaces or [await self.find_space(traffic)]
            refuse_fixed_type(self._spaces[0], self.model)

    async def send(
        self,
        texts: Sequence[str],
        options: EmbedOptions,
        traffic: Traffic,
        *,
        modality: Modality | tuple[Modality, ...] | None = None,
    ) -> Answer | Failure:
        """Send the texts of one request until they are answered, or trying again is pointless.

        Args:
            texts: The inputs, rendered.
            options: What is asked of the server; see :func:`nimbed.remote.request.compose`.
            traffic: Where costs are added up.
            modality: What the inputs are, for a model that sees: all of them, or each.

        Raises:
            ConfigurationError: If the role cannot reach an asymmetric model, or the server refuses
                a field whose work nimbed cannot do itself.
        """
        tries, lessons = Tries(), 0
        guess: Capabilities | None = None
        while True:
            known = guess or self.capabilities
            encoding, trial = self._encoding(known)
            template = self._template(options, known, encoding, modality)
            self._trying_base64 = self._trying_base64 or trial
            read = functools.partial(self._read_by, template, texts)
            try:
                outcome = await self._send_once(
                    self._url, template.body(texts), read, traffic, tries
                )
            finally:
                self._trying_base64 = self._trying_base64 and not trial
            if isinstance(outcome, Answer):
                self._remember(template, outcome, lesson=guess)
                return outcome
            if trial and not (outcome.overload or outcome.kind == "network"):
                self._keep(replace(self.capabilities, base64=False))  # it wants them plain
                continue
            lesson = learn(outcome, template.fields, known) if lessons < _LESSONS else None
            if lesson is not None:
                sliced = None if self.card is not None else options.dimensions
                at = self.http.server
                refuse_lesson(lesson, known, outcome, server=at, sliced=sliced, texts=texts)
                lessons += 1
                guess = lesson
                continue
            if not await self._again(outcome, tries, traffic):
                return outcome

    async def post(
        self, url: str, body: bytes, read: Callable[[Reply], A | Failure], traffic: Traffic
    ) -> A | Failure:
        """Send a body of JSON until ``read`` makes an answer of what comes, or that is hopeless."""
        tries = Tries()
        while True:
            outcome = await self._send_once(url, body, read, traffic, tries)
            if not isinstance(outcome, Failure):
                self._answered = True
                return outcome
            if not await self._again(outcome, tries, traffic):
                return outcome

    async def _again(self, failure: Failure, tries: Tries, traffic: Traffic) -> bool:
        """Wait before the next try, or return False where there is none."""
        tries.count += 1
        pause = self._pause(failure, tries.count, tries.seconds)
        if pause is None:
            return False
        traffic.retries += 1
        tries.seconds += pause
        if not failure.limited:  # else all requests wait for their turn together
            await asyncio.sleep(pause)
        return True

    async def packs_bits(self, options: EmbedOptions, text: str, traffic: Traffic) -> bool:
        """Whether the server packs bits, and as nimbed does: most significant bit first, x > 0.

        No public source says how NIM orders its bits, so one text is embedded both ways.
        """
        async with self._packing:
            known, card = self.capabilities, self.card
            if card is None or card.dimensions % 8 or "ubinary" not in card.served_types:
                return False
            if not self._identified()[0].packed or "embedding_type" in known.refused:
                return False
            if known.packed is None:
                plain = replace(options, embedding_type="float", dimensions=None)
                packed = replace(options, embedding_type="ubinary")
                bits = await self.send([text], packed, traffic, modality=options.modality)
                floats = await self.send([text], plain, traffic, modality=options.modality)
                if isinstance(bits, Failure) or isinstance(floats, Failure):
                    return False  # the texts themselves will meet the failure, and report it
                if bits.vectors.dtype != np.uint8:
                    return False
                same = np.unpackbits(bits.vectors, axis=1) == (floats.vectors > 0)
                self._keep(replace(self.capabilities, packed=bool(same.mean() > _SAME_BITS)))
            return bool(self.capabilities.packed)

    def take_fewer(self, items: int) -> None:
        """Remember that requests of more texts are refused."""
        known = self.capabilities
        if known.max_items is None or known.max_items > items:
            self._keep(replace(known, max_items=items))

    def shrink(self, failure: Failure, *, items: int) -> None:
        """Remember the limits that a refused request of so many texts teaches."""
        if failure.status != 413 or names_number(failure):
            self._keep(shrink(failure, self.capabilities, items=items))

    async def ask(self, texts: Sequence[str], fields: Mapping[str, Any]) -> Answer:
        """Send texts once, without retries; see :meth:`RemoteEmbedder.ask`."""
        await self.identify(Traffic())
        body = json.dumps({"input": list(texts), "model": self.model, **fields}).encode()
        read = functools.partial(self._read, texts=texts, widths=(), packed=False)
        outcome = await self._send_once(self._url, body, read, Traffic(), Tries())
        if isinstance(outcome, Failure):
            raise self.error(outcome, (), server="the server")
        return outcome

    async def find_space(self, traffic: Traffic) -> VectorSpec | None:
        """Return the contract that a server of nimbed's own states for the model, or None."""
        await self.identify(traffic)
        probe = functools.partial(self._probe, traffic=traffic)
        return await find_space(self.address, probe, model=self.model or "")

    def error(self, failure: Failure, rows: Sequence[int], *, server: str = "") -> RemoteError:
        """Return the error to raise for a failure that concerns some of the caller's rows."""
        at, keyless = server or self.http.server, self._keyless
        return error_of(failure, server=at, model=self.model, rows=rows, keyless=keyless)

    async def get(self, url: str, traffic: Traffic) -> bytes | None:
        """Return a page that is needed, or None if the server has no such page.

        Raises:
            RemoteError: If the server cannot be reached, or refuses the key.
        """
        clock = asyncio.get_running_loop().time
        began, tried = clock(), 0
        while True:
            reply = await self.http.request("GET", url, traffic=traffic)
            if isinstance(reply, Reply) and reply.ok:
                return reply.body
            failure = self._failure(reply)
            tried += 1
            pause = self._pause(failure, tried, clock() - began)
            if pause is None and failure.status is not None and not failure.about_key:
                return None
            if pause is None:
                raise self.error(failure, ())
            traffic.retries += 1
            await asyncio.sleep(pause)

    async def _probe(self, url: str, traffic: Traffic) -> bytes | None:
        """Return a page that would be good to have, or None: one short try.

        A server that could not be reached is not asked for another page.
        """
        if self._unreachable:
            return None
        reply: Reply | Failure
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                reply = await self.http.request("GET", url, traffic=traffic)
        except TimeoutError:
            reply = Failure(kind="timeout", message="no answer")
        if isinstance(reply, Reply) and reply.ok:
            return reply.body
        self._unreachable = isinstance(reply, Failure)
        self._unsure = self._unsure or self._failure(reply).transient
        return None

    async def _send_once(
        self,
        url: str,
        body: bytes,
        read: Callable[[Reply], A | Failure],
        traffic: Traffic,
        tries: Tries,
    ) -> A | Failure:
        """Return what came of one try, and add the seconds that it took."""
        clock, rate = asyncio.get_running_loop().time, self.limiter.rate
        epoch = await self.limiter.acquire()
        began = clock()
        try:
            reply = await self.http.request("POST", url, body, traffic=traffic)
            answered = reply if isinstance(reply, Reply) and reply.ok else None
            outcome = self._failure(reply) if answered is None else read(answered)
            now = clock()
            if isinstance(reply, Reply):
                hold = rate.observe(reply.headers, began, now, most=self._retry.max_retry_after)
                self._tell(hold, "the server says that nothing is left of its limit")
            if not isinstance(outcome, Failure):
                rate.accepted(began, now)
                self.limiter.grow(now - began)
            elif outcome.limited:
                told = outcome.retry_after
                if told is not None and told > self._retry.max_retry_after:
                    told = None
                if told:  # everybody was told the same moment: a little spread keeps them apart
                    told *= 1 + 0.05 * self._jitter.random()
                wait = rate.refused(
                    began,
                    now,
                    told=told,
                    shortest=self._retry.shortest,
                    longest=self._retry.longest,
                )
                self._tell(wait, outcome.message)
                self.limiter.shed(epoch)
                outcome = replace(outcome, hold=wait)
            elif outcome.overload:
                hold = outcome.retry_after or 0.0
                self.limiter.shed(epoch, hold=hold if hold <= self._retry.max_retry_after else 0.0)
        finally:
            rate.ended(began)
            self.limiter.release()
        tries.seconds += clock() - began
        return outcome

    def _tell(self, wait: float, why: str) -> None:
        """Say that the requests to this server wait, and why, once for each wait."""
        until = asyncio.get_running_loop().time() + wait
        if wait < _WORTH_TELLING or until < self._told_until + 1.0:
            return
        self._told_until = until
        _LOG.warning("%s: waiting %.0f s before asking again (%s)", self.http.server, wait, why)

    def _failure(self, reply: Reply | Failure) -> Failure:
        """Return what went wrong, without a secret in it."""
        if isinstance(reply, Reply):
            return read_failure(reply.status, reply.headers, reply.body, scrub=self.http.scrub)
        return reply.scrubbed(self.http.scrub)

    def _read_by(
        self, template: RequestTemplate, texts: Sequence[str], reply: Reply
    ) -> Answer | Failure:
        full = self.card.dimensions if self.card else self.width
        widths = template.widths(full, known=self.card is not None)
        return self._read(reply, texts, widths=widths, packed=template.packed)

    def _read(
        self, reply: Reply, texts: Sequence[str], *, widths: Collection[int], packed: bool
    ) -> Answer | Failure:
        scrub = self.http.scrub
        answer = read_answer(reply, texts, widths=widths, packed=packed, scrub=scrub)
        if isinstance(answer, Failure) or answer.model == self.model:
            return answer
        other = other_model(answer.model, asked=self.model, card=self.card)
        if other is None:
            return answer
        message = f"vectors of {other} instead of {self.model}; check model and base_url"
        request_id = reply.headers.get("x-request-id")
        return Failure(kind="refused", message=message, request_id=request_id).scrubbed(scrub)

    def _template(
        self,
        options: EmbedOptions,
        known: Capabilities,
        encoding: Literal["base64", "float"] | None,
        modality: Modality | tuple[Modality, ...] | None,
    ) -> RequestTemplate:
        dialect, model = self._identified()
        template = compose(
            options,
            dialect=dialect,
            known=known,
            model=model,
            card=self.card,
            encoding=encoding,
            modality=modality,
        )
        role_travels = "input_type" in template.fields or template.fields["model"] != model
        if self.card is None and not role_travels and not self._warned:
            self._warned = True
            warn_without_role(model)
        return template

    def _encoding(self, known: Capabilities) -> tuple[Literal["base64", "float"] | None, bool]:
        """Return which encoding to ask for, and whether that is a trial."""
        if self._identified()[0].encoding == "known":
            return ("float" if known.base64 is False else "base64"), False
        if known.base64 is None and self._answered and not self._trying_base64:
            return "base64", True
        return ("base64" if known.base64 else None), False

    def _remember(
        self, template: RequestTemplate, answer: Answer, *, lesson: Capabilities | None
    ) -> None:
        """Keep what an answer proves."""
        self._answered = True
        known = self.capabilities
        if lesson is not None:
            refused = known.refused | lesson.refused
            known = replace(known, refused=refused, role=lesson.role or known.role)
        if template.base64 and known.base64 is not answer.base64:
            known = replace(known, base64=answer.base64)
        self._keep(known)
        if not template.packed and template.dimensions is None and self.width is None:
            self.width = answer.vectors.shape[1]

    def _keep(self, capabilities: Capabilities) -> None:
        CAPABILITIES[self._api, self.model or ""] = capabilities

    def _pause(self, failure: Failure, tried: int, elapsed: float) -> float | None:
        now = asyncio.get_running_loop().time()
        if failure.limited:  # however many requests share the wait, it is one
            elapsed = max(elapsed, self.limiter.rate.blocked(now))
        pause = self._retry.pause(
            failure, tried=tried, elapsed=elapsed, jitter=self._jitter, proven=self._answered
        )
        if pause is not None:
            self._tell(0.0 if failure.limited else pause, failure.message)
        return pause

    def _identified(self) -> tuple[Dialect, str]:
        if self.dialect is None or self.model is None:
            raise RuntimeError("identify() comes before the first request")
        return self.dialect, self.model
