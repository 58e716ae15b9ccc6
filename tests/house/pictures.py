"""Draw the README's pictures: python -m tests.house.pictures (two minutes on a quiet machine)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "pictures"
# What rich writes, without its fonts, which would have to be fetched.
TERMINAL = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font: {char_height}px/{line_height}px ui-monospace, Menlo, "DejaVu Sans Mono", monospace;
}}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""
# The page as it is, in a frame of this size: its plots, without the table below them.
PAGE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<foreignObject width="100%" height="100%">{page}</foreignObject>
</svg>
"""
WIDTH, HEIGHT = 940, 850


def main() -> None:
    """Run the two commands as a reader would, and draw what they show."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nimbed-") as folder:
        (FOLDER / "quickstart.svg").write_text(screen(typed(folder, "quickstart")), "utf-8")
        words = "tradeoff passages.jsonl --id-field id --dimensions 384 -o page.html"
        typed(folder, *words.split())
        (FOLDER / "tradeoff.svg").write_text(
            framed((Path(folder) / "page.html").read_text("utf-8")), "utf-8"
        )


def typed(folder: str, *words: str) -> str:
    """Return what a command writes to a terminal of 80 columns."""
    done = subprocess.run(
        [sys.executable, "-m", "nimbed_cli.main", *words],
        cwd=folder,
        env={**os.environ, "COLUMNS": "80", "FORCE_COLOR": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def screen(printed: str) -> str:
    """Return what was printed up to the comparison as a picture."""
    shown, found, _ = printed.partition("recall@10: how many")
    assert found
    # How fast it was is another machine's business.
    shown = "".join(line for line in shown.splitlines(True) if not line.startswith("model ready"))
    console = Console(record=True, width=82, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text("$ nimbed quickstart", "bold green"))
    console.print(Text.from_ansi(shown.rstrip("\n\x1b[2m ")))
    return console.export_svg(
        title="nimbed quickstart", code_format=TERMINAL, unique_id="quickstart"
    )


def framed(page: str) -> str:
    """Return the page up to its legend as a picture."""
    html = "<html xmlns='http://www.w3.org/1999/xhtml' "
    page = page.removeprefix("<!DOCTYPE html>").replace("<html ", html)
    page = page.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    shown = page.partition('<div class="wide"')[0]
    return PAGE.format(width=WIDTH, height=HEIGHT, page=f"{shown}</main></body></html>")


if __name__ == "__main__":
    main()
