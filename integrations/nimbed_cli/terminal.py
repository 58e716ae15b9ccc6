"""What commands show in the terminal: tables, and the progress of long jobs.

A table goes to standard output, in a pipe as tab-separated lines; a bar to standard error.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

if TYPE_CHECKING:
    from nimbed.reports import Finding

__all__ = [
    "Column",
    "hint_if_stopped",
    "print_facts",
    "print_findings",
    "print_table",
    "program_typed",
    "progress_bar",
    "python_typed",
]


#: Unicode has pictures of the old control characters; of the others the number is shown, as of
#: those that turn the direction of what follows.
_SHOWN = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"},
    0x7F: "\u2421",
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
    **{code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))},
}


_MARKS = {"ok": ("✓", "green"), "note": ("!", "yellow"), "fail": ("✗", "red")}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its heading.
        align: Where its cells stand.
        fit: What happens where the terminal is too narrow: ``fold`` and ``cut`` cells give way
            first, going on in the next line or ending with an ellipsis; ``keep`` cells go on in
            the next line only if all of them together do not fit.
    """

    name: str
    align: Literal["left", "right"] = "left"
    fit: Literal["keep", "fold", "cut"] = "keep"


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table as wide as the terminal; in a pipe tab-separated lines with nothing cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        _print_lines([[column.name for column in columns], *rows])
        return
    longest = (
        max(map(len, (column.name, *cells)))
        for column, cells in zip(columns, zip(*rows, strict=True), strict=False)
        if column.fit == "keep"
    )
    # Two characters are between columns, one behind the last; cells that give way need some, too.
    spare = 8 if any(column.fit != "keep" for column in columns) else 0
    keeps = sum(longest) + 2 * len(columns) - 1 + spare <= console.width
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for column in columns:
        # Rich narrows the columns that may wrap first; a Text that does not wrap is then cut.
        table.add_column(
            column.name,
            justify=column.align,
            no_wrap=keeps and column.fit == "keep",
            overflow="fold",
        )
    for row in rows:
        # Texts, not strings: a cell may hold what rich takes for markup.
        table.add_row(
            *(
                Text(_one_line(cell), no_wrap=True, overflow="ellipsis")
                if column.fit == "cut"
                else Text(_visible(cell))
                for column, cell in zip(columns, row, strict=True)
            )
        )
    console.print(table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print named facts, a line each; in a pipe name and fact separated by a tab."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        _print_lines(facts)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts:
        table.add_row(name, Text(_visible(fact)))
    console.print(table)


def print_findings(name: str, findings: Sequence[Finding]) -> None:
    """Print what a check found, a line each, under the name of what was checked.

    In a pipe a line holds the name, verdict, subject and detail, separated by tabs.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        lead = [name] if name else []
        _print_lines([[*lead, each.verdict, each.name, each.detail] for each in findings])
        return
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        mark, colour = _MARKS[finding.verdict]
        # Text, not markup: a server's message may hold brackets.
        table.add_row(Text(mark, style=colour), finding.name, Text(_visible(finding.detail)))
    if name:
        console.print(Text(name, style="bold"))
    console.print(table)


def _print_lines(rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        typer.echo("\t".join(map(_one_line, row)))


def _one_line(cell: str) -> str:
    """Return a cell without the tabs and line breaks that would end it."""
    return _visible(" ".join(cell.splitlines()).replace("\t", " "))


def _visible(text: str) -> str:
    """Return a text whose control characters are shown, not obeyed by the terminal."""
    return text.translate(_SHOWN)


def program_typed() -> str:
    """Return how this program is called from here, to begin a command that works as it is shown."""
    program = sys.argv[0]
    if Path(program).stem != "nimbed" or not Path(program).is_file():
        return f"{python_typed()} -m nimbed_cli.main"
    found = shutil.which("nimbed")
    if found is not None and Path(found).samefile(program):
        return "nimbed"
    return shlex.quote(program)


def python_typed() -> str:
    """Return how the Python that runs this is called from here."""
    python = Path(sys.executable)
    if shutil.which("python") == str(python):
        return "python"
    inside = python.is_relative_to(Path.cwd())
    return shlex.quote(str(python.relative_to(Path.cwd()) if inside else python))


@contextmanager
def hint_if_stopped(hint: str) -> Generator[None]:
    """Say what became of a job, and how it goes on, if Ctrl-C ends the block."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"stopped; {hint}", err=True)
        raise


@contextmanager
def progress_bar(
    what: str, *, before: str = "", show: bool | None = None
) -> Generator[Callable[[int, int], None]]:
    """Show a bar while the block runs, and yield the function that moves it.

    Args:
        what: What is counted.
        before: What is happening until the first call.
        show: None shows it if standard error is a terminal.

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
