"""MiniLM on ONNX Runtime: `embed` whole against the session alone that other servers run.

Run: python tests/benchmarks/bench_onnx.py [--rounds 9] [--only calls|serve]

The peer is the graph that text-embeddings-inference runs on a CPU, exported by torch and fused by
ONNX Runtime's own optimizer, given padded ids that are ready. Everything takes turns in one run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from english import passages
from measure import interleave

import nimbed
from nimbed.local.hub import locate
from nimbed.local.onnx.session import threads

SHAPES = ((1, 8), (1, 17), (1, 32), (8, 128), (32, 64))
#: Of one query alone and of passages; what the issue asks of `embed` against the session alone.
ASKED = {(1, 8): 0.85, (1, 17): 0.88, (1, 32): 0.9, (8, 128): 0.98, (32, 64): 0.98}


def exported(path: Path) -> None:
    """Write MiniLM as the peer has it: fused attention and norms, with a mask."""
    import torch
    from onnxruntime.transformers import optimizer
    from transformers import BertModel

    model = BertModel.from_pretrained(
        locate(None).folder, attn_implementation="eager", add_pooling_layer=False
    ).eval()

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.model(ids, mask).last_hidden_state
            return states

    ids = torch.randint(1000, 2000, (3, 17))
    names = ["ids", "mask"]
    axes = {name: {0: "rows", 1: "length"} for name in [*names, "hidden"]}
    torch.onnx.export(
        Hidden(),
        (ids, torch.ones_like(ids)),
        str(path),
        input_names=names,
        output_names=["hidden"],
        dynamo=False,
        opset_version=14,
        dynamic_axes=axes,
    )
    fused = optimizer.optimize_model(
        str(path), model_type="bert", num_heads=12, hidden_size=384, opt_level=1
    )
    fused.save_model_to_file(str(path))


def peer_session() -> Callable[[np.ndarray, np.ndarray], object]:
    """Return the peer's session, called with padded ids and their mask."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "minilm.onnx"
        exported(path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"ids": ids, "mask": mask})


def embedders() -> dict[str, nimbed.Embedder]:
    """Return what is measured, loaded."""
    made = {
        "onnxruntime float32": nimbed.load(backend="onnxruntime"),
        "torch float32": nimbed.load(backend="torch", dtype="float32", device="cpu"),
        "torch bfloat16": nimbed.load(backend="torch", dtype="bfloat16", device="cpu"),
    }
    for embedder in made.values():
        embedder.embed(["warm up"], input_type="query")
    return made


def calls(rounds: int) -> None:
    """Print milliseconds of `embed` and of the session alone, and of mixed lengths."""
    session, ours = peer_session(), embedders()
    print(
        "| tokens x texts | session alone, ms | " + " | ".join(ours) + " | of its speed (asked) |"
    )
    print("|---|---|" + "---|" * (len(ours) + 1))
    for texts, tokens in SHAPES:
        ids = np.random.default_rng(0).integers(1000, 2000, (texts, tokens))
        given = ["retrieval " * (tokens - 2)] * texts
        jobs: dict[str, Callable[[int], object]] = {
            "session": lambda _, ids=ids: session(ids, np.ones_like(ids))
        }
        for name, embedder in ours.items():
            jobs[name] = lambda _, e=embedder, g=given: e.embed(g, input_type="query")
        taken = medians(jobs, rounds * (8 if texts == 1 else 1))
        ratios = [taken["session"] / taken[name] for name in ours]
        milliseconds = " | ".join(f"{1e3 * each:.2f}" for each in taken.values())
        others = ", ".join(f"{ratio:.2f}" for ratio in ratios[1:])
        asked = ASKED[texts, tokens]
        print(f"| {tokens} x {texts} | {milliseconds} | **{ratios[0]:.2f}** ({asked}), {others} |")
    mixed(session, ours, max(3, rounds // 3))


def medians(jobs: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each job, which take turns."""
    spent = interleave(jobs, rounds=rounds, warmups=2)
    return {name: median(each) for name, each in spent.items()}


def mixed(
    session: Callable[[np.ndarray, np.ndarray], object],
    ours: dict[str, nimbed.Embedder],
    rounds: int,
) -> None:
    """Print 256 passages of 16 to 256 tokens, the session fed 32 at a time as they arrive."""
    lengths = np.random.default_rng(1).integers(14, 255, 256)
    words = " ".join(passages(400, seed=3)).split()
    texts = [" ".join(words[n : n + int(length * 0.75)]) for n, length in enumerate(lengths)]
    first = next(iter(ours.values()))
    counts = first.embed(texts, input_type="passage", truncate="END").token_counts

    def in_arrival_order(_: int) -> None:
        for start in range(0, len(texts), 32):
            own = counts[start : start + 32]
            mask = (np.arange(own.max()) < own[:, None]).astype(np.int64)
            session(np.full(mask.shape, 1500), mask)

    jobs: dict[str, Callable[[int], object]] = {"session": in_arrival_order}
    for name, embedder in ours.items():
        jobs[name] = lambda _, e=embedder: e.embed(texts, input_type="passage", truncate="END")
    taken = medians(jobs, rounds)
    print(f"\n256 passages of {counts.min()} to {counts.max()} tokens, seconds: ", end="")
    print(", ".join(f"{name} {each:.2f}" for name, each in taken.items()))
    print(
        f"onnxruntime float32 against the session: {taken['session'] / taken[next(iter(ours))]:.2f}"
    )


def serving() -> None:
    """Print the memory of `nimbed serve` at its start, and the time to its first answer."""
    for backend in ("onnxruntime", "torch"):
        command = [sys.executable, "-m", "nimbed_cli.main", "serve", "--port", "0"]
        begin = time.perf_counter()
        server = subprocess.Popen(
            [*command, "--backend", backend], stderr=subprocess.PIPE, text=True, env=os.environ
        )
        assert server.stderr is not None
        try:
            url = server.stderr.readline().split()[-1]
            while "is ready" not in server.stderr.readline():
                pass
            body = {"input": ["hello"], "model": "minilm", "input_type": "query"}
            request = urllib.request.Request(
                f"{url}/v1/embeddings",
                json.dumps(body).encode(),
                {"content-type": "application/json"},
            )
            urllib.request.urlopen(request).read()
            first = time.perf_counter() - begin
            times = []
            for _ in range(200):
                begin = time.perf_counter()
                urllib.request.urlopen(request).read()
                times.append(time.perf_counter() - begin)
            memory = {
                line.split()[0]: int(line.split()[1]) / 1024
                for line in Path(f"/proc/{server.pid}/status").read_text().splitlines()
                if line.startswith(("VmRSS", "VmHWM"))
            }
            print(
                f"serve --backend {backend}: first answer after {first:.2f} s, "
                f"{memory['VmRSS:']:.0f} MiB, at most {memory['VmHWM:']:.0f}; one query "
                f"{1e3 * median(times):.2f} ms, at best {1e3 * min(times):.2f}"
            )
        finally:
            server.terminate()
            server.communicate()


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=("calls", "serve"))
    given = parser.parse_args()
    if given.only != "serve":
        calls(given.rounds)
    if given.only != "calls":
        serving()


if __name__ == "__main__":
    main()
