"""Ray Data against one process with the same threads, and how it grows with its actors.

    python tests/benchmarks/bench_ray.py [cost] [scaling] [parts]
        [--rows 20000] [--words 12] [--rounds 1]

``cost``: MiniLM on texts of so many words; one process with a thread a core, and Ray Data with an
actor of one thread a core. ``whole`` is everything from no model in memory to the last vector, the
start of the actors too but not the cluster's; ``steady`` the rate once every actor computes: actors
start once, a corpus is long. Workers of Ray run at nice 15; here at 0, or on a machine that does
something else too they would get less of it than the one process.
``scaling``: a stub that waits as one waits for a GPU, 0.25 s for 512 texts; 24 batches an actor.
``parts``: the same stub, into checkpointed parts, and the run after it that finds them all.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import english
import pyarrow as pa
import ray
import ray.data
from noted_embedder import Noted, Waiting, steady

import nimbed
from nimbed.embedder import Embedder
from nimbed_ray import EmbedTexts, embed_dataset, embed_into_parts
from nimbed_ray.cluster import connected
from nimbed_ray.embed_texts import limit_threads

BATCH = 512
BATCHES = 24


def table(texts: list[str]) -> Any:
    return pa.table({"id": list(range(len(texts))), "text": texts})


def alone(texts: list[str], notes: Path, threads: int) -> float:
    limit_threads(threads)
    embed = EmbedTexts(Noted(notes, nimbed.load), input_type="passage")
    begin, given = time.perf_counter(), table(texts)
    for start in range(0, len(texts), BATCH):
        embed(given.slice(start, BATCH))
    return time.perf_counter() - begin


def on_ray(texts: list[str], notes: Path, make: Callable[[], Embedder], actors: int) -> float:
    dataset = ray.data.from_arrow(
        [table(texts).slice(start, BATCH) for start in range(0, len(texts), BATCH)]
    )
    embed = EmbedTexts(Noted(notes, make), input_type="passage")
    begin = time.perf_counter()
    made = embed_dataset(dataset, embed, actors=actors, batch_size=BATCH, gpus=False)
    assert sum(len(batch["id"]) for batch in made.iter_batches(batch_size=None)) == len(texts)
    return time.perf_counter() - begin


def cost(rows: int, words: int, rounds: int, notes: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    whole: dict[str, list[float]] = {"one process": [], "Ray Data": []}
    rates: dict[str, list[float]] = {"one process": [], "Ray Data": []}
    for number in range(rounds):
        texts = [" ".join(text.split()[:words]) for text in english.passages(rows, seed=number)]
        whole["one process"].append(alone(texts, notes, cores))
        rates["one process"].append(steady(notes, processes=1))
        print(f"one process: {whole['one process'][-1]:.1f} s", flush=True)
        os.environ.update(RAY_worker_niceness="0")
        with connected(None):
            whole["Ray Data"].append(on_ray(texts, notes, nimbed.load, cores))
            rates["Ray Data"].append(steady(notes, processes=cores))
        print(f"Ray Data: {whole['Ray Data'][-1]:.1f} s", flush=True)
    print(f"| {rows:,} texts of {words} words, MiniLM, {cores} cores | whole s | steady texts/s |")
    print("|---|---|---|")
    for name in whole:
        print(
            f"| {name} | {statistics.median(whole[name]):.1f} "
            f"| {statistics.median(rates[name]):.0f} |"
        )
    for name, ratio in (
        ("whole", [ray_ / one for one, ray_ in zip(*whole.values(), strict=True)]),
        ("steady", [one / ray_ for one, ray_ in zip(*rates.values(), strict=True)]),
    ):
        print(f"{name}: Ray costs {100 * (statistics.median(ratio) - 1):+.1f} % (wanted <= 15 %)")


def scaling(notes: Path) -> None:
    """Pretend that the machine has a CPU for every actor: the stub needs none."""
    print("| actors | texts/s | of the rate of one, per actor |")
    print("|---|---|---|")
    first = 0.0
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.init(num_cpus=9, include_dashboard=False, log_to_driver=False, logging_level="warning")
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        for actors in (1, 2, 4, 8):
            texts = [f"text {number}" for number in range(actors * BATCHES * BATCH)]
            on_ray(texts, notes, functools.partial(Waiting, 0.25), actors)
            rate = steady(notes, processes=actors)
            first = first or rate
            print(f"| {actors} | {rate:,.0f} | {rate / actors / first:.3f} |")
    finally:
        ray.shutdown()


def parts(rows: int, notes: Path) -> None:
    texts = [f"text {number}" for number in range(rows)]
    embed = EmbedTexts(Noted(notes, functools.partial(Waiting, 0.0)), input_type="passage")
    with connected(None), tempfile.TemporaryDirectory() as output:
        for name in ("made", "found"):
            begin = time.perf_counter()
            report = embed_into_parts(
                ray.data.from_arrow(table(texts)), embed, output, rows_per_part=1024, gpus=False
            )
            seconds = time.perf_counter() - begin
            print(f"{report.parts} parts of 1024 x 1024 floats {name} in {seconds:.1f} s")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("jobs", nargs="*", default=["cost", "scaling", "parts"])
    words.add_argument("--rows", type=int, default=20_000)
    words.add_argument("--rounds", type=int, default=1)
    words.add_argument("--words", type=int, default=12)
    typed = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder)
        if "cost" in typed.jobs:
            cost(typed.rows, typed.words, typed.rounds, notes)
        if "scaling" in typed.jobs:
            scaling(notes)
        if "parts" in typed.jobs:
            parts(typed.rows, notes)


if __name__ == "__main__":
    main()
