"""Progress of a long job on the terminal's error stream.

Knows nothing about what is being done.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(
    what: str, *, before: str = "", show: bool | None = None
) -> Generator[Callable[[int, int], None]]:
    """Show a bar while the block runs, and yield the function that moves it.

    Args:
        what: What is counted.
        before: What is happening until the first call.
        show: None shows it if a person is watching.

    Yields:
        A function of (done, total); a total of 0 stands for an unknown one.
    """
    if show is None:
        show = sys.stderr.isatty()
    if not show:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(TextColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f}/s" if speed else "", style="cyan")

    class Count(MofNCompleteColumn):
        def render(self, task: Task) -> Text:
            return super().render(task) if task.completed else Text()

    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        Count(),
        Speed(""),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(before or what, total=None)

        def move(done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield move
