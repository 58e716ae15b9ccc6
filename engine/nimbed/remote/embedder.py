"""Embedders whose model runs behind an HTTP endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import queue
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Literal, TypeVar, cast

from nimbed.batch import EmbeddingBatch
from nimbed.cards import ModelCard
from nimbed.embedder import HybridBase, Managed
from nimbed.errors import BackendError, ConfigurationError
from nimbed.inputs import Input
from nimbed.kinds import EmbeddingKinds
from nimbed.options import EmbedBase, EmbedOptions, KindOptions, SpecOptions
from nimbed.remote.address import Address, ExtraHeaders, find_key
from nimbed.remote.batching import embed_inputs
from nimbed.remote.client import Client
from nimbed.remote.dialects import Dialect, named
from nimbed.remote.discovery import find_card, list_models, unknown_card
from nimbed.remote.http import Traffic
from nimbed.remote.kind_requests import ServedKinds
from nimbed.remote.request import sendable
from nimbed.remote.response import Answer
from nimbed.remote.retry import RetryPolicy
from nimbed.reports import Progress, reporting
from nimbed.spec import (
    Contract,
    Kind,
    MultiVectorSpec,
    SparseSpec,
    TokenType,
    VectorSpec,
    check_literal,
)

__all__ = ["OnBadInput", "RemoteEmbedder"]

#: ``raise``: an input that cannot be embedded is an error that names its row. ``skip``: it leaves
#: a vector of zeros and its row number in the batch's report.
OnBadInput = Literal["raise", "skip"]

T = TypeVar("T")
#: Told how many inputs have just been finished.
Tell = Callable[[int], None]
#: What a call does with the client, on the client's event loop.
Job = Callable[[Client, Tell], Coroutine[Any, Any, T]]


class RemoteEmbedder(EmbedBase, HybridBase, Managed):
    """Embeds on a server that speaks NIM's or OpenAI's protocol.

    Nothing is sent before the first call. ``embed`` and ``aembed`` both run on one private event
    loop in a thread of their own: connections are kept from call to call, whichever thread or event
    loop makes it. A forked child opens its own. A pickle holds no key: where it is loaded, the key
    is read from the environment again.

    A model without a card (neither in the catalogue nor given as a ModelCard) is embedded at
    whatever width the server gives; ``card`` and ``spec`` then need one tiny request, unless a
    call was made before.

    A server's failure raises a RemoteError, whose ``.rows`` name what it concerns; an input that
    the server refuses raises one that is an InputError too.

    Sparse vectors and multi-vectors come from ``nimbed serve`` with the contract of its model; from
    text-embeddings-inference and vLLM, as far as they have them, without a vocabulary. An option
    that is left out is then as the server gives it: a name of nimbed's own may fix one.

    Where orjson and pybase64 are installed, answers are read by them: a third less CPU a passage.

    Args:
        model: The server's name for the model, or a card; None for the only model it serves.
        base_url: Address of the server, with or without ``/v1``.
        api_key: Its key; None reads ``NVIDIA_API_KEY`` for NVIDIA's own hosts, else
            ``NIMBED_API_KEY``.
        headers: What a gateway wants besides, such as ``{"x-tenant": "a"}``; sent where the key
            is sent. Like a key they do not travel in a pickle.
        dialect: ``nim``, ``nim-hosted``, ``nim-suffix``, ``openai``, ``vllm`` or ``tei``;
            ``auto`` tells it from the address or asks the server.
        served_name: The server's name for the model, where the card's id is not that.
        on_bad_input: ``raise``, or ``skip``.
        timeout: Seconds that one request may take.
        retry: When to try again.
        concurrency: Requests in flight at most; the number in use follows the server.
        batch_size: Texts a request at most; None for as many as the server takes.

    Raises:
        ConfigurationError: If address, key or dialect cannot be used.
    """

    def __init__(
        self,
        model: str | ModelCard | None = None,
        *,
        base_url: str,
        api_key: str | None = None,
        headers: Mapping[str, str] | ExtraHeaders | None = None,
        dialect: str = "auto",
        served_name: str | None = None,
        on_bad_input: OnBadInput = "raise",
        timeout: float = 60.0,
        retry: RetryPolicy | None = None,
        concurrency: int = 32,
        batch_size: int | None = None,
    ) -> None:
        check_literal("on_bad_input", on_bad_input, OnBadInput)
        if min(concurrency, 1 if batch_size is None else batch_size) < 1 or not timeout > 0:
            raise ConfigurationError(
                "concurrency and batch_size must be at least 1 and timeout positive"
            )
        self._address = Address.parse(base_url)
        self._dialect = dialect
        _ = self._named_dialect()  # refuse a wrong name here, not at the first call
        self._given = model
        self._served_name = served_name
        self._on_bad_input: OnBadInput = on_bad_input
        self._timeout = timeout
        self._retry = retry or RetryPolicy()
        self._concurrency = concurrency
        self._batch_size = batch_size
        if headers is not None and not isinstance(headers, ExtraHeaders):
            headers = ExtraHeaders(headers)
        self._headers = headers
        self._lost: tuple[str, ...] = ()
        logs_in = headers is not None and "authorization" in headers.names
        if logs_in and api_key is not None:
            raise ConfigurationError("pass either api_key or an authorization header, not both")
        self._key = None if logs_in else find_key(self._address, api_key, os.environ)
        self._sessions: dict[int, _Session] = {}

    @property
    def base_url(self) -> str:
        """The server's address, with the version that its endpoints lie under."""
        return self._address.api

    @property
    def card(self) -> ModelCard:
        """Facts about the model; for one that is not in the catalogue, what its server shows."""
        known = self._known_card
        if known is not None:
            return known
        client = self._session().client
        if client.card is None and (client.width is None or client.model is None):
            name, dialect = self.identify()
            kinds = self.kinds if dialect == "tei" and self._on_bad_input == "raise" else ("dense",)
            if kinds == ("sparse",):  # a SPLADE, which TEI embeds by no other route
                shown = unknown_card(name, self.sparse_spec().dimensions)
                return dataclasses.replace(shown, kinds=kinds, metric="dot")
            self.embed([], input_type="passage")  # asks for the width by one tiny request
        return client.card or unknown_card(client.model or "", client.width or 0)

    def _spec(self, options: SpecOptions) -> VectorSpec:
        """Return the contract.

        For a model of the catalogue nothing is sent. For any other the server decides which
        ``dimensions`` there are, and without them its width is asked by one tiny request.
        """
        card = self._known_card
        name = self._served_name or self._given
        if card is None and options["dimensions"] is not None and isinstance(name, str):
            card = unknown_card(name, options["dimensions"])
        return (card or self.card).spec(**options)

    def _embed(
        self, inputs: Sequence[Input], options: EmbedOptions, progress: Progress
    ) -> EmbeddingBatch:
        count, job = self._job(inputs, options)
        with reporting(progress, count) as finished:
            return self._session().run(job, finished)

    async def _aembed(
        self, inputs: Sequence[Input], options: EmbedOptions, progress: Progress
    ) -> EmbeddingBatch:
        count, job = self._job(inputs, options)
        with reporting(progress, count) as finished:
            return await self._session().arun(job, finished)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors that the server gives of the model; the first time it is asked."""
        session, _, _ = self._kinds_session()
        return session.run(lambda client, _: session.kinds.offered(), lambda _: None)

    def sparse_spec(self, *, max_active: int | None = None) -> SparseSpec:
        """Return the contract; see :meth:`nimbed.embedder.HybridEmbedder.sparse_spec`."""
        asked = KindOptions(kinds=("sparse",), max_active=max_active)
        return cast(SparseSpec, asked.applied_to(self._contract("sparse")))

    def multi_spec(
        self, *, token_type: TokenType = "float", pool_factor: int = 1
    ) -> MultiVectorSpec:
        """Return the contract; see :meth:`nimbed.embedder.HybridEmbedder.multi_spec`."""
        asked = KindOptions(kinds=("multi",), token_type=token_type, pool_factor=pool_factor)
        return cast(MultiVectorSpec, asked.applied_to(self._contract("multi")))

    def _embed_kinds(
        self, inputs: Sequence[str], asked: KindOptions, options: EmbedOptions, progress: Progress
    ) -> EmbeddingKinds:
        session, count, job = self._kinds_job(inputs, asked, options)
        with reporting(progress, count) as finished:
            return session.run(job, finished)

    async def aembed_kinds(
        self, inputs: Sequence[str], *, progress: Progress = False, **options: Any
    ) -> EmbeddingKinds:
        """Do what :meth:`embed_kinds` does without blocking the caller's event loop."""
        names = ("kinds", "max_active", "token_type", "pool_factor")
        of_kinds = {name: options.pop(name) for name in names if name in options}
        session, count, job = self._kinds_job(
            inputs, KindOptions(**of_kinds), EmbedOptions(modality="text", **options)
        )
        with reporting(progress, count) as finished:
            return await session.arun(job, finished)

    def identify(self) -> tuple[str, str]:
        """Return the server's name for the model, and its dialect; asks for what is not known."""
        session = self._session()
        client = session.client
        session.run(lambda client, _: client.identify(Traffic()), lambda _: None)
        return client.model or "", client.dialect.name if client.dialect else ""

    def list_models(self) -> list[str]:
        """Return the names of the models that the server lists.

        Raises:
            RemoteError: If it cannot be reached, or refuses the key.
        """
        get = functools.partial(self._session().client.get, traffic=Traffic())
        return self._session().run(
            lambda client, _: list_models(client.address, get), lambda _: None
        )

    def find_space(self) -> VectorSpec | None:
        """Return the contract that a server of nimbed's own states for the model, or None."""
        return self._session().run(lambda client, _: client.find_space(Traffic()), lambda _: None)

    def ask(self, texts: Sequence[str], fields: Mapping[str, Any]) -> Answer:
        """Send texts once with exactly these request fields, to see what the server makes of them.

        What :meth:`embed` would leave out or work around is sent.

        Raises:
            RemoteError: If the server does not answer with vectors.
        """
        return self._session().run(lambda client, _: client.ask(texts, fields), lambda _: None)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        session = self._sessions.pop(os.getpid(), None)
        if session is not None:
            session.close(wait=True)

    def __repr__(self) -> str:
        name = self._given.id if isinstance(self._given, ModelCard) else self._given
        return f"RemoteEmbedder({name!r}, base_url={self.base_url!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the key, the headers and the connections."""
        lost = self._headers.names if self._headers is not None else self._lost
        return {**self.__dict__, "_key": None, "_headers": None, "_lost": lost, "_sessions": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read the key from the environment of the process that loads the pickle."""
        vars(self).update(state)
        self._key = find_key(self._address, None, os.environ)

    def _job(
        self, inputs: Sequence[Input], options: EmbedOptions
    ) -> tuple[int, Job[EmbeddingBatch]]:
        """Return how many inputs there are, and the job that embeds them.

        What the model does not have is refused here, before anything is sent.
        """
        card, skip = self._known_card, self._on_bad_input == "skip"
        if card is not None:
            card.spec(**options.of_spec)
        name = card.id if card else str(self._given or "the served model")
        items, rows = sendable(inputs, options, model=name, card=card, skip=skip)
        return len(items), lambda client, tell: embed_inputs(
            client, items, rows, options, skip=skip, finished=tell
        )

    def _contract(self, kind: Kind) -> Contract:
        session, _, _ = self._kinds_session()
        return session.run(lambda client, _: session.kinds.contract(kind), lambda _: None)

    def _kinds_job(
        self, inputs: Sequence[str], asked: KindOptions, options: EmbedOptions
    ) -> tuple[_Session, int, Job[EmbeddingKinds]]:
        session, name, card = self._kinds_session()
        if card is not None and "dense" in (asked.kinds or ()):
            card.spec(**options.of_spec)
        items, _ = sendable(inputs, options, model=name, card=card, skip=False)
        kinds = session.kinds
        return session, len(items), lambda client, tell: kinds.embed(items, options, asked, tell)

    def _kinds_session(self) -> tuple[_Session, str, ModelCard | None]:
        """Return the session, the model's name for messages, and its card if it is known.

        Raises:
            ConfigurationError: If inputs that are refused are left out: a multi-vector of nothing
                there cannot be.
        """
        if self._on_bad_input == "skip":
            raise ConfigurationError(
                "on_bad_input='skip' leaves zeros for a text that is refused, which sparse and "
                "multi-vectors cannot be; use on_bad_input='raise'"
            )
        card = self._known_card
        return self._session(), card.id if card else str(self._given or "the served model"), card

    @functools.cached_property
    def _known_card(self) -> ModelCard | None:
        if isinstance(self._given, ModelCard):
            return self._given
        return find_card(self._given) if self._given is not None else None

    def _named_dialect(self) -> Dialect | None:
        return None if self._dialect == "auto" else named(self._dialect)

    def _session(self) -> _Session:
        """Return this process's connections: a forked child never sees its parent's."""
        process = os.getpid()
        session = self._sessions.get(process)
        if session is None:
            if self._lost:
                raise ConfigurationError(
                    f"headers ({', '.join(self._lost)}) do not travel in a pickle; make the "
                    f"embedder in the process that uses it, with headers=..."
                )
            given = self._given.id if isinstance(self._given, ModelCard) else self._given
            client = Client(
                self._address,
                key=self._key,
                headers=self._headers,
                model=self._served_name or given,
                card=self._known_card,
                dialect=self._named_dialect(),
                timeout=self._timeout,
                retry=self._retry,
                concurrency=self._concurrency,
                batch_size=self._batch_size,
            )
            # Atomic, so that of two threads that meet here both get the same session.
            session = self._sessions.setdefault(process, _Session(client))
            weakref.finalize(self, session.close, wait=False)
        return session


class _Session:
    """A client and the event loop it lives on, which starts at the first call; one per process.

    The loop has a thread of its own and outlives every caller's. Connections belong to the loop
    they were opened on: here they survive two ``asyncio.run`` in a row and serve threads and loops
    alike.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.kinds = ServedKinds(client)
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._running: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None

    def run(self, job: Job[T], finished: Tell) -> T:
        """Run a job and block until its end; ``finished`` is called in this thread."""
        told: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        future = self._submit(job, told.put)
        future.add_done_callback(lambda _: told.put(None))
        try:
            while (count := told.get()) is not None:
                finished(count)
        except BaseException:
            future.cancel()
            raise
        return _result(future)

    async def arun(self, job: Job[T], finished: Tell) -> T:
        """Run a job and await its end; ``finished`` is called on the caller's loop."""
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[int | None] = asyncio.Queue()

        def tell(count: int | None) -> None:
            # The caller may have been cancelled and its loop closed before the job noticed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(told.put_nowait, count)

        future = self._submit(job, tell)
        future.add_done_callback(lambda _: tell(None))
        try:
            while (count := await told.get()) is not None:
                finished(count)
        except BaseException:
            future.cancel()
            raise
        return _result(future)

    def close(self, *, wait: bool) -> None:
        """Cancel what runs, close the connections and end the thread.

        Args:
            wait: Whether to return only when that is done; the garbage collector must not block.
        """
        if os.getpid() != self._process:
            return  # a forked child inherits the object, but neither thread nor lock nor sockets
        with self._lock:
            running, self._running = self._running, None
        if running is None:
            return
        loop, thread = running
        loop.call_soon_threadsafe(self._begin_end, loop)
        if wait:
            thread.join(timeout=5.0)

    def _submit(self, job: Job[T], tell: Tell) -> Future[T]:
        with self._lock:
            if self._running is None:
                # Not the loop of the process's policy: uvloop's knows no happy eyeballs.
                started = asyncio.SelectorEventLoop()
                thread = threading.Thread(
                    target=_serve, args=(started,), name="nimbed-remote", daemon=True
                )
                thread.start()
                self._running = started, thread
            loop = self._running[0]
        return asyncio.run_coroutine_threadsafe(job(self.client, tell), loop)

    def _begin_end(self, loop: asyncio.AbstractEventLoop) -> None:
        ending = loop.create_task(self._end())
        ending.add_done_callback(lambda _: loop.stop())

    async def _end(self) -> None:
        running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self.client.http.close()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except CancelledError:
        raise BackendError("the embedder was closed while it was embedding") from None
