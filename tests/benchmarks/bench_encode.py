"""MiniLM against sentence-transformers (and OpenVINO, where installed), on this machine's CPU.

Run: python tests/benchmarks/bench_encode.py [--rounds 5] [--passages 256] [--queries 1024]

Every engine gets the same texts in the same round; the table shows medians over the rounds.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable

import numpy as np
import tokenizers
import torch
import transformers
from english import passages, queries
from measure import interleave, median_ratio, product_peak
from sentence_transformers import SentenceTransformer

import nimbed
from nimbed.local.hub import locate

# Multiply-adds a token in MiniLM's matrix products: 6 layers of 12 · 384² weights.
FLOPS_A_TOKEN = 2 * 6 * 12 * 384**2
BATCHES = (8, 16, 32, 64)


def competitors(dtype: torch.dtype) -> dict[str, Callable[[list[str]], np.ndarray]]:
    """Return the engines that run in this dtype."""
    name = str(dtype).removeprefix("torch.")
    folder = str(locate(None).folder)
    ours = nimbed.load(dtype=name)
    theirs = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": dtype})
    jobs: dict[str, Callable[[list[str]], np.ndarray]] = {
        "nimbed": lambda texts: ours.embed(texts, input_type="passage", truncate="END").vectors
    }
    for size in BATCHES:
        jobs[f"st-{size}"] = lambda texts, size=size: theirs.encode(
            texts, batch_size=size, normalize_embeddings=True
        )
    if (rival := openvino_encoder(name)) is not None:
        jobs["openvino-8"] = rival
    return jobs


def openvino_encoder(name: str, batch: int = 8) -> Callable[[list[str]], np.ndarray] | None:
    """Return MiniLM under OpenVINO at its latency-best batch size, or None if not installed."""
    try:
        import openvino
    except ImportError:
        return None
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
    hint = {"float32": "f32", "bfloat16": "bf16"}[name]
    compiled = openvino.compile_model(
        converted, "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    )

    def encode(texts: list[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        out = np.empty((len(texts), 384), np.float32)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            encoded = tokenizer.encode_batch_fast([texts[row] for row in rows])
            mask = np.array([one.attention_mask for one in encoded], np.int64)
            ids = np.array([one.ids for one in encoded], np.int64)
            states = next(iter(compiled({"input_ids": ids, "attention_mask": mask}).values()))
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            out[rows] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return out

    return encode


def throughput(title: str, make: Callable[..., list[str]], count: int, rounds: int) -> None:
    """Print tokens a second of every engine and dtype over fresh texts each round."""
    counter = nimbed.load(dtype="float32")
    texts = {n: make(count, seed=n + 1000) for n in range(-1, rounds)}
    tokens = [
        int(counter.embed(texts[n], input_type="passage", truncate="END").token_counts.sum())
        for n in range(rounds)
    ]
    jobs = {
        f"{engine} {name}": lambda n, embed=embed: embed(texts[n])
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        for engine, embed in competitors(dtype).items()
    }
    seconds = interleave(jobs, rounds=rounds)
    base = seconds["st-32 float32"]
    best = {
        name: min(
            (f"st-{size} {name}" for size in BATCHES),
            key=lambda key: statistics.median(seconds[key]),
        )
        for name in ("float32", "bfloat16")
    }
    peaks = {
        "float32": product_peak(torch.float32),
        "bfloat16": product_peak(torch.bfloat16),
    }
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


def latency(rounds: int) -> None:
    """Print milliseconds for one query at a time."""
    texts = queries(40, seed=7)
    jobs: dict[str, Callable[[int], object]] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        for engine, embed in competitors(dtype).items():
            if engine in ("nimbed", "st-32"):
                jobs[f"{engine} {name}"] = lambda _, embed=embed: [embed([t]) for t in texts]
    seconds = interleave(jobs, rounds=rounds)
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
    wanted = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    throughput("Passages", passages, wanted.passages, wanted.rounds)
    throughput("Queries", queries, wanted.queries, wanted.rounds)
    latency(wanted.rounds)


if __name__ == "__main__":
    main()
