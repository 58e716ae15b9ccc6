"""Progress of a long call, for a person at a terminal or for a callback."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

__all__ = ["Progress", "reporting"]

#: False: silent. True: a bar on standard error. A callable: called with (done, total).
Progress = bool | Callable[[int, int], None]


@contextmanager
def reporting(
    progress: Progress, total: int, *, what: str = "embedding"
) -> Generator[Callable[[int], None]]:
    """Yield a function that is told how many items have just been finished."""
    if progress is False:
        yield lambda finished: None
    elif progress is True:
        from nimbed.progress_bar import bar

        with bar() as shown:
            task = shown.add_task(what, total=total)
            yield lambda finished: shown.advance(task, finished)
    else:
        done = 0

        def tell(finished: int) -> None:
            nonlocal done
            done += finished
            progress(done, total)

        yield tell
