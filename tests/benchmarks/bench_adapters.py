"""What LangChain's and LlamaIndex's adapters add to embed(...), and NVIDIA's adapters beside them.

    python tests/benchmarks/bench_adapters.py [overhead] [remote] [--rounds 5]

``overhead`` splits one call on this machine into embed(...) and what the adapter adds. The texts
are short, so that embed(...) is cheap; cheaper still are a model of one layer, 1024 wide, and
FakeEmbedder, which only hashes.
``remote`` runs each client in a process of its own at the stub of bench_remote.py, interleaved;
it needs langchain-nvidia-ai-endpoints and llama-index-embeddings-nvidia.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_remote
import numpy as np

import nimbed
from nimbed import EmbeddingBatch, FakeEmbedder
from nimbed.embedder import Embedder

KINDS = ("float", "int8", "ubinary")
PASSAGES, DIMENSIONS = bench_remote.PASSAGES, bench_remote.DIMENSIONS


# ---- what an adapter adds -------------------------------------------------------------------


class Timed(FakeEmbedder):
    """Another embedder, and the seconds that its embed took."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder.card)
        self._embedder = embedder
        self.seconds = 0.0

    def spec(self, **options: Any) -> Any:
        return self._embedder.spec(**options)

    def embed(self, inputs: Any, **options: Any) -> EmbeddingBatch:
        began = time.perf_counter()
        batch = self._embedder.embed(inputs, **options)
        self.seconds += time.perf_counter() - began
        return batch


def langchain_call(embedder: Timed, kind: Any) -> Callable[[list[str]], Any]:
    from nimbed_langchain import NimbedEmbeddings

    ours = NimbedEmbeddings.from_embedder(embedder, embedding_type=kind, truncate="END")
    return ours.embed_documents


def llama_index_call(embedder: Timed, kind: Any) -> Callable[[list[str]], Any]:
    from nimbed_llama_index import NimbedEmbedding

    ours = NimbedEmbedding.from_embedder(embedder, embedding_type=kind, truncate="END")
    return ours.get_text_embedding_batch


def llama_index_floor(vectors: list[list[float]]) -> Callable[[list[str]], Any]:
    """LlamaIndex around an adapter that has its lists ready: its events copy every number."""
    from llama_index.core.embeddings import BaseEmbedding

    class Ready(BaseEmbedding):
        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return vectors[: len(texts)]

        def _get_text_embedding(self, text: str) -> list[float]:
            return vectors[0]

        def _get_query_embedding(self, query: str) -> list[float]:
            return vectors[0]

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return vectors[0]

    return Ready(embed_batch_size=2048).get_text_embedding_batch


def wide_model(folder: Path, layers: int) -> Embedder:
    """A random BERT of e5-large's width."""
    from bench_families import BERT, Shape, write

    config = {**BERT, "num_hidden_layers": layers}
    write(folder, Shape(config, texts=0, join=1, dtypes=("float32",), batches=()))
    return nimbed.load(str(folder), dtype="float32")


def split(call: Callable[[list[str]], Any], embedder: Timed, texts: list[str]) -> tuple[float, ...]:
    """Return the seconds of embed(...), and of all the rest, of one call."""
    embedder.seconds = 0.0
    began = time.perf_counter()
    made = call(texts)
    seconds = time.perf_counter() - began
    assert len(made) == len(texts)
    assert type(made[0][0]) is float
    return embedder.seconds, seconds - embedder.seconds


def clocked(job: Callable[[], object]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def overhead(rounds: int) -> None:
    from english import queries

    with tempfile.TemporaryDirectory() as folder:
        card = replace(FakeEmbedder().card, dimensions=DIMENSIONS, matryoshka=(DIMENSIONS,))
        wide = wide_model(Path(folder), 1)
        jobs: list[tuple[str, Embedder, Any, int]] = [
            ("MiniLM, 384 dimensions", nimbed.load(dtype="float32"), "float", 1),
            ("random BERT of 1 layer", wide, "float", min(rounds, 2)),
            *((f"FakeEmbedder, {k}", FakeEmbedder(card), k, rounds) for k in KINDS),
        ]
        texts = queries(PASSAGES, seed=1)  # short ones: the longer the text, the less it shows
        print(f"{PASSAGES:,} queries, {DIMENSIONS} dimensions if not said; seconds, medians")
        print("| embedder | embed(...) | LangChain adds | LlamaIndex adds |\n|---|---|---|---|")
        for name, embedder, kind, times in jobs:
            timed = Timed(embedder)
            timed.embed(texts[:64], input_type="passage", truncate="END")
            calls = [langchain_call(timed, kind), llama_index_call(timed, kind)]
            measured = [[split(call, timed, texts) for call in calls] for _ in range(times)]
            inside = statistics.median(one[0] for each in measured for one in each)
            adds = [statistics.median(each[which][1] for each in measured) for which in (0, 1)]
            cells = [f"{added:.3f} ({added / inside:.2%})" for added in adds]
            print(f"| {name} | {inside:.2f} | {' | '.join(cells)} |", flush=True)

    rows = np.random.default_rng(0).standard_normal((PASSAGES, DIMENSIONS)).astype(np.float32)
    listed: list[list[float]] = rows.tolist()
    floor, texts = llama_index_floor(listed), ["a"] * PASSAGES
    batch = EmbeddingBatch(
        vectors=rows,
        spec=FakeEmbedder(card).spec(),
        input_type="passage",
        token_counts=np.zeros(PASSAGES, np.int32),
    )
    for name, job in (
        ("floats to lists (numpy's tolist)", rows.tolist),
        ("floats to lists (ours)", batch.lists),
        ("LlamaIndex itself, lists given", functools.partial(floor, texts)),
    ):
        seconds = statistics.median(clocked(job) for _ in range(rounds))
        print(f"{name}: {seconds:.3f} s, {seconds / PASSAGES * 1e6:.1f} us a passage")


# ---- beside NVIDIA's, at the stub -----------------------------------------------------------


def langchain_ours(url: str) -> Callable[[list[str]], Any]:
    from nimbed_langchain import NimbedEmbeddings

    ours = NimbedEmbeddings(model=bench_remote.MODEL, base_url=url, dialect="nim")
    return ours.embed_documents


def langchain_ours_async(url: str) -> Callable[[list[str]], Any]:
    from nimbed_langchain import NimbedEmbeddings

    ours = NimbedEmbeddings(model=bench_remote.MODEL, base_url=url, dialect="nim")
    return lambda texts: asyncio.run(ours.aembed_documents(texts))


def langchain_ours_typed(url: str) -> Callable[[list[str]], Any]:
    from nimbed_langchain import NimbedEmbeddings

    ours = NimbedEmbeddings(model=bench_remote.MODEL, base_url=url, dialect="nim")
    return lambda texts: ours.embed_documents_typed(texts).vectors


def llama_index_ours(url: str) -> Callable[[list[str]], Any]:
    from nimbed_llama_index import NimbedEmbedding

    ours = NimbedEmbedding(model_name=bench_remote.MODEL, base_url=url, dialect="nim")
    return ours.get_text_embedding_batch


def llama_index_theirs(url: str, **options: Any) -> Callable[[list[str]], Any]:
    from llama_index.embeddings.nvidia import NVIDIAEmbedding

    theirs = NVIDIAEmbedding(base_url=url, model=bench_remote.MODEL, api_key="none", **options)
    return theirs.get_text_embedding_batch


THEIRS = {"LangChain": "langchain-nvidia", "LlamaIndex": "llama-index-nvidia, as it comes"}
CLIENTS: dict[str, Callable[[str], Callable[[list[str]], Any]]] = {
    "nimbed in LangChain": langchain_ours,
    "nimbed in LangChain, async": langchain_ours_async,
    "nimbed in LangChain, typed": langchain_ours_typed,
    "langchain-nvidia": bench_remote.langchain,
    "nimbed in LlamaIndex": llama_index_ours,
    "llama-index-nvidia, 259 a batch": functools.partial(llama_index_theirs, embed_batch_size=259),
    "llama-index-nvidia, as it comes": llama_index_theirs,
}


def client(name: str, url: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--client", name, url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    measured: dict[str, float] = json.loads(said.splitlines()[-1])
    return measured


def remote(rounds: int, delays: list[float]) -> None:
    for delay in delays:
        command = [sys.executable, bench_remote.__file__, "--serve", str(delay)]
        stub = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert stub.stdout is not None
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in CLIENTS}
        try:
            url = f"http://127.0.0.1:{stub.stdout.readline().strip()}/v1"
            for _ in range(rounds):
                for name, results in measured.items():
                    results.append(client(name, url))
        finally:
            stub.terminate()
            stub.wait()
        print(f"\n{delay * 1000:.0f} ms of latency, {PASSAGES:,} passages, {DIMENSIONS} dimensions")
        print(
            "| client | passages/s | CPU us/passage | of NVIDIA's as it comes |\n|---|---|---|---|"
        )
        for name, results in measured.items():
            rival = measured[THEIRS["LlamaIndex" if "lama" in name.lower() else "LangChain"]]
            rate = statistics.median(each["rate"] for each in results)
            ratio = statistics.median(
                own["rate"] / other["rate"] for own, other in zip(results, rival, strict=True)
            )
            cpu = statistics.median(each["cpu"] for each in results)
            print(f"| {name} | {rate:,.0f} | {cpu:.1f} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=["overhead", "remote", []])
    parser.add_argument("--client", nargs=2, metavar=("NAME", "URL"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--delays", type=float, nargs="+", default=[0.0, 0.05])
    given = parser.parse_args()
    if given.client:
        bench_remote.CLIENTS.update(CLIENTS)
        bench_remote.run_client(*given.client)
        raise SystemExit
    parts = given.parts or ["overhead", "remote"]
    if "overhead" in parts:
        overhead(given.rounds)
    if "remote" in parts:
        remote(given.rounds, given.delays)
