"""Every family's shape against transformers on this machine's CPU, random weights.

Run: python tests/benchmarks/bench_families.py [--shapes e5-large llama-1b nvembed vl] [--rounds 2]
    [--layers N] [--shared]

The competitor is transformers with SDPA on the same weights and the same token ids, sorted by
length and padded, at every batch size; the table compares with its best. Each has a process of its
own.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from english import passages
from family_shapes import ON_CPU, Shape, operations, write
from measure import median_ratio, product_peak
from padded import Padded
from turns import in_turn, take_turns

import nimbed

ROLE = {"input_type": "passage", "truncate": "END"}


def texts_of(shape: Shape, seed: int) -> list[str]:
    """Return one round's texts."""
    parts = passages(shape.texts * shape.join, seed=seed)
    return [" ".join(parts[n :: shape.texts]) for n in range(shape.texts)]


def contender(name: str, folder: Path, shape: Shape, shared: bool) -> Callable[[Any], Any]:
    """Return what embeds a turn's texts at a batch size and tells the seconds, or the vectors."""
    engine, dtype = name.split()
    if engine == "nimbed":
        ours = nimbed.load(str(folder), device="cpu", dtype=dtype)
    else:
        theirs = Padded(folder, shape, getattr(torch, dtype), "cpu")
    clock = time.process_time if shared else time.perf_counter

    def turn(work: tuple[str, list[str], int]) -> Any:
        wanted, texts, batch = work
        if wanted == "count":
            return theirs.count(texts)
        begin = clock()
        vectors = ours.embed(texts, **ROLE).vectors if engine == "nimbed" else theirs(texts, batch)
        return np.asarray(vectors).tolist() if wanted == "vectors" else clock() - begin

    return turn


def measure(name: str, shape: Shape, wanted: argparse.Namespace) -> None:
    """Print one table."""
    rounds = wanted.rounds
    texts = {n: texts_of(shape, 1000 + n) for n in range(rounds)}
    texts[-1] = texts[0][:2]
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), shape)
        both = [f"{engine} {dtype}" for dtype in shape.dtypes for engine in ("nimbed", "hf")]
        options = ["--shapes", name, "--folder", folder]
        options += ["--layers", str(wanted.layers)] if wanted.layers else []
        options += ["--shared"] if wanted.shared else []
        with in_turn(both, __file__, *options) as turns:
            sample = ("vectors", [texts[0][0][:400], "short"], 1)
            for dtype in shape.dtypes:
                a, b = (np.array(turns[f"{engine} {dtype}"](sample)) for engine in ("nimbed", "hf"))
                least = (a * b).sum(1).min()
                print(f"{name} {dtype}: cosine between the two at least {least:.5f}", flush=True)
            counter = turns[both[-1]]
            counts = [counter(("count", texts[n], 1)) for n in range(rounds)]
            for n in range(-1, rounds):
                for each, turn in turns.items():
                    engine, dtype = each.split()
                    for batch in (0,) if engine == "nimbed" else shape.batches:
                        job = each if not batch else f"transformers-{batch} {dtype}"
                        spent = turn(("seconds", texts[n], batch))
                        seconds.setdefault(job, []).extend([spent] if n >= 0 else [])
    average = sum(counts) / rounds / shape.texts
    print(f"\n### {name}: {shape.texts} texts, {average:.0f} tokens each\n")
    print("| engine | tokens/s | nimbed against it | of peak |\n|---|---|---|---|")
    for dtype in shape.dtypes:
        most = product_peak(getattr(torch, dtype))["prepacked"]
        for job, taken in seconds.items():
            if job.endswith(f" {dtype}"):
                rate = statistics.median(c / s for c, s in zip(counts, taken, strict=True))
                ratio = median_ratio(taken, seconds[f"nimbed {dtype}"])
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
    parser.add_argument("--turns-of", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.shared:
        torch.set_num_threads(1)
    if not wanted.turns_of:
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in wanted.shapes:
        shape = ON_CPU[name]
        if wanted.layers:
            config = {**shape.config, "num_hidden_layers": wanted.layers}
            shape = dataclasses.replace(shape, config=config)
        if wanted.turns_of:
            take_turns(contender(wanted.turns_of, wanted.folder, shape, wanted.shared))
            return
        measure(name, shape, wanted)


if __name__ == "__main__":
    main()
