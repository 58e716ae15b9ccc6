"""Calls to Weaviate, from sync and async code alike, that wait for a server that restarts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
import time
from collections import defaultdict
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

_PAUSE = 0.5
_GONE = (
    exceptions.WeaviateConnectionError,
    exceptions.WeaviateGRPCUnavailableError,
    exceptions.WeaviateTimeoutError,
    exceptions.WeaviateRetryError,
    httpx.TransportError,
)
_GATEWAY = (502, 503, 504)
# gRPC's words for it. Nobody here cancels a call: a server that shuts down does.
_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")


class Calls:
    """Makes calls through a client, and makes them again after Weaviate was away.

    Every call must be one that may be made twice.

    Args:
        budget: Seconds that one call may wait for a restart; 0 does not wait.
        tell: Told in a sentence that Weaviate is away, and that it is back.
        loop: The loop of an async client, which these calls are made from another thread of;
            None for a sync client.

    Attributes:
        interruptions: How often Weaviate was away so far; a restart that two calls saw may count
            twice.
    """

    def __init__(
        self,
        *,
        budget: float = RESTART_WAIT,
        tell: Callable[[str], None] = ignore,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if budget < 0:
            raise ConfigurationError(f"restart_wait must not be negative; got {budget}")
        self.interruptions = 0
        self._budget = budget
        self._tell = tell
        self._loop = loop
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._away, self._changed = False, 0.0  # and when that was seen
        self._calling = defaultdict[int, list[float]](list)  # since when, by thread

    def __call__(self, call: Callable[[], T | Awaitable[T]]) -> T:
        """Make a call and return its answer.

        Raises:
            weaviate.exceptions.WeaviateBaseError: What the client raises, once the budget is spent.
        """
        end = time.monotonic() + self._budget
        while True:
            began = time.monotonic()
            try:
                answer = self._once(call)
            except Exception as error:
                left = end - time.monotonic()
                if not is_outage(error) or left <= 0:
                    raise
                self._note(away=True, began=began)
                self._stopped.wait(min(_PAUSE, left))
            else:
                self._note(away=False, began=began)
                return answer

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
            with self._overheard():
                return cast(T, call())
        waiting = self._awaited(cast("Callable[[], Awaitable[T]]", call))
        return asyncio.run_coroutine_threadsafe(waiting, self._loop).result()

    async def _awaited(self, call: Callable[[], Awaitable[T]]) -> T:
        with self._overheard():
            return await call()

    @contextlib.contextmanager
    def _overheard(self) -> Generator[None]:
        """Hear what the client logs meanwhile, and keep it from others.

        It logs whole objects, texts and vectors, that a batch left out; and that it tries again,
        for a quarter of a minute, before it says anything else of a server that is away.
        """
        own, began = threading.get_ident(), time.monotonic()
        logger = logging.getLogger("weaviate-client")
        with self._lock:
            self._calling[own].append(began)
            logger.addFilter(self._of_others)
        try:
            yield
        finally:
            with self._lock:
                self._calling[own].remove(began)
                if not any(self._calling.values()):
                    logger.removeFilter(self._of_others)

    def _of_others(self, record: logging.LogRecord) -> bool:
        """Return whether others wrote a line of the log; of these calls' own, hear of retries."""
        began = self._calling.get(record.thread or 0)
        if not began:
            return True
        if "Retrying" in str(record.msg):
            self._note(away=True, began=min(began))
        return False

    def _note(self, *, away: bool, began: float) -> None:
        """Tell that Weaviate is away, or back; several threads notice, and one tells.

        What a call sees that began before the last change says nothing against it. A failure may
        be another restart's all the same, so that whoever restores what was lost looks again.
        """
        with self._lock:
            if away == self._away:
                return
            if began < self._changed:
                self.interruptions += away
                return
            self._away, self._changed = away, time.monotonic()
            self.interruptions += not away
            if self._budget:
                wait = f"Weaviate does not answer; waiting up to {self._budget:g} s for it"
                self._tell(wait if away else "Weaviate answers again")


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
    return callable(code) and getattr(code(), "name", "") in _AWAY


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
