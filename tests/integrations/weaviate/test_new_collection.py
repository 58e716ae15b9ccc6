"""A collection that cannot take another vector goes to another model by a new collection."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import weaviate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weaviate.classes.config import Configure, DataType, Property, ReferenceProperty
from weaviate.classes.data import DataObject
from weaviate.util import generate_uuid5

import nimbed_weaviate as nw
from nimbed import FakeEmbedder
from nimbed.errors import BackendError, ConfigurationError, InputError
from nimbed.fake import FAKE_CARD
from nimbed_weaviate.indexes import index_for, index_json

from .double import Double

Make = Callable[..., Any]
OTHER = dataclasses.replace(FAKE_CARD, id="nimbed/other-2")
INDEX = Configure.VectorIndex


def rows(count: int) -> list[tuple[str, str, dict[str, Any]]]:
    return [(f"r{n}", f"passage number {n}", {"page": n, "of": {"book": n}}) for n in range(count)]


def embedded(embedder: FakeEmbedder) -> int:
    return sum(len(inputs) for role, inputs in embedder.calls if role == "passage")


def vector_of(text: str, card: Any) -> np.ndarray:
    return FakeEmbedder(card).embed([text], input_type="passage").vectors[0]


def assert_holds(
    double: Double, name: str, vector: str, card: Any, wanted: dict[str, tuple[str, Any]]
) -> None:
    """Make sure of every object: its text, its page and its vector, and that there is no other."""
    held = double.objects[name]
    assert set(held) == set(map(generate_uuid5, wanted))
    for key, (text, page) in wanted.items():
        properties, vectors = held[generate_uuid5(key)]
        assert (properties["text"], properties["page"]) == (text, page)
        assert properties["nimbed_id"] == key
        np.testing.assert_array_equal(np.float32(vectors[vector]), vector_of(text, card))


def wanted(*given: tuple[str, str, dict[str, Any]]) -> dict[str, tuple[str, Any]]:
    return {key: (text, more["page"]) for key, text, more in given}


@pytest.fixture
def old(double: Double, make: Make) -> Any:
    """A filled collection of a server that adds no vector to it."""
    double.version = "1.30.0"
    docs = make("Docs", nw.self_provided(FakeEmbedder().spec(), name="old"))
    nw.batch_import(docs, rows(20), FakeEmbedder())
    return docs


def test_there_and_back_and_on(double: Double, client: Any, old: Any) -> None:
    done = nw.migrate(old, FakeEmbedder(OTHER), client=client)
    assert (done.state, done.collection, done.vector) == ("switched", "Docs_2", "other_2")
    assert (done.report.loaded, {each.verdict for each in done.findings}) == (20, {"ok"})
    assert_holds(double, "Docs_2", "other_2", OTHER, wanted(*rows(20)))
    assert double.objects["Docs_2"][generate_uuid5("r3")][0]["of"] == {"book": 3}
    # What is asked for by the old name is found at the new one; the old one takes nothing more.
    docs = nw.current_collection(client, "Docs")
    assert docs.name == "Docs_2"
    assert len(nw.search(docs, "which?", 5, embedder=FakeEmbedder(OTHER))) == 5
    for refused in (
        lambda: nw.search(old, "which?", embedder=FakeEmbedder()),
        lambda: nw.batch_import(old, rows(1), FakeEmbedder()),
        lambda: nw.migrate(old, FakeEmbedder(OTHER)),
    ):
        with pytest.raises(ConfigurationError, match="was migrated to Docs_2; open that one"):
            refused()
    with pytest.raises(ConfigurationError, match="by such vectors already"):
        nw.migrate(old, FakeEmbedder(OTHER), client=client)
    # The same rows are known there: nothing is embedded again.
    changed = [*rows(19), ("r20", "a new one", {"page": 7}), ("r1b", "another", {"page": 1})]
    again = FakeEmbedder(OTHER)
    assert nw.batch_import(docs, changed, again, prune=True).unchanged == 19
    assert embedded(again) == 2
    with pytest.raises(ConfigurationError, match="pass the client too"):
        nw.rollback(docs)
    # Back: what came, changed or went does so in the old one; what others put there stays.
    double.updated["00000000-0000-0000-0000-000000000001"] = 1_900_000_000_000
    double.objects["Docs"]["00000000-0000-0000-0000-000000000001"] = ({"text": "late"}, {})
    small = FakeEmbedder()
    done = nw.rollback(old, small, client=client)
    assert (done.state, done.collection, done.vector) == ("rolled back", "Docs", "old")
    assert (embedded(small), done.report.removed) == (2, 1)
    assert double.objects["Docs"].pop("00000000-0000-0000-0000-000000000001")
    assert_holds(double, "Docs", "old", FAKE_CARD, wanted(*changed))
    assert nw.batch_import(old, changed, FakeEmbedder()).unchanged == len(changed)
    # And forth again, with nothing left to do.
    other = FakeEmbedder(OTHER)
    done = nw.rollback(old, other, client=client)
    assert (done.state, done.collection, embedded(other)) == ("rolled back", "Docs_2", 0)
    done = nw.finish(old, client=client)
    assert (done.state, done.collection, done.left_collection) == ("finished", "Docs_2", "Docs")
    for wrong in (nw.finish, nw.rollback):
        with pytest.raises(ConfigurationError, match="was not migrated|nothing to finish"):
            wrong(old, client=client)
    assert nw.current_collection(client, "Docs").name == "Docs_2"


def test_an_alias_is_switched(double: Double, client: Any, make: Make) -> None:
    first = make("Docs_1", nw.self_provided(FakeEmbedder().spec()))
    nw.batch_import(first, rows(5), FakeEmbedder())
    client.alias.create(alias_name="Docs", target_collection="Docs_1")
    docs = client.collections.get("Docs")
    done = nw.migrate(docs, FakeEmbedder(OTHER), client=client, switch=False)
    assert (done.state, done.alias, double.aliases) == ("prepared", "Docs", {"Docs": "Docs_1"})
    done = nw.migrate(docs, FakeEmbedder(OTHER), client=client)
    assert (done.state, done.collection, done.report.loaded) == ("switched", "Docs_2", 0)
    assert double.aliases == {"Docs": "Docs_2"}
    assert nw.rollback(docs, FakeEmbedder(), client=client).alias == "Docs"
    assert double.aliases == {"Docs": "Docs_1"}
    nw.rollback(docs, FakeEmbedder(OTHER), client=client)
    done = nw.finish(docs, client=client)
    assert (double.aliases, done.left_collection) == ({"Docs": "Docs_2"}, "Docs_1")


def test_a_vector_without_a_name_gets_one_in_a_new_collection(double: Double, client: Any) -> None:
    double.create({"class": "Old", "vectorizer": "none", "vectorIndexConfig": {}})
    docs = client.collections.get("Old")
    nw.batch_import(docs, rows(4), FakeEmbedder())
    done = nw.migrate(docs, FakeEmbedder(OTHER), client=client, embedding_type="int8")
    assert (done.collection, done.vector) == ("Old_2", "other_2_int8")
    docs = nw.current_collection(client, "Old")
    nw.batch_import(docs, [("r1", "changed", {"page": 1})], FakeEmbedder(OTHER))
    done = nw.rollback(docs, FakeEmbedder(), client=client)
    assert (done.collection, done.vector, done.report.loaded) == ("Old", "", 1)
    now = wanted(rows(1)[0], ("r1", "changed", {"page": 1}), *rows(4)[2:])
    assert_holds(double, "Old", "default", FAKE_CARD, now)


def test_other_vectors_come_along_and_a_module_makes_its_own_again(
    double: Double, client: Any, make: Make
) -> None:
    double.embed = lambda settings, text, role: (
        FakeEmbedder().embed([text], input_type=role).lists()[0]  # type: ignore[arg-type]
    )
    double.version = "1.30.0"
    texts = [Property(name=each, data_type=DataType.TEXT) for each in ("title", "body")]
    served = nw.vectorizer("m", base_url="http://nimbed:8000", name="served")
    mine = nw.self_provided(FakeEmbedder().spec(), name="mine")
    docs = make("Docs", [served, mine], properties=texts)
    docs.data.insert_many(
        [
            DataObject(properties={"title": f"T{n}", "body": f"b {n}"}, vector={"mine": [n] * 64})
            for n in range(7)
        ]
    )
    with pytest.raises(ConfigurationError, match="which vector .* is searched is not known"):
        nw.migrate(docs, FakeEmbedder(OTHER), client=client)
    one = make("One", served, properties=texts)
    one.data.insert_many([{"title": f"T{n}", "body": f"b {n}"} for n in range(7)])
    done = nw.migrate(one, FakeEmbedder(OTHER), client=client)
    assert (done.collection, done.report.loaded) == ("One_2", 7)
    for properties, vectors in double.objects["One_2"].values():
        text = f"{properties['body']} {properties['title']}"
        np.testing.assert_array_equal(np.float32(vectors["other_2"]), vector_of(text, OTHER))
    nw.current_collection(client, "One").data.insert_many([{"title": "new", "body": "b"}])
    done = nw.rollback(one, client=client)
    assert (done.state, done.vector, done.spec) == ("rolled back", "served", None)
    assert len(double.objects["One"]) == 8
    assert all(set(vectors) == {"served"} for _, vectors in double.objects["One"].values())


def test_named_vectors_of_others_are_copied(double: Double, client: Any, old: Any) -> None:
    double.version = "1.38.11"
    nw.migrate(old, FakeEmbedder(), vector="second", dimensions=32)
    assert nw.rollback(old, FakeEmbedder()).vector == "old"
    nw.migrate(old, FakeEmbedder(OTHER), vector="third", into="Elsewhere", client=client)
    for properties, vectors in double.objects["Elsewhere"].values():
        assert set(vectors) == {"second", "third"}
        assert properties["nimbed_digest_second"]
        assert "nimbed_digest_old" not in properties
    docs = client.collections.get("Elsewhere")
    again = FakeEmbedder()
    assert nw.batch_import(docs, rows(20), again, vector="second").unchanged == 20


def test_killed_it_goes_on_and_writers_and_blanks_are_no_obstacle(
    double: Double, client: Any, old: Any
) -> None:
    class Killed(Exception):
        pass

    def kill(report: Any) -> None:
        if report.read:
            raise Killed

    with pytest.raises(Killed):
        nw.migrate(old, FakeEmbedder(OTHER), client=client, on_progress=kill)
    with pytest.raises(ConfigurationError, match="into Docs_2 is under way"):
        nw.migrate(old, FakeEmbedder(OTHER), client=client, into="Another")
    done = nw.migrate(old, FakeEmbedder(OTHER), client=client, switch=False)
    assert (done.state, done.collection) == ("prepared", "Docs")
    # Written to meanwhile: changed, new, blank and gone.
    nw.batch_import(
        old, [("r3", "changed", {"page": 3}), ("n", "new", {"page": 0})], FakeEmbedder()
    )
    double.objects["Docs"][generate_uuid5("r5")][0]["text"] = " "
    del double.objects["Docs"][generate_uuid5("r6")]
    last = FakeEmbedder(OTHER)
    done = nw.migrate(old, last, client=client)
    assert (done.state, embedded(last) - len(done.findings) >= 0) == ("switched", True)
    assert done.report.removed == 1
    blank = double.objects["Docs_2"].pop(generate_uuid5("r5"))
    assert (blank[0]["text"], blank[1]) == (" ", {})
    rest = [each for each in rows(20) if each[0] not in ("r3", "r5", "r6")]
    now = wanted(*rest, ("r3", "changed", {"page": 3}), ("n", "new", {"page": 0}))
    assert_holds(double, "Docs_2", "other_2", OTHER, now)


def test_what_cannot_be_embedded_or_is_spoilt_switches_nothing(
    double: Double, client: Any, old: Any
) -> None:
    long = double.objects["Docs"][generate_uuid5("r7")][0]
    long["text"] = "word " * 10_000
    with pytest.raises(InputError, match="1 objects of Docs cannot be embedded"):
        nw.migrate(old, FakeEmbedder(OTHER), client=client)
    long["text"] = "short again"

    class Spoiling(FakeEmbedder):
        def embed(self, inputs: Any, **options: Any) -> Any:
            for _, vectors in double.objects["Docs_2"].values():
                vectors["other_2"] = [1.0, *[0.0] * 63]
            return super().embed(inputs, **options)

    with pytest.raises(BackendError, match="not what they should be"):
        nw.migrate(old, Spoiling(OTHER), client=client)
    assert nw.current_collection(client, "Docs").name == "Docs"
    done = nw.rollback(old, client=client)
    assert (done.state, done.left_collection, done.left) == ("abandoned", "Docs_2", None)
    with pytest.raises(ConfigurationError, match="was not migrated"):
        nw.rollback(old, client=client)


def test_an_import_that_the_switch_overtakes_says_so(double: Double, client: Any, old: Any) -> None:
    class Late(FakeEmbedder):
        def embed(self, inputs: Any, **options: Any) -> Any:
            if not self.calls:
                nw.migrate(old, FakeEmbedder(OTHER), client=client)
            return super().embed(inputs, **options)

    with pytest.raises(ConfigurationError, match="was migrated to Docs_2"):
        nw.batch_import(old, [("late", "a late one", {"page": 1})], Late())


def test_what_is_not_copied_is_told_before(
    double: Double, client: Any, make: Make, old: Any
) -> None:
    blob = Property(name="picture", data_type=DataType.BLOB)
    text = Property(name="text", data_type=DataType.TEXT)
    one = nw.self_provided(FakeEmbedder().spec(), name="one")
    make("Pictures", one, properties=[blob, text])
    make("Linked", one, properties=[text], references=[
        ReferenceProperty(name="linked", target_collection="Docs")
    ])  # fmt: skip
    make("Tenants", one, properties=[text],
         multi_tenancy_config=Configure.multi_tenancy(enabled=True))  # fmt: skip
    for name, why in (("Pictures", "picture"), ("Linked", "linked"), ("Tenants", "has tenants")):
        with pytest.raises(ConfigurationError, match=why):
            nw.migrate(client.collections.get(name), FakeEmbedder(OTHER), client=client)
        assert f"{name}_2" not in double.classes
    make("Mine", one)
    with pytest.raises(ConfigurationError, match="there is a collection Mine already"):
        nw.migrate(old, FakeEmbedder(OTHER), client=client, into="Mine")
    with pytest.raises(ConfigurationError, match="pass the client too"):
        nw.migrate(nw.current_collection(client, "Linked"), FakeEmbedder(OTHER), into="X")


@pytest.mark.parametrize(
    "index",
    [
        INDEX.hnsw(quantizer=INDEX.Quantizer.rq(bits=1), ef=200),
        INDEX.flat(quantizer=INDEX.Quantizer.bq()),
        INDEX.hnsw(quantizer=INDEX.Quantizer.none()),
        INDEX.dynamic(hnsw=INDEX.hnsw(quantizer=INDEX.Quantizer.sq()), flat=INDEX.flat()),
        INDEX.hfresh(),
        "flat",
    ],
)
def test_the_new_index_is_what_the_client_would_send(
    double: Double, make: Make, index: Any
) -> None:
    spec = FakeEmbedder().spec()
    make("Docs", nw.self_provided(spec, name="v", index=index))
    sent = double.classes["Docs"]["vectorConfig"]["v"]
    chosen = index_for(spec, index=index)
    double.create({"class": "Same", "vectorConfig": {"v": {
        "vectorizer": {"none": {}}, "vectorIndexType": chosen.vector_index_type().value,
        "vectorIndexConfig": index_json(chosen),
    }}})  # fmt: skip
    assert double.classes["Same"]["vectorConfig"]["v"] == sent


async def test_the_async_client_does_the_same(double: Double, client: Any, old: Any) -> None:
    address = weaviate.connect.ConnectionParams.from_url(double.url, double.grpc_port)
    async with weaviate.WeaviateAsyncClient(address, skip_init_checks=True) as same:
        docs = same.collections.get("Docs")
        done = await nw.amigrate(docs, FakeEmbedder(OTHER), client=same)
        assert (done.state, done.collection) == ("switched", "Docs_2")
        assert_holds(double, "Docs_2", "other_2", OTHER, wanted(*rows(20)))
        now = await nw.acurrent_collection(same, "Docs")
        hits = await nw.asearch(now, "which?", 5, embedder=FakeEmbedder(OTHER))
        plain = nw.current_collection(client, "Docs")
        assert hits == nw.search(plain, "which?", 5, embedder=FakeEmbedder(OTHER))
        assert (await nw.aaudit(now, FakeEmbedder(OTHER))).ok
        assert (await nw.arollback(docs, FakeEmbedder(), client=same)).collection == "Docs"
        assert (await nw.arollback(docs, FakeEmbedder(OTHER), client=same)).state == "rolled back"
        assert (await nw.afinish(docs, client=same)).left_collection == "Docs"
    double.version = "1.38.11"
    async with weaviate.WeaviateAsyncClient(address, skip_init_checks=True) as same:
        done = await nw.amigrate(same.collections.get("Docs"), FakeEmbedder(), client=same)
        assert (done.collection, done.vector) == ("Docs_2", "fake")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("import"), st.dictionaries(st.integers(0, 9), st.integers(0, 3))),
        st.tuples(st.just("delete"), st.integers(0, 9)),
        st.tuples(st.sampled_from(["migrate", "kill", "rollback", "lose"]), st.none()),
    ),
    max_size=8,
)


class Broken(Exception):
    pass


def killing(kills: bool) -> Callable[[Any], None]:
    def tell(report: Any) -> None:
        if kills and report.loaded:
            raise Broken

    return tell


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_any_mixture_ends_in_the_oracles_state(
    double: Double, client: Any, make: Make, steps: list[Any]
) -> None:
    """Rows, kills, switches and ways back: in the end the searched collection has every row."""
    for name in list(double.classes):
        client.collections.delete(name)
    double.version = "1.30.0"
    make("Docs", nw.self_provided(FakeEmbedder().spec(), name="old"))
    state: dict[str, tuple[str, Any]] = {}
    for what, more in steps:
        docs = nw.current_collection(client, "Docs")
        card = FAKE_CARD if docs.name == "Docs" else OTHER
        if what == "import":
            new = [(f"r{n}", f"text {value}", {"page": value}) for n, value in more.items()]
            nw.batch_import(docs, new, FakeEmbedder(card))
            state |= wanted(*new)
        elif what == "delete":
            docs.data.delete_by_id(generate_uuid5(f"r{more}"))
            state.pop(f"r{more}", None)
        elif what == "lose" and docs.name == "Docs" and "Docs_2" in double.objects:
            held = double.objects["Docs_2"]
            for uuid in list(held)[:2]:
                del held[uuid]
        elif what == "rollback" and len(double.classes) == 2:
            back = FakeEmbedder(OTHER if card is FAKE_CARD else FAKE_CARD)
            nw.rollback(docs, back, client=client)
        elif what in ("migrate", "kill") and "Docs_2" not in double.classes and state:
            with contextlib.suppress(Broken):
                nw.migrate(
                    docs, FakeEmbedder(OTHER), client=client, on_progress=killing(what == "kill")
                )
    docs = nw.current_collection(client, "Docs")
    vector, card = ("old", FAKE_CARD) if docs.name == "Docs" else ("other_2", OTHER)
    assert_holds(double, docs.name, vector, card, state)
