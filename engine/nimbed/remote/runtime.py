"""An event loop of our own, in a thread of our own, that outlives every caller's.

Knows nothing about requests. Connections belong to the loop they were opened on: here they
survive two ``asyncio.run`` in a row and serve threads and loops alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from nimbed.errors import BackendError

__all__ = ["Runtime"]

T = TypeVar("T")

#: Told how many inputs have just been finished.
Tell = Callable[[int], None]


class Runtime:
    """Runs coroutines on a private loop for callers that block and callers that await."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="nimbed-remote", daemon=True)
        self._thread.start()

    def run(self, job: Callable[[Tell], Coroutine[Any, Any, T]], finished: Tell) -> T:
        """Run a job and block until its end; ``finished`` is called in this thread."""
        told: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        future = self._submit(job(told.put))
        future.add_done_callback(lambda _: told.put(None))
        try:
            while (count := told.get()) is not None:
                finished(count)
        except BaseException:
            future.cancel()
            raise
        return _result(future)

    async def arun(self, job: Callable[[Tell], Coroutine[Any, Any, T]], finished: Tell) -> T:
        """Run a job and await its end; ``finished`` is called on the caller's loop."""
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[int | None] = asyncio.Queue()

        def tell(count: int | None) -> None:
            # The caller may have been cancelled and its loop closed before the job noticed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(told.put_nowait, count)

        future = self._submit(job(tell))
        future.add_done_callback(lambda _: tell(None))
        try:
            while (count := await told.get()) is not None:
                finished(count)
        except BaseException:
            future.cancel()
            raise
        return _result(future)

    def stop(self, closing: Callable[[], Awaitable[None]], *, wait: bool) -> None:
        """Cancel what runs, await ``closing`` on the loop, and end the thread.

        Args:
            closing: Closes what belongs to the loop.
            wait: Whether to return only when that is done; the garbage collector must not block.
        """
        # In a forked child the loop is the parent's: its sockets must be left alone.
        if os.getpid() != self._process or self._loop.is_closed():
            return
        with contextlib.suppress(RuntimeError):  # closed by another thread meanwhile
            self._loop.call_soon_threadsafe(self._begin_end, closing)
        if wait:
            self._thread.join(timeout=5.0)

    def _begin_end(self, closing: Callable[[], Awaitable[None]]) -> None:
        ending = self._loop.create_task(_end(closing))
        ending.add_done_callback(lambda _: self._loop.stop())

    def _submit(self, job: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(job, self._loop)

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except CancelledError:
        raise BackendError("the embedder was closed while it was embedding") from None


async def _end(closing: Callable[[], Awaitable[None]]) -> None:
    running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await closing()
