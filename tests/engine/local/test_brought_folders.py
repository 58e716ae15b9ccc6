"""Whoever saved, packed, copied or cut a folder, the vectors are the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from tests.engine.local.checkpoints import change_tensors, tiny_bert, tiny_xlmr, write_json
from tests.engine.local.sentence_folders import TEXTS, assert_same, edit, saved, transformer
from tests.engine.local.test_any_folder import static
from tests.engine.local.tiny_decoders import tiny_qwen3
from tests.engine.local.tiny_encoders import (
    tiny_distilbert,
    tiny_modernbert,
    tiny_mpnet,
    tiny_roberta,
)

import nimbed
from nimbed.errors import CheckpointError, ConfigurationError

WEIGHTS, PICKLED = "model.safetensors", "pytorch_model.bin"


@pytest.fixture
def folder(tmp_path):
    return tiny_bert(tmp_path / "model", prompts={"query": "ask: ", "document": ""})


def vectors(folder: Path, **options: Any) -> np.ndarray:
    ours = nimbed.load(str(folder), device="cpu", dtype="float32", **options)
    return ours.embed(TEXTS, input_type="query").vectors


def into_folder_0(folder: Path) -> Path:
    """Lay the network out as sentence-transformers 1 and 2.0 did."""
    inside = folder / "0_Transformer"
    inside.mkdir()
    own = ("modules.json", "config_sentence_transformers.json")
    for path in [each for each in folder.iterdir() if each.is_file() and each.name not in own]:
        path.rename(inside / path.name)
    (inside / "sentence_bert_config.json").rename(inside / "sentence_roberta_config.json")
    kind = "sentence_transformers.models.Transformer"
    edit(
        folder / "modules.json",
        lambda m: [{**m[0], "path": "0_Transformer", "type": kind}, *m[1:]],
    )
    return folder


def with_others_beside(folder: Path) -> Path:
    """Put beside it what hubs and trainers do; none of it is anybody's business."""
    for name in ("onnx", "openvino", "eval"):
        (folder / name).mkdir()
    for name in ("onnx/model.onnx", "tf_model.h5", "rust_model.ot", "training_args.bin", "opt.pt"):
        (folder / name).write_bytes(b"x")
    for name in ("onnx/config.json", "trainer_state.json", "model_card.json", "data_config.json"):
        (folder / name).write_text('{"hidden_size": 1, "twist": [}')
    (folder / "README.md").write_text("---\nlicense: [\n---\n# A model")
    (folder / "vocab.txt").write_text("other\nwords\n")
    (folder / "custom_st.py").write_text("raise SystemExit")
    return folder


def pickled(folder: Path) -> Path:
    torch.save(load_file(folder / WEIGHTS), folder / PICKLED)
    (folder / WEIGHTS).unlink()
    return folder


def sharded(folder: Path) -> Path:
    network = transformers.AutoModel.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    network.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / f"{WEIGHTS}.index.json").is_file()
    return folder


def pickled_in_shards(folder: Path) -> Path:
    tensors = list(load_file(folder / WEIGHTS).items())
    names = {}
    for number, part in enumerate((tensors[:10], tensors[10:])):
        shard = f"pytorch_model-0000{number + 1}-of-00002.bin"
        torch.save(dict(part), folder / shard)
        names |= {name: shard for name, _ in part}
    write_json(folder / f"{PICKLED}.index.json", {"metadata": {}, "weight_map": names})
    (folder / WEIGHTS).unlink()
    return folder


def with_heads(folder: Path) -> Path:
    more = {"cls.predictions.transform.LayerNorm.weight": torch.ones(32)}
    more |= {"classifier.weight": torch.zeros(2, 32), "lm_head.weight": torch.zeros(3, 32)}
    more |= {"pooler.dense.weight": torch.zeros(32, 32), "pooler.dense.bias": torch.zeros(32)}
    more |= {"embeddings.position_ids": torch.arange(128)[None]}
    change_tensors(folder, lambda tensors: tensors.update(more))
    return folder


def by_an_odd_name(folder: Path) -> Path:
    return folder.rename(folder.with_name("modèle ∂ 模型 'x' 100%"))


def read_only(folder: Path) -> Path:
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder


def in_the_hubs_cache(folder: Path) -> Path:
    """Lay it out as the hub's cache does: links to files that are named by their content."""
    blobs, snapshot = folder.with_name("blobs"), folder.parent / "snapshots" / ("0a" * 20)
    blobs.mkdir()
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        blob, link = blobs / f"{number:040x}", snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    shutil.rmtree(folder)
    return snapshot


def through_a_link(folder: Path) -> Path:
    folder.with_name("link").symlink_to(folder, target_is_directory=True)
    return folder.with_name("link")


def prompts_without_text(folder: Path) -> Path:
    prompts = {"query": "ask: ", "document": None, "clustering": None}
    needs = {"requirements": {"transformers": ">=4.0"}}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, **needs})
    return folder


def modules_bare(folder: Path) -> Path:
    named = [("name", "path", "type")] * 3
    listed = json.loads((folder / "modules.json").read_text("utf-8"))
    bare = [{k: m[k] for k in keys} for keys, m in zip(named, listed, strict=True)]
    bare[1]["path"] = "./1_Pooling/"
    write_json(folder / "modules.json", bare)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize(
    "bring",
    [
        into_folder_0,
        with_others_beside,
        pickled,
        sharded,
        pickled_in_shards,
        with_heads,
        by_an_odd_name,
        read_only,
        in_the_hubs_cache,
        through_a_link,
        prompts_without_text,
        modules_bare,
    ],
)
def test_however_it_is_laid_out_the_vectors_are_the_same(folder, bring):
    before = vectors(folder, backend="torch")
    brought = bring(folder)
    np.testing.assert_allclose(vectors(brought), before, atol=1e-6, rtol=0)
    theirs = SentenceTransformer(str(brought), device="cpu")
    assert_same(brought, theirs)


@pytest.mark.parametrize(
    "kind",
    [
        "base.modules.Transformer",
        "base.modules.transformer.Transformer",
        "models.Transformer",
        "models.Transformer.Transformer",
        "sentence_transformer.modules.Transformer",
    ],
)
def test_a_module_goes_by_every_path_that_it_had(folder, kind):
    path = folder / "modules.json"
    edit(path, lambda m: [{**m[0], "type": f"sentence_transformers.{kind}"}, *m[1:]])
    assert_same(folder, SentenceTransformer(str(folder), device="cpu"), alone=False)


@pytest.mark.parametrize(
    "kind",
    [
        "transformers.AutoModel",
        "custom_st.Transformer",
        "somebody/model--custom_st.Transformer",
        "sentence_transformers.models.BoW",
        "sentence_transformers.models.CLIPModel",
        "sentence_transformers.models.CNN",
        "sentence_transformers.cross_encoder.models.Transformer",
    ],
)
def test_any_other_module_is_refused_by_its_name(folder, kind):
    edit(folder / "modules.json", lambda m: [{**m[0], "type": kind}, *m[1:]])
    with pytest.raises(CheckpointError, match=f"module 0 is '{kind}', which nimbed does not run"):
        nimbed.load(str(folder))


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (tiny_bert, "BertModel"),
        (tiny_bert, "BertForMaskedLM"),
        (tiny_bert, "BertForSequenceClassification"),
        (tiny_distilbert, "DistilBertForMaskedLM"),
        (tiny_distilbert, "DistilBertForSequenceClassification"),
        (tiny_roberta, "RobertaForMaskedLM"),
        (tiny_modernbert, "ModernBertForMaskedLM"),
        (tiny_mpnet, "MPNetForMaskedLM"),
        (tiny_xlmr, "XLMRobertaForMaskedLM"),
        (tiny_qwen3, "Qwen3ForCausalLM"),
    ],
)
def test_what_it_was_trained_with_makes_no_difference(build, name, tmp_path):
    folder = build(tmp_path / "model")
    getattr(transformers, name).from_pretrained(folder).save_pretrained(folder)
    assert_same(folder, SentenceTransformer(str(folder), device="cpu"), alone=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_saved_in_half_is_computed_in_float32(folder, dtype, tmp_path):
    modules = [transformer(folder), Pooling(32), Dense(32, 8), Normalize()]
    theirs = SentenceTransformer(modules=modules, device="cpu").to(dtype)
    theirs.save(str(tmp_path / "half"))
    ours = nimbed.load(str(tmp_path / "half"), device="cpu", dtype="float32", backend="torch")
    whole = SentenceTransformer(
        str(tmp_path / "half"), device="cpu", model_kwargs={"dtype": "float32"}
    ).float()
    got = ours.embed(TEXTS, input_type="passage").vectors
    np.testing.assert_allclose(got, whole.encode(TEXTS), atol=1e-5, rtol=0)


def test_a_dense_module_that_is_pickled_runs_in_torch(folder, tmp_path):
    theirs = saved(tmp_path / "dense", [transformer(folder), Pooling(32), Dense(32, 8)])
    pickled(next((tmp_path / "dense").glob("*_Dense")))
    ours = assert_same(tmp_path / "dense", theirs)
    assert nimbed.load(str(tmp_path / "dense"), device="cpu").backend == ours.backend == "torch"
    with pytest.raises(ConfigurationError, match="Dense holds its weights as pytorch_model.bin"):
        nimbed.load(str(tmp_path / "dense"), backend="onnxruntime")


def test_a_table_that_is_pickled_is_refused_with_the_cure(tmp_path):
    folder = tmp_path / "table"
    saved(folder, [static(), Normalize()])
    pickled(folder)
    with pytest.raises(CheckpointError, match=r"no model.safetensors.*save\(folder\) writes it"):
        nimbed.load(str(folder))
    SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "again"))
    theirs = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert_same(tmp_path / "again", theirs)


def renamed(rename: Callable[[str], str]) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        tensors = {rename(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
        change_tensors(folder, lambda stored: (stored.clear(), stored.update(tensors)))
        return folder

    return change


@pytest.mark.parametrize("prefix", ["0.auto_model.", "module.", "model.bert.", "_orig_mod."])
@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_prefix_that_nobody_takes_off_is_named(folder, prefix, backend):
    renamed(lambda name: prefix + name)(folder)
    with pytest.raises(CheckpointError, match=f"lacks the tensor .*; take '{prefix}' off"):
        vectors(folder, backend=backend)


def test_an_adapter_that_was_not_merged_is_named(folder):
    renamed(lambda name: name.replace("query.weight", "query.base_layer.weight"))(folder)
    with pytest.raises(CheckpointError, match=r"never merged; .*merge_and_unload\(\)"):
        vectors(folder)


@pytest.mark.parametrize("text", ["", {}, 3, ["a"]])
def test_prompts_that_are_no_texts_are_refused(folder, text):
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": text}})
    if text == "":
        assert nimbed.load(str(folder)).card.query_prompt == ""
        return
    with pytest.raises(CheckpointError, match="gives prompts .*, expected names and texts"):
        nimbed.load(str(folder))
