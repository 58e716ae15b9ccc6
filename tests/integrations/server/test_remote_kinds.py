"""A model's kinds through a server of ours are those of the model here, contract and all."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
from tests.engine.local.checkpoints import tiny_m3
from tests.engine.local.families import TEXTS, load
from tests.engine.local.sentence_folders import edit
from tests.engine.remote import double

import nimbed
from nimbed import FakeEmbedder, MultiVectorBatch, SparseBatch
from nimbed.fake import FAKE_CARD
from nimbed.search import distances, nearest
from nimbed_server import Settings, parse_alias

from .conftest import MODEL, running

KINDS = ("dense", "sparse", "multi")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tiny_m3(tmp_path_factory.mktemp("m3") / "model")
    edit(folder / "config.json", lambda config: {**config, "num_attention_heads": 2})
    aliases = (parse_alias("rare=m3,kinds=sparse,max_active=1"),)
    with running({"m3": load(folder)}, Settings(port=0, aliases=aliases)) as server:
        yield server, load(folder)


@pytest.mark.parametrize("role", ["query", "passage"])
def test_kinds_are_the_same_here_and_there(served, role):
    server, here = served
    texts = [*TEXTS, "cat dog cat dog cat"] * 9  # more than one turn
    with nimbed.load("m3", base_url=server.url) as there:
        assert there.kinds == here.kinds == KINDS
        found = there.embed_kinds(texts, input_type=role, max_active=3, token_type="half")
        assert there.sparse_spec(max_active=3) == found.sparse.spec
        assert there.multi_spec(token_type="half") == found.multi.spec
    exact = here.embed_kinds(texts, input_type=role, max_active=3, token_type="half")
    assert found.sparse.spec.fingerprint == exact.sparse.spec.fingerprint
    assert found.multi.spec.fingerprint == exact.multi.spec.fingerprint
    for name in ("ids", "weights", "offsets", "token_counts"):
        np.testing.assert_array_equal(getattr(found.sparse, name), getattr(exact.sparse, name))
    np.testing.assert_array_equal(found.multi.vectors, exact.multi.vectors)
    np.testing.assert_array_equal(found.multi.offsets, exact.multi.offsets)
    np.testing.assert_allclose(found.dense.vectors, exact.dense.vectors, atol=1e-6)
    assert len(SparseBatch.concatenate([found.sparse, exact.sparse])) == 2 * len(texts)
    assert len(MultiVectorBatch.concatenate([found.multi, exact.multi])) == 2 * len(texts)


def test_queries_there_find_passages_that_were_embedded_here(served):
    server, here = served
    passages = here.embed_sparse(TEXTS, input_type="passage")
    with nimbed.load("m3", base_url=server.url) as there:
        queries = there.embed_sparse(TEXTS, input_type="query")
    exact = distances(here.embed_sparse(TEXTS, input_type="query"), passages)
    np.testing.assert_array_equal(distances(queries, passages), exact)
    assert nearest(queries, passages, 1).rows.shape == (len(TEXTS), 1)


def test_an_alias_there_gives_its_kind_alone(served):
    server, here = served
    with nimbed.load("rare", base_url=server.url) as there:
        assert there.kinds == ("sparse",)
        found = there.embed_sparse(TEXTS, input_type="query")
    exact = here.embed_sparse(TEXTS, input_type="query", max_active=1)
    assert found.spec.fingerprint == exact.spec.fingerprint
    assert found.dicts() == exact.dicts()


def test_a_model_that_is_still_loaded_is_waited_for():
    begin = threading.Event()

    class Slow(FakeEmbedder):
        def embed(self, *inputs, **options):
            assert begin.wait(20)
            return super().embed(*inputs, **options)

    with (
        running({MODEL: Slow()}, Settings(port=0), loaded=False) as server,
        nimbed.load(FAKE_CARD, base_url=server.url) as there,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        try:
            assert server.client.get("/v1/metadata").json()["kinds"] == {}
            assert server.client.get("/info").json()["kinds"] is None
            waiting = pool.submit(there.embed_sparse, ["a b"], input_type="query")
            time.sleep(0.3)
            assert not waiting.done()
        finally:
            begin.set()
        exact = FakeEmbedder().embed_sparse(["a b"], input_type="query")
        assert waiting.result(30).dicts() == exact.dicts()


def test_a_server_in_front_of_another_gives_the_kinds_of_that(served):
    """nimbed serve --base-url: the model is elsewhere, and its contracts are handed on."""
    server, here = served
    upstream = nimbed.load("m3", base_url=server.url)
    with (
        running({MODEL: upstream}, Settings(port=0)) as front,
        nimbed.load(MODEL, base_url=front.url) as there,
    ):
        found = there.embed_kinds(TEXTS, input_type="passage", kinds=("sparse", "multi"))
    exact = here.embed_kinds(TEXTS, input_type="passage", kinds=("sparse", "multi"))
    assert found.sparse.spec == exact.sparse.spec
    assert found.sparse.dicts() == exact.sparse.dicts()
    np.testing.assert_array_equal(found.multi.vectors, exact.multi.vectors)


def test_a_server_in_front_of_a_tei_hands_on_a_splade_that_nobody_knows():
    """text-embeddings-inference gives it by /embed_sparse alone; no catalogue has its name."""
    plain = replace(FAKE_CARD, query_prompt="", passage_prompt="", asymmetric=False)
    exact = FakeEmbedder(plain).embed_sparse(TEXTS, input_type="query")

    def answered(request: double.Request) -> double.Response:
        if request.path == "/info":
            pooled = {"embedding": {"pooling": "splade"}}
            return double.as_json({"model_id": "somebodys/splade", "model_type": pooled})
        if request.path != "/embed_sparse":
            return double.as_json({"error": "no dense model", "error_type": "Backend"}, 424)
        by_text = dict(zip([*TEXTS, "warm up"], [*exact.dicts(), {3: 0.5}], strict=True))
        rows = [by_text[text] for text in request.json["inputs"]]
        return double.as_json([[{"index": i, "value": w} for i, w in r.items()] for r in rows])

    behind = double.Double(answered)
    try:
        upstream = nimbed.load("somebodys/splade", base_url=behind.url, dialect="tei")
        assert upstream.kinds == upstream.card.kinds == ("sparse",)
        assert upstream.card.id == "somebodys/splade"
        with pytest.warns(UserWarning, match="without a role prompt"):
            upstream.embed_sparse(TEXTS[:1], input_type="query")
        with running({"s": upstream}, Settings(port=0)) as front:
            answer = front.client.post("/embed_sparse", json={"inputs": TEXTS, "truncate": False})
            assert answer.status_code == 200, answer.text
            with nimbed.load("s", base_url=front.url) as there:
                assert there.kinds == ("sparse",)
                found = there.embed_sparse(TEXTS, input_type="query")
            body = {"model": "s", "input": TEXTS, "input_type": "query"}
            refused = front.client.post("/v1/embeddings", json=body)
    finally:
        behind.stop()
    rows = [{each["index"]: each["value"] for each in row} for row in answer.json()]
    assert rows == [pytest.approx(row) for row in exact.dicts()]
    assert found.dicts() == exact.dicts()
    assert found.spec.model == "somebodys/splade"
    assert refused.status_code == 400
    assert "gives sparse vectors alone" in refused.text
