"""Every block of the READMEs runs as it stands."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
import typer

from nimbed_cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / folder / "README.md" for folder in ("engine", "integrations", "tests")),
    ROOT / "engine" / "API.md",
    *(
        ROOT / "integrations" / f"nimbed_{name}" / "README.md"
        for name in ("pgvector", "server", "weaviate")
    ),
    ROOT / "integrations" / "nimbed_pgvector" / "LIFECYCLE.md",
    *sorted((ROOT / "examples").glob("*.md")),
]
FENCE = re.compile(r"(?:<!-- (?P<mark>[^>]+) -->\n)?```(?P<kind>\w+)\n(?P<code>.*?)```", re.DOTALL)


def blocks(kind, page=PAGES[0]):
    found = FENCE.finditer(page.read_text("utf-8"))
    return [(match["mark"], match["code"]) for match in found if match["kind"] == kind]


def environment():
    """Put this environment's commands first, and keep the caller's virtual environment out."""
    beside = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}"}


def test_the_python_blocks_run_one_after_the_other(tmp_path):
    code = "\n".join(code for _, code in blocks("python"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gzip compresses a file. hamming (3, 48) ")
    assert "cannot compare vectors of two spaces" in done.stdout


def test_the_engines_example_of_kinds_runs():
    ((_, code),) = blocks("python", ROOT / "engine" / "README.md")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[[0]]"


def test_the_example_adapter_runs():
    page = ROOT / "integrations" / "README.md"
    code = "\n".join(code for _, code in blocks("python", page))
    assert "class StoreEmbeddings" in code
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_command_line_blocks_run(open_folder, warm_nimbed):
    variables = environment()
    variables["PATH"] = f"{warm_nimbed}{os.pathsep}{variables['PATH']}"
    texts = [
        f"This is the passage with number {n}. It stands on page {n % 7} of a book that nobody "
        f"has written yet, between the passages before it and the passages behind it."
        for n in range(60)
    ]
    rows = [{"id": n, "text": text, "page": n % 7} for n, text in enumerate(texts)]
    (open_folder / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    commands = [code for mark, code in blocks("bash") if mark is None]
    assert commands
    for code in commands:
        done = subprocess.run(
            ["bash", "-euc", code],
            cwd=open_folder,
            capture_output=True,
            text=True,
            env=variables,
        )
        assert done.returncode == 0, done.stderr
    assert (open_folder / "passages.parquet").is_file()
    assert (open_folder / "tradeoff.html").is_file()


@pytest.mark.slow
def test_the_first_command_works_in_a_fresh_clone(tmp_path):
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    ((_, command),) = [block for block in blocks("bash") if block[0] == "run: quickstart"]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.rstrip() + " --passages 300"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "compress a file" in done.stdout
    (packages,) = (tmp_path / ".venv").glob("lib/python*/site-packages")
    installed = {path.name.partition("-")[0] for path in packages.iterdir()}
    assert "onnxruntime" in installed
    assert not installed & {"torch", "scipy", "transformers", "sentence_transformers"}
    files = [path for path in (tmp_path / ".venv").rglob("*") if path.is_file()]
    megabytes = sum(path.lstat().st_size for path in files if not path.is_symlink()) / 1e6
    assert megabytes <= 600, f"the README's first command fills {megabytes:.0f} MB"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)", page.read_text("utf-8"))
    for target, heading in links:
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name} links to {target}"
        if heading:
            assert heading in headings(file), f"{page.name} links to {target}#{heading}"


def headings(page):
    """Return the headings of a page as GitHub's links name them."""
    lines = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_every_block_runs_is_printed_or_can_be_typed():
    """What runs is run by the tests of its page; other commands have to be understood."""
    running = set(PAGES)
    pages = [
        page
        for folder in (ROOT, *(ROOT / each for each in ("engine", "integrations", "tests")))
        for page in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
        if page.name != "API.md"  # written from the docstrings
    ]
    commands = typer.main.get_command(app)
    for page in pages:
        for block in FENCE.finditer(page.read_text("utf-8")):
            mark, code = block["mark"] or "", block["code"].replace("\\\n", " ")
            if block["kind"] in ("bash", "python"):
                assert page in running, f"{page} has a block that no test runs:\n{code}"
            elif block["kind"] != "mermaid" and not mark.startswith(("not run: ", "tested in ")):
                for line in code.splitlines():
                    program, name, *words = shlex.split(line, comments=True)
                    assert program == "nimbed", f"{page}: {line}"
                    command = commands.commands[name]
                    if name != "serve":  # whose options are made when it is called
                        command.make_parser(click.Context(command)).parse_args(words)
            if mark.startswith("tested in "):
                assert (ROOT / mark.removeprefix("tested in ")).is_file(), mark


def test_the_pictures_are_small_and_hold_nothing_of_a_machine():
    shown = re.findall(r'src="(examples/pictures/[^"]+)"', PAGES[0].read_text("utf-8"))
    assert len(shown) == 2
    for name in shown:
        picture = (ROOT / name).read_text("utf-8")
        assert len(picture) < 150_000
        ElementTree.fromstring(picture)
        assert not re.search(r"/(home|root|tmp|work|usr|venv)/|href=.http|url\(http", picture)


def test_an_older_python_gets_one_sentence():
    checks = {code.partition(" && ")[0] for mark, code in blocks("bash") if mark is not None}
    assert len(checks) == 1  # the same in both commands
    python, option, check = shlex.split(checks.pop())
    assert (python, option) == ("python3", "-c")
    for version, said in [((3, 10, 13), "nimbed needs Python 3.11 or newer\n"), ((3, 14, 0), "")]:
        code = f"import sys; sys.version_info = {version}; {check}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (bool(said), said)


def test_the_ci_script_finds_the_test_command():
    marked = [code for mark, code in blocks("bash") if mark == "ci: test"]
    assert len(marked) == 1
    assert "pytest" in marked[0]
    assert "<!-- ci: test -->" in (ROOT / ".ci" / "run").read_text()
