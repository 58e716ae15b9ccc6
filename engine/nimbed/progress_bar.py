"""The bar that a person sees: done, rate and time left, on standard error.

Apart from ``progress.py`` because rich costs 30 ms to import; only a call that shows a bar pays.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["bar"]


class _Rate(ProgressColumn):
    """Items a second, once there is something to divide."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", justify="right")


def bar() -> Progress:
    """Return a bar to be used as a context manager."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
