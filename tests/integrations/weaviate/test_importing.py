"""Rows through the real client into a double of Weaviate, with everything that may go wrong."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from weaviate.util import generate_uuid5

from nimbed import FakeEmbedder
from nimbed.errors import BackendError, ConfigurationError, SpaceMismatchError
from nimbed.fake import FAKE_CARD
from nimbed.rows import BadRow, Row
from nimbed_weaviate import LoadReport, Reject, batch_import, connect, self_provided, vectorizer
from nimbed_weaviate.calls import Calls
from nimbed_weaviate.properties import UnfitError, object_uuid, properties_of

from .double import Double

Make = Callable[..., Any]


def rows(count: int) -> list[tuple[str, str, dict[str, Any]]]:
    return [(f"r{n}", f"passage number {n}", {"page": n}) for n in range(count)]


@pytest.fixture
def passages(make: Make, embedder: FakeEmbedder) -> Any:
    return make("Passages", self_provided(embedder.spec()))


def embedded(embedder: FakeEmbedder) -> int:
    return sum(len(inputs) for _, inputs in embedder.calls)


def test_rows_become_objects_with_the_vectors_of_passages(
    double: Double, passages: Any, embedder: FakeEmbedder
) -> None:
    told: list[int] = []
    report = batch_import(
        passages, rows(10), embedder, chunk_rows=4, on_progress=lambda now: told.append(now.read)
    )
    assert (report.loaded, report.unchanged, report.rejected) == (10, 0, 0)
    assert sorted(len(batch) for batch in double.batches) == [2, 4, 4]
    assert told == sorted(told)
    assert told[-1] == 10
    expected = FakeEmbedder().embed([text for _, text, _ in rows(10)], input_type="passage")
    for n, (name, text, metadata) in enumerate(rows(10)):
        properties, vectors = double.objects["Passages"][generate_uuid5(name)]
        digest = properties.pop("nimbed_digest")
        assert len(digest) == 64
        assert properties == {"text": text, "nimbed_id": name, **metadata}
        np.testing.assert_array_equal(np.float32(vectors["default"]), expected.vectors[n])


@pytest.mark.parametrize("kind", ["int8", "uint8", "binary", "ubinary"])
def test_compact_types_arrive_in_the_form_that_weaviate_compares(
    double: Double, make: Make, embedder: FakeEmbedder, kind: Any
) -> None:
    spec = embedder.spec(embedding_type=kind, dimensions=32)
    collection = make("Compact", self_provided(spec, name="small"))
    batch_import(collection, rows(3), embedder, embedding_type=kind, dimensions=32)
    batch = FakeEmbedder().embed(
        [text for _, text, _ in rows(3)],
        input_type="passage",
        embedding_type=kind,
        dimensions=32,
    )
    expected = batch.signs() if spec.packed else batch.vectors
    for n, (name, _, _) in enumerate(rows(3)):
        _, vectors = double.objects["Compact"][generate_uuid5(name)]
        np.testing.assert_array_equal(vectors["small"], expected[n])


def test_a_rerun_embeds_only_what_is_new_or_changed(
    double: Double, passages: Any, embedder: FakeEmbedder
) -> None:
    batch_import(passages, rows(10), embedder, chunk_rows=4)
    changed = rows(12)
    changed[3] = ("r3", "another text", {"page": 3})
    changed[5] = ("r5", "passage number 5", {"page": 55})
    again = FakeEmbedder()
    report = batch_import(passages, changed, again, chunk_rows=4)
    assert (report.loaded, report.unchanged, report.rejected) == (4, 8, 0)
    assert embedded(again) == 4
    held = double.objects["Passages"]
    assert len(held) == 12
    assert held[generate_uuid5("r3")][0]["text"] == "another text"
    assert held[generate_uuid5("r5")][0]["page"] == 55


def test_an_object_whose_digest_was_changed_is_replaced(
    double: Double, passages: Any, embedder: FakeEmbedder
) -> None:
    batch_import(passages, rows(3), embedder)
    held = double.objects["Passages"]
    digests = {name: held[generate_uuid5(name)][0]["nimbed_digest"] for name, _, _ in rows(3)}
    held[generate_uuid5("r1")][0]["nimbed_digest"] = "not a digest"
    report = batch_import(passages, rows(3), FakeEmbedder())
    assert (report.loaded, report.unchanged) == (1, 2)
    assert held[generate_uuid5("r1")][0]["nimbed_digest"] == digests["r1"]


def test_objects_that_weaviate_refuses_are_listed_and_the_others_stored(
    double: Double,
    passages: Any,
    embedder: FakeEmbedder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    listed = tmp_path / "rejects.jsonl"
    listed.write_text("of an earlier run\n")
    told: list[Reject] = []
    double.refuse = lambda properties: "invalid page" if properties["page"] in (2, 7) else None
    with caplog.at_level(logging.DEBUG):
        report = batch_import(
            passages,
            rows(10),
            embedder,
            chunk_rows=4,
            rejects_file=listed,
            on_reject=told.append,
        )
    assert (report.loaded, report.rejected) == (8, 2)
    assert report.first_rejects == told
    reasons = [json.loads(line) for line in listed.read_text().splitlines()]
    assert reasons == [
        {"number": n, "id": f"r{n - 1}", "reason": "Weaviate refused it: invalid page"}
        for n in (3, 8)
    ]
    assert "passage number" not in caplog.text
    double.refuse = lambda properties: None
    again = FakeEmbedder()
    report = batch_import(passages, rows(10), again, rejects_file=listed)
    assert (report.loaded, report.unchanged, embedded(again)) == (2, 8, 2)
    assert not listed.exists()


def test_a_batch_of_which_nothing_was_stored_is_a_batch_of_rejects(
    double: Double, passages: Any, embedder: FakeEmbedder
) -> None:
    double.refuse = lambda properties: "too old" if 4 <= properties["page"] < 8 else None
    report = batch_import(passages, rows(10), embedder, chunk_rows=4)
    assert (report.loaded, report.rejected) == (6, 4)
    assert all("too old" in reject.reason for reject in report.first_rejects)


def test_a_collection_that_takes_nothing_stops_the_import_at_once(
    double: Double, passages: Any, embedder: FakeEmbedder
) -> None:
    double.refuse = lambda properties: "store is read-only"
    with pytest.raises(BackendError, match="none of the first 4 rows.*store is read-only"):
        batch_import(passages, rows(100), embedder, chunk_rows=4)
    assert len(double.batches) <= 2


def test_the_unnamed_vector_of_an_older_collection_is_filled_too(
    double: Double, client: Any, embedder: FakeEmbedder
) -> None:
    double.create({"class": "Old", "vectorizer": "none"})
    assert batch_import(client.collections.get("Old"), rows(3), embedder).loaded == 3
    expected = FakeEmbedder().embed([text for _, text, _ in rows(3)], input_type="passage")
    _, vectors = double.objects["Old"][generate_uuid5("r2")]
    np.testing.assert_array_equal(np.float32(vectors["default"]), expected.vectors[2])


def test_a_connection_that_breaks_in_the_middle_loses_nothing(
    double: Double, passages: Any, embedder: FakeEmbedder, no_pauses: list[float]
) -> None:
    double.break_at = 3
    with pytest.raises(BackendError, match="what is stored stays; run it again"):
        batch_import(passages, rows(40), embedder, chunk_rows=5, restart_wait=0)
    assert no_pauses  # the client itself tried again first
    assert len(double.objects["Passages"]) == 15
    double.break_at = None
    double.start_grpc()
    again = FakeEmbedder()
    with connect(double.url, grpc_port=double.grpc_port) as later:
        report = batch_import(later.collections.get("Passages"), rows(40), again, chunk_rows=5)
    assert (report.loaded, report.unchanged, report.rejected) == (25, 15, 0)
    assert embedded(again) == 25
    expected = FakeEmbedder().embed([text for _, text, _ in rows(40)], input_type="passage")
    for n, (name, _, _) in enumerate(rows(40)):
        vector = double.objects["Passages"][generate_uuid5(name)][1]["default"]
        np.testing.assert_array_equal(np.float32(vector), expected.vectors[n])


def test_rows_that_cannot_be_stored_are_named_before_anything_is_sent(
    double: Double, passages: Any, embedder: FakeEmbedder
) -> None:
    too_long = "word " * (FAKE_CARD.max_tokens + 1)
    items: list[Any] = [
        ("good", "a text", {"when": datetime.date(2026, 1, 2), "sizes": [1, 2.5], "gone": None}),
        ("blank", "   "),
        ("long", too_long),
        ("good", "the id came before"),
        ("number", "a text", {"n": 2**53 + 1}),
        ("nan", "a text", {"n": float("nan")}),
        ("mixed", "a text", {"tags": ["a", 1]}),
        ("name", "a text", {"my field": 1}),
        ("kept", "a text", {"id": 1}),
        ("own", "a text", {"nimbed_id": "x"}),
        ("bytes", "a text", {"blob": b"\0"}),
        BadRow(12, "the line is not JSON"),
        Row(13, "without an id"),
    ]
    told: list[Reject] = []
    report = batch_import(passages, items, embedder, source="my.jsonl", on_reject=told.append)
    assert (report.loaded, report.rejected) == (2, 11)
    reasons = {reject.id or reject.number: reject.reason for reject in told}
    words = {
        "blank": "blank",
        "long": "exceeds",
        "good": "came before",
        "number": "store it as text",
        "nan": "does not store",
        "mixed": "list of int, str",
        "name": "cannot be the name of a property",
        "kept": "keeps the name 'id'",
        "own": "replace nimbed's own",
        "bytes": "base64",
        12: "not JSON",
    }
    assert {key for key, word in words.items() if word in reasons[key]} == set(words)
    stored = {each["nimbed_id"]: each for each, _ in double.objects["Passages"].values()}
    assert set(stored) == {"good", "my.jsonl:13"}
    assert stored["good"]["when"] == "2026-01-02T00:00:00Z"
    assert stored["good"]["sizes"] == [1.0, 2.5]
    assert "gone" not in stored["good"]


def test_long_texts_make_shorter_batches(
    double: Double, passages: Any, embedder: FakeEmbedder
) -> None:
    big = [(str(n), f"{n} " + "x" * 2**20) for n in range(6)]
    huge = [("huge", "y" * 5 * 2**20)]
    report = batch_import(passages, big + huge, embedder)
    assert [len(batch) for batch in double.batches] == [3, 3]
    assert (report.loaded, report.rejected) == (6, 1)
    assert "a message holds" in report.first_rejects[0].reason


def test_two_spaces_never_meet_in_a_collection(make: Make, embedder: FakeEmbedder) -> None:
    collection = make("Shared", self_provided(embedder.spec(dimensions=32)))
    batch_import(collection, rows(2), embedder, dimensions=32)
    with pytest.raises(SpaceMismatchError, match="Shared"):
        batch_import(collection, rows(2), embedder, dimensions=16)
    kept: LoadReport = batch_import(collection, rows(2), embedder)  # as the collection has it
    assert kept.unchanged == 2
    other = FakeEmbedder(dataclasses.replace(FAKE_CARD, id="nimbed/other"))
    small = FakeEmbedder(dataclasses.replace(FAKE_CARD, dimensions=24, matryoshka=(8, 24)))
    for stranger in (other, small):
        with pytest.raises(SpaceMismatchError, match="Shared|cannot give such"):
            batch_import(collection, rows(2), stranger)
        assert stranger.calls == []


def test_an_index_that_would_rank_wrongly_is_refused(make: Make, embedder: FakeEmbedder) -> None:
    packed = make("Packed", self_provided(embedder.spec(embedding_type="binary")))
    with pytest.raises(ConfigurationError, match="hamming counts unequal numbers"):
        batch_import(packed, rows(2), embedder)
    assert embedder.calls == []
    cosine = make("Cosine", self_provided(embedder.spec()))
    with pytest.raises(ConfigurationError, match="use l2-squared"):
        batch_import(cosine, rows(2), embedder, embedding_type="uint8")


def test_the_vector_to_fill_must_be_clear(make: Make, embedder: FakeEmbedder) -> None:
    spec = embedder.spec()
    served = vectorizer("m", base_url="http://nimbed:8000", name="served")
    two = make("Two", [self_provided(spec, name="own"), served])
    with pytest.raises(ConfigurationError, match="it has 'own', 'served'"):
        batch_import(two, rows(1), embedder)
    assert batch_import(two, rows(1), embedder, vector="own").loaded == 1


def test_a_missing_collection_or_a_foreign_property_is_a_sentence(
    client: Any, make: Make, embedder: FakeEmbedder, double: Double
) -> None:
    with pytest.raises(ConfigurationError, match="no such collection"):
        batch_import(client.collections.get("Nothing"), rows(1), embedder)
    foreign = make("Foreign", self_provided(embedder.spec()))
    double.classes["Foreign"]["properties"].append(
        {"name": "nimbed_digest", "dataType": ["text"], "indexFilterable": True,
         "indexSearchable": True, "indexRangeFilters": False, "tokenization": "word"}
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="nimbed did not make"):
        batch_import(foreign, rows(1), embedder)


@pytest.mark.parametrize(("metric", "theirs"), [("dot", "dot"), ("euclidean", "l2-squared")])
def test_a_model_that_ranks_by_length_too_needs_its_own_distance(
    make: Make, double: Double, metric: Any, theirs: str
) -> None:
    fake = FakeEmbedder(dataclasses.replace(FAKE_CARD, metric=metric))
    right = make("Right", self_provided(fake.spec()))
    assert batch_import(right, rows(3), fake).loaded == 3
    index = right.config.get().vector_config["default"].vector_index_config
    assert index.distance_metric.value == theirs
    wrong = make("Wrong", self_provided(FakeEmbedder().spec()))
    with pytest.raises(ConfigurationError, match=f"ranks by the length .*as {theirs} does"):
        batch_import(wrong, rows(3), fake)


@given(st.text())
def test_a_rows_object_has_the_uuid_that_weaviate_makes_of_its_id(name: str) -> None:
    assert object_uuid(name) == generate_uuid5(name)


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "id", "my field", "nimbed_id", "text", "_x"]) | st.text(),
        st.none() | st.booleans() | st.integers(-5, 5) | st.text("aé ", max_size=3),
    )
)
def test_names_that_rows_share_are_judged_as_each_alone(columns: dict[str, Any]) -> None:
    """What is remembered of names says the same the first time and the second."""

    def judged(some: dict[str, Any]) -> Any:
        try:
            return properties_of(some, None)
        except UnfitError as error:
            return str(error)

    first, again = judged(columns), judged(columns)
    assert first == again
    alone = [judged({name: columns[name]}) for name in sorted(columns)]
    faults = [each for each in alone if isinstance(each, str)]
    kept = {name: value for each in alone if isinstance(each, dict) for name, value in each.items()}
    assert first == (faults[0] if faults else kept)


def test_the_clients_log_is_kept_back_while_any_call_is_under_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("weaviate-client")
    calls, ended = Calls(), threading.Event()

    def long() -> None:
        assert ended.wait(20)
        logger.error("an object of the longer call")

    with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.ERROR, "weaviate-client"):
        running = pool.submit(calls, long)
        calls(lambda: logger.error("an object of the shorter call"))
        logger.error("somebody else's")
        ended.set()
        running.result()
        logger.error("what comes later")
    assert caplog.messages == ["somebody else's", "what comes later"]
