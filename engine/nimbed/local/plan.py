"""Which inputs share a batch, and batches on one or several copies of a model at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from nimbed.embedder import Replica
from nimbed.reports import Progress, reporting

if TYPE_CHECKING:
    from nimbed.local.tokenizer import Row, Tokens

__all__ = [
    "ContextEngine",
    "Engine",
    "HostResults",
    "Launcher",
    "Results",
    "micro_batches",
    "run_all",
]


# Texts tokenized at a time: enough to sort by length, which attention on a CPU likes.
_WINDOW = 8192
# For a GPU, which attends at one speed to all lengths: the first window soon, so that it does not
# wait, then more at once, whose batches are fuller.
_FIRST_WINDOW = 256


def _ignore(rows: int) -> None:
    """Take the progress of a call that nobody watches."""


_SILENT = contextlib.nullcontext(_ignore)


class Results(Protocol):
    """Takes the vectors of one copy of a model for one call."""

    def put(self, rows: NDArray[np.intp], vectors: Any) -> None:
        """Take the vectors of rows; waits for nothing."""
        ...

    def throttle(self) -> None:
        """Wait until the device is not far behind what it was given to do.

        Raises:
            BackendError: If it failed.
        """
        ...

    def flush(self) -> None:
        """Wait for everything that was launched.

        Raises:
            BackendError: If the device failed.
        """
        ...


class HostResults:
    """Those of a model on the host's own processor, which are there when they are put.

    Args:
        out: float32 of shape (rows, dimensions), filled in place.
        finished: Told how many rows have just been done.
    """

    def __init__(self, out: NDArray[np.float32], finished: Callable[[int], None]) -> None:
        self._out, self._finished = out, finished

    def put(self, rows: NDArray[np.intp], vectors: Any) -> None:
        """Take the vectors of rows, of any library on the CPU."""
        self._out[rows] = np.asarray(vectors)
        self._finished(len(rows))

    def throttle(self) -> None:
        """Nothing is behind."""

    def flush(self) -> None:
        """Nothing is under way: each batch ends before the next begins."""


class Launcher(Protocol):
    """What runs the batches of a call on one device."""

    @property
    def budget(self) -> int:
        """Tokens that fill the device at once."""
        ...

    def plan(self, ids: Sequence[Row], *, budget: int) -> Iterator[NDArray[np.intp]]:
        """Yield the rows of each batch, of at most ``budget`` tokens where there are several."""
        ...

    def launch(
        self,
        ids: Sequence[Row],
        rows: NDArray[np.intp],
        results: Results,
        /,
        *,
        skip: Sequence[int] | None = None,
        first_row: int = 0,
    ) -> None:
        """Have a batch of the plan embedded.

        Args:
            ids: Token ids a row.
            rows: Which of them.
            results: What :meth:`results` gave.
            skip: How many of each row's first tokens are not pooled.
            first_row: Place of the first row of ``ids`` in the array of the results.

        Raises:
            BackendError: If the device fails, or the batch does not fit its memory.
        """
        ...


class Engine(Replica, Launcher, Protocol):
    """One copy of a model in this process: the seam between the backends and everything else."""

    @property
    def computes_in(self) -> str:
        """The arithmetic, such as ``float32``."""
        ...

    @property
    def computes_on(self) -> str:
        """The device, such as ``cpu``."""
        ...

    def warm_up(self) -> None:
        """Do what the first batches would otherwise have to wait for."""
        ...

    def results(self, out: NDArray[np.float32], finished: Callable[[int], None]) -> Results:
        """Return what takes the vectors of a call.

        Args:
            out: float32 of shape (rows, dimensions), filled in place.
            finished: Told how many rows have just been done.
        """
        ...


@runtime_checkable
class ContextEngine(Protocol):
    """One that gives parts of a document vectors which know the rest of it."""

    def embed_ranges(
        self, documents: Sequence[list[int]], ranges: Sequence[Sequence[tuple[int, int]]]
    ) -> NDArray[np.float32]:
        """Return the vectors of each document's parts, one after the other, not normalised.

        Args:
            documents: Token ids of each, special ones included.
            ranges: First token and the one behind the last of each part, a document each.

        Returns:
            Of shape (parts, dimensions).

        Raises:
            BackendError: If the documents do not fit the device's memory.
        """
        ...


def micro_batches(lengths: Sequence[int], *, budget: int) -> Iterator[NDArray[np.intp]]:
    """Yield row numbers in groups whose lengths add up to at most ``budget``.

    Longest first: a batch that does not fit the memory shows at once, and neighbours in a batch
    have similar lengths, which attention likes. A row longer than the budget rides alone.
    """
    counts = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-counts, kind="stable")
    ends = np.cumsum(counts[order])
    start = 0
    while start < len(order):
        spent = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, spent + budget, side="right"))
        stop = max(stop, start + 1)
        yield order[start:stop]
        start = stop


def run_all(
    items: list[Any],
    encode: Callable[..., Tokens],
    engines: Sequence[Launcher],
    results_of: Callable[[Callable[[int], None]], Sequence[Results]],
    *,
    on_host: bool,
    progress: Progress,
) -> tuple[NDArray[np.int32], tuple[int, ...]]:
    """Tokenize the inputs of a call and run them.

    Args:
        items: The inputs.
        encode: Tokenizes some of them; told the ``first_row`` of those.
        engines: The replicas.
        results_of: Given what is told how many rows have been done, returns where the vectors of
            each replica go.
        on_host: Whether they run on the host's own processor.
        progress: As the caller asked for it.

    Returns:
        The tokens of each input, and which were cut.
    """
    counts = np.empty(len(items), np.int32)
    truncated: list[int] = []
    with _SILENT if progress is False else reporting(progress, len(items)) as finished:
        telling = threading.Lock()

        def tell(rows: int) -> None:
            with telling:  # each replica has a thread of its own
                finished(rows)

        results = results_of(tell)
        for start, tokens in _tokenized(items, encode, on_host=on_host):
            stop = start + len(tokens.rows)
            counts[start:stop] = [len(row) for row in tokens.rows]
            truncated.extend(start + row for row in tokens.truncated)
            _run(engines, tokens, results, start)
        for each in results:
            each.flush()
    return counts, tuple(truncated)


def _run(
    engines: Sequence[Launcher], tokens: Tokens, results: Sequence[Results], first_row: int
) -> None:
    """Launch the tokenized inputs of one window, on every replica at once if there are several.

    Args:
        engines: The replicas.
        tokens: Of the inputs.
        results: Where the vectors of each replica go; flush them after the last window.
        first_row: The first input's row in the array of the results.
    """
    ids, skip = tokens.rows, tokens.skip
    plan = engines[0].plan(ids, budget=min(engine.budget for engine in engines))
    taking = threading.Lock()

    def work(engine: Launcher, taken: Results) -> None:
        while True:
            with taking:
                rows = next(plan, None)
            if rows is None:
                return
            engine.launch(ids, rows, taken, skip=skip, first_row=first_row)

    if len(engines) == 1:
        work(engines[0], results[0])
        return
    with ThreadPoolExecutor(len(engines), thread_name_prefix="nimbed-replica") as pool:
        for done in [pool.submit(work, *pair) for pair in zip(engines, results, strict=True)]:
            done.result()


def _tokenized(
    items: list[Any], encode: Callable[..., Tokens], *, on_host: bool
) -> Iterator[tuple[int, Tokens]]:
    """Yield windows of tokenized inputs, the coming ones tokenized while one is embedded.

    The tokenizer runs ahead without a bound, so a text that is too long is found early, not
    after the hours of work before it.

    Args:
        items: All inputs of a call.
        encode: Tokenizes some of them; told the ``first_row`` of those.
        on_host: Whether they are embedded on the host's own processor.

    Yields:
        The first input's row, and the tokens of a window.
    """
    starts = _windows(len(items), on_host)
    if len(starts) < 2:
        yield 0, encode(items, first_row=0)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="nimbed-tokenizer") as pool:
        windows: list[Future[Tokens]] = [
            pool.submit(encode, items[start:stop], first_row=start)
            for start, stop in zip(starts, [*starts[1:], len(items)], strict=True)
        ]
        try:
            for number, (start, coming) in enumerate(zip(starts, windows, strict=True)):
                for later in windows[number:]:
                    if later.done() and later.exception() is not None:
                        later.result()
                yield start, coming.result()
                windows[number] = Future()  # lets go of the ids
        finally:
            pool.shutdown(cancel_futures=True)


def _windows(count: int, on_host: bool) -> list[int]:
    """Return the row at which each window begins."""
    size, starts, start = _WINDOW if on_host else _FIRST_WINDOW, [], 0
    while start < count:
        starts.append(start)
        start += size
        size = min(2 * size, _WINDOW)
    return starts or [0]
