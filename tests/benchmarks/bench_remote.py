"""The remote embedder beside the official clients, at one stub server that answers at once.

    python tests/benchmarks/bench_remote.py
    python tests/benchmarks/bench_remote.py --against /path/of/another/checkout

The first needs openai and langchain-nvidia-ai-endpoints; the second compares this checkout with
another one. Every client runs in a process of its own, the stub in another; rounds are
interleaved, and medians printed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PASSAGES, DIMENSIONS, PER_REQUEST = 5000, 1024, 64
MODEL = "nvidia/nv-embedqa-e5-v5"
TEXTS = [f"passage {n} " + "lorem ipsum dolor sit amet " * 6 for n in range(PASSAGES)]


# ---- the stub -----------------------------------------------------------------------------


def vectors() -> Any:
    import numpy as np

    drawn = np.random.default_rng(0).standard_normal((256, DIMENSIONS)).astype("<f4")
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def serve(delay: float) -> None:
    """Answer with ready vectors, chosen by the number in the text."""
    rows = vectors()
    ready = {
        "base64": [b'"' + base64.b64encode(row.tobytes()) + b'"' for row in rows],
        "float": [json.dumps([round(float(x), 9) for x in row]).encode() for row in rows],
    }

    def answer(body: bytes) -> bytes:
        asked = json.loads(body)
        texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
        stock = ready[asked.get("encoding_format", "float")]
        items = b",".join(
            b'{"object":"embedding","index":%d,"embedding":%s}'
            % (index, stock[int(text.split(" ", 2)[1]) & 255])
            for index, text in enumerate(texts)
        )
        usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (len(texts) * 40, len(texts) * 40)
        out = b'{"object":"list","data":[' + items + b'],"model":"m","usage":' + usage + b"}"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        return head % len(out) + out

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport, self.buffer = transport, bytearray()

        def data_received(self, data: bytes) -> None:
            self.buffer += data
            head, end, rest = self.buffer.partition(b"\r\n\r\n")
            if not end:
                return
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            if len(rest) >= length:
                self.buffer = rest[length:]
                body = bytes(rest[:length])
                asyncio.get_running_loop().call_later(delay, self.send, body)

        def send(self, body: bytes) -> None:
            if not self.transport.is_closing():
                self.transport.write(answer(body))

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(main())


# ---- the clients: each is made, then called twice ------------------------------------------


def nimbed_sync(url: str) -> Callable[[list[str]], Any]:
    from nimbed.remote.embedder import RemoteEmbedder

    embedder = RemoteEmbedder(MODEL, base_url=url, dialect="nim")
    return lambda texts: embedder.embed(texts, input_type="passage").vectors


def nimbed_async(url: str) -> Callable[[list[str]], Any]:
    from nimbed.remote.embedder import RemoteEmbedder

    embedder = RemoteEmbedder(MODEL, base_url=url, dialect="nim")
    return lambda texts: asyncio.run(embedder.aembed(texts, input_type="passage")).vectors


def sketch(url: str, in_flight: int) -> Callable[[list[str]], Any]:
    """httpx as bare as it gets: no check of anything."""
    import httpx
    import numpy as np

    async def run(texts: list[str]) -> Any:
        out = np.empty((len(texts), DIMENSIONS), np.float32)
        starts = iter(range(0, len(texts), PER_REQUEST))
        limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)

        async def work(client: httpx.AsyncClient) -> None:
            for start in starts:
                body = {
                    "model": MODEL,
                    "input": texts[start : start + PER_REQUEST],
                    "input_type": "passage",
                    "encoding_format": "base64",
                }
                reply = await client.post(f"{url}/embeddings", json=body)
                for item in json.loads(reply.content)["data"]:
                    raw = base64.b64decode(item["embedding"])
                    out[start + item["index"]] = np.frombuffer(raw, "<f4")

        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            await asyncio.gather(*[work(client) for _ in range(in_flight)])
        return out

    return lambda texts: asyncio.run(run(texts))


def openai_async(url: str) -> Callable[[list[str]], Any]:
    import numpy as np
    from openai import AsyncOpenAI

    async def run(texts: list[str]) -> Any:
        gate = asyncio.Semaphore(16)
        async with AsyncOpenAI(base_url=url, api_key="none") as client:

            async def one(start: int) -> list[list[float]]:
                async with gate:
                    answer = await client.embeddings.create(
                        model=MODEL,
                        input=texts[start : start + PER_REQUEST],
                        extra_body={"input_type": "passage"},
                    )
                return [item.embedding for item in answer.data]

            parts = await asyncio.gather(*[one(n) for n in range(0, len(texts), PER_REQUEST)])
        return np.array([row for part in parts for row in part], np.float32)

    return lambda texts: asyncio.run(run(texts))


def langchain(url: str) -> Callable[[list[str]], Any]:
    from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings

    client = NVIDIAEmbeddings(base_url=url, model=MODEL, nvidia_api_key="none")
    return client.embed_documents


CLIENTS: dict[str, Callable[[str], Callable[[list[str]], Any]]] = {
    "nimbed, sync": nimbed_sync,
    "nimbed, async": nimbed_async,
    "httpx sketch, 8 in flight": lambda url: sketch(url, 8),
    "httpx sketch, 32 in flight": lambda url: sketch(url, 32),
    "openai-python async, 16 in flight": openai_async,
    "langchain-nvidia": langchain,
}


def run_client(name: str, url: str) -> None:
    """Print what one client needed, once it is warm."""
    began = time.perf_counter()
    embed = CLIENTS[name](url)
    ready = time.perf_counter() - began
    embed(TEXTS[: PER_REQUEST * 8])
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    made = embed(TEXTS)
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    import numpy as np

    np.testing.assert_allclose(made, vectors()[np.arange(PASSAGES) & 255], atol=1e-6)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    result = {
        "rate": PASSAGES / seconds,
        "cpu": cpu / PASSAGES * 1e6,
        "memory": (after.ru_maxrss - before.ru_maxrss) / 1024,
        "ready": ready,
        "threads": threading.active_count(),
    }
    print(json.dumps(result))


def checkout(path: Path) -> dict[str, str]:
    """The environment in which a checkout's nimbed is imported."""
    return {**os.environ, "PYTHONPATH": f"{path / 'engine'}{os.pathsep}{path / 'integrations'}"}


def runs_of(against: Path | None) -> dict[str, tuple[str, dict[str, str]]]:
    """The clients to measure, by the names of their rows, each with its environment."""
    if against is None:
        return {name: (name, dict(os.environ)) for name in CLIENTS}
    trees = {"": Path(__file__).parents[2], f" of {against.name}": against}
    return {
        f"{name}{suffix}": (name, checkout(path))
        for name in ("nimbed, sync", "nimbed, async")
        for suffix, path in trees.items()
    }


def run_all(rounds: int, delays: list[float], against: Path | None) -> None:
    runs = runs_of(against)
    measured: dict[tuple[str, float], list[dict[str, float]]] = {}
    for delay in delays:
        command = [sys.executable, __file__, "--serve", str(delay)]
        stub = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert stub.stdout is not None
        url = f"http://127.0.0.1:{stub.stdout.readline().strip()}/v1"
        try:
            for _ in range(rounds):
                for name, (client, environment) in runs.items():
                    made = subprocess.run(
                        [sys.executable, "-W", "ignore", __file__, "--client", client, url],
                        capture_output=True,
                        text=True,
                        check=True,
                        env=environment,
                    )
                    result = json.loads(made.stdout.splitlines()[-1])
                    measured.setdefault((name, delay), []).append(result)
        finally:
            stub.terminate()
            stub.wait()
    columns = " | ".join(
        f"{delay * 1000:.0f} ms: passages/s | CPU us/passage | growth MB" for delay in delays
    )
    print(f"| client | {columns} |\n|---{'|---' * 3 * len(delays)}|")
    for name in runs:
        cells = []
        for delay in delays:
            for fact, form in (("rate", ",.0f"), ("cpu", ".1f"), ("memory", ".0f")):
                median = statistics.median(run[fact] for run in measured[name, delay])
                cells.append(format(median, form))
        print(f"| {name} | {' | '.join(cells)} |")
    code = (
        "import time; t = time.perf_counter(); import nimbed\n"
        "from nimbed.remote.embedder import RemoteEmbedder\n"
        f"RemoteEmbedder({MODEL!r}, base_url='http://localhost')\n"
        "print(time.perf_counter() - t)"
    )
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout)
        for _ in range(7)
    ]
    print(f"\nimport nimbed and a ready remote embedder: {statistics.median(times):.3f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=float, metavar="SECONDS")
    parser.add_argument("--client", nargs=2, metavar=("NAME", "URL"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--delays", type=float, nargs="+", default=[0.0, 0.05])
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
    elif given.client:
        run_client(*given.client)
    else:
        run_all(given.rounds, given.delays, given.against)
