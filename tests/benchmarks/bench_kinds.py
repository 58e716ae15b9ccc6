"""Three kinds of vectors from one forward pass against the dense one alone, and SPLADE.

Run: python tests/benchmarks/bench_kinds.py [--rounds 7] [--layers 4] [--dtype float32]

Processor time on one thread, interleaved, so that a machine that others use may be measured on.
Random weights in real shapes: speed does not depend on them. The rival of SPLADE is
sentence-transformers' SparseEncoder, on the same folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import torch
from english import passages
from family_shapes import BERT, MINILM, Shape, write
from measure import interleave, median_ratio
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from transformers import AutoConfig, AutoModelForMaskedLM

import nimbed

ROLE = {"input_type": "passage", "truncate": "END"}


def with_heads(folder: Path, width: int) -> None:
    """Write bge-m3's two heads beside a network."""
    for name, outputs in (("sparse", 1), ("colbert", width)):
        linear = {"weight": torch.randn(outputs, width) / width**0.5, "bias": torch.zeros(outputs)}
        torch.save(linear, folder / f"{name}_linear.pt")


def report(title: str, seconds: dict[str, list[float]], base: str) -> None:
    """Print the median ratio of every job to one of them."""
    print(f"\n### {title}\n\n| job | times {base} | least | most |\n|---|---|---|---|")
    for name, spent in seconds.items():
        if name != base:
            each = sorted(a / b for a, b in zip(spent, seconds[base], strict=True))
            ratio = median_ratio(spent, seconds[base])
            print(f"| {name} | {ratio:.3f} | {each[0]:.3f} | {each[-1]:.3f} |", flush=True)


def three_kinds(title: str, shape: Shape, rounds: int, dtype: str) -> None:
    """Compare all kinds with the dense pass alone, on the same texts."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, shape)
        with_heads(folder, shape.config["hidden_size"])
        model = nimbed.load(str(folder), device="cpu", dtype=dtype)
        texts = {n: passages(shape.texts, seed=50 + n) for n in range(-1, rounds)}
        kinds = (("sparse",), ("multi",), ("dense", "sparse", "multi"))
        jobs = {"dense": lambda n: model.embed(texts[n], **ROLE)}
        for some in kinds:
            jobs[" + ".join(some)] = lambda n, k=some: model.embed_kinds(texts[n], kinds=k, **ROLE)
        seconds = interleave(jobs, rounds=rounds, clock=time.process_time)
    report(f"{title}, {shape.texts} passages, {dtype}", seconds, "dense")


def splade(shape: Shape, rounds: int) -> None:
    """Compare a masked language model's sparse vectors with sentence-transformers'."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, saved = Path(temporary) / "network", Path(temporary) / "model"
        folder.mkdir()
        write(folder, shape)
        for extra in ("modules.json",):
            (folder / extra).unlink(missing_ok=True)
        AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
        network = Transformer(str(folder), transformer_task="fill-mask")
        network.max_seq_length = 256
        theirs = SparseEncoder(modules=[network, SpladePooling()], device="cpu").eval()
        theirs.save_pretrained(str(saved))
        ours = nimbed.load(str(saved), device="cpu", dtype="float32")
        texts = {n: passages(shape.texts, seed=50 + n) for n in range(-1, rounds)}
        jobs = {"nimbed": lambda n: ours.embed_sparse(texts[n], max_active=256, **ROLE)}
        for batch in (1, 4, 16):
            jobs[f"SparseEncoder, batches of {batch}"] = lambda n, b=batch: theirs.encode_document(
                texts[n], batch_size=b, max_active_dims=256, show_progress_bar=False
            )
        seconds = interleave(jobs, rounds=rounds, clock=time.process_time)
    report(f"SPLADE, {json.dumps(shape.texts)} passages, float32", seconds, "nimbed")


def main() -> None:
    """Run all of them and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=4, help="of the bge-m3 shape, which has 24")
    parser.add_argument("--dtype", default="float32")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    minilm = Shape(MINILM, 32, 1, ("float32",), ())
    large = Shape({**BERT, "num_hidden_layers": wanted.layers}, 8, 1, ("float32",), ())
    three_kinds("MiniLM's shape", minilm, wanted.rounds, wanted.dtype)
    three_kinds(f"bge-m3's shape, {wanted.layers} layers", large, wanted.rounds, wanted.dtype)
    splade(dataclasses.replace(minilm, texts=16), wanted.rounds)


if __name__ == "__main__":
    main()
