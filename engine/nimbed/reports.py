"""What work tells: how far it is, what a call cost, what a check found."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

__all__ = ["Finding", "Progress", "Report", "Verdict", "reporting"]

if TYPE_CHECKING:
    import rich.progress


#: False: silent. True: a bar on standard error. A callable: called with (done, total).
Progress = bool | Callable[[int, int], None]


@contextmanager
def reporting(
    progress: Progress, total: int, *, what: str = "embedding"
) -> Generator[Callable[[int], None]]:
    """Yield a function to be called with the number of items just finished.

    Args:
        progress: Where the progress is shown.
        total: Number of items in all.
        what: Label of the bar.
    """
    if progress is False:
        yield lambda finished: None
    elif progress is True:
        with _bar() as bar:
            task = bar.add_task(what, total=total)
            yield lambda finished: bar.advance(task, finished)
    else:
        done = 0

        def advance(finished: int) -> None:
            nonlocal done
            done += finished
            progress(done, total)

        yield advance


def _bar() -> rich.progress.Progress:
    """Return a bar with the count, the rate and the time left, on standard error."""
    from rich import progress  # takes 30 ms, which only a call that shows a bar spends
    from rich.console import Console
    from rich.text import Text

    class Rate(progress.ProgressColumn):
        """Items a second, once enough is known to divide."""

        def render(self, task: progress.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f}/s", justify="right")

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        Rate(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    )


#: ``ok``; ``note``: works, because nimbed does a part of the work; ``fail``: must be mended.
Verdict = Literal["ok", "note", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was examined.

    Attributes:
        name: What was examined.
        verdict: How it stands.
        detail: What was seen, with numbers.
    """

    name: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one ``embed`` call cost.

    Attributes:
        requests: HTTP requests sent, including failed ones, retries and polls.
        retries: Requests sent again after a fault (an overload, a reset, a malformed answer).
        tokens: Tokens the server says it read; None unless every answer said so.
        bytes_sent: Bytes of request bodies.
        bytes_received: Bytes of response bodies, after decompression.
        skipped: Row numbers whose input the server or the input check refused and the caller
            asked to skip, ascending; their vectors are zero and their token counts 0.
    """

    requests: int = 0
    retries: int = 0
    tokens: int | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    skipped: tuple[int, ...] = ()
