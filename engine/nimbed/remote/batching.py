"""One embed call: its inputs divided into requests, many sent at a time, and put back in order.

Rows are the caller's row numbers throughout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch, PartialResult, stored
from nimbed.errors import RemoteError
from nimbed.inputs import Input
from nimbed.options import EmbedOptions
from nimbed.remote.client import Client
from nimbed.remote.dialects import limit_of_tokens, too_long, too_many
from nimbed.remote.discovery import unknown_card
from nimbed.remote.http import Traffic
from nimbed.remote.request import (
    RenderedInputs,
    RequestLimits,
    RequestPlanner,
    TextBatch,
    TokenEstimator,
    apportion,
    modality_of_request,
)
from nimbed.remote.response import Answer, Counted
from nimbed.remote.retry import Failure
from nimbed.reports import Report
from nimbed.spec import InputType, Truncate, VectorSpec

__all__ = ["PROBE", "Call", "embed_inputs"]

# A check of the server's bit order costs two requests: too much for a query.
_WORTH_PACKING = 256
# When so many texts were refused and none accepted, the texts are not to blame.
_HOPELESS = 8
#: A text of which the width of a model's vectors is learnt.
PROBE = "nimbed"
# Times that a refused text is halved where the server does not say that it is too long, and the
# tokens that the shortest models read, of a model of which nothing is known.
_GUESSES = 6
_SHORT_CONTEXT = 512
# Times the limit that a text must look like before an exact count is held against it.
_MUCH_LONGER = 1.3

#: Rows that were refused, each with the reason.
Refusals = list[tuple[int, Failure]]


async def embed_inputs(
    client: Client,
    items: Sequence[Input],
    rows: Sequence[int],
    options: EmbedOptions,
    *,
    skip: bool,
    finished: Callable[[int], None],
) -> EmbeddingBatch:
    """Embed the inputs of one call.

    Args:
        client: Sends requests.
        items: The caller's inputs, checked.
        rows: Row numbers of those that are to be sent, ascending.
        options: What the caller asks of each.
        skip: Whether an input that is refused leaves a zero vector instead of raising.
        finished: Told how many inputs have just been finished.

    Raises:
        ConfigurationError: If the model has no such vectors, or its role cannot reach it.
        RemoteError: If the server failed, or refused an input; its ``partial`` holds what was
            finished before.
    """
    traffic = Traffic()
    await client.identify(traffic)
    await client.refuse_alias(traffic)
    card = client.card

    def spec_of(width: int) -> VectorSpec:
        if card is not None:
            return card.spec(**options.of_spec)
        # The server decides which sizes an unknown model has.
        shown = unknown_card(client.model or "", width)
        return shown.spec(embedding_type=options.embedding_type, int8_scale=options.int8_scale)

    longest = _longest(client, options)
    result = _Result(len(items), spec_of=spec_of, estimator=client.tokens, longest=longest)
    if len(rows) < len(items):
        result.skip(set(range(len(items))).difference(rows))
    if card is not None:
        result.fix_width(card.dimensions)
    requests = _DenseRequests(client, items, options, traffic)
    call = Call(client, items, rows, options, result, requests.send, skip=skip, finished=finished)
    try:
        await requests.prepare(len(rows))
        await call.run()
        if result.spec is None:  # nothing was sent
            result.fix_width(await requests.width())
    except RemoteError as error:
        error.partial = result.finished(options.input_type, traffic)
        raise
    return result.batch(options.input_type, traffic)


def _longest(client: Client, options: EmbedOptions) -> int | None:
    """Return the tokens at which texts may be cut, if that is known."""
    cuts_at = client.dialect.cuts_at if client.dialect else None
    if options.truncate == "NONE" or client.card is None:
        return cuts_at
    return min(client.card.max_tokens, cuts_at or client.card.max_tokens)


A = TypeVar("A", bound=Counted, contravariant=True)
B = TypeVar("B", bound=Counted)


class Gathered(Protocol[A]):
    """What gathers the answers of one call, which come in any order."""

    placed: int

    @property
    def cut(self) -> int: ...
    def place(self, batch: TextBatch, answer: A) -> None: ...
    def reaching(self, batch: TextBatch, answer: A, limit: int) -> list[int]: ...
    def skip(self, rows: Iterable[int]) -> None: ...


class Call(Generic[B]):
    """The requests of one call, several in flight at a time.

    Args:
        client: Whose limits hold.
        items: The caller's inputs, checked.
        rows: Row numbers of those that are to be sent, ascending.
        options: What the caller asks of each.
        result: Gathers the answers.
        send: Sends the texts of one request until they are answered, or that is hopeless.
        skip: Whether an input that is refused is left out instead of raising.
        finished: Told how many inputs have just been finished.
        most: Tokens that one request may have at most.
    """

    def __init__(
        self,
        client: Client,
        items: Sequence[Input],
        rows: Sequence[int],
        options: EmbedOptions,
        result: Gathered[B],
        send: Callable[[TextBatch], Awaitable[B | Failure]],
        *,
        skip: bool,
        finished: Callable[[int], None],
        most: int | None = None,
    ) -> None:
        card = client.card
        self._client = client
        self._items = items
        self._count = len(rows)
        self._result = result
        self._send = send
        self._skip = skip
        self._finished = finished
        self._most = most
        self._truncate: Truncate = options.truncate
        self._planner = RequestPlanner(RenderedInputs(items), rows, client.tokens)
        self._first_division = asyncio.Lock()
        # Where nothing may be cut, a server that cuts in silence must be found out.
        dialect = client.dialect
        self._cuts_at = dialect.cuts_at if dialect and options.truncate == "NONE" else None
        # Of one that says nothing of it, and cannot be told, a text that is counted to the limit
        # exactly and looks much longer was cut.
        silent = dialect is not None and not dialect.truncation and options.truncate == "NONE"
        self._limit = card.max_tokens if silent and card is not None else None

    async def run(self) -> None:
        """Send every text and collect every answer."""
        workers = min(self._count, self._client.limiter.most)
        tasks = [asyncio.create_task(self._work()) for _ in range(workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _limits(self) -> RequestLimits:
        limits = self._client.limits
        return (
            limits if self._most is None else replace(limits, tokens=min(limits.tokens, self._most))
        )

    async def _work(self) -> None:
        while (batch := self._planner.take(self._limits())) is not None:
            refusals = await self._embed(batch)
            if not refusals:
                continue
            rows = [row for row, _ in refusals]
            hopeless = len(rows) >= _HOPELESS and not self._result.placed
            if hopeless or not self._skip:
                raise self._client.error(refusals[0][1], rows)
            self._result.skip(rows)
            self._finished(len(rows))

    async def _embed(self, batch: TextBatch, *, divided: bool = False) -> Refusals:
        """Get a batch's vectors, and return the rows that the server would not embed.

        Args:
            batch: Texts of one request.
            divided: Whether they are a part of a request that was refused.
        """
        client = self._client
        outcome = await self._send(batch)
        if not isinstance(outcome, Failure):
            if cut := self._cut_in_silence(batch, outcome):
                if len(batch) == 1:
                    return [(batch.rows[0], _cut_at(outcome.tokens or 0))]
                refusals: Refusals = []  # alone its count is exact
                for part in batch.split(cut[0]):
                    refusals += await self._embed(part, divided=True)
                return refusals
            self._result.place(batch, outcome)
            self._finished(len(batch))
            return []
        if len(batch) > 1 and too_many(outcome):
            client.shrink(outcome, items=len(batch))
            for part in batch.split():  # smaller in any case, should the limit not be the reason
                self._planner.put_back(part)
            return []
        if not outcome.about_input:
            guilty = [batch.rows[p] for p in outcome.positions if p < len(batch)]
            raise client.error(outcome, guilty or batch.rows)
        if len(batch) > 1 and not divided and not self._result.placed:
            # Perhaps nothing will ever pass: find out with one request, not with all of them.
            async with self._first_division:
                return await self._divide(batch, outcome)
        if len(batch) > 1:
            return await self._divide(batch, outcome)
        if self._truncate != "NONE" and isinstance(self._items[batch.rows[0]], str):
            said = too_long(outcome) or outcome.status == 413
            if said or self._may_be_too_long(batch):
                shorter = _shortened(batch, outcome if said else None, self._truncate)
                if shorter is not None and not await self._embed(shorter, divided=True):
                    return []
        return [(batch.rows[0], outcome)]

    def _cut_in_silence(self, batch: TextBatch, answer: B) -> list[int]:
        """Return the positions of texts that the server seems to have cut, though it may not."""
        if self._cuts_at is not None:
            return self._result.reaching(batch, answer, self._cuts_at)
        limit = self._limit
        if limit is None or answer.tokens is None or answer.tokens < limit:
            return []
        long = [
            position
            for position, size in enumerate(batch.sizes)
            if self._client.tokens.estimate(size) > _MUCH_LONGER * limit
        ]
        return long if len(batch) > 1 or answer.tokens == limit else []

    def _may_be_too_long(self, batch: TextBatch) -> bool:
        """Whether a text that was refused without a reason is worth a try with less of it."""
        if batch.guesses >= _GUESSES:
            return False
        card = self._client.card
        longest = card.max_tokens if card is not None else _SHORT_CONTEXT
        return self._client.tokens.estimate(batch.sizes[0]) > longest / 2

    async def _divide(self, batch: TextBatch, failure: Failure) -> Refusals:
        """Find the texts that spoil a request, and get the vectors of the others."""
        refusals: Refusals = []
        enough = _HOPELESS if self._skip else 1
        cut = self._result.cut
        suspect = failure.positions[0] if failure.positions else None
        parts = batch.split(suspect)
        for part in parts:
            if len(part) > self._client.limits.items:  # learnt from the part before
                self._planner.put_back(part)
                continue
            refusals += await self._embed(part, divided=True)
            if not self._result.placed and len(refusals) >= enough:
                break
        harmless = not refusals and self._result.cut == cut
        if harmless and suspect is None and not too_long(failure):
            self._client.take_fewer(max(map(len, parts)))  # it was their number
        return refusals


class _DenseRequests:
    """Sends the requests of a call for dense vectors."""

    def __init__(
        self, client: Client, items: Sequence[Input], options: EmbedOptions, traffic: Traffic
    ) -> None:
        card = client.card
        self._client = client
        self._items = items
        self._traffic = traffic
        # Of a model that embeds images too each input's kind must be said: a text that mentions
        # data:image/ would be taken for a picture.
        self._sees = card is not None and "image" in card.modalities
        self._packs = card is not None and options.embedding_type in ("binary", "ubinary")
        full = card is not None and options.dimensions == card.dimensions
        self._options = EmbedOptions(
            input_type=options.input_type,
            truncate=options.truncate,
            # Models of one size refuse the field, even with that size.
            dimensions=None if full else options.dimensions,
            modality="text" if self._sees else None,
        )

    async def prepare(self, count: int) -> None:
        """Find out whether so many bits are worth having packed by the server."""
        worth = self._packs and count >= _WORTH_PACKING
        if worth and await self._client.packs_bits(self._options, PROBE, self._traffic):
            self._options = replace(self._options, embedding_type="ubinary")

    async def send(self, batch: TextBatch) -> Answer | Failure:
        """Send the texts of one request."""
        modality = None
        if self._sees:
            modality = modality_of_request([self._items[row] for row in batch.rows])
        texts = batch.texts
        return await self._client.send(texts, self._options, self._traffic, modality=modality)

    async def width(self) -> int:
        """Return the width of the model's vectors, which no answer has shown yet."""
        answer = await self._client.send([PROBE], self._options, self._traffic)
        if isinstance(answer, Failure):
            raise self._client.error(answer, ())
        return int(answer.vectors.shape[1])


def _cut_at(limit: int) -> Failure:
    return Failure(
        kind="refused",
        message=f"the text has at least {limit} tokens, at which this server cuts every text "
        f"without a word; pass truncate='END' if that is meant, or split the text",
        positions=(0,),
    )


def _shortened(batch: TextBatch, failure: Failure | None, truncate: Truncate) -> TextBatch | None:
    """Return a batch of one text cut to what the server takes, or None if nothing is left.

    Args:
        batch: One text.
        failure: What the server said of its length, if it said so.
        truncate: Which end is kept.
    """
    numbers = limit_of_tokens(failure) if failure is not None else None
    share = 0.95 * numbers[1] / numbers[0] if numbers else 0.5
    return batch.shortened(share, truncate, guessed=failure is None)


class _Result:
    """Gathers the vectors of one call, whose answers come in any order.

    Each answer is sliced, normalised and quantised as it comes, so that memory holds the finished
    vectors and nothing else.

    A server reports tokens per request. A request of one text gives the exact count; those of
    several share theirs by their length in bytes. A text counts as truncated if it was cut here,
    or if its share reaches the longest input of the model.

    Args:
        rows: Inputs of the call.
        spec_of: Gives the contract once the model's width is known.
        estimator: Estimates tokens, and learns from what is reported.
        longest: Longest input of the model in tokens, if known and if it may truncate.
    """

    def __init__(
        self,
        rows: int,
        *,
        spec_of: Callable[[int], VectorSpec],
        estimator: TokenEstimator,
        longest: int | None,
    ) -> None:
        self.spec: VectorSpec | None = None
        self.placed = 0
        self._rows = rows
        self._spec_of = spec_of
        self._estimator = estimator
        self._longest = longest
        self._vectors: NDArray[Any] = np.empty((0, 0), np.float32)
        self._counts = np.zeros(rows, np.int32)
        self._finished = np.zeros(rows, np.bool_)
        self._tokens: int | None = 0
        self._cut: set[int] = set()
        self._skipped: set[int] = set()

    @property
    def cut(self) -> int:
        """How many texts were cut so far."""
        return len(self._cut)

    def fix_width(self, width: int) -> VectorSpec:
        """Return the contract, which the width of the model's vectors completes."""
        if self.spec is None:
            self.spec = self._spec_of(width)
            # Zeros cost nothing until they are written to, and stand for what is skipped.
            self._vectors = np.zeros((self._rows, self.spec.width), self.spec.dtype)
        return self.spec

    def place(self, batch: TextBatch, answer: Answer) -> None:
        """Take in the vectors of a batch."""
        spec = self.fix_width(answer.vectors.shape[1])
        rows: slice | list[int] = list(batch.rows)
        if batch.rows[-1] - batch.rows[0] == len(batch) - 1:  # ascending, so without a gap
            rows = slice(batch.rows[0], batch.rows[-1] + 1)
        self._vectors[rows] = _stored(answer.vectors, spec)
        self._finished[rows] = True
        self._counts[rows] = self._count(batch, answer.tokens)
        self.placed += len(batch)

    def reaching(self, batch: TextBatch, answer: Answer, limit: int) -> list[int]:
        """Return the positions of texts that may have been cut at a limit of tokens."""
        if answer.tokens is None or answer.tokens < limit:
            return []
        if len(batch) == 1:
            return [0]
        estimates = [self._estimator.estimate(size) for size in batch.sizes]
        counts = apportion(answer.tokens, estimates, most=limit)
        return np.flatnonzero(counts > 0.75 * limit).tolist()

    def skip(self, rows: Iterable[int]) -> None:
        """Leave rows without a vector: zeros stand there."""
        self._skipped.update(rows)

    def finished(
        self, input_type: InputType, traffic: Traffic
    ) -> PartialResult[EmbeddingBatch] | None:
        """Return the rows that have vectors, or None if there are none."""
        rows = np.flatnonzero(self._finished)
        if not len(rows):
            return None
        whole = self.batch(input_type, traffic)
        batch = replace(
            whole,
            vectors=whole.vectors[rows],
            token_counts=whole.token_counts[rows],
            truncated=tuple(np.flatnonzero(np.isin(rows, whole.truncated)).tolist()),
            report=replace(whole.report, skipped=()) if whole.report else None,
        )
        return PartialResult(tuple(rows.tolist()), batch)

    def batch(self, input_type: InputType, traffic: Traffic) -> EmbeddingBatch:
        """Return everything that was collected, once the width is known."""
        assert self.spec is not None
        return EmbeddingBatch(
            vectors=self._vectors,
            spec=self.spec,
            input_type=input_type,
            token_counts=self._counts,
            truncated=tuple(sorted(self._cut)),
            report=Report(
                requests=traffic.requests,
                retries=traffic.retries,
                tokens=self._tokens,
                bytes_sent=traffic.bytes_sent,
                bytes_received=traffic.bytes_received,
                skipped=tuple(sorted(self._skipped)),
            ),
        )

    def _count(self, batch: TextBatch, tokens: int | None) -> NDArray[np.int32]:
        # One answer without a count makes the sum unknown.
        self._tokens = None if tokens is None or self._tokens is None else self._tokens + tokens
        if batch.cut:
            self._cut.update(batch.rows)
        estimates = [self._estimator.estimate(size) for size in batch.sizes]
        over_limit = self._longest is not None and max(estimates) > self._longest
        if tokens is None:
            tokens = round(sum(estimates))
        elif not over_limit:  # of a text that was cut the server counts a part only
            self._estimator.observe(tokens=tokens, size=sum(batch.sizes))
        counts = apportion(tokens, estimates, most=self._longest)
        if self._longest is not None:
            # Shares are estimates: of a text that looks too long, nearly the limit is enough.
            nearly = (counts > 0.95 * self._longest) & (np.array(estimates) > self._longest)
            full = np.flatnonzero(nearly | (counts >= self._longest))
            self._cut.update(batch.rows[position] for position in full.tolist())
        return counts


def _stored(vectors: NDArray[Any], spec: VectorSpec) -> NDArray[Any]:
    if vectors.dtype == np.uint8:  # packed by the server; a slice's bits are a slice of the bits
        bits = vectors[:, : spec.width]
        return bits if spec.embedding_type == "ubinary" else (bits ^ 0x80).view(np.int8)
    return stored(vectors, spec)
