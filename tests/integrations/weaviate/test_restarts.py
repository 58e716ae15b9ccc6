"""Weaviate goes away, comes back, and has lost some: an import ends in the state of its input."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weaviate.exceptions import WeaviateQueryError
from weaviate.util import generate_uuid5

import nimbed_weaviate
from nimbed import FakeEmbedder
from nimbed.errors import BackendError
from nimbed_weaviate import backfill, batch_import, embed_stored, self_provided
from nimbed_weaviate.calls import Calls

from .double import Double

Make = Callable[..., Any]


def rows(texts: dict[str, str]) -> list[tuple[str, str]]:
    return list(texts.items())


def vectors_of(texts: list[str]) -> Any:
    return FakeEmbedder().embed(texts, input_type="passage").vectors


def assert_state(held: dict[str, Any], texts: dict[str, str], *names: str) -> None:
    """Every text is stored once, with the vectors of these names, and nothing else is."""
    assert set(held) == {generate_uuid5(name) for name in texts}
    right = vectors_of(list(texts.values()))
    for n, (name, text) in enumerate(texts.items()):
        properties, vectors = held[generate_uuid5(name)]
        assert properties["text"] == text
        for vector in names:
            np.testing.assert_array_equal(np.float32(vectors[vector]), right[n])


def test_a_restart_is_waited_for_and_told_and_what_it_lost_is_stored_again(
    double: Double, make: Make, embedder: FakeEmbedder, no_pauses: list[float]
) -> None:
    docs = make("Docs", self_provided(embedder.spec()))
    texts = {f"r{n}": f"passage number {n}" for n in range(60)}
    told: list[str] = []

    class Killing(FakeEmbedder):
        def embed(self, inputs: Any, **options: Any) -> Any:
            if len(self.calls) == 5:
                double.restart(lose=13)
            return super().embed(inputs, **options)

    report = batch_import(docs, rows(texts), Killing(), chunk_rows=6, on_wait=told.append)
    assert (report.loaded, report.rejected) == (60, 0)
    assert_state(double.objects["Docs"], texts, "default")
    assert told == [
        "Weaviate does not answer; waiting up to 120 s for it",
        "Weaviate answers again",
    ]


def test_what_a_neighbour_was_acknowledged_and_lost_is_stored_again_too(
    double: Double, make: Make, embedder: FakeEmbedder, no_pauses: list[float]
) -> None:
    """Two batches are under way; one notices that Weaviate was away, and the other one lost all."""
    docs = make("Docs", self_provided(embedder.spec()))
    texts = {f"r{n}": f"passage number {n}" for n in range(12)}
    held = double.objects["Docs"]
    restored = threading.Event()

    def on_batch(number: int) -> None:
        if number == 1:  # it is answered last, and has lost what it says it stored
            for name in double.batches[1]:
                del held[name]
            double.away = 6  # for the batch beside it
            assert restored.wait(20)
        elif number > 1 and set(double.batches[1]) <= set(held):
            restored.set()

    double.on_batch = on_batch
    report = batch_import(docs, rows(texts), embedder, chunk_rows=4)
    assert (report.loaded, report.rejected) == (12, 0)
    assert_state(held, texts, "default")


def test_a_batch_that_its_neighbour_restores_while_it_is_sent_keeps_its_other_vectors(
    double: Double, make: Make, no_pauses: list[float]
) -> None:
    """The neighbour finds it not stored yet, and stores it as well."""
    spec = FakeEmbedder().spec()
    docs = make("Docs", [self_provided(spec, name="a"), self_provided(spec, name="b")])
    texts = {f"r{n}": f"passage number {n}" for n in range(12)}
    for vector in "ab":
        batch_import(docs, rows(texts), FakeEmbedder(), vector=vector)
    held = double.objects["Docs"]
    changed = {name: f"{text}, changed" for name, text in texts.items()}
    double.batches.clear()
    restored = threading.Event()
    refuse = double.refuse

    def late(properties: dict[str, Any]) -> str | None:
        """Hold the second batch back before anything of it is stored."""
        number = len(double.batches)
        if number == 2 and not restored.is_set():
            double.away = 6
            assert restored.wait(20)
        return refuse(properties)

    def on_batch(number: int) -> None:
        if number > 1 and all(held[each][0]["text"].endswith("changed") for each in held):
            restored.set()

    double.refuse, double.on_batch = late, on_batch
    report = batch_import(docs, rows(changed), FakeEmbedder(), vector="a", chunk_rows=4)
    assert (report.loaded, report.rejected) == (12, 0)
    assert_state(held, changed, "a")
    assert all("b" in vectors for _, vectors in held.values())


def test_the_wait_has_a_limit(
    double: Double, make: Make, embedder: FakeEmbedder, no_pauses: list[float]
) -> None:
    docs = make("Docs", self_provided(embedder.spec()))
    double.stop_grpc()
    began, told = time.monotonic(), list[str]()
    with pytest.raises(BackendError, match="run it again"):
        batch_import(docs, [("a", "b")], embedder, restart_wait=0.6, on_wait=told.append)
    assert time.monotonic() - began < 30
    assert len(told) == 1
    double.start_grpc()


def test_objects_that_lie_there_get_their_vectors_over_a_restart(
    double: Double, make: Make, embedder: FakeEmbedder, no_pauses: list[float]
) -> None:
    docs = make("Docs", self_provided(embedder.spec(), name="a"))
    texts = {f"r{n}": f"passage number {n}" for n in range(40)}
    batch_import(docs, rows(texts), embedder)
    held = double.objects["Docs"]

    class Killing(FakeEmbedder):
        def embed(self, inputs: Any, **options: Any) -> Any:
            if len(self.calls) == 3:
                double.restart(away=0.7)
                for properties, vectors in held.values():  # what was acknowledged, and lost
                    properties.pop("nimbed_digest_b", None)
                    vectors.pop("b", None)
            return super().embed(inputs, **options)

    told: list[str] = []
    report = backfill(docs, Killing(), vector="b", chunk_rows=6, on_wait=told.append)
    assert report.loaded == 40
    assert len(told) == 2
    assert_state(held, texts, "a", "b")


class Killed(Exception):
    """Stands for a process that is killed between two batches."""


STEPS = st.lists(
    st.fixed_dictionaries(
        {
            "changed": st.dictionaries(st.integers(0, 11), st.integers(0, 3), max_size=6),
            "how": st.sampled_from(["import a", "import b", "embed b"]),
            "kill": st.none() | st.integers(0, 4),
            "away": st.none() | st.tuples(st.integers(0, 4), st.integers(0, 5)),
            "twice": st.lists(st.integers(0, 11), max_size=2),
        }
    ),
    max_size=5,
)


@pytest.mark.usefixtures("no_pauses")
@settings(max_examples=12, deadline=None, database=None)
@given(steps=STEPS)
def test_any_mixture_of_kills_losses_and_changes_ends_in_the_state_of_the_input(
    steps: list[dict[str, Any]],
) -> None:
    double = Double()
    try:
        with nimbed_weaviate.connect(double.url, grpc_port=double.grpc_port) as client:
            spec = FakeEmbedder().spec()
            both = [self_provided(spec, name="a"), self_provided(spec, name="b")]
            docs = client.collections.create("Docs", vector_config=both)
            texts: dict[str, str] = {"r0": "the first"}
            for step in steps:
                texts |= {f"r{n}": f"text {n}, version {v}" for n, v in step["changed"].items()}
                _run(double, docs, texts, step)
            double.on_batch, double.away = lambda number: None, 0
            batch_import(docs, rows(texts), FakeEmbedder(), vector="a", prune=True)
            batch_import(docs, rows(texts), FakeEmbedder(), vector="b")
            assert_state(double.objects["Docs"], texts, "a", "b")
            again = FakeEmbedder()
            for vector in "ab":
                assert batch_import(docs, rows(texts), again, vector=vector).loaded == 0
            assert embed_stored(docs, again, vector="b").loaded == 0
            assert again.calls == []
    finally:
        double.stop()


def _run(double: Double, docs: Any, texts: dict[str, str], step: dict[str, Any]) -> None:
    first = len(double.batches)

    def on_batch(number: int) -> None:
        if step["away"] and number - first == step["away"][0]:
            held = double.objects["Docs"]
            for uuid in list(held)[len(held) - step["away"][1] :] if step["away"][1] else []:
                del held[uuid]
            double.away = 6  # more than the client itself tries again

    def on_progress(report: Any) -> None:
        if step["kill"] is not None and report.read >= 3 * step["kill"]:
            raise Killed

    double.on_batch = on_batch
    items = [*rows(texts), *((f"r{n}", "there twice") for n in step["twice"] if f"r{n}" in texts)]
    options: dict[str, Any] = {"chunk_rows": 3, "on_progress": on_progress}
    try:
        if step["how"] == "embed b":
            if double.objects["Docs"]:
                embed_stored(docs, FakeEmbedder(), vector="b", **options)
        else:
            batch_import(docs, items, FakeEmbedder(), vector=step["how"][-1], **options)
    except Killed:
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_what_began_before_weaviate_went_or_came_tells_nothing(
    fails: bool, no_pauses: list[float]
) -> None:
    told: list[str] = []
    calls = Calls(tell=told.append)
    begun, goes_on = threading.Event(), threading.Event()
    slow_tries, tries = [0], [0]

    def slow() -> None:
        slow_tries[0] += 1
        begun.set()
        goes_on.wait(10)
        if fails and slow_tries[0] == 1:
            raise httpx.ConnectError("it was away when this was asked")

    def asked() -> None:
        tries[0] += 1
        if tries[0] == 2 and not fails:  # an answer from before: Weaviate is still away
            goes_on.set()
            other.join()
        if tries[0] <= 2:
            raise httpx.ConnectError("it is away")

    other = threading.Thread(target=calls, args=(slow,))
    other.start()
    assert begun.wait(10)
    calls(asked)
    goes_on.set()
    other.join()
    assert [line.split(";")[0] for line in told] == [
        "Weaviate does not answer",
        "Weaviate answers again",
    ]
    assert calls.interruptions == 1 + fails  # for it may have been away again


class Cancelled(Exception):
    """What gRPC says of a call that a server which shuts down cancelled."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.CANCELLED


def test_a_call_that_a_stopping_server_cancelled_is_made_again(no_pauses: list[float]) -> None:
    tries = [0]

    def ask() -> int:
        tries[0] += 1
        if tries[0] == 1:
            raise WeaviateQueryError("CANCELLED", "GRPC batch") from Cancelled()
        return tries[0]

    assert Calls()(ask) == 2
