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
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import LayerNorm, Normalize, Pooling
from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
from tests.engine.local.checkpoints import tiny_bert, tiny_xlmr
from tests.engine.local.sentence_folders import edit, transformer
from tests.engine.local.sparse_folders import (
    array,
    autoencoder,
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


def assert_batch_changes_nothing(ours: Any, monkeypatch: Any) -> None:
    texts = ["cat dog " * (number % 9 + 1) + str(number) for number in range(30)]
    alone = [ours.embed_sparse([text], input_type="passage") for text in texts]
    (engine,) = ours._load().engines
    monkeypatch.setattr(engine, "budget", 100)
    together = ours.embed_sparse(texts, input_type="passage")
    single = nimbed.SparseBatch.concatenate(alone)
    np.testing.assert_array_equal(together.ids, single.ids)
    np.testing.assert_array_equal(together.weights, single.weights)


def test_sparse_vectors_do_not_depend_on_their_batch(splade, monkeypatch):
    assert_batch_changes_nothing(load(splade), monkeypatch)


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


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Write the network of a dense model of 32 dimensions."""
    folder = tmp_path_factory.mktemp("dense")
    tiny_bert(folder)
    edit(folder / "tokenizer_config.json", lambda content: {**content, "model_max_length": 40})
    return folder


@pytest.mark.parametrize(
    ("between", "facts"),
    [
        ((Pooling(32),), {}),
        ((Pooling(32, pooling_mode="cls"), Normalize()), {"k": 5}),
        ((Pooling(32), Dense(32, 24), LayerNorm(24)), {"normalize": True}),
        ((Pooling(32, pooling_mode=["cls", "max"]), Normalize()), {"normalize": True, "k": 200}),
    ],
)
def test_a_sparse_autoencoder_is_sentence_transformers(network, tmp_path, between, facts):
    width = between[0].get_embedding_dimension() if len(between) < 3 else 24
    facts = {**facts, "k": min(facts.get("k", 12), 96)}
    modules = [transformer(network), *between, autoencoder(width, **facts)]
    theirs = save(tmp_path / "model", modules, prompts=PROMPTS)
    ours = load(tmp_path / "model")
    assert (ours.kinds, ours.card.dimensions, ours.card.metric) == (("sparse",), 96, "dot")
    assert ours.sparse_spec().max_active == facts["k"]
    assert_same(ours, theirs)
    more = theirs.encode_query(TEXTS, convert_to_sparse_tensor=False, max_active_dims=20)
    batch = ours.embed_sparse(TEXTS, input_type="query", max_active=20, truncate="END")
    np.testing.assert_allclose(array(batch), np.stack(more), atol=1e-5, rtol=0)


@pytest.fixture
def latent(network, tmp_path):
    """Save a model that ends in an autoencoder, which may be changed."""
    between = [Pooling(32), Normalize()]
    modules = [transformer(network), *between, autoencoder(32, normalize=True)]
    save(tmp_path / "model", modules)
    return tmp_path / "model"


def test_latents_do_not_depend_on_their_batch(latent, monkeypatch):
    assert_batch_changes_nothing(load(latent), monkeypatch)


def test_version_5_named_the_autoencoder_otherwise(latent):
    spec = load(latent).sparse_spec()
    old = "sentence_transformers.sparse_encoder.models.SparseAutoEncoder"
    edit(latent / "modules.json", lambda listed: [*listed[:-1], {**listed[-1], "type": old}])
    assert load(latent).sparse_spec() == spec


def test_latents_of_two_autoencoders_are_not_compared(network, latent):
    spec = load(latent).sparse_spec()
    assert load(latent).sparse_spec() == spec
    path = latent / "3_SparseAutoEncoder" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "latent_bias": tensors["latent_bias"] + 1}, path)
    other = load(latent).sparse_spec()
    assert other.vocabulary != spec.vocabulary
    assert other.fingerprint != spec.fingerprint
    edit(path.parent / "config.json", lambda config: {**config, "normalize": False})
    third = load(latent).sparse_spec()
    assert third.fingerprint != other.fingerprint
    edit(latent / "1_Pooling" / "config.json", lambda config: {**config, "pooling_mode": "max"})
    assert load(latent).sparse_spec().fingerprint != third.fingerprint
    dense = load(network)
    facts = {"architecture": "bert", "pooling": "mean", "asymmetric": False, "max_tokens": 40}
    card = nimbed.ModelCard(id="csr", dimensions=96, kinds=("sparse",), metric="dot", **facts)
    assert load(latent, card=card).sparse_spec().dimensions == 96
    assert dense.kinds == ("dense",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_dim": 24}, "takes vectors of 24 dimensions, but is given 32"),
        ({"hidden_dim": 0}, "gives hidden_dim 0"),
        ({"threshold": 1}, "the key 'threshold'"),
        ({"hidden_dim": 64}, "has shape"),
    ],
)
def test_an_autoencoder_that_does_not_fit_is_refused(latent, change, message):
    edit(latent / "3_SparseAutoEncoder" / "config.json", lambda config: {**config, **change})
    with pytest.raises(CheckpointError, match=message):
        load(latent).embed_sparse(["a cat"], input_type="query")


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
