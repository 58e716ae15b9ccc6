"""Sparse encoders: SPLADE of every masked language model, tables of weights, and their folders."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SparseEncoder
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import (
    MLMTransformer,
    SparseAutoEncoder,
    SpladePooling,
)
from tests.engine.local.checkpoints import tiny_bert, tiny_xlmr
from tests.engine.local.sentence_folders import edit, transformer
from tests.engine.local.sparse_folders import (
    array,
    inference_free,
    masked,
    mlm,
    save,
)
from tests.engine.local.tiny_encoders import tiny_distilbert, tiny_modernbert, tiny_mpnet
from transformers import AutoModelForMaskedLM, AutoTokenizer

import nimbed
from nimbed.errors import CheckpointError, ConfigurationError, TooLongError
from nimbed.local import heads

TEXTS = ["what is nvidia", "a cat sleeps under the warm sky", "token", "dogs jumped over " * 60]
PROMPTS = {"query": "ask: ", "document": ""}


def load(folder: Path | str, **options: Any) -> Any:
    return nimbed.load(str(folder), **{"device": "cpu", "dtype": "float32", **options})


def assert_same(ours: Any, theirs: SparseEncoder) -> None:
    """Compare sparse vectors with sentence-transformers', in both roles, cut ones included."""
    for role, encode in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
        expected = encode(TEXTS, convert_to_sparse_tensor=False, convert_to_tensor=True).numpy()
        batch = ours.embed_sparse(TEXTS, input_type=role, truncate="END")
        assert batch.spec == ours.sparse_spec()
        np.testing.assert_allclose(array(batch), expected, atol=1e-5, rtol=0)
        assert (expected > 0).any(axis=1).all(), "a vector without weights shows nothing"
        assert (expected == 0).any()


@pytest.mark.parametrize(
    "build", [tiny_bert, tiny_distilbert, tiny_xlmr, tiny_mpnet, tiny_modernbert]
)
def test_splade_is_sentence_transformers(tmp_path, build):
    folder = masked(tmp_path / "network", build)
    theirs = save(tmp_path / "model", [mlm(folder), SpladePooling()], prompts=PROMPTS)
    ours = load(tmp_path / "model")
    assert (ours.kinds, ours.card.kinds, ours.card.metric) == (("sparse",), ("sparse",), "dot")
    assert_same(ours, theirs)
    with pytest.raises(TooLongError):
        ours.embed_sparse(TEXTS, input_type="query")


@pytest.mark.parametrize(
    ("pooling", "facts"),
    [
        (SpladePooling("max", activation_function="log1p_relu"), {}),
        (SpladePooling("sum"), {}),
        (SpladePooling("max"), {"tie_word_embeddings": False}),
    ],
)
def test_splade_pools_as_its_module_says(tmp_path, pooling, facts, monkeypatch):
    folder = masked(tmp_path / "network", **facts)
    theirs = save(tmp_path / "model", [MLMTransformer(str(folder)), pooling], max_active_dims=20)
    monkeypatch.setattr(heads, "_WORDS", 64)  # so that the vocabulary takes several parts
    ours = load(tmp_path / "model")
    assert ours.sparse_spec().max_active == 20
    assert_same(ours, theirs)


def test_untied_bias_free_modernbert(tmp_path):
    facts = {"decoder_bias": False, "classifier_bias": True, "norm_bias": True}
    folder = masked(tmp_path / "network", tiny_modernbert, tie_word_embeddings=False, **facts)
    theirs = save(tmp_path / "model", [mlm(folder), SpladePooling()])
    assert_same(load(tmp_path / "model"), theirs)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Save a SPLADE of BERT, and a model with a table of weights for queries."""
    folder = tmp_path_factory.mktemp("built")
    save(folder / "splade", [mlm(masked(folder / "bert")), SpladePooling()])
    return folder, inference_free(folder / "free")


@pytest.fixture
def splade(built, tmp_path):
    """Return a folder of the first that may be changed."""
    return shutil.copytree(built[0] / "splade", tmp_path / "model")


@pytest.fixture
def free(built, tmp_path):
    """Return a folder of the second that may be changed, and what it should give."""
    folder, theirs = built[1]
    return shutil.copytree(folder, tmp_path / "model"), theirs


def test_sparse_vectors_do_not_depend_on_their_batch(splade, monkeypatch):
    ours = load(splade)
    texts = ["cat dog " * (number % 9 + 1) + str(number) for number in range(30)]
    alone = [ours.embed_sparse([text], input_type="passage") for text in texts]
    (engine,) = ours._load().engines
    monkeypatch.setattr(engine, "budget", 100)
    together = ours.embed_sparse(texts, input_type="passage")
    single = nimbed.SparseBatch.concatenate(alone)
    np.testing.assert_array_equal(together.ids, single.ids)
    np.testing.assert_array_equal(together.weights, single.weights)


def test_splade_in_half_precision_stays_near(splade):
    near, exact = (
        array(load(splade, dtype=dtype).embed_sparse(TEXTS[:3], input_type="query"))
        for dtype in ("bfloat16", "float32")
    )
    np.testing.assert_allclose(near, exact, atol=0.1, rtol=0)


def test_queries_by_a_table_need_no_network(free):
    folder, theirs = free
    ours = load(folder)
    assert_same(ours, theirs)
    assert pickle.loads(pickle.dumps(ours)).sparse_spec() == ours.sparse_spec()
    (document,) = folder.glob("document_0*")
    (document / "model.safetensors").write_bytes(b"")
    queries = load(folder).embed_sparse(["a cat and a cat"], input_type="query")
    assert len(queries.ids) == 3
    with pytest.raises(CheckpointError, match="damaged"):
        load(folder).embed_sparse(["a cat"], input_type="passage")


@pytest.mark.parametrize("part", ["query_0*/model.safetensors", "document_0*/model.safetensors"])
def test_the_weights_of_either_route_change_the_space(free, part):
    folder, _ = free
    before = load(folder).sparse_spec()
    (path,) = folder.glob(part)
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, path, metadata={"format": "pt"})
    assert load(folder).sparse_spec().fingerprint != before.fingerprint


def test_the_first_layout_of_opensearch_is_followed(built, tmp_path):
    """Weights of queries in idf.json, no modules; special tokens weigh nothing.

    The formula is that of the models' own page.
    """
    folder = shutil.copytree(built[0] / "bert", tmp_path / "model")
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    idf = {word: 1 + number / 7 for word, number in vocabulary.items() if not word.startswith("[")}
    (folder / "idf.json").write_text(json.dumps(idf))
    ours = load(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    special = [number for word, number in vocabulary.items() if word.startswith("[")]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    passages = array(ours.embed_sparse(TEXTS[:3], input_type="passage"))
    queries = ours.embed_sparse(TEXTS[:3], input_type="query")
    assert queries.spec == ours.sparse_spec()
    for row, text in enumerate(TEXTS[:3]):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            expected = torch.log(1 + torch.relu(model(**inputs).logits.max(dim=1).values))[0]
        expected[special] = 0
        np.testing.assert_allclose(passages[row], expected.numpy(), atol=1e-5, rtol=0)
        ids = set(inputs["input_ids"][0].tolist()) - set(special)
        assert queries.dicts()[row] == pytest.approx({i: 1 + i / 7 for i in ids})
    (folder / "idf.json").write_text(json.dumps({**idf, "unheard": 1.0}))
    with pytest.raises(CheckpointError, match=r"idf\.json gives 'unheard'"):
        load(folder).embed_sparse(["a cat"], input_type="query")


def test_a_masked_model_is_sparse_where_a_card_says_so(built, tmp_path):
    folder = built[0] / "bert"
    plain = load(folder)
    assert plain.kinds == ("dense",)
    assert plain.embed(["a cat"], input_type="query").vectors.shape == (1, 32)
    facts = {"architecture": "bert", "pooling": "mean", "asymmetric": False, "max_tokens": 40}
    size = plain._checkpoint.config["vocab_size"]
    card = nimbed.ModelCard(id="splade", dimensions=size, kinds=("sparse",), metric="dot", **facts)
    told = load(folder, card=card)
    module = save(tmp_path / "theirs", [mlm(folder), SpladePooling()])
    assert_same(told, module)
    with pytest.raises(CheckpointError, match="is a bert of 100"):
        load(folder, card=nimbed.ModelCard(id="s", dimensions=100, kinds=("sparse",), **facts))
    dense = tiny_bert(tmp_path / "dense")
    with pytest.raises(CheckpointError, match="dense vectors by its modules.json"):
        load(dense, card=card)


def test_a_sparse_model_says_how_it_is_called(splade):
    none = {"adapters": {}, "config_map": {}, "fusions": {}}  # as Splade_PP's file has it
    edit(splade / "config.json", lambda config: {**config, "adapters": none})
    ours = load(splade)
    for call in (ours.spec, functools.partial(ours.embed, ["a"], input_type="query")):
        with pytest.raises(ConfigurationError, match=r"sparse vectors, not dense.*embed_sparse"):
            call()
    with pytest.raises(ConfigurationError, match="gives no multi vectors; it gives sparse"):
        ours.embed_multi(["a"], input_type="query")
    ours.warmup()
    assert ours.arithmetic == "float32 on cpu by torch"
    with pytest.raises(ConfigurationError, match="sparse vectors alone, which need torch"):
        load(splade, backend="onnxruntime")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("1_SpladePooling/config.json", {"pooling_strategy": "mean"}, "pools by 'mean' with 'relu"),
        ("1_SpladePooling/config.json", {"top_k": 3}, "the key 'top_k'"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "cosine"}, "ranked by dot"),
        ("config_sentence_transformers.json", {"truncate_dim": 8}, "the key 'truncate_dim'"),
        ("config_sentence_transformers.json", {"max_active_dims": 0}, "gives max_active_dims 0"),
        ("sentence_bert_config.json", {"transformer_task": "any"}, "gives transformer_task 'any'"),
        (
            "sentence_bert_config.json",
            {"transformer_task": "feature-extraction", "modality_config": None},
            "behind one for 'fill-mask'",
        ),
        ("config.json", {"adapters": {"adapters": {"a": 1}}}, "adapters, gives adapters"),
        ("config.json", {"model_type": "nomic_bert"}, "pools the scores of a nomic_bert"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(splade, file, change, message):
    edit(splade / file, lambda content: {**content, **change})
    with pytest.raises(CheckpointError, match=message):
        load(splade)


def test_a_sparse_autoencoder_is_refused_by_name(built, tmp_path):
    first = transformer(built[0] / "bert")
    save(tmp_path / "model", [first, Pooling(32), SparseAutoEncoder(32, hidden_dim=64, k=8)])
    with pytest.raises(CheckpointError, match="SparseAutoEncoder', which nimbed does not run"):
        load(tmp_path / "model")


def test_routes_in_the_cache_are_found_without_the_network(free, tmp_path):
    folder, _ = free
    base = tmp_path / "cache" / "models--someone--free"
    shutil.copytree(folder, base / "snapshots" / "0123")
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("0123")
    assert load("someone/free", cache_dir=tmp_path / "cache").kinds == ("sparse",)


def test_routes_without_torch_say_what_they_need(free, monkeypatch):
    folder, _ = free
    monkeypatch.setattr("nimbed.local.backends._installed", lambda *names: "torch" not in names)
    with pytest.raises(ConfigurationError, match="need torch"):
        nimbed.load(str(folder))


def test_routes_of_two_vocabularies_are_refused(free):
    folder, _ = free
    (path,) = folder.glob("query_0*/tokenizer.json")
    edit(path, lambda content: content["model"]["vocab"].update(cat=60, token=159))
    with pytest.raises(CheckpointError, match="tokens of two vocabularies"):
        load(folder)


def test_a_table_with_bad_weights_is_refused(free):
    folder, _ = free
    (path,) = folder.glob("query_0*/model.safetensors")
    save_file({"weight": -load_file(path)["weight"]}, path)
    with pytest.raises(CheckpointError, match="not finite, or below 0"):
        load(folder).embed_sparse(["a cat"], input_type="query")
