"""MiniLM on ONNX Runtime: `embed` whole against the session alone that other servers run.

Run: python tests/benchmarks/bench_onnx.py [--rounds 9] [--only calls|serve] [--shape mpnet-base]

The peer is the graph that text-embeddings-inference runs on a CPU, exported by torch and fused by
ONNX Runtime's own optimizer, given padded ids that are ready. Each has a process of its own, and
these take turns. --shape takes random weights in another shape of ``family_shapes.ON_CPU``, without
a peer. bfloat16 is measured where the processor multiplies it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from english import passages
from turns import in_turn, take_turns

import nimbed
from nimbed.local.device import place
from nimbed.local.hub import locate
from nimbed.local.onnx.session import threads

SHAPES = ((1, 8), (1, 17), (1, 32), (8, 17), (8, 128), (32, 64))
#: Of one query alone and of passages; what the issue asks of `embed` against the session alone.
ASKED = {"8 x 1": 0.85, "17 x 1": 0.88, "32 x 1": 0.9, "128 x 8": 0.98, "64 x 32": 0.98}


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


def contender(name: str, folder: str | None) -> Callable[[Any], list[float]]:
    """Return what embeds a turn's texts, or runs its tokens, and tells the seconds of each call."""
    engine, _, dtype = name.partition(" ")
    embedder = nimbed.load(folder, backend=engine, dtype=dtype, device="cpu") if dtype else None
    session = None if embedder else peer_session()

    def turn(work: tuple[Any, list[tuple[int, int]] | None, int]) -> list[float]:
        texts, tokens, calls = work
        spent = []
        if embedder is None:
            assert session is not None
            assert tokens is not None
            padded = [np.full(shape, 1500) for shape in tokens]
            masks = [
                (np.arange(ids.shape[1]) < np.array(own)[:, None]).astype(np.int64)
                for ids, own in zip(padded, texts, strict=True)
            ]
        for _ in range(calls):
            begin = time.perf_counter()
            if embedder is not None:
                embedder.embed(texts, input_type="query", truncate="END")
            else:
                for ids, mask in zip(padded, masks, strict=True):
                    session(ids, mask)
            spent.append(time.perf_counter() - begin)
        return spent

    return turn


def medians(
    names: Sequence[str], folder: str | None, rounds: int
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the median seconds of each contender for each job.

    Each turn is a few calls after one that does not count, so that caches and threads are warm.
    """
    with in_turn(names, __file__, "--folder", folder or "") as turns:
        for job, texts, batches in jobs():
            calls = 1 if len(texts) > 8 else 2 if len(texts) > 1 else 9
            spent: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(rounds):
                for name, turn in turns.items():
                    for_session = name == "session"
                    given = batches if for_session else texts
                    padded = [(len(own), max(own)) for own in batches] if for_session else None
                    spent[name] += turn([given, padded, calls + 1])[1:]
            yield job, {name: median(each) for name, each in spent.items()}


def jobs() -> Iterator[tuple[str, list[str], list[list[int]]]]:
    """Yield what is measured: its name, texts, and the tokens of each text by the session's batch.

    Mixed passages reach the session 32 at a time, as they arrive.
    """
    for texts, tokens in SHAPES:
        yield f"{tokens} x {texts}", ["retrieval " * (tokens - 2)] * texts, [[tokens] * texts]
    lengths = np.random.default_rng(1).integers(14, 255, 256)
    words = " ".join(passages(400, seed=3)).split()
    mixed = [" ".join(words[n : n + int(length * 0.75)]) for n, length in enumerate(lengths)]
    with nimbed.load(backend="onnxruntime") as embedder:
        counted = embedder.count_tokens(mixed, input_type="passage")
    counts = [min(count, 256) for count in counted]
    parts = [counts[start : start + 32] for start in range(0, len(counts), 32)]
    yield f"256 of {min(counts)} to {max(counts)}", mixed, parts


def calls(rounds: int, shape: str | None) -> None:
    """Print milliseconds of `embed` whole, each in a process of its own, and of the session."""
    ours = ["onnxruntime float32", "onnxruntime int8", "torch float32"]
    if place("cpu").name == "bfloat16":
        ours.append("torch bfloat16")
    if not shape:
        table(["session", *ours], None, rounds)
        return
    from family_shapes import ON_CPU, write

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), ON_CPU[shape])
        table(ours, folder, rounds)


def table(names: Sequence[str], folder: str | None, rounds: int) -> None:
    """Print a line for each job, the speed of each against the first."""
    print("| tokens x texts | " + ", ms | ".join(names) + ", ms | speed of the first |")
    print("|---|" + "---|" * (len(names) + 1))
    for job, taken in medians(names, folder, rounds):
        base = taken[names[0]]
        ratios = ", ".join(f"{base / taken[name]:.2f}" for name in names[1:])
        asked = f" (asked: {ASKED[job]})" if names[0] == "session" and job in ASKED else ""
        milliseconds = " | ".join(f"{1e3 * each:.2f}" for each in taken.values())
        print(f"| {job} | {milliseconds} | {ratios}{asked} |", flush=True)


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
            host, _, port = url.removeprefix("http://").partition(":")
            connection = socket.create_connection((host, int(port)))
            first = ask(connection, "hello") - begin
            # As many tokens as the table's second row has.
            times = []
            for _ in range(200):
                begin = time.perf_counter()
                times.append(ask(connection, "retrieval " * 15) - begin)
            memory = {
                line.split()[0]: int(line.split()[1]) / 1024
                for line in Path(f"/proc/{server.pid}/status").read_text().splitlines()
                if line.startswith(("VmRSS", "VmHWM"))
            }
            print(
                f"serve --backend {backend}: first answer after {first:.2f} s, "
                f"{memory['VmRSS:']:.0f} MiB, at most {memory['VmHWM:']:.0f}; one query of 17 "
                f"tokens {1e3 * median(times):.2f} ms, at best {1e3 * min(times):.2f}"
            )
        finally:
            server.terminate()
            server.communicate()


def ask(connection: socket.socket, text: str) -> float:
    """Send a query over a connection that stays open, and return when its answer was there."""
    body = json.dumps({"input": [text], "model": "minilm", "input_type": "query"}).encode()
    connection.sendall(
        b"POST /v1/embeddings HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    answer = connection.recv(2**16)
    while not answer.endswith(b"}"):
        answer += connection.recv(2**16)
    seconds = time.perf_counter()
    assert answer.startswith(b"HTTP/1.1 200 ")
    return seconds


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=("calls", "serve"))
    parser.add_argument("--shape")
    parser.add_argument("--turns-of", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.turns_of:
        take_turns(contender(given.turns_of, given.folder or None))
        return
    if given.only != "serve":
        calls(given.rounds, given.shape)
    if given.only != "calls" and not given.shape:
        serving()


if __name__ == "__main__":
    main()
