"""What every text family promises, whatever its network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engine.local.families import FAMILIES, ON_ONNX, OPTIONS, TEXTS, load

from nimbed.errors import CheckpointError

CASES = [(name, "torch") for name in FAMILIES] + [(name, "onnxruntime") for name in ON_ONNX]


@pytest.fixture(params=CASES, ids="-".join)
def folder(request, tmp_path, monkeypatch):
    name, backend = request.param
    monkeypatch.setitem(OPTIONS, "backend", backend)
    return FAMILIES[name](tmp_path / "model")


@pytest.fixture(params=[case for case in CASES if case[0] != "bge-m3"], ids="-".join)
def unpickled(request, tmp_path, monkeypatch):
    name, backend = request.param
    monkeypatch.setitem(OPTIONS, "backend", backend)
    return FAMILIES[name](tmp_path / "model")


@pytest.mark.parametrize("role", ["query", "passage"])
def test_a_vector_never_depends_on_its_neighbours(folder, role):
    embedder = load(folder)
    alone = np.concatenate([embedder.embed([text], input_type=role).vectors for text in TEXTS])
    together = embedder.embed(TEXTS, input_type=role).vectors
    np.testing.assert_allclose(together, alone, atol=1e-6, rtol=0)
    backwards = embedder.embed(TEXTS[::-1], input_type=role).vectors
    np.testing.assert_allclose(backwards[::-1], alone, atol=1e-6, rtol=0)


def test_a_text_between_its_twins_changes_neither(folder):
    embedder = load(folder)
    short, long = TEXTS[2], TEXTS[3]
    first, middle, last = embedder.embed([short, long, short], input_type="passage").vectors
    np.testing.assert_array_equal(first, last)
    (alone,) = embedder.embed([long], input_type="passage").vectors
    np.testing.assert_allclose(middle, alone, atol=1e-6, rtol=0)


def test_small_micro_batches_make_no_difference(folder):
    embedder = load(folder)
    whole = embedder.embed(TEXTS, input_type="passage").vectors
    for engine in embedder._load().engines:
        engine.budget = 16
    split = embedder.embed(TEXTS, input_type="passage").vectors
    np.testing.assert_allclose(split, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_stays_close(family, dtype, tmp_path):
    folder = FAMILIES[family](tmp_path / "model")
    whole = load(folder).embed(TEXTS, input_type="passage").vectors
    half = load(folder, dtype=dtype).embed(TEXTS, input_type="passage").vectors
    assert (whole * half).sum(1).min() >= 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_stored_in_half_run_in_float32(unpickled, dtype):
    path = unpickled / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    half = load(unpickled).embed(TEXTS, input_type="passage").vectors
    save_file({name: tensor.float() for name, tensor in load_file(path).items()}, path)
    whole = load(unpickled).embed(TEXTS, input_type="passage").vectors
    np.testing.assert_allclose(half, whole, atol=1e-6, rtol=0)


def test_a_layer_that_the_configuration_does_not_know_is_named(unpickled):
    path = unpickled / "model.safetensors"
    tensors = load_file(path)
    inside = next(name for name in sorted(tensors) if ".1." in name and "layer" in name)
    extra = inside.replace(".1.", ".9.", 1)
    save_file({**tensors, extra: tensors[inside].clone()}, path)
    with pytest.raises(CheckpointError, match=f"tensor {extra}, which config.json does not"):
        load(unpickled).embed(["cat"], input_type="passage")


def test_a_bias_that_the_configuration_denies_is_named(tmp_path):
    folder = FAMILIES["llama"](tmp_path / "model")
    path = folder / "model.safetensors"
    name = "layers.0.self_attn.q_proj.bias"
    save_file({**load_file(path), name: torch.ones(32)}, path)
    with pytest.raises(CheckpointError, match=name):
        load(folder).embed(["cat"], input_type="passage")


def test_a_file_cut_short_is_named(folder):
    path = next(folder.glob("*.safetensors"), folder / "pytorch_model.bin")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=path.name):
        load(folder).embed(["cat"], input_type="passage")


def test_a_text_of_one_letter_gives_a_unit_vector(folder):
    vectors = load(folder).embed(["a"], input_type="passage").vectors
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_an_int8_or_float8_tensor_is_refused(tmp_path):
    folder = FAMILIES["llama"](tmp_path / "model")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "layers.0.mlp.up_proj.weight"
    for dtype in (torch.int8, torch.float8_e4m3fn):
        save_file({**tensors, name: tensors[name].to(dtype)}, path)
        with pytest.raises(CheckpointError, match=f"{name} is .*expected floats"):
            load(folder).embed(["cat"], input_type="passage")
