"""Calls to Weaviate, from sync and async code alike, that wait for a server that restarts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import httpx
from weaviate import exceptions

from nimbed.bulk import ignore
from nimbed.errors import BackendError, ConfigurationError

__all__ = ["RESTART_WAIT", "Calls", "in_thread", "is_outage"]

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

#: Seconds that a job waits for a Weaviate that went away; a large one replays its log at a start.
RESTART_WAIT = 120.0

# The client itself tries again for a quarter of a minute before it says anything.
_SILENT = 3.0
_PAUSE = 0.5
_GONE = (
    exceptions.WeaviateConnectionError,
    exceptions.WeaviateGRPCUnavailableError,
    exceptions.WeaviateTimeoutError,
    exceptions.WeaviateRetryError,
    httpx.TransportError,
)
_GATEWAY = (502, 503, 504)


class Calls:
    """Makes calls through a client, and makes them again after Weaviate was away.

    Every call must be one that may be made twice.

    Args:
        probe: Asks for something small by REST, to tell a slow answer from none.
        budget: Seconds that one call may wait for a restart; 0 does not wait.
        tell: Told in a sentence that Weaviate is away, and that it is back.
        loop: The loop of an async client, which these calls are made from another thread of;
            None for a sync client.

    Attributes:
        interruptions: How often Weaviate was away so far.
    """

    def __init__(
        self,
        probe: Callable[[], object],
        *,
        budget: float = RESTART_WAIT,
        tell: Callable[[str], None] = ignore,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if budget < 0:
            raise ConfigurationError(f"restart_wait must not be negative; got {budget}")
        self.interruptions = 0
        self._probe = probe
        self._budget = budget
        self._tell = tell
        self._loop = loop
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._away = False
        self._waiting_since = math.inf

    def __call__(self, call: Callable[[], T | Awaitable[T]]) -> T:
        """Make a call and return its answer.

        Raises:
            weaviate.exceptions.WeaviateBaseError: What the client raises, once the budget is spent.
        """
        began = self._waiting_since = time.monotonic()
        try:
            while True:
                try:
                    answer = self._once(call)
                except Exception as error:
                    left = began + self._budget - time.monotonic()
                    if not is_outage(error) or left <= 0:
                        raise
                    self._note(away=True)
                    self._stopped.wait(min(_PAUSE, left))
                else:
                    break
        finally:
            self._waiting_since = math.inf
        self._note(away=False)
        return answer

    @contextlib.contextmanager
    def watched(self) -> Generator[None]:
        """Tell early, within the block, of a Weaviate that the client itself asks in vain.

        One thread for all calls: to start one for each took half of an import's time.
        """
        done = threading.Event()
        watch = threading.Thread(target=self._watch, args=[done], daemon=True)
        if self._budget:
            watch.start()
        try:
            yield
        finally:
            done.set()

    def together(
        self, calls: Sequence[Callable[[], object]], at_once: int, refusal: type[E]
    ) -> dict[int, E]:
        """Make calls beside each other, and return the places of those that Weaviate refused.

        Args:
            calls: The calls.
            at_once: How many are made beside each other.
            refusal: The error of a call that is none of the others' business.
        """
        if self._loop is None:
            return self(functools.partial(_in_threads, calls, at_once, refusal))
        return self(functools.partial(_in_tasks, calls, at_once, refusal))

    def stop(self) -> None:
        """Let the call that is being made, and every later one, fail."""
        self._stopped.set()

    def _once(self, call: Callable[[], T | Awaitable[T]]) -> T:
        if self._stopped.is_set():
            raise BackendError("the job was cancelled")
        if self._loop is None:
            with _quiet_client():
                return cast(T, call())
        made = functools.partial(_awaited, cast("Callable[[], Awaitable[T]]", call))
        return asyncio.run_coroutine_threadsafe(made(), self._loop).result()

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(_SILENT / 2):
            if time.monotonic() - self._waiting_since < _SILENT:
                continue
            try:
                self._once(self._probe)  # a batch that is slow is no news
            except Exception as error:
                if is_outage(error) and not done.is_set():
                    self._note(away=True)

    def _note(self, *, away: bool) -> None:
        """Tell that Weaviate is away, or back; several threads notice, and one tells."""
        with self._lock:
            if away == self._away:
                return
            self._away = away
            if away:
                self._tell(f"Weaviate does not answer; waiting up to {self._budget:g} s for it")
            else:
                self.interruptions += 1
                self._tell("Weaviate answers again")


async def _awaited(call: Callable[[], Awaitable[T]]) -> T:
    with _quiet_client():
        return await call()


@contextlib.contextmanager
def _quiet_client() -> Generator[None]:
    """Keep the client from logging whole objects, texts and vectors, that a batch left out."""
    own = threading.get_ident()
    logger = logging.getLogger("weaviate-client")

    def others(record: logging.LogRecord) -> bool:
        return record.thread != own

    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


def _in_threads(
    calls: Sequence[Callable[[], object]], at_once: int, refusal: type[E]
) -> dict[int, E]:
    refused: dict[int, E] = {}

    def make(place: int) -> None:
        try:
            calls[place]()
        except refusal as error:
            if is_outage(error):
                raise
            refused[place] = error

    with ThreadPoolExecutor(at_once, "nimbed-call") as pool:
        for _ in pool.map(make, range(len(calls))):
            pass
    return refused


async def _in_tasks(
    calls: Sequence[Callable[[], object]], at_once: int, refusal: type[E]
) -> dict[int, E]:
    refused: dict[int, E] = {}
    turn = asyncio.Semaphore(at_once)

    async def make(place: int) -> None:
        async with turn:
            try:
                await cast("Awaitable[object]", calls[place]())
            except refusal as error:
                if is_outage(error):
                    raise
                refused[place] = error

    await asyncio.gather(*map(make, range(len(calls))))
    return refused


def is_outage(error: BaseException) -> bool:
    """Whether an error says that Weaviate could not be reached, and perhaps can be later."""
    if isinstance(error, _GONE):
        return True
    if isinstance(error, exceptions.UnexpectedStatusCodeError):
        return error.status_code in _GATEWAY
    if not isinstance(error, exceptions.WeaviateQueryError):
        return False
    # The client gives the words of gRPC's error and leaves its code behind, in what it handled.
    cause = error.__cause__ or error.__context__
    if isinstance(cause, exceptions.WeaviateRetryError):
        return True
    code = getattr(cause, "code", None)
    return callable(code) and getattr(code(), "name", "") in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


async def in_thread(job: Callable[[], T], calls: Calls) -> T:
    """Run a job that makes its calls from another thread; cancelled, it stops at its next call."""
    running: asyncio.Future[T] = asyncio.ensure_future(asyncio.to_thread(job))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        calls.stop()
        with contextlib.suppress(Exception):
            await running
        raise
