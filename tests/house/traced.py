"""The files of ours that one warm call enters: ``python -m tests.house.traced CALL FOLDER``.

Each call runs three times; files are counted in the third, in every thread. Prints a JSON list.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Literal

ROOT = Path(__file__).parents[2]
OURS = (str(ROOT / "engine"), str(ROOT / "integrations"))
TEXTS = ["What is NVIDIA?", "gzip compresses a file.", "a cat sleeps"]
LOCAL_MODEL = "engine/nimbed/local/"

_entered: set[str] = set()


def local_embed(folder: Path) -> list[str]:
    return _embed("onnxruntime")


def torch_embed(folder: Path) -> list[str]:
    return _embed("torch")


def _embed(backend: Literal["onnxruntime", "torch"]) -> list[str]:
    import nimbed

    with nimbed.load(device="cpu", dtype="float32", backend=backend) as embedder:
        return traced(lambda: embedder.embed(TEXTS, input_type="passage"))


def remote_embed(folder: Path) -> list[str]:
    import nimbed

    model = "nvidia/nv-embedqa-e5-v5"
    with _stub() as url, nimbed.load(model, base_url=url, dialect="nim") as embedder:
        return traced(lambda: embedder.embed(TEXTS, input_type="passage"))


def http_body(folder: Path) -> list[str]:
    """``nimbed serve`` in this thread, its client in another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    body = json.dumps({"model": "m", "input": TEXTS, "input_type": "query"}).encode()
    found: list[str] = []

    def be_a_client() -> None:
        while _status(port, "GET", "/v1/health/ready") != 200:
            time.sleep(0.1)
        client = HTTPConnection("127.0.0.1", port)

        def ask() -> None:
            headers = {"content-type": "application/json"}
            client.request("POST", "/v1/embeddings", body, headers)
            answer = client.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()

        try:
            found.extend(traced(ask))
        finally:
            client.close()
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=be_a_client)
    thread.start()
    _nimbed("serve", "--port", str(port), "--served-name", "m", "--dtype", "float32")
    thread.join()
    return found


def load(folder: Path) -> list[str]:
    """``nimbed load`` of a small file; the model's own files are counted by ``local_embed``."""
    file = folder / "passages.jsonl"
    file.write_text("".join(json.dumps({"id": text, "text": text}) + "\n" for text in TEXTS))
    tables = iter("abc")
    to = ("--id-field", "id", "--embedded", str(folder / "data"))
    entered = traced(lambda: _nimbed("load", str(file), "--table", next(tables), *to))
    return [name for name in entered if not name.startswith(LOCAL_MODEL)]


def search(folder: Path) -> list[str]:
    """``nimbed search`` in what was loaded, without the model's own files."""
    load(folder)
    to = ("--table", "a", "--embedded", str(folder / "data"))
    entered = traced(lambda: _nimbed("search", "which animal?", *to))
    return [name for name in entered if not name.startswith(LOCAL_MODEL)]


def traced(call: Callable[[], object]) -> list[str]:
    """Return the files that the third of three calls enters."""
    call()
    call()
    _entered.clear()
    call()
    names = [name for name in _entered.copy() if name.startswith(OURS)]
    return sorted(str(Path(name).relative_to(ROOT)) for name in names)


def _note(frame: FrameType, event: str, argument: object) -> None:
    if event == "call":
        _entered.add(frame.f_code.co_filename)


def _nimbed(*words: str) -> None:
    """Run the command line, which ends with SystemExit."""
    from nimbed_cli.main import main

    said, code = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main(list(words))
    except SystemExit as leave:
        code = leave.code
    assert not code, said.getvalue()


def _status(port: int, method: str, path: str) -> int:
    client = HTTPConnection("127.0.0.1", port)
    try:
        client.request(method, path)
        return client.getresponse().status
    except OSError:
        return 0
    finally:
        client.close()


@contextlib.contextmanager
def _stub() -> Iterator[str]:
    """Serve one and the same unit vector for every text; yield the address."""
    vector = [1 / 32] * 1024

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            data = [
                {"index": row, "embedding": [*vector[:-1], 1.0 + row]}
                for row, _ in enumerate(asked["input"])
            ]
            body = json.dumps({"object": "list", "data": data, "model": asked["model"]}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


if __name__ == "__main__":
    # From the start, so that threads which outlive a call are watched too.
    threading.setprofile(_note)
    sys.setprofile(_note)
    files = globals()[sys.argv[1]](Path(sys.argv[2]))
    sys.setprofile(None)
    threading.setprofile(None)
    sys.stdout.write(json.dumps(files))
