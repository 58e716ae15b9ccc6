"""Every family's shape against transformers on this machine's CPU, random weights.

Run: python tests/benchmarks/bench_families.py [--shapes e5-large llama-1b nvembed vl] [--rounds 2]
    [--layers N] [--shared]

The competitor is transformers with SDPA on the same weights and the same token ids, sorted by
length and padded, at every batch size; the table compares with its best.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from english import passages
from family_shapes import ON_CPU, Shape, operations, write
from measure import interleave, median_ratio, product_peak
from padded import Padded

import nimbed

ROLE = {"input_type": "passage", "truncate": "END"}


def texts_of(shape: Shape, seed: int) -> list[str]:
    """Return one round's texts."""
    parts = passages(shape.texts * shape.join, seed=seed)
    return [" ".join(parts[n :: shape.texts]) for n in range(shape.texts)]


def measure(
    name: str,
    shape: Shape,
    rounds: int,
    device: str,
    peak: Callable[..., float],
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Print one table.

    Args:
        name: What it is called.
        shape: What is measured.
        rounds: How many, after one that warms up.
        device: Of both sides.
        peak: Gives GFLOP/s of a matrix product in a dtype.
        clock: Of the rounds.
    """
    texts = {n: texts_of(shape, 1000 + n) for n in range(rounds)}
    texts[-1] = texts[0] if device == "cuda" else texts[0][:2]
    jobs: dict[str, Callable[[int], object]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, shape)
        for dtype in shape.dtypes:
            ours = nimbed.load(str(folder), device=device, dtype=dtype)
            theirs = Padded(folder, shape, getattr(torch, dtype), device)
            sample = [texts[0][0][:400], "short"]
            agreement = (ours.embed(sample, **ROLE).vectors * theirs(sample, 1)).sum(1).min()
            print(f"{name} {dtype}: cosine between the two at least {agreement:.5f}", flush=True)
            jobs[f"nimbed {dtype}"] = lambda n, e=ours: e.embed(texts[n], **ROLE)
            for batch in shape.batches:
                jobs[f"transformers-{batch} {dtype}"] = lambda n, t=theirs, b=batch: t(texts[n], b)
        counts = [theirs.count(texts[n]) for n in range(rounds)]
        seconds = interleave(jobs, rounds=rounds, clock=clock)
    each = sum(counts) / rounds / shape.texts
    print(f"\n### {name}: {shape.texts} texts, {each:.0f} tokens each\n")
    print("| engine | tokens/s | nimbed against it | of peak |\n|---|---|---|---|")
    for dtype in shape.dtypes:
        most = peak(getattr(torch, dtype))
        for job, spent in seconds.items():
            if job.endswith(f" {dtype}"):
                rate = statistics.median(c / s for c, s in zip(counts, spent, strict=True))
                ratio = median_ratio(spent, seconds[f"nimbed {dtype}"])
                share = rate * operations(shape) / 1e9 / most
                print(f"| {job} | {rate:,.0f} | {ratio:.2f} | {share:.2f} |", flush=True)
        print(f"| {dtype} peak: {most:.0f} GFLOP/s | | | |")


def main() -> None:
    """Run the shapes that were asked for and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=list(ON_CPU), default=list(ON_CPU))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--shared",
        action="store_true",
        help="count processor time on one thread, for a machine that others use; no peak is fair",
    )
    parser.add_argument("--layers", type=int, help="as many of the shape's; all if left out")
    wanted = parser.parse_args()
    if wanted.shared:
        torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in wanted.shapes:
        shape = ON_CPU[name]
        if wanted.layers:
            config = {**shape.config, "num_hidden_layers": wanted.layers}
            shape = dataclasses.replace(shape, config=config)
        measure(
            *(name, shape, wanted.rounds, "cpu"),
            lambda dtype: product_peak(dtype)["prepacked"],
            time.process_time if wanted.shared else time.perf_counter,
        )


if __name__ == "__main__":
    main()
