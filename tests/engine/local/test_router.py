"""Queries and passages may go through modules of their own, as in sentence-transformers' Router."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from sentence_transformers.base.modules import Dense, Normalize, Router
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tests.engine.local.checkpoints import tiny_bert
from tests.engine.local.sentence_folders import TEXTS, assert_same, edit, saved, transformer
from tests.engine.local.tiny_tokenizers import bert_tokenizer

import nimbed
from nimbed.errors import CheckpointError, ConfigurationError
from nimbed.options import EmbedOptions
from nimbed.scheduling import Scheduler


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


def words(width):
    tokenizer = bert_tokenizer()
    table = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), width))
    return StaticEmbedding(tokenizer, embedding_weights=table.astype(np.float32))


def two_networks(network):
    passages = [transformer(network), Pooling(32, "cls")]
    return [Router.for_query_document([words(32)], passages), Normalize()]


def two_ends(network):
    ends = Router({"query": [Dense(32, 8)], "document": [Dense(32, 8, bias=False)]})
    return [transformer(network), Pooling(32), ends, Normalize()]


@pytest.mark.parametrize("build", [two_networks, two_ends])
def test_each_role_takes_its_route(network, build, tmp_path):
    folder = tmp_path / "model"
    theirs = saved(folder, build(network), prompts={"query": "ask: ", "document": ""})
    ours = nimbed.load(str(folder), device="cpu", dtype="float32")
    for role, encode in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
        batch = ours.embed(TEXTS, input_type=role)
        np.testing.assert_allclose(batch.vectors, encode(TEXTS), atol=1e-5, rtol=0)
        assert batch.spec == ours.spec()
    assert (ours.card.asymmetric, ours.card.query_prompt) == (True, "ask: ")
    queries, passages = (ours.embed(TEXTS, input_type=role) for role in ("query", "passage"))
    assert nimbed.search.nearest(queries, passages, 1).rows.shape == (3, 1)
    assert pickle.loads(pickle.dumps(ours)).spec() == ours.spec()
    with pytest.raises(ConfigurationError, match="input_type must be one of"):
        ours.embed(TEXTS, input_type="document")
    ours.close()


@pytest.mark.parametrize("build", [two_networks, two_ends])
def test_both_roles_share_a_scheduler(network, build, tmp_path):
    saved(tmp_path / "model", build(network))
    ours = nimbed.load(str(tmp_path / "model"), device="cpu", dtype="float32")
    with Scheduler(ours) as scheduler:
        roles = ["query", "passage", "query"]
        waiting = [scheduler.submit(TEXTS[n:], input_type=role) for n, role in enumerate(roles)]
        for n, (role, future) in enumerate(zip(roles, waiting, strict=True)):
            right = ours.embed(TEXTS[n:], input_type=role)
            batch = future.result()
            np.testing.assert_allclose(batch.vectors, right.vectors, atol=1e-6)
            assert (batch.spec, batch.input_type) == (right.spec, role)
    (replica,) = ours.replicas()
    rows = [
        row
        for text, role in zip(TEXTS, roles, strict=True)
        for row in ours.prepare([text], EmbedOptions(input_type=role)).rows
    ]
    mixed = replica.embed_rows(rows)
    alone = np.concatenate([replica.embed_rows([row]) for row in rows])
    np.testing.assert_allclose(mixed, alone, atol=1e-6)
    for role in ("query", "passage"):
        tokens = [token.id for token in ours.tokenize(TEXTS[:1], input_type=role)[0]]
        assert len(tokens) == ours.embed(TEXTS[:1], input_type=role).token_counts[0]
    ours.close()


def test_what_changes_one_route_changes_the_fingerprint(network, tmp_path):
    folder = tmp_path / "model"
    saved(folder, two_ends(network))
    before = nimbed.load(str(folder), device="cpu").spec().fingerprint
    dense = next(folder.rglob("query_0_Dense/config.json"))
    edit(dense, lambda config: {**config, "activation_function": "torch.nn.ReLU"})
    assert nimbed.load(str(folder), device="cpu").spec().fingerprint != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {**c, "twist": 1}, "router_config.json has the key 'twist'"),
        (lambda c: {**c, "structure": {"query": c["structure"]["query"]}}, "has the routes query;"),
        (
            lambda c: {**c, "structure": {**c["structure"], "image": []}},
            "has the routes .*image; nimbed follows one for queries",
        ),
        (lambda c: {**c, "types": {}}, "gives no type for"),
        (
            lambda c: {**c, "parameters": {"route_mappings": {"('query', None)": "document"}}},
            "gives route_mappings",
        ),
        (
            lambda c: {**c, "types": {k: "sentence_transformers.models.Twist" for k in c["types"]}},
            "Twist', which nimbed does not run",
        ),
    ],
)
def test_a_router_that_is_not_followed_is_refused(network, change, message, tmp_path):
    folder = tmp_path / "model"
    saved(folder, two_ends(network))
    edit(next(folder.rglob("router_config.json")), change)
    with pytest.raises(CheckpointError, match=message):
        nimbed.load(str(folder), device="cpu")


def test_routes_of_two_widths_are_refused(network, tmp_path):
    folder = tmp_path / "model"
    saved(folder, [Router.for_query_document([words(32)], [transformer(network), Pooling(32)])])
    static = next(folder.rglob("query_0_StaticEmbedding"))
    words(16).save(str(static))
    assert json.loads((folder / "modules.json").read_text("utf-8"))
    with pytest.raises(CheckpointError, match="gives queries 16 dimensions and passages 32"):
        nimbed.load(str(folder), device="cpu")


@pytest.mark.parametrize("options", [{"backend": "torch"}, {"dtype": "bfloat16"}])
def test_a_table_for_queries_takes_no_choice_from_a_network_for_passages(
    network, options, tmp_path
):
    theirs = saved(tmp_path / "model", two_networks(network))
    ours = nimbed.load(str(tmp_path / "model"), **{"device": "cpu", **options})
    assert ours.backend == "torch"
    queries = ours.embed(TEXTS, input_type="query").vectors
    np.testing.assert_allclose(queries, theirs.encode_query(TEXTS), atol=1e-5, rtol=0)
    passages = ours.embed(TEXTS, input_type="passage").vectors
    assert (passages * theirs.encode_document(TEXTS)).sum(1).min() > 0.999
    saved(tmp_path / "tables", [Router.for_query_document([words(32)], [words(32)])])
    with pytest.raises(ConfigurationError, match="a table of words, whose means numpy takes"):
        nimbed.load(str(tmp_path / "tables"), **options)


def test_tokens_are_counted_as_each_role_reads_them(network, tmp_path):
    saved(tmp_path / "model", two_networks(network), prompts={"query": "ask: ", "document": ""})
    ours = nimbed.load(str(tmp_path / "model"), device="cpu")
    for role in ("query", "passage"):
        counts = ours.embed(TEXTS, input_type=role).token_counts.tolist()
        assert ours.count_tokens(TEXTS, input_type=role) == counts
    assert ours.text_tokens == ours.card.max_tokens == 128
    long = " ".join(TEXTS * 8)
    chunks = nimbed.chunks.Splitter(ours, tokens=40).split(long)
    assert "".join(chunk.text for chunk in chunks).split() == long.split()
    assert len(chunks) > 1
    assert max(ours.count_tokens([c.text for c in chunks], input_type="passage")) <= 40
    with pytest.raises(ConfigurationError, match="late chunking takes the mean .* pools by cls"):
        nimbed.chunks.LateSplitter(ours, tokens=40)


def test_routes_of_two_metrics_are_refused(network, tmp_path):
    passages = [transformer(network), Pooling(32), Normalize()]
    modules = [Router.for_query_document([words(32)], passages)]
    saved(tmp_path / "model", modules, similarity_fn_name="dot")
    with pytest.raises(CheckpointError, match="queries by dot and passages by cosine.*Normalize"):
        nimbed.load(str(tmp_path / "model"), device="cpu")


def test_a_table_is_cut_where_its_tokenizer_cuts(tmp_path):
    table = words(16)
    table.tokenizer.enable_truncation(4)
    theirs = saved(tmp_path / "model", [table, Normalize()])
    ours = assert_same(tmp_path / "model", theirs)
    assert ours.card.max_tokens == 4
