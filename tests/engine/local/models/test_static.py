"""Tables of words (model2vec's potion) give sentence-transformers' vectors, with numpy alone."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import LayerNorm, StaticEmbedding
from tests.engine.local.sentence_folders import assert_same, edit, saved
from tests.engine.local.tiny_tokenizers import bert_tokenizer

import nimbed
from nimbed.errors import CheckpointError, ConfigurationError, InputError

TEXTS = ["what is nvidia", "a cat sleeps under the warm sky " * 40, "the lazy dogs", "x"]
WIDTH = 16


def static(*after):
    tokenizer = bert_tokenizer()
    table = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), WIDTH))
    return [StaticEmbedding(tokenizer, embedding_weights=table.astype(np.float32)), *after]


@pytest.fixture
def folder(tmp_path):
    """A folder as model2vec writes it: a smaller table, a row and a factor for each token."""
    made = tmp_path / "potion"
    made.mkdir()
    tokenizer = bert_tokenizer()
    tokenizer.save(str(made / "tokenizer.json"))
    random, count = np.random.default_rng(1), tokenizer.get_vocab_size()
    tensors = {
        "embeddings": random.standard_normal((50, WIDTH)).astype(np.float32),
        "mapping": random.integers(0, 50, count),
        "weights": random.random(count),
    }
    save_file(tensors, made / "model.safetensors")
    facts = {"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": WIDTH}
    (made / "config.json").write_text(json.dumps({**facts, "normalize": True}))
    kinds = [(".", "StaticEmbedding"), ("1_Normalize", "Normalize")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds)
    ]
    (made / "modules.json").write_text(json.dumps(modules))
    return made


@pytest.mark.parametrize("unit", [True, False])
def test_a_table_gives_the_mean_of_its_rows(tmp_path, unit):
    options = {"prompts": {"query": "quick the: ", "document": ""}}
    metric = {} if unit else {"similarity_fn_name": "dot"}
    modules = static(*[Normalize()] * unit)
    theirs = saved(tmp_path / "model", modules, **options, **metric)
    ours = assert_same(tmp_path / "model", theirs, texts=TEXTS, atol=2e-6)
    assert (ours.backend, ours.card.architecture, ours.card.dimensions) == ("numpy", "static", 16)
    assert ours.spec().metric == ("cosine" if unit else "dot")
    alone = [ours.embed([text], input_type="query").vectors[0] for text in TEXTS]
    np.testing.assert_array_equal(ours.embed(TEXTS, input_type="query").vectors, alone)


@pytest.mark.parametrize(
    "activation", ["Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "LeakyReLU", "ELU"]
)
def test_dense_layers_and_norms_behind_a_table_are_applied(tmp_path, activation):
    function = getattr(torch.nn, activation)()
    norm = LayerNorm(12)
    torch.nn.init.uniform_(norm.norm.weight)
    torch.nn.init.uniform_(norm.norm.bias)
    modules = static(
        Dense(WIDTH, 24, activation_function=function),
        Dense(24, 24, bias=False, activation_function=function, use_residual=True),
        Dense(24, 12, activation_function=function, use_residual=True),
        norm,
        Normalize(),
    )
    theirs = saved(tmp_path / "model", modules, truncate_dim=8)
    ours = assert_same(tmp_path / "model", theirs, texts=TEXTS, atol=2e-6)
    assert (ours.backend, ours.card.dimensions) == ("numpy", 8)
    alone = [ours.embed([text], input_type="query").vectors[0] for text in TEXTS]
    np.testing.assert_array_equal(ours.embed(TEXTS, input_type="query").vectors, alone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"linear.bias": t["linear.bias"]}, "lacks the tensor linear.weight"),
        (lambda t: {**t, "linear.bias": t["linear.bias"][:3]}, "linear.bias has shape"),
        (lambda t: {**t, "linear.weight": t["linear.weight"] * np.nan}, "expected finite floats"),
        (None, "has a bias that its config.json denies"),
    ],
)
def test_a_damaged_layer_behind_a_table_is_refused(tmp_path, change, message):
    saved(tmp_path / "model", static(Dense(WIDTH, 8)))
    path = tmp_path / "model" / "1_Dense"
    if change is None:
        edit(path / "config.json", lambda config: {**config, "bias": False})
    else:
        save_file(change(load_file(path / "model.safetensors")), path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        nimbed.load(str(tmp_path / "model")).warmup()


def test_model2vecs_own_layout_is_read(folder):
    theirs = SentenceTransformer(str(folder), device="cpu")
    assert_same(folder, theirs, texts=TEXTS, atol=2e-6)
    (folder / "modules.json").unlink()
    assert_same(folder, theirs, texts=TEXTS, atol=2e-6)
    half = {name: t for name, t in load_file(folder / "model.safetensors").items()}
    half["embeddings"] = half["embeddings"].astype(np.float16)
    save_file(half, folder / "model.safetensors")
    assert_same(folder, theirs, texts=TEXTS, atol=2e-3)


def test_it_needs_neither_torch_nor_a_runtime(folder):
    code = (
        "import sys, nimbed; e = nimbed.load(sys.argv[1]); "
        "print(e.embed(['the cat'], input_type='query').vectors.shape, "
        "{'torch', 'onnxruntime', 'transformers'} & set(sys.modules))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "(1, 16) set()"


def test_a_scheduler_shares_it(folder):
    embedder = nimbed.load(str(folder))
    with nimbed.scheduling.Scheduler(embedder) as scheduler:
        got = scheduler.submit(TEXTS, input_type="passage").result().vectors
    np.testing.assert_array_equal(got, embedder.embed(TEXTS, input_type="passage").vectors)


def change(folder, **tensors):
    found = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in {**found, **tensors}.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"embeddings": None}, "holds no table of words"),
        ({"embeddings": np.zeros((50, 16), np.int8)}, "no table of floats"),
        ({"embeddings": np.full((50, 16), np.nan, np.float32)}, "NaN or infinity"),
        ({"mapping": np.full(229, 50)}, "do not agree"),
        ({"weights": np.ones(3)}, "do not agree"),
    ],
)
def test_a_damaged_table_is_refused(folder, tensors, message):
    change(folder, **tensors)
    with pytest.raises(CheckpointError, match=message):
        nimbed.load(str(folder)).warmup()


def test_what_it_cannot_do_is_refused(folder, tmp_path):
    for option in ({"backend": "torch"}, {"dtype": "bfloat16"}, {"device": "cuda"}):
        with pytest.raises(ConfigurationError, match="a table of words, whose means numpy takes"):
            nimbed.load(str(folder), **option)
    with pytest.raises(InputError, match="row 0 vanishes"):
        nimbed.load(str(folder)).embed(["\u200b"], input_type="query")
    edit(folder / "config.json", lambda config: {**config, "twist": 1})
    with pytest.raises(CheckpointError, match="has the key 'twist'"):
        nimbed.load(str(folder))
    saved(tmp_path / "dense", static(Dense(8, 8)))
    with pytest.raises(CheckpointError, match="takes vectors of 8 dimensions, but is given 16"):
        nimbed.load(str(tmp_path / "dense"))
