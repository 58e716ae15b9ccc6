"""One embed call: its texts to a finished batch, many requests at a time.

Knows nothing about HTTP or dialects. Rows are the caller's row numbers throughout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from nimbed.errors import RemoteError
from nimbed.inputs import Input
from nimbed.remote.capabilities import limit_of_tokens, too_long, too_many
from nimbed.remote.collector import Collector
from nimbed.remote.courier import Courier
from nimbed.remote.decode import Answer
from nimbed.remote.faults import Fault, error_of
from nimbed.remote.planner import Chunk, Planner, size_of
from nimbed.remote.rendering import Rendered, modality_of_request
from nimbed.remote.runtime import Tell
from nimbed.remote.tally import Tally
from nimbed.remote.wish import Wish
from nimbed.spec import Truncate

__all__ = ["Job"]

# A check of the server's bit order costs two requests: too much for a query.
_WORTH_PACKING = 256
# When so many texts were refused and none accepted, the texts are not to blame.
_HOPELESS = 8
_PROBE = "nimbed"

#: Rows that were refused, each with the reason.
Refusals = list[tuple[int, Fault]]


class Job:
    """Carries out one call.

    Args:
        items: The caller's inputs.
        rows: Row numbers of those that are to be sent, ascending.
        wish: What is wanted of each.
        sees: Whether the model embeds images too, so that each input's kind must be said: a text
            that mentions data:image/ would be taken for a picture.
        skip: Whether a text that is refused leaves a zero vector instead of raising.
        courier: Delivers requests.
        collector: Takes the vectors.
        tally: Adds up the costs.
        tell: Told how many texts were finished.
    """

    def __init__(
        self,
        items: Sequence[Input],
        rows: Sequence[int],
        *,
        wish: Wish,
        sees: bool,
        skip: bool,
        courier: Courier,
        collector: Collector,
        tally: Tally,
        tell: Tell,
    ) -> None:
        self._items = items
        self._sees = sees
        self._rows = rows
        self._wish = wish
        self._skip = skip
        self._courier = courier
        self._collector = collector
        self._tally = tally
        self._tell = tell
        self._first_division = asyncio.Lock()
        self._planner = Planner(Rendered(items), rows, courier.meter)

    async def run(self) -> None:
        """Send every text and collect every vector.

        Raises:
            ConfigurationError: If the model has no such vectors, or its role cannot reach it.
            RemoteError: If the server failed, or refused an input.
        """
        courier = self._courier
        if self._wish.packed:
            packs = len(self._rows) >= _WORTH_PACKING and await courier.packs(
                replace(self._wish, modality="text" if self._sees else None), _PROBE, self._tally
            )
            self._wish = replace(self._wish, packed=packs)
        workers = min(len(self._rows), courier.limiter.most)
        tasks = [asyncio.create_task(self._work()) for _ in range(workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._collector.spec is None:  # nothing was sent, and the model's width is unknown
            answer = await courier.deliver(self._wish, [_PROBE], self._tally)
            if isinstance(answer, Fault):
                raise self._error(answer, ())
            self._collector.promise(answer.vectors.shape[1])

    async def _work(self) -> None:
        while (chunk := self._planner.take(self._courier.limits)) is not None:
            refusals = await self._solve(chunk)
            if not refusals:
                continue
            rows = [row for row, _ in refusals]
            hopeless = len(rows) >= _HOPELESS and not self._collector.placed
            if hopeless or not self._skip:
                raise self._error(refusals[0][1], rows)
            self._collector.skip(rows)
            self._tell(len(rows))

    async def _solve(self, chunk: Chunk, *, divided: bool = False) -> Refusals:
        """Get a chunk's vectors, and return the rows that the server would not embed.

        Args:
            chunk: Texts of one request.
            divided: Whether they are a part of a request that was refused.
        """
        wish = self._wish
        if self._sees:
            inputs = [self._items[row] for row in chunk.rows]
            wish = replace(wish, modality=modality_of_request(inputs))
        outcome = await self._courier.deliver(wish, chunk.texts, self._tally)
        if isinstance(outcome, Answer):
            self._collector.place(chunk, outcome)
            self._tell(len(chunk))
            return []
        if len(chunk) > 1 and too_many(outcome):
            self._courier.shrink(outcome, items=len(chunk))
            for part in chunk.split():  # smaller in any case, should the limit not be the reason
                self._planner.put_back(part)
            return []
        if not outcome.about_input:
            guilty = [chunk.rows[p] for p in outcome.positions if p < len(chunk)]
            raise self._error(outcome, guilty or chunk.rows)
        if len(chunk) > 1 and not divided and not self._collector.placed:
            # Perhaps nothing will ever pass: find out with one request, not with all of them.
            async with self._first_division:
                return await self._divide(chunk, outcome)
        if len(chunk) > 1:
            return await self._divide(chunk, outcome)
        is_text = isinstance(self._items[chunk.rows[0]], str)
        cuttable = is_text and (too_long(outcome) or outcome.status == 413)
        if wish.truncate != "NONE" and cuttable:
            shorter = _shortened(chunk, outcome, wish.truncate)
            if shorter is not None:
                return await self._solve(shorter, divided=divided)
        return [(chunk.rows[0], outcome)]

    async def _divide(self, chunk: Chunk, fault: Fault) -> Refusals:
        """Find the texts that spoil a request, and get the vectors of the others."""
        refusals: Refusals = []
        suspect = fault.positions[0] if fault.positions else None
        for part in chunk.split(suspect):
            refusals += await self._solve(part, divided=True)
            hopeless = not self._collector.placed and len(refusals) >= (
                _HOPELESS if self._skip else 1
            )
            if hopeless:
                break
        return refusals

    def _error(self, fault: Fault, rows: Sequence[int]) -> RemoteError:
        courier = self._courier
        return error_of(fault, api=courier.address.api, rows=rows, keyless=courier.keyless)


def _shortened(chunk: Chunk, fault: Fault, truncate: Truncate) -> Chunk | None:
    """Return a one-text chunk cut to what the server takes, or None if nothing is left to cut."""
    text = chunk.texts[0]
    numbers = limit_of_tokens(fault)
    share = 0.95 * numbers[1] / numbers[0] if numbers else 0.5
    keep = int(len(text) * share)
    if keep < 1:
        return None
    text = text[:keep] if truncate == "END" else text[-keep:]
    return replace(chunk, texts=(text,), sizes=(size_of(text),), cut=True)
