"""MiniLM against sentence-transformers and OpenVINO, on this machine's CPU.

Run: python tests/benchmarks/bench_encode.py [--rounds 5] [--passages 256] [--queries 1024]

Every engine has a process of its own and gets the same texts in the same round; the tables show
medians over the rounds. OpenVINO is a peer where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from english import passages, queries
from measure import median_ratio, product_peak
from turns import in_turn, take_turns

import nimbed
from nimbed.local.hub import locate

# Multiply-adds a token in MiniLM's matrix products: 6 layers of 12 · 384² weights.
FLOPS_A_TOKEN = 2 * 6 * 12 * 384**2
BATCHES = (8, 16, 32, 64)
DTYPES = ("float32", "bfloat16")

Encode = Callable[[list[str]], object]
Seconds = dict[str, list[float]]
Turns = dict[str, Callable[[tuple[list[str], int]], float]]


def contenders() -> list[str]:
    """Return the engines that are here, by name and dtype."""
    engines = ["nimbed", *(f"st-{size}" for size in BATCHES)]
    if importlib.util.find_spec("openvino") is not None:
        engines.append("openvino-8")
    return [f"{engine} {dtype}" for dtype in DTYPES for engine in engines]


def contender(name: str) -> Callable[[tuple[list[str], int]], float]:
    """Return what embeds a turn's texts, so many in a call, and tells the seconds of it all."""
    engine, dtype = name.split()
    peer, _, size = engine.partition("-")
    encode = {"nimbed": ours, "st": theirs, "openvino": openvinos}[peer](dtype, int(size or 0))

    def turn(work: tuple[list[str], int]) -> float:
        texts, at_once = work
        begin = time.perf_counter()
        for start in range(0, len(texts), at_once):
            encode(texts[start : start + at_once])
        return time.perf_counter() - begin

    return turn


def ours(dtype: str, _: int) -> Encode:
    """Return nimbed, as a user loads it for this dtype."""
    embedder = nimbed.load(dtype=dtype)
    return lambda texts: embedder.embed(texts, input_type="passage", truncate="END")


def theirs(dtype: str, size: int) -> Encode:
    """Return sentence-transformers at a batch size."""
    from sentence_transformers import SentenceTransformer

    folder = str(locate(None).folder)
    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    return lambda texts: model.encode(texts, batch_size=size, normalize_embeddings=True)


def openvinos(dtype: str, size: int) -> Encode:
    """Return MiniLM under OpenVINO, longest texts first."""
    import openvino
    import tokenizers
    import transformers

    folder = locate(None).folder
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    model = transformers.BertModel.from_pretrained(
        folder, add_pooling_layer=False, attn_implementation="sdpa"
    ).eval()
    ids = torch.ones(2, 8, dtype=torch.long)
    with torch.inference_mode():
        converted = openvino.convert_model(
            model, example_input={"input_ids": ids, "attention_mask": ids}
        )
    hint = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    compiled = openvino.compile_model(
        converted, "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    )

    def encode(texts: list[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        out = np.empty((len(texts), 384), np.float32)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            encoded = tokenizer.encode_batch_fast([texts[row] for row in rows])
            mask = np.array([one.attention_mask for one in encoded], np.int64)
            ids = np.array([one.ids for one in encoded], np.int64)
            states = next(iter(compiled({"input_ids": ids, "attention_mask": mask}).values()))
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            out[rows] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return out

    return encode


def timed(turns: Turns, make: Callable[[int], list[str]], rounds: int, at_once: int) -> Seconds:
    """Return the seconds of each contender for each round's texts; the first round warms up."""
    spent: Seconds = {name: [] for name in turns}
    for n in range(-1, rounds):
        texts = make(n)
        for name, turn in turns.items():
            taken = turn((texts, at_once))
            if n >= 0:
                spent[name].append(taken)
    return spent


def throughput(
    title: str, turns: Turns, make: Callable[..., list[str]], count: int, rounds: int
) -> None:
    """Print tokens a second of every engine and dtype over fresh texts each round."""
    with nimbed.load(backend="onnxruntime") as counter:
        tokens = [
            sum(min(each, 256) for each in counter.count_tokens(made, input_type="passage"))
            for made in (make(count, seed=n + 1000) for n in range(rounds))
        ]
    seconds = timed(turns, lambda n: make(count, seed=n + 1000), rounds, count)
    base = seconds["st-32 float32"]
    best = {
        dtype: min(
            (f"st-{size} {dtype}" for size in BATCHES),
            key=lambda key: statistics.median(seconds[key]),
        )
        for dtype in DTYPES
    }
    peaks = {dtype: product_peak(getattr(torch, dtype)) for dtype in DTYPES}
    print(f"\n### {title}: {count} texts, {sum(tokens) / rounds / count:.1f} tokens each\n")
    print(
        "| engine | tokens/s | texts/s | against st-32 float32 | against best st, same dtype |"
        " of plain peak | of prepacked peak |"
    )
    print("|---|---|---|---|---|---|---|")
    for key, spent in seconds.items():
        dtype = key.split()[1]
        rate = statistics.median(t / s for t, s in zip(tokens, spent, strict=True))
        flops = rate * FLOPS_A_TOKEN / 1e9
        print(
            f"| {key} | {rate:,.0f} | {count / statistics.median(spent):,.0f} | "
            f"{median_ratio(base, spent):.2f} | {median_ratio(seconds[best[dtype]], spent):.2f} | "
            f"{flops / peaks[dtype]['plain']:.2f} | {flops / peaks[dtype]['prepacked']:.2f} |"
        )
    for name, peak in peaks.items():
        print(
            f"\n{name} matrix product: plain {peak['plain']:.0f} GFLOP/s, "
            f"prepacked {peak['prepacked']:.0f} GFLOP/s"
        )


def latency(turns: Turns, rounds: int) -> None:
    """Print milliseconds for one query at a time."""
    texts = queries(40, seed=7)
    some = {name: turn for name, turn in turns.items() if name.split()[0] in ("nimbed", "st-32")}
    seconds = timed(some, lambda _: texts, rounds, 1)
    print(f"\n### One query at a time ({len(texts)} queries of 5 to 20 tokens)\n")
    print("| engine | ms a query | of st float32 |")
    print("|---|---|---|")
    for key, spent in seconds.items():
        share = 1 / median_ratio(seconds["st-32 float32"], spent)
        print(f"| {key} | {statistics.median(spent) / len(texts) * 1e3:.2f} | {share:.2f} |")


def main() -> None:
    """Run everything and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passages", type=int, default=192)
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--turns-of", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.turns_of:
        take_turns(contender(wanted.turns_of))
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    with in_turn(contenders(), __file__) as turns:
        throughput("Passages", turns, passages, wanted.passages, wanted.rounds)
        throughput("Queries", turns, queries, wanted.queries, wanted.rounds)
        latency(turns, wanted.rounds)


if __name__ == "__main__":
    main()
