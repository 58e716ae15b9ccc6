"""Inputs to vectors for one call: tokenized ahead, embedded on every replica at once.

Knows nothing about roles, specs or batches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from nimbed.inputs import Input
from nimbed.local.engine import Engine
from nimbed.local.outlet import Outlet
from nimbed.local.plan import micro_batches
from nimbed.local.tokenizer import Tokens

__all__ = ["run", "tokenized"]

# Texts tokenized at a time: enough to sort by length, few enough to overlap with the device.
_WINDOW = 8192


def tokenized(items: list[Input], encode: Callable[..., Tokens]) -> Iterator[tuple[int, Tokens]]:
    """Yield windows of tokenized inputs, the coming ones tokenized while one is embedded.

    The tokenizer runs ahead without a bound, so a text that is too long is found early, not
    after the hours of work before it.
    """
    if len(items) <= _WINDOW:
        yield 0, encode(items, first_row=0)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="nimbed-tokenizer") as pool:
        windows: list[Future[Tokens]] = [
            pool.submit(encode, items[start : start + _WINDOW], first_row=start)
            for start in range(0, len(items), _WINDOW)
        ]
        try:
            for number, window in enumerate(windows):
                for later in windows[number:]:
                    if later.done() and later.exception() is not None:
                        later.result()
                yield number * _WINDOW, window.result()
                windows[number] = Future()  # lets go of the ids
        finally:
            pool.shutdown(cancel_futures=True)


def run(
    engines: tuple[Engine, ...],
    tokens: Tokens,
    out: NDArray[np.float32],
    finished: Callable[[int], None],
) -> None:
    """Embed one window, on every replica at once if there are several."""
    if len(engines) == 1:
        engines[0].run(tokens.ids, out, finished, skip=tokens.skip)
        return
    lengths = [len(row) for row in tokens.ids]
    plan = engines[0].ahead(
        tokens.ids, micro_batches(lengths, budget=min(engine.budget for engine in engines))
    )
    taking, telling = threading.Lock(), threading.Lock()

    def tell(rows: int) -> None:
        with telling:
            finished(rows)

    def work(engine: Engine) -> None:
        outlet = Outlet(out, tell)
        while True:
            with taking:
                rows = next(plan, None)
            if rows is None:
                break
            engine.launch(tokens.ids, rows, outlet, skip=tokens.skip)
        outlet.flush()

    with ThreadPoolExecutor(len(engines), thread_name_prefix="nimbed-replica") as pool:
        for done in [pool.submit(work, engine) for engine in engines]:
            done.result()
