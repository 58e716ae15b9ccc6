"""A tiny random Nemotron VL checkpoint on disk, and an oracle that shares no code with nimbed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from safetensors.torch import load_file
from tests.engine.local.checkpoints import random_weights, write, write_json
from tests.engine.local.tiny_decoders import LLAMA3_ROPE, decoder_config, decoder_shapes
from tests.engine.local.tiny_tokenizers import llama3_tokenizer
from tokenizers import Tokenizer
from transformers import (
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

MARKS = ("<img>", "</img>", "<IMG_CONTEXT>")
SIDE, PATCH, VISION_WIDTH = 32, 8, 24
CONTEXT_A_TILE = (SIDE // PATCH // 2) ** 2


def tiny_vl(
    folder: Path,
    *,
    nested: bool = True,
    tokenizer: Tokenizer | None = None,
    processor: dict[str, Any] | None = None,
    language_prefix: str = "language_model.",
    seed: int = 0,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write the checkpoint; returns the folder.

    Args:
        folder: Made if it does not exist.
        nested: Name the tower as older files do (``vision_model.vision_model.``).
        tokenizer: Llama-3's kind with the three marks as special tokens if None.
        processor: processor_config.json; None leaves it out.
        language_prefix: Before the language model's tensors.
        seed: Of the weights.
        changes: To config.json.
    """
    tokenizer = tokenizer or llama3_tokenizer(extra=MARKS)
    language = {
        **decoder_config(tokenizer),
        "model_type": "llama_bidirec",
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3_ROPE,
        "max_position_embeddings": 16384,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": SIDE,
        "patch_size": PATCH,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
    }
    config = {
        "model_type": "llama_nemotron_vl",
        "architectures": ["LlamaNemotronVLModel"],
        "auto_map": {"AutoModel": "remote_code.LlamaNemotronVLModel"},
        "force_image_size": SIDE,
        "downsample_ratio": 0.5,
        "select_layer": -1,
        "ps_version": "v2",
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "pooling": "avg",
        "bidirectional_attention": True,
        "p_max_length": 10240,
        "query_prefix": "query:",
        "passage_prefix": "passage:",
        "max_input_tiles": 6,
        "img_context_token_id": tokenizer.token_to_id("<IMG_CONTEXT>"),
        "llm_config": language,
        "vision_config": vision,
        **(changes or {}),
    }
    tower = "vision_model." * (2 if nested else 1)
    shapes = {f"{language_prefix}{n}": s for n, s in decoder_shapes(language).items()}
    shapes |= {f"{tower}{n}": s for n, s in tower_shapes(vision).items()}
    joined, width = VISION_WIDTH * 4, language["hidden_size"]
    shapes |= {"mlp1.0.weight": (joined,), "mlp1.0.bias": (joined,)}
    shapes |= {"mlp1.1.weight": (width, joined), "mlp1.1.bias": (width,)}
    shapes |= {"mlp1.3.weight": (width, width), "mlp1.3.bias": (width,)}
    weights = random_weights(shapes, seed=seed)
    weights["mlp1.0.weight"] += 1
    write(folder, config, weights, tokenizer)
    if processor is not None:
        write_json(folder / "processor_config.json", processor)
    (folder / "remote_code.py").write_text("raise SystemExit('remote code ran')", "utf-8")
    return folder


def tower_shapes(vision: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a SigLIP tower with its unused pooling head."""
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.patch_embedding.bias": (width,),
        "embeddings.position_embedding.weight": ((vision["image_size"] // patch) ** 2, width),
        "head.probe": (1, 1, width),
    }
    norms = ["post_layernorm"]
    for number in range(vision["num_hidden_layers"]):
        at = f"encoder.layers.{number}"
        products = {f"self_attn.{x}_proj": (width, width) for x in ("q", "k", "v", "out")}
        products |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        for name, shape in products.items():
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
        norms += [f"{at}.layer_norm1", f"{at}.layer_norm2"]
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


class Oracle:
    """The published arithmetic with transformers' tower and Llama, numpy between them.

    Args:
        folder: A checkpoint of :func:`tiny_vl` with the default prefixes.
        causal: Let the language model see only the past, to show that it matters.
    """

    def __init__(self, folder: Path, *, causal: bool = False) -> None:
        self.config = json.loads((folder / "config.json").read_text("utf-8"))
        weights = load_file(folder / "model.safetensors")
        vision = SiglipVisionConfig(**self.config["vision_config"], vision_use_head=False)
        self.tower = SiglipVisionModel(vision).eval()
        language = LlamaConfig(**{**self.config["llm_config"], "model_type": "llama"})
        language.is_causal = causal
        self.language = LlamaModel(language).eval()
        _fill(self.tower, weights, ("vision_model.vision_model.", "vision_model."))
        _fill(self.language, weights, ("language_model.",))
        self.projector = {n: w.numpy() for n, w in weights.items() if n.startswith("mlp1.")}
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))

    def tiles(self, image: Pillow.Image, grid: tuple[int, int], *, thumbnail: bool) -> list[Any]:
        """Cut with Pillow's own crop, as the published processor does."""
        columns, rows = grid
        whole = image.convert("RGB").resize((columns * SIDE, rows * SIDE))
        tiles = [
            whole.crop((x * SIDE, y * SIDE, (x + 1) * SIDE, (y + 1) * SIDE))
            for y in range(rows)
            for x in range(columns)
        ]
        return tiles + ([image.convert("RGB").resize((SIDE, SIDE))] if thumbnail else [])

    def image_states(self, tiles: list[Pillow.Image]) -> NDArray[np.float32]:
        """Return the projected states of tiles, of shape (context tokens, width)."""
        pixels = np.stack([np.asarray(tile, np.float32) for tile in tiles]) / 255
        pixels = ((pixels - 0.5) / 0.5).transpose(0, 3, 1, 2)
        with torch.no_grad():
            states = self.tower(torch.from_numpy(np.ascontiguousarray(pixels)))
        x = states.last_hidden_state.numpy()
        side = SIDE // PATCH
        x = published_shuffle(x.reshape(len(tiles), side, side, -1), self.config["ps_version"])
        x = x.reshape(-1, x.shape[-1]).astype(np.float64)
        mean, spread = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        x = (x - mean) / np.sqrt(spread + 1e-5)
        x = x * self.projector["mlp1.0.weight"] + self.projector["mlp1.0.bias"]
        x = x @ self.projector["mlp1.1.weight"].T + self.projector["mlp1.1.bias"]
        x = x * 0.5 * (1 + torch.erf(torch.from_numpy(x / np.sqrt(2))).numpy())
        x = x @ self.projector["mlp1.3.weight"].T + self.projector["mlp1.3.bias"]
        return x.astype(np.float32)

    def vector(
        self, prompt: str, tiles: list[Pillow.Image] | None = None, *, literal: bool = False
    ) -> tuple[NDArray[np.float32], list[int]]:
        """Embed one whole prompt string; returns the unit vector and the token ids.

        Args:
            prompt: With ``<IMG_CONTEXT>`` once a context token.
            tiles: What the context tokens stand for.
            literal: Read special tokens in the prompt as plain text.
        """
        ids = self.tokenizer(prompt, split_special_tokens=literal)["input_ids"]
        row = torch.tensor([ids])
        with torch.no_grad():
            states = self.language.get_input_embeddings()(row).clone()
            if tiles is not None:
                places = row[0] == self.config["img_context_token_id"]
                states[0, places] = torch.from_numpy(self.image_states(tiles))
            mask = torch.ones_like(row)
            out = self.language(inputs_embeds=states, attention_mask=mask).last_hidden_state[0]
        mean = out.double().mean(0).numpy()
        return (mean / np.linalg.norm(mean)).astype(np.float32), ids


def published_shuffle(x: NDArray[Any], version: str) -> NDArray[Any]:
    """Shuffle step by step as the published code's views and permutations say (models.md 1.3)."""
    n, w, h, c = x.shape
    x = x.reshape(n, w, h // 2, c * 2).transpose(0, 2, 1, 3)
    x = np.ascontiguousarray(x).reshape(n, h // 2, w // 2, c * 4)
    return x.transpose(0, 2, 1, 3) if version == "v2" else x


def context(tiles: int) -> str:
    """Return the marks of an image of so many tiles."""
    return f"<img>{'<IMG_CONTEXT>' * (CONTEXT_A_TILE * tiles)}</img>"


def _fill(
    module: torch.nn.Module, weights: dict[str, torch.Tensor], prefixes: tuple[str, ...]
) -> None:
    own = {}
    for name, weight in weights.items():
        if name.startswith(prefixes[0]):
            own[name.removeprefix(prefixes[0])] = weight
    missing, unexpected = module.load_state_dict(own, strict=False)
    assert not missing, missing
    assert all(name.startswith("head.") for name in unexpected), unexpected
