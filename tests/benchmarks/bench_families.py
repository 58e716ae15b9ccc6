"""Every family's shape against transformers on this machine's CPU, random weights.

Run: python tests/benchmarks/bench_families.py [--shapes e5-large llama-1b nvembed vl] [--rounds 2]

The competitor is transformers with SDPA on the same weights and the same token ids, sorted by
length and padded, at every batch size; the table compares with its best. Speed does not depend on
the weights, so they are random, and vocabularies are MiniLM's, whose tokenizer everyone uses.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from english import passages
from measure import interleave, median_ratio, product_peak
from safetensors.torch import save_file
from tokenizers import Tokenizer

import nimbed
from nimbed.local.hub import locate

VOCABULARY = 30522
LLAMA = {
    "model_type": "llama",
    "is_causal": False,
    "vocab_size": VOCABULARY,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
MISTRAL = {
    **LLAMA,
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 2,
    "head_dim": 128,
    "sliding_window": None,
}
LATENT = {"num_latents_value": 512, "num_cross_heads": 8, "cross_dim_head": 4096}
BERT = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}


@dataclass(frozen=True)
class Shape:
    """What is measured: a network, how many texts of which length, in which dtypes."""

    config: dict[str, Any]
    texts: int
    join: int
    dtypes: tuple[str, ...]
    batches: tuple[int, ...]
    latent: bool = False


SHAPES = {
    "e5-large": Shape(BERT, 16, 1, ("float32", "bfloat16"), (1, 2, 4)),
    "llama-1b": Shape(LLAMA, 8, 1, ("bfloat16",), (1, 2, 4, 8)),
    "nvembed": Shape(MISTRAL, 8, 1, ("bfloat16",), (1, 2, 4, 8), latent=True),
    # Pages: an image of a page costs 1800 tokens, as much as a dozen passages.
    "vl": Shape({**LLAMA, "num_hidden_layers": 4}, 4, 10, ("bfloat16",), (1, 2, 4)),
}


class LatentAttention(torch.nn.Module):
    """NV-Embed's latent attention as published, its projections unfolded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = LATENT["num_cross_heads"] * LATENT["cross_dim_head"]
        self.latents = torch.nn.Parameter(torch.randn(LATENT["num_latents_value"], width))
        attend, attended, mlp, net = (torch.nn.Module() for _ in range(4))
        attend.norm, attend.norm_context = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        attended.to_q = torch.nn.Linear(width, inner, bias=False)
        attended.to_kv = torch.nn.Linear(width, 2 * inner, bias=False)
        attended.to_out = torch.nn.Linear(inner, width, bias=False)
        net.add_module("0", torch.nn.Linear(width, 8 * width))
        net.add_module("2", torch.nn.Linear(4 * width, width))
        attend.fn, mlp.norm, mlp.fn = attended, torch.nn.LayerNorm(width), torch.nn.Module()
        mlp.fn.net = net
        self.cross_attend_blocks = torch.nn.ModuleList([attend, mlp])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attend, mlp = self.cross_attend_blocks
        q = attend.fn.to_q(attend.norm(x))
        k, v = attend.fn.to_kv(attend.norm_context(self.latents)).chunk(2, -1)
        heads = LATENT["num_cross_heads"]
        q, k, v = (t.view(*t.shape[:-1], heads, -1).transpose(-3, -2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k[None], v[None])
        x = attend.fn.to_out(mixed.transpose(1, 2).flatten(2)) + x
        value, gate = getattr(mlp.fn.net, "0")(mlp.norm(x)).chunk(2, -1)
        return getattr(mlp.fn.net, "2")(value * F.gelu(gate)) + x


def write(folder: Path, shape: Shape) -> None:
    """Write a checkpoint of random weights in the narrowest dtype that is measured."""
    config = transformers.AutoConfig.for_model(**shape.config)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
        tensors = dict(model.state_dict())
        if shape.latent:
            latent = LatentAttention(shape.config["hidden_size"]).state_dict()
            tensors = {f"embedding_model.{n}": t for n, t in tensors.items()}
            tensors |= {f"latent_attention_model.{n}": t for n, t in latent.items()}
    dtype = getattr(torch, shape.dtypes[0])
    weights = {}
    for name, tensor in tensors.items():
        weights[name] = torch.empty(tensor.shape, dtype=dtype).normal_(std=0.02)
        if "norm" in name.lower() and name.endswith("weight"):
            weights[name] += 1
    facts: dict[str, Any] = shape.config
    if shape.latent:
        facts = {
            "model_type": "nvembed",
            "text_config": {**shape.config, "model_type": "bidir_mistral"},
            "latent_attention_config": {**LATENT, "latent_dim": shape.config["hidden_size"]},
            "add_eos": False,  # the others see the same tokens
        }
    (folder / "config.json").write_text(json.dumps(facts), "utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(locate(None).folder / "tokenizer.json", folder)


class Padded:
    """transformers as it is used: sorted by length, padded, masked, mean-pooled."""

    def __init__(self, folder: Path, shape: Shape, dtype: torch.dtype) -> None:
        self._latent: LatentAttention | None = None
        config = transformers.AutoConfig.for_model(**shape.config)
        config.is_causal = False
        model_class = transformers.AutoModel._model_mapping[type(config)]
        if shape.latent:
            from safetensors.torch import load_file

            tensors = load_file(folder / "model.safetensors")
            with torch.device("meta"):
                latent = LatentAttention(shape.config["hidden_size"])
            parts = {
                part: {n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)}
                for part in ("embedding_model.", "latent_attention_model.")
            }
            latent.load_state_dict(parts["latent_attention_model."], assign=True)
            self._latent = latent.eval()
            self._model = model_class(config)
            self._model.load_state_dict(parts["embedding_model."], assign=True)
        else:
            self._model = model_class.from_pretrained(folder, config=config, dtype=dtype)
        self._model = self._model.to(dtype).eval()
        assert self._model.config._attn_implementation == "sdpa"
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], batch: int) -> np.ndarray:
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        out = np.empty((len(rows), self._model.config.hidden_size), np.float32)
        for start in range(0, len(rows), batch):
            chosen = order[start : start + batch]
            ids = torch.zeros(len(chosen), len(rows[chosen[0]]), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, row in enumerate(chosen):
                ids[place, : len(rows[row])] = torch.tensor(rows[row])
                mask[place, : len(rows[row])] = 1
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            hidden = hidden if self._latent is None else self._latent(hidden)
            pooled = (hidden.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            out[chosen] = F.normalize(pooled, dim=1).numpy()
        return out


def operations(shape: Shape) -> float:
    """Return multiply-adds times two that a token needs, attention's own products left out."""
    config = transformers.AutoConfig.for_model(**shape.config)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    weights = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n)
    if shape.latent:
        width = shape.config["hidden_size"]
        folded = 2 * width * LATENT["num_cross_heads"] * LATENT["num_latents_value"]
        weights += folded + 12 * width**2
    return 2.0 * weights


def measure(name: str, shape: Shape, rounds: int) -> None:
    """Print one table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, shape)
        texts = []
        for round_ in range(rounds):
            parts = passages(shape.texts * shape.join, seed=1000 + round_)
            texts.append([" ".join(parts[n :: shape.texts]) for n in range(shape.texts)])
        jobs: dict[str, Callable[[int], np.ndarray]] = {}
        for dtype in shape.dtypes:
            ours = nimbed.load(str(folder), device="cpu", dtype=dtype)
            theirs = Padded(folder, shape, getattr(torch, dtype))
            kept = {"input_type": "passage", "truncate": "END"}
            sample = [texts[0][0][:400], "short"]
            got = ours.embed(sample, **kept)
            agreement = (got.vectors * theirs(sample, 1)).sum(1).min()
            jobs[f"nimbed {dtype}"] = lambda n, e=ours, k=kept: e.embed(
                texts[n] if n >= 0 else texts[0][:2], **k
            )
            for batch in shape.batches:
                jobs[f"transformers-{batch} {dtype}"] = lambda n, t=theirs, b=batch: t(
                    texts[n] if n >= 0 else texts[0][:2], b
                )
            print(f"{name} {dtype}: cosine between the two at least {agreement:.5f}", flush=True)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        counts = [sum(len(e.ids) for e in tokenizer.encode_batch(t)) for t in texts]
        seconds = interleave(jobs, rounds=rounds)
    print(
        f"\n### {name}: {shape.texts} texts, {sum(counts) / rounds / shape.texts:.0f} tokens each\n"
    )
    print("| engine | tokens/s | nimbed against it | of prepacked peak |\n|---|---|---|---|")
    for dtype in shape.dtypes:
        peak = product_peak(getattr(torch, dtype))["prepacked"]
        for job, spent in seconds.items():
            if job.endswith(f" {dtype}"):
                rate = statistics.median(c / s for c, s in zip(counts, spent, strict=True))
                ratio = median_ratio(spent, seconds[f"nimbed {dtype}"])
                share = rate * operations(shape) / 1e9 / peak
                print(f"| {job} | {rate:,.0f} | {ratio:.2f} | {share:.2f} |", flush=True)
        print(f"| {dtype} peak: {peak:.0f} GFLOP/s | | | |")


def main() -> None:
    """Run the shapes that were asked for and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=2)
    wanted = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in wanted.shapes:
        measure(name, SHAPES[name], wanted.rounds)


if __name__ == "__main__":
    main()
