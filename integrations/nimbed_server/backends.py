"""Where the inputs of one model are embedded: behind the engine's scheduler, or elsewhere."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.cards import ModelCard
from nimbed.embedder import Embedder, Schedulable, Token, Tokenizing
from nimbed.errors import (
    ConfigurationError,
    DeadlineError,
    InputError,
    TooLongError,
    renumber,
)
from nimbed.inputs import Input
from nimbed.kinds import EmbeddingKinds
from nimbed.local.embedder import LocalEmbedder
from nimbed.local.router import RoutedEmbedder
from nimbed.options import EmbedOptions, KindOptions
from nimbed.scheduling import QueueState, Scheduler, Timings
from nimbed.spec import Contract, EmbeddingType, InputType, Int8Scale, Kind, VectorSpec
from nimbed_server.http import CapacityLimit, Request, TimeLimit
from nimbed_server.kinds import KindsEmbedder, first, hybrid
from nimbed_server.metrics import ModelMetrics
from nimbed_server.wire.errors import HttpError

__all__ = ["Backend", "Embedded", "ScheduledBackend", "backend_for"]

_WARM_UP = "warm up"
# By itself it sends the ids of OpenAI's tokenizer, to whatever server.
_TEXTS_INSTEAD = ": in LangChain OpenAIEmbeddings(check_embedding_ctx_length=False)"
# Inputs of a request that somebody may be waiting for.
_FEW = 8


class Embedded(NamedTuple):
    """What came of a request: a tuple, since a frozen dataclass takes twice the time.

    Attributes:
        vectors: Array of shape (n, width), as they are to be answered.
        tokens: What the model read.
        truncated: Rows that were cut.
        timings: Where the time went; None where the model is elsewhere.
    """

    vectors: NDArray[Any]
    tokens: int
    truncated: tuple[int, ...]
    timings: Timings | None = None


class Backend:
    """An embedder that queues by itself: a server elsewhere, or one made for tests.

    Args:
        embedder: The model; its weights are read by :meth:`load`.
        metrics: Told of what is embedded here.
        max_items: Inputs that may be under way.
        queries_first: Whether passages leave an eighth of them free for short queries.

    Attributes:
        ready: Whether the model is loaded.
        capacity: The bound on inputs under way.
        metrics: As given.
        kinds: The kinds of vectors that the model gives; only dense ones before it is loaded.
        contracts: The contract of each other kind, without options.
    """

    def __init__(
        self,
        embedder: Embedder,
        metrics: ModelMetrics,
        *,
        max_items: int,
        queries_first: bool = True,
    ) -> None:
        self._embedder = embedder
        self.metrics = metrics
        self.ready = False
        self.capacity = CapacityLimit(max_items, drain_rate=self._items_per_second)
        self._kept_free = max_items // 8 if queries_first else 0
        self.kinds: tuple[Kind, ...] = ("dense",)
        self.contracts: dict[Kind, Contract] = {}
        self._hybrid = self._of_kinds(queues=True)

    @property
    def card(self) -> ModelCard:
        """Facts about the model."""
        return self._embedder.card

    def spec(
        self,
        *,
        embedding_type: EmbeddingType,
        dimensions: int | None,
        int8_scale: Int8Scale | None,
    ) -> VectorSpec:
        """Return the contract of dense vectors; see :meth:`nimbed.embedder.Embedder.spec`."""
        return self._embedder.spec(
            embedding_type=embedding_type, dimensions=dimensions, int8_scale=int8_scale
        )

    @property
    def runtime(self) -> str | None:
        """What runs the model in this process, ``torch`` or ``onnxruntime``; None if nothing."""
        embedder = self._embedder
        return embedder.backend if isinstance(embedder, LocalEmbedder | RoutedEmbedder) else None

    @property
    def arithmetic(self) -> str | None:
        """What is computed in, and where; None before the model is loaded, or if it is elsewhere.

        Such as ``bfloat16 on cpu by torch``.
        """
        return getattr(self._embedder, "arithmetic", None)

    def tokenize(
        self, texts: Sequence[str], *, input_type: InputType | None, special: bool
    ) -> list[list[Token]]:
        """Return the tokens of texts; see :meth:`nimbed.embedder.Tokenizing.tokenize`.

        Raises:
            HttpError: 501 where the tokenizer is elsewhere.
            NimbedError: If the tokenizer refuses.
        """
        if not isinstance(self._embedder, Tokenizing):
            raise HttpError(
                501,
                f"the tokenizer of {self.card.id} is not here: ask the server that embeds, or let "
                f"usage.prompt_tokens of an embedding count",
            )
        return self._embedder.tokenize(texts, input_type=input_type, special=special)

    def detokenize(self, ids: Sequence[Sequence[int]], input_type: InputType) -> list[str]:
        """Return texts from their tokens; see :meth:`nimbed.embedder.Tokenizing.detokenize`.

        Raises:
            HttpError: 400 with what to do where they are not the ids of the model's own tokenizer.
            NimbedError: If they are too many.
        """
        reason = f"the tokenizer of {self.card.id} is not here; send the text"
        if isinstance(self._embedder, Tokenizing):
            try:
                return self._embedder.detokenize(ids, input_type=input_type)
            except TooLongError:
                raise
            except (ConfigurationError, InputError) as error:
                reason = str(error)
        raise HttpError(400, f"{reason}{_TEXTS_INSTEAD}", param="input")

    @property
    def queue(self) -> QueueState:
        """What waits, or is under way where the queue is elsewhere."""
        return QueueState(self.capacity.used, 0, 0.0)

    def load(self) -> None:
        """Read the weights and embed a word; blocks for as long as that takes."""
        self._read_kinds()
        if "dense" in self.kinds:
            self._embedder.embed([_WARM_UP], input_type="passage")
        self.ready = True

    def embed(
        self,
        inputs: Sequence[Input],
        options: EmbedOptions,
        *,
        timeout: float,
        timings: Timings,
        patient: bool = False,
    ) -> Awaitable[EmbeddingBatch]:
        """Embed inputs of one role; cancelling drops what still waits."""
        return self._embed_in_time(inputs, options, timeout)

    def close(self) -> None:
        """Finish what waits, then release the model."""
        if self._hybrid is not None:
            self._hybrid.close()
        self._embedder.close()

    async def embed_request(
        self,
        request: Request,
        inputs: Sequence[Input],
        options: EmbedOptions,
        *,
        roles: Sequence[InputType] | None = None,
        signs: bool = False,
        timeout: float,
        unwatched: TimeLimit,
        patient: bool = False,
    ) -> Embedded:
        """Embed the inputs of one request, in their order.

        Args:
            request: The request; when its client goes, what still waits is dropped.
            inputs: Its inputs.
            options: What it asks for.
            roles: The role of each input, where they differ from that of the options.
            signs: Whether packed bits are answered as +1 and -1.
            timeout: Seconds after which the answer is worth nothing to the server.
            unwatched: For how long nobody looks whether the client has gone.
            patient: Whether the request waits its turn although it is a short query.

        Raises:
            HttpError: 503 if too many inputs are under way.
            ClientDisconnected: If the client goes first.
            NimbedError: If the engine refuses or fails.
        """
        seconds = _client_timeout(request, timeout)
        timings = Timings()
        with _Admission(self, request, len(inputs), options, unwatched):
            if roles is None:
                batch = await self.embed(
                    inputs, options, timeout=seconds, timings=timings, patient=patient
                )
                return self._counted(batch, signs, timings)
            return await self._embed_by_role(inputs, options, roles, signs, seconds, timings)

    async def embed_kinds_request(
        self,
        request: Request,
        texts: Sequence[str],
        options: EmbedOptions,
        asked: KindOptions,
        *,
        timeout: float,
        unwatched: TimeLimit,
    ) -> tuple[EmbeddingKinds, Timings]:
        """Embed the texts of one request as several kinds of vectors.

        Args:
            request: As for :meth:`embed_request`.
            texts: Its texts.
            options: What it asks for.
            asked: What it asks of kinds.
            timeout: As for :meth:`embed_request`.
            unwatched: Likewise.

        Raises:
            HttpError: 503 if too many inputs are under way, 413 if the answer would be too large.
            ClientDisconnected: If the client goes first.
            NimbedError: If the model does not give a kind, or the engine refuses or fails.
        """
        chosen = asked.chosen(self.kinds, self.card.id)
        asked = dataclasses.replace(asked, kinds=chosen)
        timings = Timings()
        with _Admission(self, request, len(texts), options, unwatched):
            if self._hybrid is None:
                seconds = _client_timeout(request, timeout)
                dense = await self.embed(texts, options, timeout=seconds, timings=timings)
                found = EmbeddingKinds(dense=dense)
            else:
                found = await self._hybrid.embed(
                    texts,
                    options,
                    asked,
                    timeout=_client_timeout(request, timeout),
                    timings=timings,
                )
        batch = first(found)
        self.metrics.embedded(
            batch.input_type,
            items=len(batch),
            tokens=sum(batch.token_counts.tolist()),
            truncated=len(batch.truncated),
            kinds=chosen,
        )
        return found, timings

    def kept_free(self, items: int, options: EmbedOptions) -> int:
        """Return how much of the capacity is not for inputs such as these."""
        return 0 if options.input_type == "query" and items <= _FEW else self._kept_free

    def _of_kinds(self, *, queues: bool) -> KindsEmbedder | None:
        found = hybrid(self._embedder)
        return None if found is None else KindsEmbedder(found, self.metrics, queues=queues)

    def _read_kinds(self) -> None:
        found = hybrid(self._embedder)
        if found is None or self._hybrid is None:
            return
        self.kinds = found.kinds
        self.contracts = self._hybrid.read_contracts()
        if len(self.kinds) > 1 or "dense" not in self.kinds:
            found.embed_kinds([_WARM_UP], input_type="passage")

    async def _embed_by_role(
        self,
        inputs: Sequence[Input],
        options: EmbedOptions,
        roles: Sequence[InputType],
        signs: bool,
        seconds: float,
        timings: Timings,
    ) -> Embedded:
        rows_of: dict[InputType, list[int]] = {}
        for row, role in enumerate(roles):
            rows_of.setdefault(role, []).append(row)

        async def part(role: InputType, rows: list[int]) -> Embedded:
            try:
                batch = await self.embed(
                    [inputs[row] for row in rows],
                    dataclasses.replace(options, input_type=role),
                    timeout=seconds,
                    timings=timings,
                )
            except InputError as error:
                renumber(error, rows)
                raise
            return self._counted(batch, signs, timings)

        parts = await asyncio.gather(*(part(role, rows) for role, rows in rows_of.items()))
        first = parts[0].vectors
        vectors = np.empty((len(inputs), first.shape[1]), first.dtype)
        truncated: list[int] = []
        for rows, each in zip(rows_of.values(), parts, strict=True):
            vectors[rows] = each.vectors
            truncated.extend(rows[n] for n in each.truncated)
        tokens = sum(each.tokens for each in parts)
        return Embedded(vectors, tokens, tuple(sorted(truncated)), parts[0].timings)

    def _counted(self, batch: EmbeddingBatch, signs: bool, timings: Timings) -> Embedded:
        tokens = sum(batch.token_counts.tolist())  # of few numbers, quicker than numpy's sum
        self.metrics.embedded(
            batch.input_type, items=len(batch), tokens=tokens, truncated=len(batch.truncated)
        )
        known = timings if timings.inference else None
        return Embedded(batch.signs() if signs else batch.vectors, tokens, batch.truncated, known)

    def _items_per_second(self) -> float:
        waiting = self.queue
        tokens_per_item = waiting.tokens / waiting.items if waiting.items else 0.0
        return waiting.tokens_per_second / tokens_per_item if tokens_per_item else 0.0

    async def _embed_in_time(
        self, inputs: Sequence[Input], options: EmbedOptions, timeout: float
    ) -> EmbeddingBatch:
        try:
            async with asyncio.timeout(timeout):
                return await self._embedder.aembed(
                    inputs,
                    input_type=options.input_type,
                    embedding_type=options.embedding_type,
                    dimensions=options.dimensions,
                    int8_scale=options.int8_scale,
                    truncate=options.truncate,
                )
        except TimeoutError as error:
            raise DeadlineError("the time given ran out") from error


class ScheduledBackend(Backend):
    """A local model behind the engine's scheduler.

    Args:
        embedder: The model; its weights are read by :meth:`load`.
        schedulable: The same, as the scheduler wants it.
        metrics: Told of every batch.
        max_items: Inputs that may be under way.
        max_tokens: Tokens that may wait.
        max_wait: Seconds for which a batch may be held back after another.
        queries_first: Whether short queries go before everything else.
    """

    def __init__(
        self,
        embedder: Embedder,
        schedulable: Schedulable,
        metrics: ModelMetrics,
        *,
        max_items: int,
        max_tokens: int,
        max_wait: float,
        queries_first: bool = True,
    ) -> None:
        super().__init__(embedder, metrics, max_items=max_items, queries_first=queries_first)
        self._queries_first = queries_first
        self._schedulable = schedulable
        self._max_tokens = max_tokens
        self._max_wait = max_wait
        self._scheduler: Scheduler | None = None
        self._hybrid = self._of_kinds(queues=False)

    @property
    def queue(self) -> QueueState:
        """What waits."""
        return QueueState(0, 0, 0.0) if self._scheduler is None else self._scheduler.state

    def load(self) -> None:
        """Read the weights and embed a word; blocks for as long as that takes."""
        self._read_kinds()
        if "dense" in self.kinds:
            self._scheduler = self._started()
        self.ready = True

    def _started(self) -> Scheduler:
        scheduler = Scheduler(
            self._schedulable,
            # The capacity bounds the items; the queue itself bounds their tokens.
            max_queue_items=max(1, 2 * self.capacity.most),
            max_queue_tokens=self._max_tokens,
            max_wait=self._max_wait,
            observer=self.metrics,
            queries_first=self._queries_first,
        )
        scheduler.submit([_WARM_UP], EmbedOptions(input_type="passage")).result()
        return scheduler

    def embed(
        self,
        inputs: Sequence[Input],
        options: EmbedOptions,
        *,
        timeout: float,
        timings: Timings,
        patient: bool = False,
    ) -> Awaitable[EmbeddingBatch]:
        """Embed inputs of one role; cancelling drops what still waits."""
        assert self._scheduler is not None  # dense vectors are asked of those alone that give them
        return self._scheduler.asubmit(
            inputs, options, timeout=timeout, timings=timings, patient=patient
        )

    def close(self) -> None:
        """Finish what waits, then release the model."""
        if self._scheduler is not None:
            self._scheduler.close()
        super().close()


class _Admission:
    """Counts the inputs of a request as under way, and watches its client, for a ``with``."""

    __slots__ = ("_backend", "_items", "_request", "_unwatched")

    def __init__(
        self,
        backend: Backend,
        request: Request,
        items: int,
        options: EmbedOptions,
        unwatched: TimeLimit,
    ) -> None:
        backend.capacity.acquire(items, kept_free=backend.kept_free(items, options))
        self._backend = backend
        self._items = items
        self._request = request
        self._unwatched = unwatched

    def __enter__(self) -> None:
        self._request.watch(self._unwatched)

    def __exit__(self, *exc: object) -> None:
        self._backend.capacity.release(self._items)
        self._request.unwatch(self._unwatched)


def backend_for(
    embedder: Embedder,
    metrics: ModelMetrics,
    *,
    max_items: int,
    max_tokens: int,
    max_wait: float,
    queries_first: bool,
) -> Backend:
    """Return a backend; one that can be scheduled gets a scheduler."""
    if isinstance(embedder, Schedulable):
        return ScheduledBackend(
            embedder,
            embedder,
            metrics,
            max_items=max_items,
            max_tokens=max_tokens,
            max_wait=max_wait,
            queries_first=queries_first,
        )
    return Backend(embedder, metrics, max_items=max_items, queries_first=queries_first)


def _client_timeout(request: Request, most: float) -> float:
    """Return how long the answer is worth something; OpenAI's SDKs say how long they wait."""
    said = request.header(b"x-stainless-read-timeout")
    if said is None:
        return most
    try:
        seconds = float(said)
    except ValueError:
        return most
    return min(most, seconds) if seconds > 0 else most
