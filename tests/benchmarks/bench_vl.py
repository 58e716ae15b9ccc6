"""Pages through Nemotron VL's real widths against transformers' SigLIP and Llama, on this CPU.

Run: python tests/benchmarks/bench_vl.py [--layers 2] [--pages 2] [--rounds 3] [--dtypes bfloat16]

The weights are random and the depth is reduced, in tower and language model alike. The competitor
is put together from transformers' own classes as the published remote code does it: Pillow cuts
the tiles, the tower reads them ``tiles`` at a time, and the language model one page after the
other, so that it pads nothing. Every round shows new pages.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from measure import interleave, median_ratio, product_peak
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from transformers import LlamaConfig, LlamaModel, SiglipVisionConfig, SiglipVisionModel

import nimbed
from nimbed.local.hub import locate

SIDE, TILES_A_TURN = 512, (1, 7)
# A page of 1240 x 1754 pixels (A4 at 150 dots an inch) is cut into 2 x 3 tiles and a thumbnail.
PAGE, GRID = (1240, 1754), (2, 3)
CONTEXT_A_TILE = 256


def marked(path: Path | None = None) -> Tokenizer:
    """Return MiniLM's tokenizer, which knows the marks of an image besides."""
    tokenizer = Tokenizer.from_file(str(path or locate(None).folder / "tokenizer.json"))
    marks = ["<img>", "</img>", "<IMG_CONTEXT>"]
    tokenizer.add_special_tokens([AddedToken(m, special=True, normalized=False) for m in marks])
    return tokenizer


def settings(layers: int, tokenizer: Tokenizer, *, tower_layers: int) -> dict[str, Any]:
    """Return config.json: models.md's numbers but for the depth and the vocabulary."""
    return {
        "model_type": "llama_nemotron_vl",
        "force_image_size": SIDE,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "bidirectional_attention": True,
        "p_max_length": 10240,
        "max_input_tiles": 6,
        "img_context_token_id": tokenizer.token_to_id("<IMG_CONTEXT>"),
        "llm_config": {
            "model_type": "llama_bidirec",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": layers,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 16384,
            "rope_theta": 500000.0,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": tower_layers,
            "num_attention_heads": 16,
            "image_size": SIDE,
            "patch_size": 16,
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu_pytorch_tanh",
        },
    }


def parts(config: dict[str, Any]) -> tuple[SiglipVisionModel, LlamaModel, torch.nn.Sequential]:
    """Return the three networks of the competitor, without weights."""
    language = LlamaConfig(**{**config["llm_config"], "model_type": "llama"})
    language.is_causal = False
    joined, width = 4 * config["vision_config"]["hidden_size"], language.hidden_size
    vision = SiglipVisionConfig(**config["vision_config"], vision_use_head=False)
    projector = torch.nn.Sequential(
        torch.nn.LayerNorm(joined),
        torch.nn.Linear(joined, width),
        torch.nn.GELU(),
        torch.nn.Linear(width, width),
    )
    return SiglipVisionModel(vision), LlamaModel(language), projector


PREFIXES = ("vision_model.", "language_model.", "mlp1.")


def weights(config: dict[str, Any], *, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Return random weights in float32."""
    made = {}
    with torch.device("meta"):
        shapes = parts(config)
    for prefix, part in zip(PREFIXES, shapes, strict=True):
        for name, tensor in part.state_dict().items():
            made[prefix + name] = torch.empty(tensor.shape, device=device).normal_(std=0.02)
            if tensor.ndim == 1 and name.endswith("weight"):  # a norm's
                made[prefix + name] += 1
    return made


def describe(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Write all files of a checkpoint but its weights."""
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))


class Composed:
    """The published recipe over transformers' classes."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, weights: dict[str, torch.Tensor], device: str
    ) -> None:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        with torch.device(device):  # some of its buffers are in no file
            self._tower, self._language, self._projector = parts(config)
        for prefix, part in zip(
            PREFIXES, (self._tower, self._language, self._projector), strict=True
        ):
            own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
            part.load_state_dict(own)
            part.to(device, dtype).eval()
        self._dtype, self._device = dtype, device
        self._context = config["img_context_token_id"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @torch.inference_mode()
    def __call__(self, pages: list[PIL.Image.Image], tiles: int) -> np.ndarray:
        pixels = [self._pixels(page) for page in pages]
        states = [self._read(part) for part in torch.cat(pixels).split(tiles)]
        images = torch.cat(states).split([len(part) * CONTEXT_A_TILE for part in pixels])
        return np.stack([self._vector(own) for own in images])

    def _pixels(self, page: PIL.Image.Image) -> torch.Tensor:
        columns, rows = GRID
        whole = page.resize((columns * SIDE, rows * SIDE))
        boxes = [(x * SIDE, y * SIDE) for y in range(rows) for x in range(columns)]
        tiles = [whole.crop((x, y, x + SIDE, y + SIDE)) for x, y in boxes]
        tiles.append(page.resize((SIDE, SIDE)))
        stacked = torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).to(self._device)
        return ((stacked.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5).to(self._dtype)

    def _read(self, pixels: torch.Tensor) -> torch.Tensor:
        states = self._tower(pixels).last_hidden_state
        count, _, width = states.shape
        x = states.view(count, 32, 16, 2 * width).transpose(1, 2)
        x = x.reshape(count, 16, 16, 4 * width).transpose(1, 2)
        return self._projector(x.reshape(-1, 4 * width))

    def _vector(self, image: torch.Tensor) -> np.ndarray:
        marks = "<IMG_CONTEXT>" * len(image)
        text = f"passage: <img>{marks}</img> "
        ids = torch.tensor([self._tokenizer.encode(text).ids], device=self._device)
        states = self._language.get_input_embeddings()(ids)
        states[0, ids[0] == self._context] = image
        out = self._language(inputs_embeds=states, attention_mask=torch.ones_like(ids))
        return F.normalize(out.last_hidden_state[0].float().mean(0), dim=0).cpu().numpy()


def pages(count: int, seed: int) -> list[PIL.Image.Image]:
    """Return pages of noise: nothing here looks at what is on them."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (count, *PAGE[::-1], 3), np.uint8)
    return [PIL.Image.fromarray(page) for page in noise]


def measure(folder: Path, dtype: str, shown: dict[int, list[PIL.Image.Image]], rounds: int) -> None:
    """Print one table."""
    ours = nimbed.load(str(folder), device="cpu", dtype=dtype)
    read = load_file(folder / "model.safetensors")
    theirs = Composed(folder, getattr(torch, dtype), read, "cpu")

    def embed(images: list[PIL.Image.Image]) -> np.ndarray:
        return ours.embed([nimbed.Image(one) for one in images], input_type="passage").vectors

    jobs: dict[str, Callable[[int], np.ndarray]] = {"nimbed": lambda n: embed(shown[n])}
    for tiles in TILES_A_TURN:
        jobs[f"transformers, {tiles} tiles at a time"] = lambda n, t=tiles: theirs(shown[n], t)
    agreement = (embed(shown[-1]) * theirs(shown[-1], 1)).sum(1).min()
    seconds = interleave(jobs, rounds=rounds)
    count = len(shown[0])
    print(f"\n### {dtype}: {count} pages of 7 tiles, cosine between the two {agreement:.5f}\n")
    print("| engine | s a page | nimbed against it |\n|---|---|---|")
    for name, spent in seconds.items():
        ratio = median_ratio(spent, seconds["nimbed"])
        print(f"| {name} | {statistics.median(spent) / count:.2f} | {ratio:.2f} |")
    print(f"\nprepacked peak: {product_peak(getattr(torch, dtype))['prepacked']:.0f} GFLOP/s")


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--pages", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    wanted = parser.parse_args()
    tokenizer = marked()
    config = settings(wanted.layers, tokenizer, tower_layers=wanted.layers)
    shown = {n: pages(wanted.pages, seed=n + 1000) for n in range(-1, wanted.rounds)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        describe(folder, config, tokenizer)
        made = weights(config)
        save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
        del made
        for dtype in wanted.dtypes:
            measure(folder, dtype, shown, wanted.rounds)


if __name__ == "__main__":
    main()
