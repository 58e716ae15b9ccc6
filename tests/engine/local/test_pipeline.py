"""Folders of sentence-transformers are followed module by module, or refused by name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from tests.engine.local.checkpoints import tiny_bert

import nimbed
from nimbed.errors import CheckpointError
from nimbed.local.hub import locate

TEXTS = ["what is nvidia", "a cat sleeps under the warm sky", "the lazy dogs jumped over york"]
MODES = ["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def minilm():
    return locate(None).folder


def transformer(folder, **options):
    return Transformer(str(folder), **options)


def width_of(folder):
    return json.loads((folder / "config.json").read_text("utf-8"))["hidden_size"]


def saved(folder, modules, **options):
    """Save modules as sentence-transformers does, and return it with what it gives."""
    torch.manual_seed(0)
    model = SentenceTransformer(modules=modules, device="cpu", **options).eval()
    model.save(str(folder))
    return model


def assert_same(folder, theirs, *, texts=TEXTS, atol=1e-5):
    for backend in ("onnxruntime", "torch"):
        ours = nimbed.load(str(folder), device="cpu", dtype="float32", backend=backend)
        for role, encode in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
            got = ours.embed(texts, input_type=role, truncate="END").vectors
            expected = encode(texts, normalize_embeddings=True)
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=atol, rtol=0)
            for row, text in enumerate(texts):
                alone = ours.embed([text], input_type=role, truncate="END").vectors[0]
                np.testing.assert_allclose(alone, expected[row], atol=atol, rtol=0)
                if backend == "onnxruntime":
                    np.testing.assert_array_equal(alone, got[row])
    return ours


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


def test_minilm_with_a_dense_layer_and_half_of_its_dimensions(minilm, tmp_path):
    modules = [transformer(minilm), Pooling(384), Dense(384, 128), Normalize()]
    theirs = saved(tmp_path / "model", modules, truncate_dim=64)
    ours = assert_same(tmp_path / "model", theirs, atol=2e-6)
    assert ours.spec().dimensions == 64


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
    assert "clustering" in ours.card.note
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


def edit(path, change):
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(change(content) or content), "utf-8")


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
                {**m[1], "type": "sentence_transformers.sparse_encoder.SpladePooling"},
            ],
            "SpladePooling', which nimbed does not run",
        ),
        ("modules.json", lambda m: [{**m[0], "kwargs": ["task"]}, *m[1:]], "has the key 'kwargs'"),
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
            "puts the prompt 'tidy' before every text",
        ),
        (
            "config_sentence_transformers.json",
            lambda c: {**c, "prompts": {"document": "a", "passage": "b"}},
            "several prompts for one role",
        ),
        (
            "sentence_bert_config.json",
            lambda c: {**c, "query_expansion": True},
            "has the key 'query_expansion'",
        ),
        (
            "sentence_bert_config.json",
            lambda c: {**c, "transformer_task": "fill-mask"},
            "gives transformer_task 'fill-mask'",
        ),
        ("config.json", lambda c: {**c, "architectures": ["HF_ColBERT"]}, "holds a ColBERT model"),
    ],
)
def test_what_is_not_followed_is_refused(folder, file, change, message):
    edit(folder / file, change)
    with pytest.raises(CheckpointError, match=message):
        nimbed.load(str(folder), device="cpu").warmup()


def test_dot_without_unit_length_is_refused_and_with_it_is_cosine(folder):
    name = folder / "config_sentence_transformers.json"
    edit(name, lambda config: {**config, "similarity_fn_name": "dot"})
    assert nimbed.load(str(folder), device="cpu").spec().metric == "cosine"
    edit(folder / "modules.json", lambda modules: modules[:-1])
    with pytest.raises(CheckpointError, match="similarity_fn_name 'dot', and not by cosine"):
        nimbed.load(str(folder), device="cpu")


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


def test_lower_case_that_the_tokenizer_does_not_know_is_refused(folder):
    edit(folder / "sentence_bert_config.json", lambda c: {**c, "do_lower_case": True})
    edit(folder / "tokenizer.json", lambda tokenizer: {**tokenizer, "normalizer": None})
    with pytest.raises(CheckpointError, match="do_lower_case, but tokenizer.json keeps capitals"):
        nimbed.load(str(folder), device="cpu")


def test_cls_without_a_token_before_the_text_is_refused(network, tmp_path):
    saved(tmp_path / "model", [transformer(network), Pooling(width_of(network), "cls")])
    edit(tmp_path / "model" / "tokenizer.json", lambda t: {**t, "post_processor": None})
    with pytest.raises(CheckpointError, match="puts no token before a text"):
        nimbed.load(str(tmp_path / "model"), device="cpu").warmup()


def test_matryoshka_sizes_are_read_from_the_configuration(network, tmp_path):
    shutil.copytree(network, tmp_path / "model")
    edit(tmp_path / "model" / "config.json", lambda c: {**c, "matryoshka_dimensions": [8, 16]})
    ours = nimbed.load(str(tmp_path / "model"), device="cpu")
    assert ours.card.matryoshka == (8, 16)
    assert ours.embed(["cat"], input_type="query", dimensions=8).vectors.shape == (1, 8)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_folder_is_followed_or_refused(network, tmp_path_factory, data):
    width = width_of(network)
    modes = data.draw(st.lists(st.sampled_from(MODES), min_size=1, max_size=2, unique=True))
    include = data.draw(st.booleans())
    modules = [
        transformer(network, max_seq_length=data.draw(st.sampled_from([12, 20, 60]))),
        Pooling(width, pooling_mode=tuple(modes), include_prompt=include),
    ]
    size = width * len(modes)
    for kind in data.draw(st.lists(st.sampled_from(["dense", "norm", "dropout"]), max_size=3)):
        if kind == "dense":
            after = data.draw(st.sampled_from([8, 12]))
            residual = data.draw(st.booleans())
            modules.append(Dense(size, after, bias=data.draw(st.booleans()), use_residual=residual))
            size = after
        else:
            modules.append(LayerNorm(size) if kind == "norm" else Dropout(0.2))
    modules.extend([Normalize()] if data.draw(st.booleans()) else [])
    options = {
        "prompts": data.draw(
            st.sampled_from([{}, {"query": "ask: "}, {"query": "ask: ", "document": "keep the: "}])
        ),
        "truncate_dim": data.draw(st.sampled_from([None, 5])),
        "similarity_fn_name": data.draw(st.sampled_from([None, "cosine", "dot"])),
    }
    folder = tmp_path_factory.mktemp("any") / "model"
    theirs = saved(folder, modules, **{k: v for k, v in options.items() if v is not None})
    if options["similarity_fn_name"] == "dot" and not isinstance(modules[-1], Normalize):
        with pytest.raises(CheckpointError, match="similarity_fn_name 'dot'"):
            nimbed.load(str(folder), device="cpu")
        return
    assert_same(folder, theirs, atol=2e-5)
