"""Multi-vectors in a collection, alone and beside dense vectors from the same forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from weaviate.classes.config import Configure
from weaviate.util import generate_uuid5

from nimbed import FakeEmbedder, search
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.fake import FAKE_CARD
from nimbed.spec import TokenType
from nimbed_weaviate import (
    audit,
    backfill,
    batch_import,
    embed_stored,
    migrate,
    self_provided,
)
from nimbed_weaviate import search as ask

from .checks import Check
from .double import Double

Make = Callable[..., Any]
OTHER = dataclasses.replace(FAKE_CARD, id="nimbed/other")
TOKENS = get_args(TokenType)


def rows(count: int) -> list[tuple[str, str, dict[str, Any]]]:
    return [(f"r{n}", f"passage number {n} of {n % 3}", {"page": n}) for n in range(count)]


def kinds_of(texts: list[str], **options: Any) -> Any:
    return FakeEmbedder().embed_kinds(texts, input_type="passage", **options)


@pytest.fixture
def both(make: Make) -> Any:
    embedder = FakeEmbedder()
    dense = self_provided(embedder.spec(), name="dense")
    return make("Docs", [dense, self_provided(embedder.multi_spec(), name="tokens")])


def assert_stored(double: Double, texts: list[str], **options: Any) -> None:
    """Make sure that every object has the floats of its text, of both kinds."""
    right = kinds_of(texts, kinds=("dense", "multi"), **options)
    tokens = right.multi.lists()
    for n in range(len(texts)):
        properties, vectors = double.objects["Docs"][generate_uuid5(f"r{n}")]
        assert properties["text"] == texts[n]
        np.testing.assert_array_equal(np.float32(vectors["dense"]), right.dense.vectors[n])
        np.testing.assert_array_equal(np.float32(vectors["tokens"]), np.float32(tokens[n]))


def test_one_run_of_the_model_fills_both(double: Double, both: Any, checked: Check) -> None:
    embedder, options = FakeEmbedder(), {"vector": "dense", "multi_vector": "tokens"}
    report = batch_import(both, rows(10), embedder, chunk_rows=4, **options)
    assert (report.loaded, report.rejected) == (10, 0)
    assert len(embedder.calls) == 3
    assert_stored(double, [text for _, text, _ in rows(10)])
    assert {verdict for verdict, _ in checked().values()} == {"ok"}
    # Run again it does nothing; a changed row gets both anew, a lost one either.
    assert batch_import(both, rows(10), FakeEmbedder(), **options).unchanged == 10
    changed = [("r0", "another text", {"page": 0}), *rows(10)[1:]]
    report = batch_import(both, changed, FakeEmbedder(), **options)
    assert (report.loaded, report.replaced, report.unchanged) == (1, 1, 9)
    double.objects["Docs"][generate_uuid5("r1")][0].pop("nimbed_digest_tokens")
    assert batch_import(both, changed, FakeEmbedder(), **options).loaded == 1
    assert_stored(double, [text for _, text, _ in changed])
    # Each may be filled without the other, which stays.
    for alone in ("dense", "tokens"):
        assert batch_import(both, changed, FakeEmbedder(), vector=alone).unchanged == 10
    newer = [("r0", "a third text", {"page": 0}), *rows(10)[1:]]
    batch_import(both, newer, FakeEmbedder(), vector="tokens")
    _, vectors = double.objects["Docs"][generate_uuid5("r0")]
    old = kinds_of(["another text"]).dense.vectors[0]
    np.testing.assert_array_equal(np.float32(vectors["dense"]), old)
    assert batch_import(both, newer, FakeEmbedder(), **options).loaded == 1
    assert_stored(double, [text for _, text, _ in newer])


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("muvera", [False, True])
def test_alone_in_every_type_it_is_ranked_as_exact_search_ranks(
    double: Double, make: Make, kind: TokenType, muvera: bool
) -> None:
    spec = FakeEmbedder().multi_spec(token_type=kind)
    docs = make("Docs", self_provided(spec, name="tokens", muvera=muvera))
    index = double.classes["Docs"]["vectorConfig"]["tokens"]["vectorIndexConfig"]
    assert index["multivector"]["enabled"]
    assert index["multivector"]["muvera"]["enabled"] is muvera
    batch_import(docs, rows(30), FakeEmbedder(), token_type=kind)
    asked = FakeEmbedder().embed_kinds(["passage 7 of 2"], kinds=("multi",), input_type="query")
    stored = kinds_of([text for _, text, _ in rows(30)], kinds=("multi",), token_type=kind).multi
    right = search.nearest(asked.multi, stored, 5)
    hits = ask(docs, "passage 7 of 2", 5, embedder=FakeEmbedder())
    np.testing.assert_allclose(
        [hit.distance for hit in hits], right.distances[0], rtol=1e-4, atol=1e-4
    )
    # What comes later is stored as the collection has it.
    assert batch_import(docs, rows(31), FakeEmbedder()).loaded == 1
    if kind != "float":
        with pytest.raises(SpaceMismatchError, match="token_type"):
            batch_import(docs, rows(32), FakeEmbedder(), token_type="float")


def test_objects_that_lie_there_get_multi_vectors(double: Double, make: Make) -> None:
    docs = make("Docs", self_provided(FakeEmbedder().spec(), name="dense"))
    batch_import(docs, rows(6), FakeEmbedder())
    docs.config.add_vector(vector_config=self_provided(FakeEmbedder().multi_spec(), name="tokens"))
    assert embed_stored(docs, FakeEmbedder(), vector="tokens").loaded == 6
    assert embed_stored(docs, FakeEmbedder(), vector="tokens").unchanged == 6
    assert_stored(double, [text for _, text, _ in rows(6)])
    # An import that fills it knows the same rows.
    assert batch_import(docs, rows(6), FakeEmbedder(), vector="tokens").unchanged == 6


def test_long_ones_go_in_several_messages(double: Double, make: Make) -> None:
    docs = make("Docs", self_provided(FakeEmbedder().multi_spec(), name="tokens"))
    long = [(f"r{n}", " ".join(f"w{n}.{m}" for m in range(400))) for n in range(60)]
    assert batch_import(docs, long, FakeEmbedder()).loaded == 60
    assert len(double.batches) == 2  # 400 tokens of 64 floats are 100 kB, a message 4 MiB
    assert len(double.objects["Docs"]) == 60


class Dense:
    """A model of one vector a text."""

    def __init__(self) -> None:
        self.inner = FakeEmbedder()
        self.card, self.spec, self.embed = self.inner.card, self.inner.spec, self.inner.embed


def test_what_cannot_be_filled_is_told(double: Double, both: Any, make: Make) -> None:
    with pytest.raises(ConfigurationError, match="gives no multi vectors"):
        batch_import(both, rows(2), Dense(), vector="tokens")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="multi_vector a multi-vector beside it"):
        batch_import(both, rows(2), FakeEmbedder(), vector="tokens", multi_vector="dense")
    with pytest.raises(ConfigurationError, match="it has 'dense', 'tokens'"):
        batch_import(both, rows(2), FakeEmbedder(), vector="dense", multi_vector="none")
    batch_import(both, rows(2), FakeEmbedder(), vector="dense", multi_vector="tokens")
    with pytest.raises(SpaceMismatchError):
        batch_import(both, rows(2), FakeEmbedder(OTHER), vector="tokens")
    with pytest.raises(SpaceMismatchError):
        ask(both, "which?", embedder=FakeEmbedder(OTHER), vector="tokens")
    with pytest.raises(ConfigurationError, match="an audit takes those of one vector a text"):
        audit(both, FakeEmbedder(), vector="tokens")
    alone = make("Alone", self_provided(FakeEmbedder().multi_spec(), name="tokens"))
    batch_import(alone, rows(2), FakeEmbedder())
    with pytest.raises(ConfigurationError, match="a migration takes those of one vector a text"):
        migrate(alone, FakeEmbedder(OTHER))
    backfill(alone, FakeEmbedder(), vector="dense")
    index = Configure.VectorIndex
    with pytest.raises(ConfigurationError, match="hnsw alone"):
        self_provided(FakeEmbedder().multi_spec(), name="x", index=index.flat())
    with pytest.raises(ConfigurationError, match="muvera is for multi-vectors"):
        self_provided(FakeEmbedder().spec(), name="x", muvera=True)
    made: Any = self_provided(FakeEmbedder().multi_spec(), name="x", index=index.hnsw(ef=99))
    make("Tuned", made)
    tuned = double.classes["Tuned"]["vectorConfig"]["x"]["vectorIndexConfig"]
    assert (tuned["ef"], tuned["multivector"]["enabled"]) == (99, True)
