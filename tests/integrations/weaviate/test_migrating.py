"""A collection goes to another model while it is read and written, back, and on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from weaviate.classes.config import DataType, Property
from weaviate.util import generate_uuid5

from nimbed import FakeEmbedder
from nimbed.errors import BackendError, ConfigurationError, InputError, SpaceMismatchError
from nimbed.fake import FAKE_CARD
from nimbed_weaviate import (
    batch_import,
    finish,
    migrate,
    rollback,
    search,
    self_provided,
    vectorizer,
)
from nimbed_weaviate.properties import places_of

from .checks import HOME
from .double import Double

Make = Callable[..., Any]
OTHER = dataclasses.replace(FAKE_CARD, id="nimbed/other-2")


def rows(count: int) -> list[tuple[str, str]]:
    return [(f"r{n}", f"passage number {n}") for n in range(count)]


def embedded(embedder: FakeEmbedder) -> int:
    return sum(len(inputs) for role, inputs in embedder.calls if role == "passage")


@pytest.fixture
def docs(make: Make) -> Any:
    made = make("Docs", self_provided(FakeEmbedder().spec(), name="old"))
    batch_import(made, rows(20), FakeEmbedder())
    return made


def assert_vectors(double: Double, name: str, card: Any, texts: list[tuple[str, str]]) -> None:
    right = FakeEmbedder(card).embed([text for _, text in texts], input_type="passage").vectors
    for n, (key, _) in enumerate(texts):
        vector = double.objects["Docs"][generate_uuid5(key)][1][name]
        np.testing.assert_array_equal(np.float32(vector), right[n])


def test_there_and_back_and_on(double: Double, docs: Any) -> None:
    other = FakeEmbedder(OTHER)
    done = migrate(docs, other)
    assert (done.state, done.vector, done.report.loaded) == ("switched", "other_2", 20)
    assert {each.verdict for each in done.findings} == {"ok"}
    assert done.spec == other.spec()
    assert_vectors(double, "other_2", OTHER, rows(20))
    # What names no vector follows: searches, and imports.
    assert len(search(docs, "which?", 5, embedder=FakeEmbedder(OTHER))) == 5
    with pytest.raises(SpaceMismatchError):
        search(docs, "which?", 5, embedder=FakeEmbedder())
    changed = [*rows(20)[:19], ("r19", "another text"), ("r20", "a new one")]
    again = FakeEmbedder(OTHER)
    assert batch_import(docs, changed, again).loaded == 2
    assert embedded(again) == 2
    with pytest.raises(ConfigurationError, match="by such vectors already"):
        migrate(docs, other)
    # Back: what changed since is embedded for the old vector first.
    small = FakeEmbedder()
    done = rollback(docs, small)
    assert (done.state, done.vector, embedded(small)) == ("rolled back", "old", 2)
    assert_vectors(double, "old", FAKE_CARD, changed)
    assert len(search(docs, "which?", 5, embedder=FakeEmbedder())) == 5
    # And forth again, with nothing left to do.
    other = FakeEmbedder(OTHER)
    done = rollback(docs, other)
    assert (done.state, done.vector, embedded(other)) == ("rolled back", "other_2", 0)
    done = finish(docs)
    assert (done.state, done.vector, done.left) == ("finished", "other_2", "old")
    for wrong in (finish, rollback):
        with pytest.raises(ConfigurationError, match="was not migrated|nothing to finish"):
            wrong(docs)


def test_killed_it_goes_on_and_is_switched_when_wanted(double: Double, docs: Any) -> None:
    class Killed(Exception):
        pass

    def kill(report: Any) -> None:
        if report.read:
            raise Killed

    first = FakeEmbedder(OTHER)
    with pytest.raises(Killed):
        migrate(docs, first, vector="new", on_progress=kill)
    assert places_of(docs.config.get()).next == "new"
    with pytest.raises(ConfigurationError, match="to the vector 'new' is under way"):
        migrate(docs, FakeEmbedder(OTHER), vector="another")
    done = migrate(docs, FakeEmbedder(OTHER), switch=False)
    assert (done.state, done.vector, done.report.loaded) == ("prepared", "old", 0)
    assert len(search(docs, "which?", 5, embedder=FakeEmbedder())) == 5
    # Written to meanwhile: the new vector follows with the next run.
    batch_import(docs, [("r3", "changed meanwhile")], FakeEmbedder())
    last = FakeEmbedder(OTHER)
    done = migrate(docs, last)
    assert (done.state, done.vector, done.report.loaded) == ("switched", "new", 1)
    texts = [*rows(3), ("r3", "changed meanwhile"), *rows(20)[4:]]
    assert_vectors(double, "new", OTHER, texts)


def test_an_unfinished_one_is_given_up(docs: Any) -> None:
    migrate(docs, FakeEmbedder(OTHER), switch=False)
    with pytest.raises(ConfigurationError, match="nothing to finish"):
        finish(docs)
    done = rollback(docs)
    assert (done.state, done.vector, done.left) == ("abandoned", "old", "other_2")
    assert places_of(docs.config.get()).next is None


def test_writers_go_on_and_nothing_is_missed(double: Double, docs: Any) -> None:
    class Writing(FakeEmbedder):
        def embed(self, inputs: Any, **options: Any) -> Any:
            if not self.calls:
                batch_import(docs, [("new", "stored meanwhile")], FakeEmbedder(), vector="old")
                batch_import(docs, [("r0", "changed meanwhile")], FakeEmbedder(), vector="old")
            return super().embed(inputs, **options)

    done = migrate(docs, Writing(OTHER))
    assert done.state == "switched"
    texts = [("r0", "changed meanwhile"), *rows(20)[1:], ("new", "stored meanwhile")]
    assert_vectors(double, "other_2", OTHER, texts)


def test_what_cannot_be_embedded_or_is_not_what_it_should_be_switches_nothing(
    double: Double, docs: Any
) -> None:
    held = double.objects["Docs"]
    held[generate_uuid5("r5")][0]["text"] = " "  # blank: no vector, and no obstacle
    long = held[generate_uuid5("r7")][0]
    long["text"] = "word " * 10_000
    with pytest.raises(InputError, match="1 objects of Docs cannot be embedded"):
        migrate(docs, FakeEmbedder(OTHER))
    long["text"] = "short again"
    with pytest.raises(BackendError, match="not what they should be"):
        _migrate_spoilt(double, docs)
    places = places_of(docs.config.get())
    assert (places.searched, places.next) == ("old", "other_2")
    for properties, _ in held.values():
        properties["nimbed_digest_other_2"] = ""  # as of objects that are embedded anew
    assert migrate(docs, FakeEmbedder(OTHER)).report.loaded == 19


def _migrate_spoilt(double: Double, docs: Any) -> None:
    """Migrate, while something else overwrites the new vectors."""

    class Spoiling(FakeEmbedder):
        def embed(self, inputs: Any, **options: Any) -> Any:
            for _, vectors in double.objects["Docs"].values():
                if "other_2" in vectors:
                    vectors["other_2"] = [1.0, *[0.0] * (len(vectors["other_2"]) - 1)]
            return super().embed(inputs, **options)

    migrate(docs, Spoiling(OTHER))


def test_a_modules_vector_is_left_for_one_of_our_own(double: Double, make: Make) -> None:
    double.embed = lambda settings, text, role: (
        FakeEmbedder().embed([text], input_type=role).lists()[0]  # type: ignore[arg-type]
    )
    texts = [Property(name=each, data_type=DataType.TEXT) for each in ("title", "body")]
    served = vectorizer("m", base_url=HOME, name="served", source_properties=["title", "body"])
    docs = make("Docs", served, properties=texts)
    docs.data.insert_many([{"title": f"T{n}", "body": f"b {n}"} for n in range(7)])
    done = migrate(docs, FakeEmbedder(OTHER), embedding_type="int8")
    assert (done.state, done.vector, done.report.loaded) == ("switched", "other_2_int8", 7)
    for properties, vectors in double.objects["Docs"].values():
        text = f"{properties['body']} {properties['title']}"
        right = FakeEmbedder(OTHER).embed([text], input_type="passage", embedding_type="int8")
        np.testing.assert_array_equal(vectors["other_2_int8"], right.vectors[0])
    done = rollback(docs)
    assert (done.state, done.vector, done.spec) == ("rolled back", "served", None)


def test_a_collection_that_cannot_be_migrated_is_told(
    double: Double, docs: Any, make: Make, client: Any
) -> None:
    double.create({"class": "Old", "vectorizer": "none"})
    with pytest.raises(ConfigurationError, match="has no name"):
        migrate(client.collections.get("Old"), FakeEmbedder())
    spec = FakeEmbedder().spec()
    two = make("Two", [self_provided(spec, name="a"), self_provided(spec, name="b")])
    with pytest.raises(ConfigurationError, match="which vector .* is searched is not known"):
        migrate(two, FakeEmbedder(OTHER))
    with pytest.raises(ConfigurationError, match="is searched now"):
        migrate(docs, FakeEmbedder(OTHER), vector="old")
    double.version = "1.30.0"
    with pytest.raises(ConfigurationError, match=r"1\.31 or later"):
        migrate(docs, FakeEmbedder(OTHER))
