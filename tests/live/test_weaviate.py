"""Everything that is promised of Weaviate, on a running one and on the double of the tests.

    NIMBED_WEAVIATE=http://localhost:8080 python -m pytest tests/live

Its gRPC port is 50051, or NIMBED_WEAVIATE_GRPC; its key is read from WEAVIATE_API_KEY. With
NIMBED_WEAVIATE_RESTART, a shell command that kills and starts it, an import is interrupted too. It
is run by hand for each release; what passes here on the double and not on a Weaviate is a fault of
the double. Collections are called NimbedLive… and are removed.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import weaviate
from tests.integrations.weaviate.double import Double
from weaviate.classes.config import Configure, DataType, Property
from weaviate.classes.data import DataObject
from weaviate.util import generate_uuid5

import nimbed.search
import nimbed_weaviate as nw
from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError
from nimbed.fake import FAKE_CARD

OTHER = dataclasses.replace(FAKE_CARD, id="nimbed/other")
INDEX = Configure.VectorIndex
NAMES = (f"NimbedLive{n}" for n in itertools.count())


@dataclass
class Place:
    client: Any
    url: str
    grpc_port: int
    restart: Callable[[], object] | None

    def make(self, *vectors: Any, **options: Any) -> Any:
        return self.client.collections.create(
            next(NAMES), vector_config=list(vectors) if len(vectors) > 1 else vectors[0], **options
        )


@pytest.fixture(params=["double", "live"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "double":
        double = Double()
        with nw.connect(double.url, grpc_port=double.grpc_port) as client:
            yield Place(client, double.url, double.grpc_port, lambda: double.restart(lose=7))
        double.stop()
        return
    url = os.environ.get("NIMBED_WEAVIATE")
    if url is None:
        pytest.skip("NIMBED_WEAVIATE names no Weaviate")
    port, command = (
        os.environ.get("NIMBED_WEAVIATE_GRPC", "50051"),
        os.environ.get("NIMBED_WEAVIATE_RESTART"),
    )
    restart = None if command is None else lambda: subprocess.run(command, shell=True, check=True)
    with nw.connect(url, grpc_port=int(port)) as client:
        yield Place(client, url, int(port), restart)
        for name in client.collections.list_all():
            if name.startswith("NimbedLive"):
                client.collections.delete(name)


def rows(count: int) -> list[tuple[str, str, dict[str, Any]]]:
    return [(f"r{n}", f"passage number {n}", {"page": n % 5}) for n in range(count)]


def vectors_of(texts: list[str], card: Any = FAKE_CARD) -> Any:
    return FakeEmbedder(card).embed(texts, input_type="passage").vectors


def stored_all(collection: Any) -> dict[str, Any]:
    found = collection.query.fetch_objects(limit=1000, include_vector=True).objects
    return {str(each.uuid): each for each in found}


def test_vectors_of_several_names_are_filled_one_after_the_other(place: Place) -> None:
    a, b = FakeEmbedder().spec(), FakeEmbedder(OTHER).spec()
    docs = place.make(nw.self_provided(a, name="a"))
    assert nw.batch_import(docs, rows(300), FakeEmbedder(), chunk_rows=64).loaded == 300
    report = nw.backfill(docs, FakeEmbedder(OTHER), vector="b", chunk_rows=64)
    assert (report.loaded, report.rejected) == (300, 0)
    changed = [("r1", "another text", {"page": 1}), *rows(300)[2:]]
    for vector, card in (("a", FAKE_CARD), ("b", OTHER)):
        again = FakeEmbedder(card)
        report = nw.batch_import(docs, changed, again, vector=vector, prune=True)
        assert (report.loaded, report.unchanged) == (1, 298)
        assert report.removed == (1 if vector == "a" else 0)
    held = stored_all(docs)
    assert len(held) == 299
    texts = [text for _, text, _ in changed]
    expected = {"a": vectors_of(texts), "b": vectors_of(texts, OTHER)}
    for n, (name, text, more) in enumerate(changed):
        each = held[generate_uuid5(name)]
        assert each.properties["text"] == text
        assert each.properties["page"] == more["page"]
        for vector, right in expected.items():
            np.testing.assert_allclose(each.vector[vector], right[n], atol=1e-6)
    assert {each.verdict for each in nw.check(place.client, docs)} == {"ok"}
    assert b.fingerprint != a.fingerprint


def test_objects_of_others_are_embedded_where_they_lie(place: Place) -> None:
    texts = [Property(name=each, data_type=DataType.TEXT) for each in ("title", "body")]
    docs = place.make(nw.self_provided(FakeEmbedder().spec(), name="mine"), properties=texts)
    uuids = [f"00000000-0000-0000-0000-{n:012}" for n in range(50)]
    docs.data.insert_many(
        [
            DataObject(uuid=uuid, properties={"title": f"T{n}", "body": f"b {n}"})
            for n, uuid in enumerate(uuids)
        ]
    )
    report = nw.embed_stored(docs, FakeEmbedder(), vector="mine", template="{title}: {body}")
    assert (report.loaded, report.rejected) == (50, 0)
    held, right = stored_all(docs), vectors_of([f"T{n}: b {n}" for n in range(50)])
    assert set(held) == set(uuids)
    for n, uuid in enumerate(uuids):
        np.testing.assert_allclose(held[uuid].vector["mine"], right[n], atol=1e-6)
        assert held[uuid].properties["title"] == f"T{n}"
    again = FakeEmbedder()
    assert nw.embed_stored(docs, again, vector="mine", template="{title}: {body}").unchanged == 50
    assert again.calls == []


@pytest.mark.parametrize("kind", ["float", "int8", "uint8", "binary"])
def test_a_question_finds_what_numpy_finds(place: Place, kind: Any) -> None:
    spec = FakeEmbedder().spec(embedding_type=kind)
    docs = place.make(nw.self_provided(spec))
    nw.batch_import(docs, rows(200), FakeEmbedder(), embedding_type=kind)
    made = FakeEmbedder().embed(
        [text for _, text, _ in rows(200)], input_type="passage", embedding_type=kind
    )
    asked = FakeEmbedder().embed(["which?"], input_type="query", embedding_type=kind)
    view = (lambda batch: batch.signs()) if spec.packed else (lambda batch: batch.vectors)
    passages, question = np.float64(view(made)), np.float64(view(asked)[0])
    if kind == "binary":
        far = (passages != question).sum(1)
    elif kind == "uint8":
        far = ((passages - question) ** 2).sum(1)
    else:
        norms = np.linalg.norm(passages, axis=1) * np.linalg.norm(question)
        far = 1 - passages @ question / norms
    hits = nw.search(docs, "which?", 10, embedder=FakeEmbedder())
    np.testing.assert_allclose([hit.distance for hit in hits], np.sort(far)[:10], atol=1e-4)
    condition = nw.parse_filter(["page >= 3"], docs.config.get())
    found = nw.search(docs, "which?", 100, embedder=FakeEmbedder(), filters=condition)
    assert len(found) == 80
    assert {hit.metadata["page"] for hit in found} == {3, 4}


def test_documents_are_chunks_and_shorter_ones_leave_none_behind(place: Place) -> None:
    docs = place.make(nw.self_provided(FakeEmbedder().spec()))
    long = [(f"d{n}", "A sentence of some words. " * (20 * n)) for n in range(1, 5)]
    nw.batch_import(docs, long, FakeEmbedder(), chunk_tokens=24)
    before = len(stored_all(docs))
    long[3] = ("d4", "Short now.")
    report = nw.batch_import(docs, long, FakeEmbedder(), chunk_tokens=24)
    after = stored_all(docs)
    assert report.removed == before - len(after)
    assert [e.properties["text"] for e in after.values() if e.properties["chunk_of"] == "d4"] == [
        "Short now."
    ]


@pytest.mark.parametrize(
    ("kind", "index"),
    [
        ("float", INDEX.hnsw(quantizer=INDEX.Quantizer.rq(bits=8))),
        ("float", INDEX.hnsw(quantizer=INDEX.Quantizer.rq(bits=1))),
        ("float", INDEX.hnsw(quantizer=INDEX.Quantizer.sq())),
        ("float", INDEX.flat(quantizer=INDEX.Quantizer.bq())),
        ("float", INDEX.hfresh()),
        ("binary", INDEX.hnsw()),
        ("binary", INDEX.flat(quantizer=INDEX.Quantizer.bq())),
    ],
)
def test_an_index_that_is_judged_right_is_taken_and_finds(
    place: Place, kind: Any, index: Any
) -> None:
    spec = FakeEmbedder().spec(embedding_type=kind)
    docs = place.make(nw.self_provided(spec, index=index))
    nw.batch_import(docs, rows(50), FakeEmbedder(), embedding_type=kind)
    assert len(nw.search(docs, "which?", 10, embedder=FakeEmbedder())) == 10
    assert all(each.verdict == "ok" for each in nw.check(place.client, docs))


def test_an_import_goes_on_over_a_restart(place: Place) -> None:
    if place.restart is None:
        pytest.skip("NIMBED_WEAVIATE_RESTART names no command")
    docs, told = place.make(nw.self_provided(FakeEmbedder().spec())), list[str]()
    restarted = threading.Event()

    class Restarting(FakeEmbedder):
        def embed(self, inputs: Any, **options: Any) -> Any:
            if len(self.calls) == 5 and not restarted.is_set():
                restarted.set()
                place.restart()  # type: ignore[misc]
            return super().embed(inputs, **options)

    report = nw.batch_import(docs, rows(600), Restarting(), chunk_rows=50, on_wait=told.append)
    assert report.loaded == 600
    assert len(stored_all(docs)) == 600
    assert told


async def test_the_async_client_does_the_same(place: Place) -> None:
    docs = place.make(nw.self_provided(FakeEmbedder().spec(), name="a"))
    address = weaviate.connect.ConnectionParams.from_url(place.url, place.grpc_port)
    key = os.environ.get("WEAVIATE_API_KEY")
    auth = None if key is None else weaviate.auth.Auth.api_key(key)
    async with weaviate.WeaviateAsyncClient(address, auth, skip_init_checks=True) as client:
        same = client.collections.get(docs.name)
        assert (await nw.abatch_import(same, rows(100), FakeEmbedder())).loaded == 100
        assert (await nw.abackfill(same, FakeEmbedder(OTHER), vector="b")).loaded == 100
        assert {each.verdict for each in await nw.acheck(client, docs.name)} == {"ok"}


def test_a_new_collection_takes_the_place_by_an_alias(place: Place) -> None:
    first = place.make(nw.self_provided(FakeEmbedder().spec(), name="a"))
    nw.batch_import(first, rows(100), FakeEmbedder())
    alias = f"NimbedLiveAlias{first.name}"
    place.client.alias.create(alias_name=alias, target_collection=first.name)
    try:
        docs = place.client.collections.get(alias)
        done = nw.migrate(docs, FakeEmbedder(OTHER), client=place.client, into=f"{first.name}Next")
        assert (done.state, done.report.loaded) == ("switched", 100)
        found = place.client.alias.get(alias_name=alias)
        assert found is not None
        assert found.collection == f"{first.name}Next"
        now = nw.current_collection(place.client, alias)
        right = vectors_of([text for _, text, _ in rows(100)], OTHER)
        held = stored_all(now)
        for n, (name, text, more) in enumerate(rows(100)):
            each = held[generate_uuid5(name)]
            assert (each.properties["text"], each.properties["page"]) == (text, more["page"])
            np.testing.assert_allclose(each.vector["other"], right[n], atol=1e-6)
        assert nw.batch_import(now, rows(100), FakeEmbedder(OTHER)).unchanged == 100
        assert nw.rollback(docs, FakeEmbedder(), client=place.client).collection == first.name
        nw.rollback(docs, FakeEmbedder(OTHER), client=place.client)
        assert nw.finish(docs, client=place.client).left_collection == first.name
    finally:
        place.client.alias.delete(alias_name=alias)


@pytest.mark.parametrize("muvera", [False, True])
def test_multi_vectors_are_ranked_by_all_tokens(place: Place, muvera: bool) -> None:
    dense = nw.self_provided(FakeEmbedder().spec(), name="dense")
    tokens = nw.self_provided(FakeEmbedder().multi_spec(), name="tokens", muvera=muvera)
    docs = place.make(dense, tokens)
    options: dict[str, Any] = {"vector": "dense", "multi_vector": "tokens"}
    assert nw.batch_import(docs, rows(60), FakeEmbedder(), **options).loaded == 60
    assert nw.batch_import(docs, rows(60), FakeEmbedder(), **options).unchanged == 60
    texts = [text for _, text, _ in rows(60)]
    stored = FakeEmbedder().embed_kinds(texts, kinds=("multi",), input_type="passage").multi
    asked = FakeEmbedder().embed_kinds(["number 7"], kinds=("multi",), input_type="query").multi
    assert stored is not None
    assert asked is not None
    right = nimbed.search.nearest(asked, stored, 60).distances[0]
    hits = nw.search(docs, "number 7", 60, embedder=FakeEmbedder(), vector="tokens")
    np.testing.assert_allclose([hit.distance for hit in hits], right[: len(hits)], atol=1e-3)


def test_a_missing_collection_is_a_sentence(place: Place) -> None:
    with pytest.raises(ConfigurationError, match="no such collection"):
        nw.batch_import(place.client.collections.get("NimbedLiveNone"), rows(1), FakeEmbedder())
