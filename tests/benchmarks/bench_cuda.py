"""Everything that only a GPU shows, in one run: throughput, share of the peak, latency, sharing.

Run: python tests/benchmarks/bench_cuda.py [--quick] [--only minilm llama-1b ...] [--tokenizer FILE]

Prints Markdown with the card's name, each row as soon as it is known; a part that fails says so
and the rest goes on. Weights are random in the real shapes, made on the GPU, and the competitor has
the same: transformers with SDPA, sorted by length and padded, which is what sentence-transformers
runs around the same modules. `python -m pytest -m gpu` shows that what is measured here is right.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator
from pathlib import Path

import bench_vl
import numpy as np
import PIL.Image
import torch
from english import of_length, passages, queries
from family_shapes import ON_CUDA, Shape, describe, operations, weights, write
from http_load import drive, request
from padded import Padded

import nimbed
from nimbed.local import engine as engines
from nimbed.local.vision.tiles import Grid, cut, decoders
from nimbed.local.weights import Tensors
from nimbed.options import EmbedOptions
from nimbed.scheduling import Scheduler

ROLE = {"input_type": "passage", "truncate": "END"}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    choices = [*ON_CUDA, "vl", "served"]
    parser.add_argument("--only", nargs="+", choices=choices, default=choices)
    parser.add_argument("--quick", action="store_true", help="one round, fewer texts")
    parser.add_argument("--tokenizer", type=Path, help="MiniLM's tokenizer.json")
    wanted = parser.parse_args()
    say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    highest = peak()
    say(f"8192³ product in bfloat16: {highest / 1e3:.0f} TFLOP/s\n")
    for name in wanted.only:
        with survived(name):
            if name in ON_CUDA:
                measure(name, ON_CUDA[name], wanted.quick, wanted.tokenizer, highest)
            elif name == "vl":
                show_pages(wanted.tokenizer, 32 if wanted.quick else 64)
            else:
                served(ON_CUDA["minilm"], wanted.tokenizer)
        torch.cuda.empty_cache()


def measure(name: str, shape: Shape, quick: bool, tokenizer: Path | None, highest: float) -> None:
    """Measure one shape in each of its dtypes."""
    begin = time.perf_counter()
    count = shape.texts // 2 if quick else shape.texts
    rounds = 2 if quick else 3
    mixed = {n: passages(count, seed=1000 + n) for n in range(-1, rounds)}
    long = of_length(max(512, count // 8), 512, seed=5)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        describe(folder, shape, tokenizer=tokenizer)
        made = weights(shape, torch.bfloat16, "cuda")
        say(f"### {name}: {count} texts a round, weights in {time.perf_counter() - begin:.1f} s\n")
        rates: dict[str, float] = {}
        for dtype in shape.dtypes:
            ours = nimbed.load(str(folder), device="cuda", dtype=dtype)
            begin = time.perf_counter()
            with tensors_of(made):
                ours.warmup()
            say(f"{dtype}: loaded and warm in {time.perf_counter() - begin:.1f} s")
            ours.embed(mixed[-1], **ROLE)
            rates[dtype] = rate = best(lambda n, e=ours: e.embed(mixed[n], **ROLE), rounds)
            row(name, dtype, "mixed lengths", rate, shape, highest)
            whole = best(lambda n, e=ours: e.embed(long, **ROLE), 2)
            row(name, dtype, "512 tokens", whole, shape, highest)
            with survived("ids ready"):
                for what, texts in (("mixed lengths", mixed[0]), ("512 tokens", long)):
                    ready = device_alone(ours, texts)
                    row(name, dtype, f"{what}, ids ready", ready, shape, highest)
            with survived("latency"):
                say(f"{name} {dtype}, one query of 10 tokens: {latency(ours)}")
            if dtype == "bfloat16":
                with survived("sharing"):
                    say(f"{name}: {sharing(ours)}")
                with survived("profile"):
                    if name in ("llama-1b", "minilm"):
                        seen = (long if name == "llama-1b" else mixed[0])[:256]
                        profile(lambda s=seen, e=ours: e.embed(s, **ROLE))
                with survived("competitor"):
                    compete(name, shape, made, folder, mixed, rates["bfloat16"], ours)
            else:
                with survived("float8 agreement"):
                    float8_agreement(folder, made, ours, mixed[0][:512])
            ours.close()
            del ours
            say("")
        if "float8" in rates:
            say(f"float8 is {rates['float8'] / rates['bfloat16']:.2f} times bfloat16\n")


def show_pages(tokenizer: Path | None, count: int, rounds: int = 2) -> None:
    """Print pages/s of the VL model against transformers, images cut by Pillow on both sides."""
    words = bench_vl.marked(tokenizer)
    config = bench_vl.settings(16, words, tower_layers=27)
    shown = {n: bench_vl.pages(count, seed=n + 1000) for n in range(-1, rounds)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bench_vl.describe(folder, config, words)
        made = bench_vl.weights(config, device="cuda")
        ours = nimbed.load(str(folder), device="cuda", dtype="bfloat16")
        with tensors_of(made):
            ours.warmup()
        theirs = bench_vl.Composed(folder, torch.bfloat16, made, "cuda")
        del made

        def embed(images: list[PIL.Image.Image]) -> np.ndarray:
            return ours.embed([nimbed.Image(one) for one in images], input_type="passage").vectors

        agreement = (embed(shown[-1][:4]) * theirs(shown[-1][:4], 7)).sum(1).min()
        say(f"### vl: {count} pages of 7 tiles a round, cosine at least {agreement:.5f}\n")
        jobs = {"nimbed": lambda n: embed(shown[n])}
        for tiles in (7, 28):
            jobs[f"transformers, {tiles} tiles at a time"] = lambda n, t=tiles: theirs(shown[n], t)
        spent: dict[str, float] = {}
        for name, job in jobs.items():
            job(-1)
            spent[name] = statistics.median(timed(lambda n=n, j=job: j(n)) for n in range(rounds))
            rate, ratio = count / spent[name], spent[name] / spent["nimbed"]
            say(f"| vl bfloat16 | {name} | {rate:.1f} pages/s | nimbed {ratio:.2f}x |")
        cutting = timed(lambda: list(decoders().map(cut_page, shown[0])))
        say(f"| vl | Pillow alone, all cores | {count / cutting:.1f} pages/s |\n")
        with survived("profile"):
            fresh = bench_vl.pages(8, seed=1)
            profile(lambda: embed(fresh))
        ours.close()


def cut_page(page: PIL.Image.Image) -> None:
    """Do what is done to a page before the GPU sees it."""
    columns, rows = bench_vl.GRID
    cut(nimbed.Image(page), Grid(columns, rows, thumbnail=True), bench_vl.SIDE)


def served(shape: Shape, tokenizer: Path | None) -> None:
    """Print inputs/s over HTTP at 128 connections, by one process and by several of gunicorn's."""
    from bench_server import started

    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary), shape, tokenizer=tokenizer)
        words = ["serve", "--port", "PORT", "--model", temporary, "--device", "cuda"]
        words += ["--dtype", "bfloat16", "--served-name", "m", "--truncate", "END"]
        words += ["--max-queue", "100000", "--max-queue-tokens", "100000000"]
        texts, asked = passages(16384, seed=21), queries(8192, seed=22)
        loads = (
            ("one query a request", asked, 1),
            ("32 queries a request", asked, 32),
            ("8 passages a request", texts, 8),
            ("64 passages a request", texts, 64),
        )
        rates: dict[tuple[str, str], float] = {}
        with started({"nimbed": [sys.executable, "-m", "nimbed_cli.main", *words]}) as servers:
            for what, inputs, each in loads:
                rates[what, "nimbed serve"] = answered(servers["nimbed"].port, inputs, each)
        for workers in (2, 4):
            with survived(f"{workers} processes"), gunicorn(temporary, workers) as port:
                for what, inputs, each in loads:
                    rates[what, f"{workers} processes"] = answered(port, inputs, each)
        say("### served over HTTP, MiniLM, 128 connections\n")
        with nimbed.load(temporary, device="cuda", dtype="bfloat16") as embedder:
            embedder.warmup()
            for (what, how), rate in rates.items():
                inputs = asked if "quer" in what else texts
                own = len(inputs) / min(
                    timed(lambda i=inputs: embedder.embed(i, **ROLE)) for _ in range(3)
                )
                say(f"| {what} | {how} | {rate:,.0f} inputs/s | {rate / own:.2f} of embed |")


@contextlib.contextmanager
def gunicorn(folder: str, workers: int) -> Generator[int]:
    """Run so many processes, each with a copy of the model; yield their port once all answer."""
    from bench_server import free_port, wait_until_ready

    port, here = free_port(), Path(__file__).parent
    words = [sys.executable, "-m", "gunicorn", "on_cuda:app", "--workers", str(workers)]
    words += ["--worker-class", "uvicorn_worker.UvicornWorker", "--bind", f"127.0.0.1:{port}"]
    path = os.pathsep.join([str(here / "servers"), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "BENCHMARK_FOLDER": folder, "PYTHONPATH": path}
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until_ready("gunicorn", port)
        time.sleep(3 + workers)  # one has answered, and the others began with it
        yield port
    finally:
        process.terminate()
        process.wait()


def answered(port: int, inputs: list[str], each: int) -> float:
    """Return inputs/s, so many a request."""
    common = {"model": "m", "input_type": "passage", "encoding_format": "base64"}
    bodies = [
        request(json.dumps({**common, "input": inputs[n : n + each]}).encode())
        for n in range(0, len(inputs), each)
    ]
    for seconds in (1.0, 2.0):  # the first warms up
        load = asyncio.run(drive(port, bodies, connections=128, seconds=seconds))
    assert set(load.statuses) == {200}, set(load.statuses)
    return load.rate * each


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


@contextlib.contextmanager
def survived(part: str) -> Generator[None]:
    """Go on when a part fails."""
    try:
        yield
    except Exception:
        say(f"**{part} failed**\n```\n{traceback.format_exc(limit=-6)}```")
        torch.cuda.empty_cache()


@contextlib.contextmanager
def tensors_of(made: dict[str, torch.Tensor]) -> Generator[None]:
    """Let the engine find weights that lie on the GPU already, where it would read a file."""

    def read(name: str) -> torch.Tensor:
        tensor = made[name]
        return tensor.cpu() if "latent_attention" in name else tensor  # folded on the CPU

    real = engines.open_tensors
    engines.open_tensors = lambda folder: contextlib.nullcontext(  # type: ignore[assignment]
        Tensors(made, read, folder=folder)
    )
    try:
        yield
    finally:
        engines.open_tensors = real


def best(job: Callable[[int], nimbed.EmbeddingBatch], rounds: int) -> float:
    """Return the median tokens/s of a job over rounds."""
    rates = []
    for number in range(rounds):
        begin = time.perf_counter()
        batch = job(number)
        rates.append(int(batch.token_counts.sum()) / (time.perf_counter() - begin))
    return statistics.median(rates)


def row(name: str, dtype: str, what: str, rate: float, shape: Shape, highest: float) -> None:
    """Print a rate, and the share of the peak that the layers' products alone come to."""
    share = rate * operations(shape) / 1e9 / highest
    say(f"| {name} {dtype} | {what} | {rate:,.0f} tokens/s | {share:.2f} of the bfloat16 peak |")


def peak(*, side: int = 8192, runs: int = 20) -> float:
    """Return GFLOP/s of a square bfloat16 product."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(runs):
        a @ b
    end.record()
    end.synchronize()
    return 2 * side**3 * runs / (begin.elapsed_time(end) / 1e3) / 1e9


def device_alone(embedder: nimbed.LocalEmbedder, texts: list[str]) -> float:
    """Return tokens/s with the ids ready."""
    rows = embedder.prepare(texts, EmbedOptions(**ROLE)).rows
    ids = [np.asarray(ids) for ids, _ in rows]
    engine = embedder.replicas()[0]
    out = np.empty((len(ids), embedder.card.dimensions), np.float32)
    spent = []
    for _ in range(3):
        begin = time.perf_counter()
        engine.run(ids, out, lambda rows: None)
        spent.append(time.perf_counter() - begin)
    return sum(map(len, ids)) / statistics.median(spent)


def latency(embedder: nimbed.LocalEmbedder, calls: int = 200) -> str:
    """Return milliseconds of one query of 10 tokens."""
    spent = []
    for number, query in enumerate(of_length(calls + 20, 10, seed=7)):
        begin = time.perf_counter()
        embedder.embed([query], input_type="query")
        if number >= 20:
            spent.append((time.perf_counter() - begin) * 1e3)
    p99 = statistics.quantiles(spent, n=100)[98]
    return f"p50 {statistics.median(spent):.2f}, p99 {p99:.2f} ms"


def sharing(embedder: nimbed.LocalEmbedder, callers: int = 1000, each: int = 8) -> str:
    """Return how 1,000 callers of one query at a time compare with one call of them all."""
    texts = queries(callers * each, seed=11)
    one = min(timed(lambda: embedder.embed(texts, input_type="query")) for _ in range(3))
    with Scheduler(embedder, max_queue_items=10**6) as shared:

        async def ask(number: int) -> None:
            for text in texts[number::callers]:
                await shared.asubmit([text], input_type="query")

        async def everyone() -> None:
            await asyncio.gather(*(ask(number) for number in range(callers)))

        many = min(timed(lambda: asyncio.run(everyone())) for _ in range(3))
    bare = min(timed(lambda: asyncio.run(nothing(callers, each))) for _ in range(3))
    shared_rate, alone = len(texts) / many, len(texts) / one
    return (
        f"{callers} callers {shared_rate:,.0f} queries/s, one call {alone:,.0f}: {one / many:.2f}; "
        f"asyncio with nothing to do {len(texts) / bare:,.0f}"
    )


async def nothing(callers: int, each: int) -> None:
    """Await as many futures as callers of a scheduler do, answered in the loop's next turn."""
    loop, waiting = asyncio.get_running_loop(), list[asyncio.Future[None]]()

    def answer() -> None:
        for future in waiting:
            future.set_result(None)
        waiting.clear()

    async def ask() -> None:
        for _ in range(each):
            future = loop.create_future()
            waiting.append(future)
            if len(waiting) == 1:
                loop.call_soon(answer)
            await future

    await asyncio.gather(*(ask() for _ in range(callers)))


def timed(job: Callable[[], object]) -> float:
    """Return seconds."""
    begin = time.perf_counter()
    job()
    return time.perf_counter() - begin


def profile(job: Callable[[], object]) -> None:
    """Print where a call's time goes on the device."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        job()
    table = seen.key_averages().table(
        sort_by="self_device_time_total", row_limit=15, max_name_column_width=60
    )
    for line in table.splitlines():
        cells = line.split("  ")
        if len(line) > 60:
            kept = [cell.strip() for cell in cells if cell.strip()]
            say("    " + " | ".join([kept[0][:60], *kept[-5:]]))


def compete(
    name: str,
    shape: Shape,
    made: dict[str, torch.Tensor],
    folder: Path,
    mixed: dict[int, list[str]],
    rate: float,
    ours: nimbed.LocalEmbedder,
) -> None:
    """Print how the same work goes through transformers."""
    theirs = Padded(folder, shape, torch.bfloat16, "cuda", weights=made)
    sample = [mixed[0][0][:400], "short", mixed[0][1][:1000]]
    agreement = (ours.embed(sample, **ROLE).vectors * theirs(sample, 1)).sum(1).min()
    say(f"{name}: cosine to transformers at least {agreement:.5f}")
    texts = mixed[0][: max(512, len(mixed[0]) // 4)]
    tokens = theirs.count(texts)
    for batch in shape.batches:
        with survived(f"transformers at {batch}"):
            theirs(texts[:batch], batch)
            own = tokens / timed(lambda b=batch: theirs(texts, b))
            say(f"| {name} transformers-{batch} | {own:,.0f} tokens/s | nimbed {rate / own:.2f}x |")


def float8_agreement(
    folder: Path, made: dict[str, torch.Tensor], ours: nimbed.LocalEmbedder, texts: list[str]
) -> None:
    """Print how close float8 comes to bfloat16 on random weights, the harder kind."""
    plain = nimbed.load(str(folder), device="cuda", dtype="bfloat16")
    with tensors_of(made):
        cosine = (ours.embed(texts, **ROLE).vectors * plain.embed(texts, **ROLE).vectors).sum(1)
    say(f"float8 against bfloat16: cosine {cosine.mean():.5f}, least {cosine.min():.5f}")
    plain.close()


if __name__ == "__main__":
    main()
