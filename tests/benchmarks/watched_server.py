"""`nimbed serve` in a process of its own, its log kept and its memory and health watched."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def memory(self) -> float:
        """Resident memory, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def answered(self) -> set[str]:
        """Ids of the requests that the server says it has answered with 200."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if "load-" in line]
        return {line["id"] for line in lines if line.get("status") == 200}


@contextlib.contextmanager
def serving(queue: int) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "nimbed_cli.main", "serve", "--port", str(port)]
        command += ["--served-name", "m", "--dtype", "float32", "--truncate", "END"]
        command += ["--max-queue", str(queue), "--log-format", "json", "--log-level", "debug"]
        with log.open("wb") as written:
            process = subprocess.Popen(command, stderr=written)
        try:
            for _ in range(600):
                with contextlib.suppress(httpx.TransportError):
                    ready = httpx.get(f"http://127.0.0.1:{port}/v1/health/ready")
                    if ready.status_code == 200:
                        break
                time.sleep(0.1)
            yield Server(process, port, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


class Watched:
    """Memory and health of a server, asked for every second while the block runs."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.memory: list[float] = []
        self.health: list[float] = []

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self._server.port}", timeout=30) as client:
            while not self._stop.wait(1.0):
                self.memory.append(self._server.memory)
                begin = time.perf_counter()
                client.get("/v1/health/ready").raise_for_status()
                self.health.append(time.perf_counter() - begin)
