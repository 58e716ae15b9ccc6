"""What holds on systems that none of our machines is, as far as Linux can pretend to be one."""

from __future__ import annotations

import subprocess
import sys
import textwrap

# Without what Windows lacks: everything is imported, and a file is embedded. The
# libraries come first, for they look at the system when they are imported.
WINDOWS = """
import asyncio, importlib, os, pkgutil, signal, socket, subprocess, sys, tempfile
from pathlib import Path
import numpy, orjson, pyarrow.parquet, rich.progress, torch, typer, uvicorn
import uvicorn.protocols.http.httptools_impl, prometheus_client, psycopg

MISSING = ("fcntl", "resource", "pwd", "grp", "uvloop")

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ImportError(f"{name} is not on this system")

for name in MISSING:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Blocked())
for owner, names in (
    (os, "fork register_at_fork geteuid getuid chown fchown sysconf sched_getaffinity O_NOFOLLOW"),
    (signal, "SIGHUP SIGQUIT SIGKILL SIGUSR1"),
    (socket, "AF_UNIX"),
):
    for name in names.split():
        delattr(owner, name) if hasattr(owner, name) else None
sys.platform = "win32"

import nimbed, nimbed_cli, nimbed_pgvector, nimbed_server, nimbed_tradeoff, nimbed_weaviate
packages = (nimbed, nimbed_cli, nimbed_pgvector, nimbed_server, nimbed_tradeoff, nimbed_weaviate)
for package in packages:
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "kernels" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)

from nimbed.files import embed_file
with tempfile.TemporaryDirectory() as folder:
    texts, vectors = Path(folder, "a b", "texts.txt"), Path(folder, "a b", "vectors.npy")
    texts.parent.mkdir()
    texts.write_bytes("one line\\r\\nanother line\\r\\n".encode())
    report = embed_file(nimbed.FakeEmbedder(), texts, vectors, input_type="passage")
    assert numpy.load(vectors).shape == (2, 64), report

from nimbed.errors import ConfigurationError
from nimbed_server.settings import Settings
from nimbed_server.uvicorn_server import bind
try:
    bind(Settings(uds="a.socket"))
except ConfigurationError as error:
    print(error)
"""


def test_everything_is_imported_and_files_are_embedded_without_what_windows_lacks():
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WINDOWS)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert "no unix sockets" in run.stdout
