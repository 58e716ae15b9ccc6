"""Several vectors in one collection: one is filled, the others stay as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from weaviate.classes.config import DataType, Property
from weaviate.classes.data import DataObject
from weaviate.util import generate_uuid5

import nimbed_weaviate
from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError, InputError, SpaceMismatchError
from nimbed.fake import FAKE_CARD
from nimbed.rows import BadRow
from nimbed_weaviate import (
    abackfill,
    abatch_import,
    backfill,
    batch_import,
    embed_stored,
    self_provided,
    vectorizer,
)

from .checks import HOME, Check
from .double import Double

Make = Callable[..., Any]
OTHER = dataclasses.replace(FAKE_CARD, id="nimbed/other")


def rows(count: int) -> list[tuple[str, str, dict[str, Any]]]:
    return [(f"r{n}", f"passage number {n}", {"page": n}) for n in range(count)]


def embedded(embedder: FakeEmbedder) -> int:
    return sum(len(inputs) for _, inputs in embedder.calls)


def vectors_of(texts: list[str], card: Any = FAKE_CARD) -> Any:
    return FakeEmbedder(card).embed(texts, input_type="passage").vectors


@pytest.fixture
def two(make: Make) -> Any:
    a, b = FakeEmbedder().spec(), FakeEmbedder(OTHER).spec()
    return make("Two", [self_provided(a, name="a"), self_provided(b, name="b")])


def test_one_is_filled_and_the_other_stays(double: Double, two: Any, checked: Check) -> None:
    batch_import(two, rows(10), FakeEmbedder(), vector="a", chunk_rows=4)
    report = batch_import(two, rows(10), FakeEmbedder(OTHER), vector="b", chunk_rows=4)
    assert (report.loaded, report.replaced) == (10, 0)
    changed = [*rows(3)[:2], ("r2", "another text", {"page": 2}), *rows(10)[3:]]
    again = FakeEmbedder()
    report = batch_import(two, changed, again, vector="a", chunk_rows=4)
    assert (report.loaded, report.unchanged, embedded(again)) == (1, 9, 1)
    texts = [text for _, text, _ in changed]
    old = [text for _, text, _ in rows(10)]
    for n, (name, _, _) in enumerate(changed):
        properties, vectors = double.objects["Two"][generate_uuid5(name)]
        assert properties["text"] == texts[n]
        np.testing.assert_array_equal(np.float32(vectors["a"]), vectors_of(texts)[n])
        # The other one is of the old text still, and its own next import sees that.
        np.testing.assert_array_equal(np.float32(vectors["b"]), vectors_of(old, OTHER)[n])
    again = FakeEmbedder(OTHER)
    report = batch_import(two, changed, again, vector="b", chunk_rows=4)
    assert (report.loaded, report.unchanged, embedded(again)) == (1, 9, 1)
    findings = checked("Two")
    assert "nimbed/other" in findings["b: contract"][1]
    assert {verdict for verdict, _ in findings.values()} == {"ok"}


def test_a_vector_that_no_object_has_is_filled_with_one_look_at_each(
    double: Double, two: Any
) -> None:
    batch_import(two, rows(10), FakeEmbedder(), vector="a")
    two.data.insert_many([DataObject(uuid=generate_uuid5("r11"), properties={"text": "others'"})])
    double.asked_for.clear()
    # One row is changed, two are new, and one replaces what somebody else stored.
    items = [*rows(13)[:2], ("r2", "another text", {"page": 2}), *rows(13)[3:]]
    report = batch_import(two, items, FakeEmbedder(OTHER), vector="b", chunk_rows=5)
    assert (report.loaded, report.replaced, report.unchanged) == (13, 2, 0)
    assert sorted(double.asked_for) == [3, 5, 5]
    right, old = vectors_of([text for _, text, _ in items], OTHER), rows(10)
    for n, (name, text, _) in enumerate(items):
        properties, vectors = double.objects["Two"][generate_uuid5(name)]
        assert properties["text"] == text
        np.testing.assert_array_equal(np.float32(vectors["b"]), right[n])
        assert ("a" in vectors) == (n < 10)
        if n < 10:
            np.testing.assert_array_equal(np.float32(vectors["a"]), vectors_of([old[n][1]])[0])
    again = FakeEmbedder()
    report = batch_import(two, items, again, vector="a")
    assert (report.loaded, report.replaced, report.unchanged, embedded(again)) == (4, 1, 9, 4)


def test_each_keeps_its_own_contract(two: Any) -> None:
    batch_import(two, rows(2), FakeEmbedder(), vector="a")
    batch_import(two, rows(2), FakeEmbedder(OTHER), vector="b")
    for vector, stranger in (("a", FakeEmbedder(OTHER)), ("b", FakeEmbedder())):
        with pytest.raises(SpaceMismatchError, match="Two"):
            batch_import(two, rows(2), stranger, vector=vector)
        assert stranger.calls == []


def test_the_one_property_of_earlier_versions_belongs_to_the_vector_they_filled(
    double: Double, make: Make, embedder: FakeEmbedder
) -> None:
    docs = make("Docs", self_provided(embedder.spec(), name="a"))
    batch_import(docs, rows(3), embedder)
    known = {each["name"]: each for each in double.classes["Docs"]["properties"]}
    known["nimbed_digest_a"]["name"] = "nimbed_digest"
    earlier = _earlier_digests(embedder)
    for properties, _ in double.objects["Docs"].values():
        del properties["nimbed_digest_a"]
        properties["nimbed_digest"] = earlier[properties["nimbed_id"]]
    again = FakeEmbedder()
    assert batch_import(docs, rows(3), again).unchanged == 3
    assert again.calls == []
    docs.config.add_vector(vector_config=self_provided(FakeEmbedder(OTHER).spec(), name="b"))
    assert batch_import(docs, rows(3), again, vector="a").unchanged == 3
    assert batch_import(docs, rows(3), FakeEmbedder(OTHER), vector="b").loaded == 3
    assert batch_import(docs, rows(3), again, vector="a").unchanged == 3


def _earlier_digests(embedder: FakeEmbedder) -> dict[str, str]:
    import hashlib
    import json

    space = hashlib.blake2b(embedder.spec().fingerprint.encode(), digest_size=16).digest()
    return {
        name: hashlib.blake2b(
            json.dumps(more | {"text": text}, sort_keys=True).encode(), digest_size=16, key=space
        ).hexdigest()
        for name, text, more in rows(3)
    }


def test_a_vector_is_added_to_a_filled_collection(
    double: Double, make: Make, embedder: FakeEmbedder, checked: Check
) -> None:
    docs = make("Docs", self_provided(embedder.spec(), name="a"))
    batch_import(docs, rows(10), embedder)
    before = {uuid: (dict(p), dict(v)) for uuid, (p, v) in double.objects["Docs"].items()}
    report = backfill(docs, FakeEmbedder(OTHER), vector="b", chunk_rows=4)
    assert (report.loaded, report.unchanged, report.rejected) == (10, 0, 0)
    new = vectors_of([text for _, text, _ in rows(10)], OTHER)
    for n, (name, _, _) in enumerate(rows(10)):
        properties, vectors = double.objects["Docs"][generate_uuid5(name)]
        old_properties, old_vectors = before[generate_uuid5(name)]
        assert properties.items() > old_properties.items()
        assert vectors["a"] == old_vectors["a"]
        np.testing.assert_array_equal(np.float32(vectors["b"]), new[n])
    # A rerun has nothing to do, and neither has an import of the same rows.
    for again in (backfill, embed_stored):
        fresh = FakeEmbedder(OTHER)
        assert again(docs, fresh, vector="b").unchanged == 10
        assert fresh.calls == []
    fresh = FakeEmbedder(OTHER)
    assert batch_import(docs, rows(10), fresh, vector="b").unchanged == 10
    assert fresh.calls == []
    assert checked("Docs")["b: contract"][0] == "ok"


def test_a_server_that_cannot_add_a_vector_is_told(
    double: Double, make: Make, embedder: FakeEmbedder, client: Any
) -> None:
    double.create({"class": "Old", "vectorizer": "none"})
    with pytest.raises(ConfigurationError, match="has no name"):
        backfill(client.collections.get("Old"), embedder, vector="b")
    docs = make("Docs", self_provided(embedder.spec(), name="a"))
    double.version = "1.30.1"
    with pytest.raises(ConfigurationError, match=r"1\.31 or later"):
        backfill(docs, embedder, vector="b")


@pytest.fixture
def articles(double: Double, make: Make) -> Any:
    """Objects that somebody else stored: own uuids, own names, one property more."""
    texts = [Property(name=each, data_type=DataType.TEXT) for each in ("title", "body")]
    numbers = Property(name="year", data_type=DataType.INT)
    spec = FakeEmbedder().spec()
    made = make("Articles", self_provided(spec, name="mine"), properties=[*texts, numbers])
    for n in range(7):
        made.data.insert_many(
            [nimbed_weaviate_object(n, {"title": f"T{n}", "body": f"b {n}", "year": 2000 + n})]
        )
    return made


def nimbed_weaviate_object(n: int, properties: dict[str, Any]) -> Any:
    return DataObject(uuid=uuid_of(n), properties=properties)


def uuid_of(n: int) -> str:
    return f"00000000-0000-0000-0000-{n:012}"


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({"source_properties": ["title", "body"]}, "b {n} T{n}"),  # as Weaviate's modules do
        ({"source_properties": ["title"]}, "T{n}"),
        ({"template": "{title}: {body}"}, "T{n}: b {n}"),
    ],
)
def test_objects_that_lie_there_are_embedded_under_their_own_uuids(
    double: Double, articles: Any, embedder: FakeEmbedder, options: Any, form: str
) -> None:
    held = double.objects["Articles"]
    report = embed_stored(articles, embedder, vector="mine", chunk_rows=3, **options)
    assert (report.loaded, report.rejected) == (7, 0)
    expected = vectors_of([form.format(n=n) for n in range(7)])
    for n in range(7):
        properties, vectors = held[uuid_of(n)]
        assert properties["title"] == f"T{n}"
        assert properties["year"] == 2000 + n
        assert "nimbed_id" not in properties
        np.testing.assert_array_equal(np.float32(vectors["mine"]), expected[n])


def test_what_changed_is_embedded_anew_and_what_is_blank_or_gone_is_listed(
    double: Double, articles: Any, embedder: FakeEmbedder
) -> None:
    held = double.objects["Articles"]
    embed_stored(articles, embedder, vector="mine", source_properties=["body"])
    held[uuid_of(2)][0]["body"] = "new"
    held[uuid_of(3)][0]["body"] = " "
    held[uuid_of(4)][0]["body"] = "soon deleted"

    class Deleting(FakeEmbedder):
        def embed(self, inputs: Any, **options: Any) -> Any:
            held.pop(uuid_of(4), None)
            return super().embed(inputs, **options)

    again = Deleting()
    report = embed_stored(articles, again, vector="mine", source_properties=["body"])
    assert (report.loaded, report.unchanged, report.rejected) == (1, 4, 2)
    assert {each.id: each.reason for each in report.first_rejects} == {
        uuid_of(3): "the text is blank",
        uuid_of(4): "Weaviate refused it: it was deleted meanwhile",
    }
    new = np.float32(held[uuid_of(2)][1]["mine"])
    np.testing.assert_array_equal(new, vectors_of(["new"])[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source_properties": ["titel"]}, "'titel' .* is unknown; its texts are 'title', 'body'"),
        ({"source_properties": ["year"]}, "'year' .* is no text"),
        ({"source_properties": "title"}, "must be a list"),
        ({}, "'text' .* is unknown"),
        ({"template": "{title"}, "cannot be read"),
        ({"template": "no names"}, "a template names fields"),
        ({"template": "{title!r}"}, "a template names fields"),
        ({"template": "{title} {0}"}, "'0' .* is unknown"),
        ({"template": "{title}", "source_properties": ["body"]}, "leave source_properties out"),
        ({"source_properties": ["title"], "chunk_rows": 0}, "at least 1"),
    ],
)
def test_a_source_that_is_not_there_is_refused_by_name(
    articles: Any, embedder: FakeEmbedder, options: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        embed_stored(articles, embedder, vector="mine", **options)
    assert embedder.calls == []


def test_a_module_is_seeded_in_bulk_and_asked_through_its_server(
    double: Double, make: Make, embedder: FakeEmbedder
) -> None:
    asked: list[tuple[str, str]] = []

    def module(settings: dict[str, Any], text: str, role: Any) -> list[float]:
        asked.append((text, role))
        return FakeEmbedder().embed([text], input_type=role).lists()[0]

    double.embed = module
    docs = make("Docs", vectorizer("m", base_url=HOME, source_properties=["text"]))
    assert batch_import(docs, rows(5), embedder).loaded == 5
    assert asked == []
    found = docs.query.near_text("which?", limit=5)
    assert asked == [("which?", "query")]
    question = FakeEmbedder().embed(["which?"], input_type="query").vectors[0]
    nearest = np.argsort(-vectors_of([text for _, text, _ in rows(5)]) @ question)
    exact = sorted(range(5), key=lambda n: -float(vectors_of([rows(5)[n][1]])[0] @ question))
    assert len(nearest) == 5
    assert [each.properties["nimbed_id"] for each in found.objects] == [f"r{n}" for n in exact]


def test_what_vanished_from_the_input_is_removed_where_that_is_wanted(
    double: Double, make: Make, embedder: FakeEmbedder
) -> None:
    docs = make("Docs", self_provided(embedder.spec()))
    batch_import(docs, rows(10), embedder)
    docs.data.insert_many([nimbed_weaviate_object(1, {"title": "of somebody else"})])
    held = double.objects["Docs"]
    report = batch_import(docs, [*rows(6), ("r6", " ")], embedder, prune=True, chunk_rows=3)
    # A row that cannot be stored any more is still there.
    assert (report.unchanged, report.rejected, report.removed) == (6, 1, 3)
    assert set(held) == {uuid_of(1), *(generate_uuid5(f"r{n}") for n in range(7))}
    with pytest.raises(InputError, match="nothing was pruned.*row 3: no JSON"):
        batch_import(docs, [*rows(2), BadRow(3, "no JSON")], embedder, prune=True)
    with pytest.raises(InputError, match="holds no row at all"):
        batch_import(docs, [], embedder, prune=True)
    assert len(held) == 8


async def test_the_async_client_does_the_same(double: Double, two: Any) -> None:
    from weaviate import use_async_with_local

    connected = use_async_with_local(
        host="127.0.0.1", port=double.port, grpc_port=double.grpc_port, skip_init_checks=True
    )
    async with connected as client:
        docs = client.collections.get("Two")
        fake = FakeEmbedder()
        report = await abatch_import(docs, rows(10), fake, vector="a", chunk_rows=4)
        assert (report.loaded, report.rejected) == (10, 0)
        double.refuse = lambda properties: "no"
        report = await abatch_import(docs, rows(12), FakeEmbedder(), vector="a")
        assert (report.unchanged, report.rejected) == (10, 2)
        with pytest.raises(ConfigurationError, match="say which vector"):
            await abatch_import(docs, rows(1), fake)
        report = await abackfill(docs, FakeEmbedder(OTHER), vector="b", chunk_rows=4)
        assert report.loaded == 10
        findings = await nimbed_weaviate.acheck(client, "Two")
    assert {each.verdict for each in findings} == {"ok"}
    stored = double.objects["Two"][generate_uuid5("r7")][1]
    np.testing.assert_array_equal(np.float32(stored["a"]), vectors_of(["passage number 7"])[0])
