"""The pipeline of a bulk job: what is embedded, stored, left alone and rejected."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbed import EmbeddingBatch, FakeEmbedder
from nimbed.bulk import (
    JobReport,
    PassageBatch,
    SeenIds,
    StoreResult,
    drop_repeated,
    embed_accepted,
    embedding_passages,
    listing,
    load_batches,
    read_batches,
)
from nimbed.errors import BackendError, ConfigurationError, InputError
from nimbed.rows import BadRow, Reject, Row

TEXTS = ["one", " ", "two", "word " * 600, "lone \ud800", "three"]
Passages = PassageBatch[None, bytes]
Embed = Callable[[Sequence[str]], EmbeddingBatch]


def embedding(**options: object) -> Embed:
    embedder = FakeEmbedder()
    return embedding_passages(embedder, embedder.spec(**options), truncate="NONE")  # type: ignore[arg-type]


def prepare(rows: Sequence[Row]) -> tuple[Passages, list[Reject]]:
    return PassageBatch(
        [row.number for row in rows],
        [str(row.id) for row in rows],
        [row.text for row in rows],
        [None] * len(rows),
        [row.text.encode("utf-8", "replace") for row in rows],
    ), []


class Memory:
    """A store that keeps (digest, vector) by id, and notes what it is asked to do and where."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[bytes, bytes]] = {}
        self.did: list[tuple[str, list[str]]] = []
        self.threads: set[str] = set()
        self.refuse: set[str] = set()

    def encode(self, batch: EmbeddingBatch) -> list[bytes]:
        return [row.tobytes() for row in batch.vectors]

    def look_up(self, passages: Passages) -> Mapping[str, bytes]:
        self.note("look up", passages.ids)
        return {name: self.held[name][0] for name in passages.ids if name in self.held}

    def storing(self, passages: Passages, *, replace: bool) -> Callable[[], StoreResult]:
        return functools.partial(self.store, passages, "replace" if replace else "store")

    def store(self, passages: Passages, how: str) -> StoreResult:
        self.note(how, passages.ids)
        assert passages.vectors is not None
        rows = zip(passages.numbers, passages.ids, passages.digests, passages.vectors, strict=True)
        refused = []
        for number, name, digest, vector in rows:
            if name in self.refuse:
                refused.append(Reject(number, name, "no room"))
            else:
                self.held[name] = digest, vector
        return StoreResult(stored=len(passages) - len(refused), refused=refused)

    def finish(self) -> None:
        self.note("finish", [])

    def note(self, what: str, ids: list[str]) -> None:
        self.did.append((what, list(ids)))
        self.threads.add(threading.current_thread().name)


def load(
    items: Sequence[object], sink: Memory, *, rows: int = 2, embed: Embed | None = None
) -> tuple[JobReport, list[Reject]]:
    told: list[Reject] = []
    batches = read_batches(items, prepare, rows=rows)  # type: ignore[arg-type]
    report = load_batches(batches, sink, embed or embedding(), on_reject=told.append)
    assert report.first_rejects == told[:10]
    return report, told


def test_what_is_new_is_embedded_and_stored_with_its_own_vector() -> None:
    sink = Memory()
    report, told = load([(f"p{n}", f"text {n}") for n in range(5)], sink)
    assert (report.loaded, report.unchanged, report.rejected, told) == (5, 0, 0, [])
    expected = FakeEmbedder().embed([f"text {n}" for n in range(5)], input_type="passage")
    vectors = [sink.held[f"p{n}"][1] for n in range(5)]
    assert vectors == [row.tobytes() for row in expected.vectors]
    assert report.tokens == expected.token_counts.sum()
    assert [what for what, _ in sink.did].count("finish") == 1
    assert sink.did[-1] == ("finish", [])
    assert len(sink.threads) == 1
    assert threading.current_thread().name not in sink.threads


def test_the_next_batch_is_looked_up_before_the_last_is_stored() -> None:
    sink = Memory()
    load([(f"p{n}", f"text {n}") for n in range(4)], sink)
    assert [what for what, _ in sink.did] == ["look up", "look up", "store", "store", "finish"]


def test_only_what_changed_is_embedded_and_replaced() -> None:
    sink, asked = Memory(), []
    items = [(f"p{n}", f"text {n}") for n in range(4)]
    load(items, sink)
    sink.did.clear()

    def embed(texts: Sequence[str]) -> EmbeddingBatch:
        asked.extend(texts)
        return embedding()(texts)

    report, _ = load([items[0], ("p1", "another"), *items[2:], ("p4", "new")], sink, embed=embed)
    assert (report.loaded, report.unchanged) == (2, 3)
    assert asked == ["another", "new"]
    stores = [(what, ids) for what, ids in sink.did if what not in ("look up", "finish")]
    assert stores == [("replace", ["p1"]), ("store", ["p4"])]


def test_nothing_new_is_neither_embedded_nor_finished() -> None:
    sink = Memory()
    load([("a", "one")], sink)
    sink.did.clear()
    report, _ = load([("a", "one")], sink, embed=lambda texts: pytest.fail("embedded again"))
    assert (report.loaded, report.unchanged) == (0, 1)
    assert sink.did == [("look up", ["a"])]


def test_every_row_that_is_left_out_is_told_by_its_number_and_id() -> None:
    sink = Memory()
    sink.refuse = {"e"}
    items = [
        ("a", "one"),
        BadRow(9, "not JSON"),
        ("b", "word " * 600),
        ("a", "again"),
        ("c", " "),
        ("e", "refused"),
        ("f", "two"),
    ]
    report, told = load(items, sink, rows=3)
    reasons = {reject.number: (reject.id, reject.reason) for reject in told}
    assert set(reasons) == {9, 3, 4, 5, 6}
    assert reasons[9] == (None, "not JSON")
    assert reasons[4] == ("a", "the id 'a' came before in this input")
    assert reasons[6] == ("e", "no room")
    assert "(row 3)" in reasons[3][1]
    assert "row 5 is" in reasons[5][1]
    assert (report.loaded, report.rejected, report.read) == (2, 5, 7)
    assert set(sink.held) == {"a", "f"}


def test_vectors_that_come_with_their_passages_need_no_embedder() -> None:
    sink = Memory()
    passages, _ = prepare([Row(1, "one", "a"), Row(2, "two", "b")])
    report = load_batches([(passages.with_vectors([b"1", b"2"]), [])], sink, None)
    assert (report.loaded, report.tokens) == (2, 0)
    assert sink.held["b"] == (b"two", b"2")
    with pytest.raises(ConfigurationError, match="2 passages came without their vectors"):
        load_batches([(passages, [])], Memory(), None)


def test_a_report_is_carried_on() -> None:
    report = JobReport(loaded=3, seconds=100.0)
    passages, _ = prepare([Row(1, "one", "a")])
    assert load_batches([(passages, [])], Memory(), embedding(), report=report) is report
    assert report.loaded == 4
    assert report.seconds >= 100.0


def test_texts_are_refused_one_fault_after_the_other_and_the_rest_is_embedded() -> None:
    told: list[int] = []
    places, batch = embed_accepted(
        TEXTS, embedding(embedding_type="ubinary"), lambda some, error: told.extend(some)
    )
    assert (places, sorted(told)) == ([0, 2, 5], [1, 3, 4])
    expected = FakeEmbedder().embed(
        ["one", "two", "three"], input_type="passage", embedding_type="ubinary"
    )
    np.testing.assert_array_equal(batch.vectors, expected.vectors)
    assert batch.spec == expected.spec


def test_nothing_accepted_is_an_empty_batch() -> None:
    places, batch = embed_accepted([" "], embedding(), lambda some, error: None)
    assert (places, len(batch)) == ([], 0)


def test_an_error_that_names_no_text_is_raised() -> None:
    def embed(texts: Sequence[str]) -> EmbeddingBatch:
        raise InputError("the file is damaged")

    with pytest.raises(InputError, match="damaged"):
        embed_accepted(["a"], embed, lambda some, error: None)


def test_a_refused_row_is_called_by_its_own_number() -> None:
    rows = [Row(101, "one", "p0"), Row(102, " ", "p1"), Row(103, "\t", "p2")]
    report, told = load(rows, Memory(), rows=3)
    assert [(reject.number, reject.id) for reject in told] == [(102, "p1"), (103, "p2")]
    assert "row 102 is" in told[0].reason
    assert "row 103 is" in told[1].reason
    assert (report.rejected, report.read, report.first_rejects) == (2, 3, told)


def test_rejects_are_listed_in_a_file_made_with_the_first(tmp_path) -> None:
    path, told = tmp_path / "rejects.jsonl", []
    path.write_text("of an earlier run\n")
    with listing(path, told.append) as tell:
        assert not path.exists()
        tell(Reject(3, None, "blank"))
        tell(Reject(4, "naïve", "too long"))
        assert path.read_text() == (  # at once: a load may be killed
            '{"number": 3, "id": null, "reason": "blank"}\n'
            '{"number": 4, "id": "na\\u00efve", "reason": "too long"}\n'
        )
    assert [reject.number for reject in told] == [3, 4]
    with listing(None, told.append) as tell:
        tell(Reject(5, None, "blank"))
    assert len(told) == 3


@given(st.lists(st.lists(st.integers(0, 60).map(str), max_size=20), max_size=12))
def test_seen_ids_are_those_of_a_set(calls: list[list[str]]) -> None:
    seen, ids = set[str](), SeenIds(recent=8)
    for call in calls:
        expected = set()
        for place, name in enumerate(call):
            if name in seen:
                expected.add(place)
            seen.add(name)
        assert ids.repeated(call) == expected


def test_the_later_row_is_the_one_that_is_told() -> None:
    passages, _ = prepare([Row(1, "one", "a"), Row(3, "two", "a")])
    kept, rejects = drop_repeated(SeenIds(), passages, [])
    assert (kept.ids, kept.texts) == (["a"], ["one"])
    assert rejects == [Reject(3, "a", "the id 'a' came before in this input")]


def test_batches_are_stored_beside_each_other_once_a_first_one_was_taken() -> None:
    class Meeting(Memory):
        """Each batch but the first waits until the next one is being stored too."""

        def __init__(self) -> None:
            super().__init__()
            self.under_way = 0
            self.alone = False
            self.pair = threading.Barrier(2, timeout=20)

        def store(self, passages: Passages, how: str) -> StoreResult:
            self.under_way += 1
            if passages.ids == ["p0"]:
                time.sleep(0.05)  # time enough for another one to come, if one may
                self.alone = self.under_way == 1
            else:
                self.pair.wait()
            self.under_way -= 1
            return dataclasses.replace(super().store(passages, how), replaced=1)

    sink, told = Meeting(), list[int]()
    batches = read_batches([(f"p{n}", f"text {n}") for n in range(5)], prepare, rows=1)
    report = load_batches(
        batches, sink, embedding(), at_once=2, on_progress=lambda so_far: told.append(so_far.loaded)
    )
    assert sink.alone
    assert (report.loaded, report.replaced, set(sink.held)) == (5, 5, {f"p{n}" for n in range(5)})
    assert told == sorted(told)
    assert told[-1] == 5


def test_a_store_that_refuses_all_is_asked_for_no_second_batch_beside_the_first() -> None:
    class Closed(Memory):
        def store(self, passages: Passages, how: str) -> StoreResult:
            super().store(passages, how)
            time.sleep(0.05)
            raise BackendError("closed")

    sink = Closed()
    batches = read_batches([(f"p{n}", f"text {n}") for n in range(5)], prepare, rows=1)
    with pytest.raises(BackendError, match="closed"):
        load_batches(batches, sink, embedding(), at_once=2)
    assert set(sink.held) == {"p0"}
