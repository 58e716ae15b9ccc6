"""Damaged, strange and hostile model folders: an error that names the file, or a right answer."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from tests.engine.local.checkpoints import Bomb, change_config, change_tensors, tiny_bert
from tests.engine.local.families import OPTIONS, load
from tests.engine.local.tiny_decoders import tiny_llama

import nimbed
from nimbed.errors import CheckpointError, NimbedError


@pytest.fixture(params=["torch", "onnxruntime"])
def folder(request, tmp_path, monkeypatch):
    monkeypatch.setitem(OPTIONS, "backend", request.param)
    return tiny_bert(tmp_path / "model")


@pytest.fixture
def for_torch(tmp_path):
    return tiny_bert(tmp_path / "model")


def embed(folder):
    return load(folder, dtype="auto").embed(["the fox"], input_type="query")


NAME = "encoder.layer.1.attention.self.key.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NAME), f"lacks the tensor {NAME}"),
        (lambda t: t.update({NAME: torch.zeros(32, 31)}), r"shape \(32, 31\).*promises \(32, 32\)"),
        (lambda t: t.update({NAME: torch.full((32, 32), torch.nan)}), "holds NaN or infinity"),
        (lambda t: t.update({NAME: torch.zeros(32, 32, dtype=torch.int8)}), "expected floats"),
    ],
)
def test_a_bad_tensor_is_named(folder, change, message):
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        embed(folder)


@pytest.mark.parametrize("kept", [0, 5, 100, 5000])
def test_a_truncated_safetensors_file_is_named(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="model.safetensors is damaged or cut short"):
        embed(folder)


def test_missing_files_are_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="neither model.safetensors nor pytorch_model.bin"):
        embed(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer.json"):
        embed(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        embed(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00", '{"model_type": "gpt2"}', "{}"])
def test_a_strange_configuration_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        embed(folder)


@pytest.mark.parametrize(
    "facts",
    [
        {"num_attention_heads": 5},
        {"num_hidden_layers": 0},
        {"hidden_size": "wide"},
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
        {"max_position_embeddings": None},
        {"layer_norm_eps": 10**400},
        {"layer_norm_eps": -(10**400)},
        {"hidden_size": 10**30},
    ],
)
def test_a_configuration_the_encoder_cannot_follow_is_refused(folder, facts):
    change_config(folder, **facts)
    with pytest.raises(CheckpointError):
        embed(folder)


def test_a_size_that_nobody_has_is_refused_before_tables_of_it_are_made(tmp_path, monkeypatch):
    folder = tiny_llama(tmp_path / "model")
    change_config(folder, head_dim=10**9)
    monkeypatch.setattr("torch.arange", None)  # of which the tables would be
    with pytest.raises(CheckpointError, match="head_dim 1000000000, expected"):
        embed(folder)


@pytest.mark.parametrize("depth", ["[" * 100_000, '{"a":' * 100_000])
def test_nesting_without_end_is_refused(for_torch, depth):
    (for_torch / "config.json").write_text(depth)
    with pytest.raises(CheckpointError, match=r"config\.json is not readable JSON"):
        embed(for_torch)


def test_an_index_that_lists_is_refused(for_torch):
    (for_torch / "model.safetensors").rename(for_torch / "x.safetensors")
    (for_torch / "model.safetensors.index.json").write_text('{"weight_map": ["x.safetensors"]}')
    with pytest.raises(CheckpointError, match="weight_map that is no object"):
        embed(for_torch)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such pipes")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pipe_in_a_folder_is_never_waited_for(for_torch, name):
    (for_torch / name).unlink()
    os.mkfifo(for_torch / name)
    with pytest.raises(CheckpointError, match=name.partition(".")[0]):
        embed(for_torch)


def test_a_tokenizer_of_another_model_is_noticed(folder):
    size = 10
    change_config(folder, vocab_size=size)
    change_tensors(
        folder,
        lambda t: t.update(
            {"embeddings.word_embeddings.weight": t["embeddings.word_embeddings.weight"][:size]}
        ),
    )
    with pytest.raises(CheckpointError, match=r"tokenizer\.json belongs to another model"):
        embed(folder)


def test_pooling_that_nobody_here_does_is_refused(folder):
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "median"}))
    with pytest.raises(CheckpointError, match="pools by .*median"):
        embed(folder)


def test_a_shard_outside_the_folder_is_refused(folder):
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"weight_map": {"x": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside.safetensors, not found"):
        embed(folder)


def test_a_pickle_that_runs_code_is_refused_without_running_it(for_torch, tmp_path):
    folder = for_torch
    (folder / "model.safetensors").unlink()
    torch.save({"x": Bomb(tmp_path / "boom")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        embed(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        embed(folder)
    assert not (tmp_path / "boom").exists()


def test_auto_map_neither_prompts_nor_runs_code(for_torch, tmp_path):
    folder = for_torch
    change_config(folder, auto_map={"AutoModel": "trap.Model", "AutoConfig": "trap.Config"})
    (folder / "trap.py").write_text(f"import os; os.mkdir({str(tmp_path / 'boom')!r})")
    code = (
        "import nimbed, sys;"
        "print(nimbed.load(sys.argv[1]).embed(['the fox'], input_type='query').vectors.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 32)"
    assert "custom code" not in done.stdout + done.stderr
    assert not (tmp_path / "boom").exists()


def test_a_folder_that_is_no_model_is_a_plain_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NimbedError, match="is this the folder of a model"):
        nimbed.load(str(tmp_path / "empty"))
