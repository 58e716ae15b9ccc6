"""Folders of sentence-transformers are followed module by module, or refused by name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import (
    Dropout,
    LayerNorm,
    Pooling,
)
from tests.engine.local.checkpoints import tiny_bert
from tests.engine.local.families import FAMILIES, ON_ONNX
from tests.engine.local.sentence_folders import (
    MODES,
    TEXTS,
    assert_same,
    edit,
    saved,
    transformer,
    weighted_layers,
    width_of,
)
from tests.engine.local.tiny_encoders import tiny_jina_v3

import nimbed
from nimbed.errors import CheckpointError, ConfigurationError
from nimbed.local.hub import locate
from nimbed_cli.main import main

LAYERS = "1_WeightedLayerPooling/config.json"


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def minilm():
    return locate(None).folder


@pytest.mark.parametrize("mode", [*MODES, ("cls", "mean"), ("max", "lasttoken", "weightedmean")])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_every_pooling_is_that_of_sentence_transformers(network, mode, include_prompt, tmp_path):
    pooling = Pooling(width_of(network), pooling_mode=mode, include_prompt=include_prompt)
    prompts = {"query": "quick the: ", "document": ""}
    theirs = saved(tmp_path / "model", [transformer(network), pooling], prompts=prompts)
    assert_same(tmp_path / "model", theirs)


@pytest.mark.parametrize(
    "activation", ["Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "LeakyReLU", "ELU"]
)
def test_dense_layers_are_applied_with_their_activation(network, activation, tmp_path):
    width = width_of(network)
    function = getattr(torch.nn, activation)()
    modules = [
        transformer(network),
        Pooling(width),
        Dense(width, 24, activation_function=function),
        Dense(24, 24, bias=False, activation_function=torch.nn.Identity(), use_residual=True),
        Dense(24, 16, use_residual=True),
        LayerNorm(16),
        Dropout(0.1),
        Normalize(),
    ]
    theirs = saved(tmp_path / "model", modules)
    ours = assert_same(tmp_path / "model", theirs)
    assert ours.card.dimensions == 16


@pytest.mark.parametrize("family", [*ON_ONNX, "jina-v3", "gemma3", "qwen3", "causal-llama"])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_weighted_mean_of_layers_is_that_of_sentence_transformers(family, first, tmp_path):
    network = {**FAMILIES, "jina-v3": tiny_jina_v3}[family](tmp_path / "network")
    layers = weighted_layers(network, first)
    pooling = Pooling(layers[1].embedding_dimension, ("cls", "mean"))
    theirs = saved(tmp_path / "model", [*layers, pooling])
    ours = assert_same(tmp_path / "model", theirs)
    together = ours.embed(TEXTS, input_type="query").vectors
    alone = [ours.embed([text], input_type="query").vectors[0] for text in TEXTS]
    np.testing.assert_array_equal(together, alone)
    half = nimbed.load(str(tmp_path / "model"), device="cpu", dtype="bfloat16")
    assert (half.embed(TEXTS, input_type="query").vectors * together).sum(1).min() >= 0.999
    last = nimbed.load(str(network), device="cpu", dtype="float32").spec().fingerprint
    assert ours.spec().fingerprint != last


def test_weights_of_layers_are_part_of_a_models_name_and_of_what_is_said_of_it(
    network, tmp_path, capsys
):
    folder = tmp_path / "model"
    saved(folder, [*weighted_layers(network, 1), Pooling(32)])
    seen = {nimbed.load(str(folder), device="cpu").spec().fingerprint}
    with pytest.raises(SystemExit, match="0"):
        main(["models", str(folder)])
    assert "Transformer, WeightedLayerPooling of layers 1 to 2, Pooling" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match=r"WeightedLayerPooling\), which runs in torch"):
        nimbed.load(str(folder), backend="onnxruntime")
    path = folder / "1_WeightedLayerPooling" / "model.safetensors"
    save_file({"layer_weights": torch.tensor([1.0, 2.0])}, path)
    seen.add(nimbed.load(str(folder), device="cpu").spec().fingerprint)
    assert len(seen) == 2
    save_file({"layer_weights": torch.tensor([1.0, -1.0])}, path)
    with pytest.raises(CheckpointError, match="the layer_weights sum to zero"):
        nimbed.load(str(folder), device="cpu").warmup()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("modules.json", lambda m: [m[0], m[2], m[1]], "stands behind a Transformer alone"),
        ("modules.json", lambda m: m[:2], "weights its layers, but has no Pooling"),
        ("config.json", lambda c: {**c, "output_hidden_states": False}, "output_hidden_states"),
        (LAYERS, lambda c: {**c, "num_hidden_layers": 3}, "num_hidden_layers 3, but .* 2"),
        (LAYERS, lambda c: {**c, "layer_start": 3}, "layer_start 3, expected .* from 0 to 2"),
        (LAYERS, lambda c: {**c, "layer_start": 0}, "layer_weights has shape"),
        (LAYERS, lambda c: {**c, "twist": 3}, "has the key 'twist'"),
    ],
)
def test_weights_of_layers_that_do_not_fit_are_refused(network, file, change, message, tmp_path):
    folder = tmp_path / "model"
    saved(folder, [*weighted_layers(network, 1), Pooling(32)])
    edit(folder / file, change)
    with pytest.raises(CheckpointError, match=message):
        nimbed.load(str(folder), device="cpu").warmup()


def test_weights_of_layers_are_refused_where_a_network_gives_one_state(tmp_path):
    folder, network = tmp_path / "model", FAMILIES["bert"](tmp_path / "network")
    saved(folder, [*weighted_layers(network, 2), Pooling(width_of(network))])
    shutil.copy(FAMILIES["nvembed"](tmp_path / "other") / "config.json", folder / "config.json")
    with pytest.raises(CheckpointError, match="weights the layers of a nvembed"):
        nimbed.load(str(folder), device="cpu")


def test_minilm_with_a_dense_layer_and_half_of_its_dimensions(minilm, tmp_path):
    modules = [transformer(minilm), Pooling(384), Dense(384, 128), Normalize()]
    theirs = saved(tmp_path / "model", modules, truncate_dim=64)
    ours = assert_same(tmp_path / "model", theirs, atol=2e-6)
    assert ours.spec().dimensions == 64


@pytest.mark.parametrize(
    ("pooling", "options"),
    [
        (
            {"pooling_mode": "cls", "include_prompt": False},
            {"prompts": {"query": "search for this: ", "document": "a passage: "}},
        ),
        (
            {"pooling_mode": ("max", "weightedmean")},
            {"similarity_fn_name": "dot", "prompts": {"query": "query: ", "document": ""}},
        ),
    ],
)
def test_minilm_under_other_pipelines(minilm, tmp_path, pooling, options):
    folder = tmp_path / "model"
    theirs = saved(folder, [transformer(minilm), Pooling(384, **pooling)], **options)
    assert_same(folder, theirs, texts=[*TEXTS, "A Question IN Capitals?"], atol=5e-6, alone=False)


def test_minilm_with_a_tokenizer_that_keeps_capitals(minilm, tmp_path):
    folder = tmp_path / "model"
    saved(folder, [transformer(minilm, do_lower_case=True), Pooling(384), Normalize()])
    edit(folder / "tokenizer.json", lambda t: {**t, "normalizer": None})
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts), "utf-8")
    theirs = SentenceTransformer(str(folder), device="cpu")
    assert_same(folder, theirs, texts=["What IS Nvidia?", "A CAT"], atol=2e-6, alone=False)


def test_the_length_that_was_saved_holds(minilm, tmp_path):
    theirs = saved(tmp_path / "model", [transformer(minilm, max_seq_length=64), Pooling(384)])
    texts = ["word " * 200, "short"]
    ours = assert_same(tmp_path / "model", theirs, texts=texts, atol=2e-6)
    assert ours.card.max_tokens == 64
    with pytest.raises(nimbed.errors.TooLongError):
        ours.embed(texts, input_type="query")


@pytest.mark.parametrize(
    ("query", "passage"),
    [
        ("query", "passage"),
        ("search_query", "search_document"),
        ("retrieval.query", "retrieval.passage"),
        ("s2p_query", "corpus"),
        ("query", "doc"),
    ],
)
def test_prompts_are_roles_under_their_usual_names(network, query, passage, tmp_path):
    prompts = {query: "ask: ", passage: "keep: ", "clustering": "sort: "}
    theirs = saved(
        tmp_path / "model", [transformer(network), Pooling(width_of(network))], prompts=prompts
    )
    ours = nimbed.load(str(tmp_path / "model"), device="cpu", dtype="float32")
    assert (ours.card.query_prompt, ours.card.passage_prompt) == ("ask: ", "keep: ")
    assert ours.card.asymmetric
    assert ours.card.task_prompts == (("clustering", "sort: "),)
    for role, prompt in (("query", "ask: "), ("passage", "keep: ")):
        got = ours.embed(TEXTS, input_type=role).vectors
        expected = theirs.encode(TEXTS, prompt=prompt, normalize_embeddings=True)
        np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


def test_the_old_layout_is_followed(network, tmp_path):
    theirs = saved(tmp_path / "model", [transformer(network), Pooling(width_of(network), "cls")])
    folder = tmp_path / "model"
    inner = folder / "0_Transformer"
    inner.mkdir()
    listed = json.loads((folder / "modules.json").read_text("utf-8"))
    for path in list(folder.iterdir()):
        if path.is_file() and path.name not in (
            "modules.json",
            "config_sentence_transformers.json",
        ):
            shutil.move(path, inner / path.name)
    listed[0] |= {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
    (folder / "1_Pooling").rename(folder / "2_Pooling")
    listed[1] |= {"path": "2_Pooling", "type": "sentence_transformers.models.Pooling"}
    (folder / "modules.json").write_text(json.dumps(listed), "utf-8")
    flags = {"word_embedding_dimension": width_of(network), "pooling_mode_cls_token": True}
    flags["pooling_mode_mean_tokens"] = False
    (folder / "2_Pooling" / "config.json").write_text(json.dumps(flags), "utf-8")
    assert_same(folder, theirs)


def test_what_changes_a_vector_changes_the_fingerprint(network, tmp_path):
    seen = set()
    width = width_of(network)
    for name, modules in {
        "mean": [Pooling(width)],
        "cls": [Pooling(width, "cls")],
        "dense": [Pooling(width), Dense(width, width)],
        "another dense": [Pooling(width), Dense(width, width, bias=False)],
    }.items():
        saved(tmp_path / name / "model", [transformer(network), *modules])
        seen.add(nimbed.load(str(tmp_path / name / "model"), device="cpu").spec().fingerprint)
    shutil.copytree(tmp_path / "mean" / "model", tmp_path / "again" / "model")
    seen.add(nimbed.load(str(tmp_path / "again" / "model"), device="cpu").spec().fingerprint)
    assert len(seen) == 4


@pytest.fixture
def folder(network, tmp_path):
    width = width_of(network)
    saved(tmp_path / "model", [transformer(network), Pooling(width), Dense(width, 8), Normalize()])
    return tmp_path / "model"


FILES = [
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "3_Normalize/config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
]


@pytest.mark.parametrize("file", FILES)
def test_an_unknown_key_is_refused_by_name(folder, file):
    edit(folder / file, lambda config: {**config, "twist": 0.5})
    with pytest.raises(CheckpointError, match=f"{file} has the key 'twist'"):
        nimbed.load(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("modules.json", lambda m: {"a": 1}, "is no list of modules"),
        ("modules.json", lambda m: [3], "module 0 is int"),
        ("modules.json", lambda m: m[1:], "is Pooling; a Transformer comes first"),
        ("modules.json", lambda m: [m[0], m[2]], "is Dense before any Pooling"),
        ("modules.json", lambda m: [m[0], m[1], m[1]], "a second pooling"),
        ("modules.json", lambda m: [m[0], m[1], m[3], m[2]], "is Dense behind Normalize"),
        (
            "modules.json",
            lambda m: [m[0], {**m[1], "path": "9_Pooling"}],
            "names the folder '9_Pooling', not found",
        ),
        ("modules.json", lambda m: [m[0], {**m[1], "path": "../x"}], "names the folder '../x'"),
        (
            "modules.json",
            lambda m: [*m, {**m[1], "type": "sentence_transformers.models.WordWeights"}],
            "WordWeights', which nimbed does not run",
        ),
        (
            "modules.json",
            lambda m: [
                m[0],
                {**m[1], "type": "sentence_transformers.sparse_encoder.Pooling"},
            ],
            "sparse_encoder.Pooling', which nimbed does not run",
        ),
        ("modules.json", lambda m: [{**m[0], "kwargs": ["task"]}, *m[1:]], "gives kwargs"),
        (
            "modules.json",
            lambda m: [{**m[0], "type": "custom_st.Transformer"}, *m[1:]],
            "is 'custom_st.Transformer', which nimbed does not run",
        ),
        (
            "config_sentence_transformers.json",
            lambda c: {**c, "similarity_fn_name": "dot", "truncate_dim": 4},
            "of which nothing keeps its length",
        ),
        ("1_Pooling/config.json", lambda c: {**c, "pooling_mode": "median"}, "pools by 'median'"),
        (
            "1_Pooling/config.json",
            lambda c: {**c, "pooling_mode_cls_token": True},
            "pools by 'mean' and by cls",
        ),
        ("2_Dense/config.json", lambda c: {**c, "in_features": 9}, "takes vectors of 9 dimensions"),
        ("2_Dense/config.json", lambda c: {**c, "out_features": 9}, "linear.weight has shape"),
        ("2_Dense/config.json", lambda c: {**c, "bias": False}, "has a bias that its config.json"),
        (
            "2_Dense/config.json",
            lambda c: {**c, "activation_function": "torch.nn.Softmax"},
            "activation_function 'torch.nn.Softmax'",
        ),
        (
            "2_Dense/config.json",
            lambda c: {**c, "module_input_name": "token_embeddings"},
            "gives module_input_name 'token_embeddings'",
        ),
        (
            "config_sentence_transformers.json",
            lambda c: {**c, "similarity_fn_name": "manhattan"},
            "ranks by similarity_fn_name 'manhattan'",
        ),
        (
            "config_sentence_transformers.json",
            lambda c: {**c, "model_type": "SparseEncoder"},
            "gives model_type 'SparseEncoder'",
        ),
        (
            "config_sentence_transformers.json",
            lambda c: {**c, "prompts": {"tidy": "a"}, "default_prompt_name": "tidy"},
            "puts the prompt 'tidy' before every text.*say prompt_name='tidy'",
        ),
        (
            "config_sentence_transformers.json",
            lambda c: {**c, "prompts": {"document": "a", "passage": "b"}},
            "several prompts for one role",
        ),
        (
            "sentence_bert_config.json",
            lambda c: {**c, "query_expansion": True},
            "gives query_expansion True",
        ),
        (
            "sentence_bert_config.json",
            lambda c: {**c, "transformer_task": "fill-mask"},
            "reads texts by modality_config",
        ),
    ],
)
def test_what_is_not_followed_is_refused(folder, file, change, message):
    edit(folder / file, change)
    with pytest.raises(CheckpointError, match=message):
        nimbed.load(str(folder), device="cpu").warmup()


def test_a_classifier_is_refused(network, tmp_path):
    shutil.copytree(network, tmp_path / "model")
    (tmp_path / "model" / "modules.json").unlink()
    edit(
        tmp_path / "model" / "config.json",
        lambda config: {**config, "architectures": ["BertForSequenceClassification"]},
    )
    with pytest.raises(CheckpointError, match="a classifier or cross-encoder"):
        nimbed.load(str(tmp_path / "model"), device="cpu")


def test_an_adapter_is_refused(network, tmp_path):
    shutil.copytree(network, tmp_path / "model")
    (tmp_path / "model" / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(CheckpointError, match="merge it into its base model"):
        nimbed.load(str(tmp_path / "model"), device="cpu")


def test_cls_without_a_token_before_the_text_is_refused(network, tmp_path):
    saved(tmp_path / "model", [transformer(network), Pooling(width_of(network), "cls")])
    edit(tmp_path / "model" / "tokenizer.json", lambda t: {**t, "post_processor": None})
    whole = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    edit(tmp_path / "model" / "tokenizer_config.json", lambda config: {**config, **whole})
    with pytest.raises(CheckpointError, match="puts no token before a text"):
        nimbed.load(str(tmp_path / "model"), device="cpu").warmup()


def test_matryoshka_sizes_are_read_from_the_configuration(network, tmp_path):
    shutil.copytree(network, tmp_path / "model")
    edit(tmp_path / "model" / "config.json", lambda c: {**c, "matryoshka_dimensions": [8, 16]})
    ours = nimbed.load(str(tmp_path / "model"), device="cpu")
    assert ours.card.matryoshka == (8, 16)
    assert ours.embed(["cat"], input_type="query", dimensions=8).vectors.shape == (1, 8)


def test_a_prompt_of_another_task_is_used_where_it_is_named(network, tmp_path):
    prompts = {"query": "ask: ", "clustering": "sort: "}
    modules = [transformer(network), Pooling(width_of(network))]
    theirs = saved(tmp_path / "model", modules, prompts=prompts, default_prompt_name="clustering")
    folder = str(tmp_path / "model")
    specs = {nimbed.load(folder, device="cpu").spec().fingerprint}
    for name, prompt in (("clustering", "sort: "), ("query", "ask: "), ("", "")):
        ours = nimbed.load(folder, prompt_name=name, device="cpu", dtype="float32")
        assert not ours.card.asymmetric
        expected = theirs.encode(TEXTS, prompt=prompt, normalize_embeddings=True)
        for role in ("query", "passage"):
            got = ours.embed(TEXTS, input_type=role).vectors
            np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
        specs.add(ours.spec().fingerprint)
    assert len(specs) == 4
    with pytest.raises(ConfigurationError, match="no prompt named 'sort'.*'clustering'"):
        nimbed.load(folder, prompt_name="sort", device="cpu")
    with pytest.raises(ConfigurationError, match="prompt_name can only be used with a local model"):
        nimbed.load("m", prompt_name="sort", base_url="http://localhost:1/v1")


def test_the_models_own_metric_ranks_and_keeps_the_length_of_vectors(network, tmp_path):
    for metric in ("dot", "euclidean"):
        folder = tmp_path / metric
        modules = [transformer(network), Pooling(width_of(network), "cls"), Dense(32, 8)]
        theirs = saved(folder, modules, similarity_fn_name=metric)
        ours = assert_same(folder, theirs)
        spec = ours.spec()
        assert (spec.metric, spec.normalized) == (metric, False)
        queries, passages = (ours.embed(TEXTS, input_type=role) for role in ("query", "passage"))
        similar = theirs.similarity(queries.vectors, passages.vectors).numpy()
        order = np.argsort(-similar, axis=1, kind="stable")
        np.testing.assert_array_equal(nimbed.search.nearest(queries, passages, 3).rows, order)
        for kind in ("int8", "uint8", "binary", "ubinary"):
            with pytest.raises(ConfigurationError, match=f"ranks by {metric}.*'float'"):
                ours.embed(TEXTS, input_type="query", embedding_type=kind)
        edit(folder / "modules.json", lambda modules: [*modules, NORMALIZE])
        assert nimbed.load(str(folder), device="cpu").spec().metric == "cosine"


NORMALIZE = {
    "idx": 3,
    "name": "3",
    "path": "3_Normalize",
    "type": "sentence_transformers.models.Normalize",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Pooling(384, "cls"), "pools by cls; sentence-transformers/all-MiniLM"),
        (lambda: Pooling(384, "mean"), None),
    ],
)
def test_a_card_that_does_not_fit_its_folder_is_refused(minilm, change, message, tmp_path):
    folder = tmp_path / "model"
    saved(folder, [transformer(minilm), change()])
    if message is None:
        assert nimbed.load(str(folder), card="minilm", device="cpu").card.id.endswith("L6-v2")
        return
    with pytest.raises(CheckpointError, match=message):
        nimbed.load(str(folder), card="minilm", device="cpu")


def test_a_card_of_a_bare_network_does_not_hide_a_dense_layer(minilm, tmp_path):
    folder = tmp_path / "model"
    saved(folder, [transformer(minilm), Pooling(384), Dense(384, 64)])
    with pytest.raises(CheckpointError, match="64 dimensions"):
        nimbed.load(str(folder), card="minilm", device="cpu")
