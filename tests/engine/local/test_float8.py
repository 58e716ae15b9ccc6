"""float8: the numerics, what they cost a real model, and checkpoints that were saved in it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from english import passages, queries
from safetensors.torch import load_file, save_file
from tests.engine.local.tiny_decoders import tiny_llama

import nimbed
from nimbed.errors import CheckpointError
from nimbed.local.float8 import Float8Rows, Float8Weight

TEXTS = ["What is NVIDIA?", "a cat sleeps under the warm sky", "quick"]


def test_rows_are_rounded_to_three_bits_and_scaled_by_their_largest():
    x = (
        torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-9, 9, 50)[:, None]
    )
    x[7] = 0
    rows = Float8Rows.of(x)
    assert (rows.values.dtype, rows.scales.shape) == (torch.float8_e4m3fn, (50, 1))
    error = (rows.values.float() * rows.scales - x).abs()
    unit = x.abs().amax(1, keepdim=True) / 448
    assert (error <= x.abs() / 16 + unit / 512).all()
    assert not rows.values[7].float().any()


def test_a_product_is_that_of_the_rounded_numbers():
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(n, generator=generator) for n in ((9, 64), (32, 64), (32,)))
    rows, packed = Float8Rows.of(x), Float8Weight.of(weight)
    exact = (rows.values.double() * rows.scales) @ (
        packed.rows.values.double() * packed.rows.scales
    ).T + bias
    torch.testing.assert_close(packed.product(rows, bias).double(), exact, atol=1e-5, rtol=1e-5)


def quantized(folder, per_output, *, input_scale=False):
    """Store a checkpoint's products in float8, as others do, and return what it then holds."""
    weights, plain = load_file(folder / "model.safetensors"), {}
    for name, tensor in list(weights.items()):
        if "_proj.weight" not in name:
            continue
        largest = tensor.abs().amax(1, keepdim=True) if per_output else tensor.abs().max()
        scale = (largest / 448).float()
        weights[name] = (tensor / scale).to(torch.float8_e4m3fn)
        weights[f"{name}_scale"] = scale
        plain[name] = weights[name].float() * scale
        if input_scale:
            weights[name.replace("weight", "input_scale")] = torch.tensor(0.5)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return {**weights, **plain}


COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "quantization_status": "compressed",
}
MODEL_OPT = {
    "quant_method": "modelopt",
    "quant_algo": "FP8",
    "producer": {"name": "modelopt", "version": "0.37.0"},
    "ignore": ["lm_head"],
}


@pytest.mark.parametrize("per_output", [True, False], ids=["compressed-tensors", "ModelOpt"])
def test_a_checkpoint_saved_in_float8_gives_what_its_numbers_give(tmp_path, per_output):
    folder = tiny_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"] = COMPRESSED if per_output else MODEL_OPT
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    weights = quantized(folder, per_output, input_scale=not per_output)
    other = tiny_llama(tmp_path / "plain")
    kept = {n: t.float() for n, t in weights.items() if not n.endswith("_scale")}
    save_file(kept, other / "model.safetensors", metadata={"format": "pt"})
    ours, theirs = (
        nimbed.load(str(path), device="cpu", dtype="float32").embed(TEXTS, input_type="query")
        for path in (folder, other)
    )
    np.testing.assert_allclose(ours.vectors, theirs.vectors, atol=1e-6)


def test_a_scale_by_blocks_is_refused_by_name(tmp_path):
    folder = tiny_llama(tmp_path / "model")
    weights = quantized(folder, True)
    name = next(n for n in weights if n.endswith("up_proj.weight_scale"))
    stored = load_file(folder / "model.safetensors")
    stored[name] = torch.ones(4, 2)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="up_proj.weight_scale is .* expected one scale"):
        nimbed.load(str(folder), device="cpu").warmup()
    del stored[name]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="is float8 without .*up_proj.weight_scale"):
        nimbed.load(str(folder), device="cpu").warmup()


def test_packed_4_bit_weights_are_refused_by_name(tmp_path):
    folder = tiny_llama(tmp_path / "model")
    stored = load_file(folder / "model.safetensors")
    name = next(n for n in stored if n.endswith("q_proj.weight"))
    rows, width = stored[name].shape
    stored[name] = torch.zeros(rows, width // 2, dtype=torch.uint8)
    stored[f"{name}_scale"] = torch.ones(rows, max(1, width // 16)).to(torch.float8_e4m3fn)
    stored[f"{name}_scale_2"] = torch.tensor(1.0)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"q_proj.weight is packed 4-bit numbers \(NVFP4"):
        nimbed.load(str(folder), device="cpu").warmup()


def test_an_unknown_dtype_lists_float8():
    with pytest.raises(nimbed.errors.ConfigurationError, match="float8"):
        nimbed.load(device="cpu", dtype="float4").warmup()


def test_the_fingerprint_is_the_models(tmp_path):
    folder = str(tiny_llama(tmp_path / "model"))
    specs = {
        nimbed.load(folder, device="cpu", dtype=dtype).spec().fingerprint
        for dtype in ("float32", "float8")
    }
    assert len(specs) == 1


def test_an_encoder_that_it_would_harm_is_refused():
    with pytest.raises(nimbed.errors.ConfigurationError, match="use dtype='bfloat16'"):
        nimbed.load(device="cpu", dtype="float8").warmup()


@pytest.mark.slow
def test_what_it_costs_a_real_model_is_what_the_refusal_says(monkeypatch):
    monkeypatch.setattr("nimbed.local.engine.TOO_COARSE", ())
    kept, asked = passages(150, seed=1), queries(50, seed=2)
    stored, found = [], []
    for dtype in ("bfloat16", "float8"):
        embedder = nimbed.load(device="cpu", dtype=dtype)
        stored.append(embedder.embed(kept, input_type="passage", truncate="END").vectors)
        found.append(embedder.embed(asked, input_type="query").vectors)
    cosine = np.concatenate([(a * b).sum(1) for a, b in (stored, found)])
    assert 0.996 < cosine.mean() < 0.999
    assert cosine.min() > 0.99
    nearest = [np.argsort(-(q @ p.T), axis=1)[:, :10] for q, p in zip(found, stored, strict=True)]
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(*nearest, strict=True)]
    assert 0.9 < np.mean(shared) < 0.98
