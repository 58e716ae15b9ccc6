"""``nimbed serve`` as a process: signals under load, exit codes, strangers who only connect."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys

import httpx
import numpy as np
import pytest

import nimbed
from nimbed import FakeEmbedder
from nimbed_server import create_app, gather
from nimbed_server.logging import set_up
from nimbed_server.uvicorn_server import Server, run

from .conftest import MODEL, free_port, wait_until

KEY = "nvapi-never-logged"
TEXTS = [[f"text {client}.{n} {'of many words ' * 20}" for n in range(8)] for client in range(8)]


def test_sigterm_under_load_loses_nothing_that_was_admitted_and_exits_with_0(command):
    environment = {**os.environ, "NIMBED_API_KEYS": KEY}
    server = command("--log-format", "json", "--log-level", "debug", environment=environment)
    headers = {"authorization": f"Bearer {KEY}"}

    def ask(texts):
        body = {"model": "minilm", "input": texts, "truncate": "END"}
        return httpx.post(f"{server.url}/v1/embeddings", json=body, headers=headers, timeout=60)

    def all_admitted():
        metrics = httpx.get(f"{server.url}/metrics", headers=headers).text
        lines = [line for line in metrics.splitlines() if "tokenize_seconds_count" in line]
        return float(lines[0].split()[-1]) == 1 + len(TEXTS)  # the warm-up is one

    with concurrent.futures.ThreadPoolExecutor(len(TEXTS)) as pool:
        asked = [pool.submit(ask, texts) for texts in TEXTS]
        wait_until(all_admitted, seconds=60)
        unfinished = sum(not answer.done() for answer in asked)
        assert server.stop(within=60) == 0
        answers = [answer.result() for answer in asked]
    assert unfinished > 0
    with nimbed.load() as local:
        for texts, answer in zip(TEXTS, answers, strict=True):
            assert answer.status_code == 200
            got = [item["embedding"] for item in answer.json()["data"]]
            right = local.embed(texts, input_type="query", truncate="END").vectors
            np.testing.assert_allclose(got, right, atol=1e-6)
    facts = [json.loads(line) for line in server.lines]
    said = [each["message"] for each in facts]
    assert [message for message in said if message.startswith("stopping; 30 s are left")]
    assert sum(each.get("status") == 200 for each in facts if "POST" in each["message"]) == 8
    assert KEY not in "".join(server.lines)
    assert "of many words" not in "".join(server.lines)


def test_sigterm_while_a_model_is_read_does_not_wait_for_it(tmp_path):
    """The server behind takes a connection and never says a word, as a hanging disk would."""
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as behind, (tmp_path / "log").open("w") as log:
        url = f"http://127.0.0.1:{behind.getsockname()[1]}/v1"
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "nimbed_cli.main", "serve", "--port", str(port)),
                *("--base-url", url, "--model", "nvidia/nv-embedqa-e5-v5"),
            ],
            stderr=log,
        )
        try:
            behind.settimeout(60)
            hanging, _ = behind.accept()  # the model is being read from now on
            with hanging:
                ready = f"http://127.0.0.1:{port}/v1/health/ready"
                wait_until(lambda: httpx.get(ready).status_code == 503)
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0  # the read itself would give up after a minute
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    said = (tmp_path / "log").read_text()
    assert "ending before the model was read" in said
    assert "Traceback" not in said


def test_sigterm_before_it_listens_exits_with_0():
    held = "import time, nimbed_server.app as app; from nimbed_cli.main import main\n"
    held += "app.create_app = lambda *given: (print('here', flush=True), time.sleep(60))\n"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{held}main(['serve', '--port', '0'])"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def test_the_signals_are_given_back_when_it_has_ended(serve):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    server = Server(serve().app, gather({}, environment={}))

    async def ended():
        with server.capture_signals():
            assert signal.getsignal(signal.SIGTERM) != before[0]

    asyncio.run(ended())
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_interrupting_it_exits_with_0_and_a_taken_port_is_said(command, plain):
    behind = ("--base-url", plain.url, "--model", MODEL)
    server = command(*behind)
    port = server.url.rpartition(":")[2]
    again = subprocess.run(
        [sys.executable, "-m", "nimbed_cli.main", "serve", "--port", port, *behind],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert again.returncode not in (0, -signal.SIGTERM)
    assert f"cannot bind 127.0.0.1:{port}" in again.stderr
    assert "Traceback" not in again.stderr
    assert server.stop(number=signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("flags", "warns"),
    [
        (("--host", "0.0.0.0"), True),
        (("--host", "0.0.0.0", "--api-key", KEY), False),
        ((), False),
    ],
)
def test_being_open_to_the_network_without_a_key_is_warned_of(flags, warns, logged, monkeypatch):
    named = dict(zip(flags[::2], flags[1::2], strict=True))
    settings = gather(
        {
            "host": named.get("--host"),
            "api_keys": [named["--api-key"]] if "--api-key" in named else None,
            "port": free_port(),
        },
        environment={},
    )
    monkeypatch.setattr(Server, "run", lambda self, sockets: None)
    lines = logged("pretty", "info")
    run(create_app({MODEL: FakeEmbedder()}, settings), settings)
    written = "".join(lines())
    assert f"serving {MODEL} on http://{settings.host}:{settings.port}" in written
    assert ("everybody on the network may use this server" in written) is warns
    assert KEY not in written


@pytest.mark.skipif(sys.platform == "win32", reason="its pipes cannot be waited for")
def test_a_log_that_nobody_reads_stops_nobody_and_says_what_it_lost(serve, logged, monkeypatch):
    logged("pretty", "info")  # puts back what is set here
    end, beginning = os.pipe()
    with open(beginning, "w") as writer:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", writer)
            set_up("pretty", level="info")
        server = serve()
        path = "/" + "x" * 190
        for _ in range(600):  # 64 kB are 220 lines
            assert server.client.get(path).status_code == 404
        written = os.read(end, 2**15)
        lost = re.compile(rb" (3|4)\d\d lines of this log are lost: nobody read them\n")
        for _ in range(20):  # a line may come a moment after its answer
            server.client.get(path)
            written += os.read(end, 2**20)
            if lost.search(written):
                break
        server.stop()
        logging.getLogger("nimbed").handlers.clear()
    os.close(end)
    assert written.count(b"xxx status=404") < 300
    assert lost.search(written)


def test_a_thousand_connections_that_say_nothing_do_not_stop_a_client(serve):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    if allowed < 2500:  # both ends of every connection are in this process
        pytest.skip(f"this machine lets a process have {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    server = serve()
    with contextlib.ExitStack() as stack:
        for n in range(1000):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            if n % 2:
                idle.sendall(b"POST /v1/embeddings HTTP/1.1\r\n")
        with httpx.Client(base_url=server.url) as client:
            for _ in range(20):
                answer = client.post("/v1/embeddings", json={"model": MODEL, "input": "a"})
                assert answer.status_code == 200
        assert server.client.get("/v1/health/ready").status_code == 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
