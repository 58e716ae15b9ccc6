"""Faults that the CUDA path once had, shown without a GPU: what is called, and what stays alive."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from tests.engine.local.families import FAMILIES, TEXTS

import nimbed
from nimbed.local import cuda_graphs
from nimbed.local.cuda_graphs import CudaRecorder, Graphs

DEVICE = torch.device("cuda", 1)


class Driver:
    """Notes what is asked of CUDA, in order, and which stream is current."""

    def __init__(self):
        self.calls, self.stream, self.fails = [], "the caller's", False

    @contextlib.contextmanager
    def current(self, stream):
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def note(self, name):
        def called(*arguments, **keywords):
            self.calls.append((name, self.stream))

        return called


@pytest.fixture
def driver(monkeypatch):
    driver = Driver()

    class Graph:
        def capture_begin(self, pool, capture_error_mode):
            assert capture_error_mode == "thread_local"
            driver.note("begin")()

        def capture_end(self):
            driver.note("end")()
            if driver.fails:
                raise RuntimeError("the capture is invalid")

        def replay(self):
            driver.note("replay")()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: object())
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", driver.current)
    monkeypatch.setattr(torch.cuda, "synchronize", driver.note("wait"))
    return driver


def test_everything_is_recorded_on_the_engines_own_stream(driver):
    replay = CudaRecorder(DEVICE, "cuda:1's")(driver.note("work"))
    names = ["work", "work", "wait", "begin", "work", "end"]
    assert driver.calls == [(name, "cuda:1's") for name in names]
    assert driver.stream == "the caller's"
    replay()
    assert driver.calls[-1] == ("replay", "the caller's")


def test_a_recording_that_fails_leaves_the_stream_and_lets_the_next_begin(driver):
    driver.fails = True
    for _ in range(2):
        with pytest.raises(RuntimeError, match="invalid"):
            CudaRecorder(DEVICE, "cuda:1's")(driver.note("work"))
        assert driver.stream == "the caller's"
        assert not cuda_graphs._RECORDING.locked()


def test_work_that_fails_ends_the_recording(driver):
    calls = []

    def work():
        calls.append(None)
        if len(calls) == 3:  # the one that is recorded
            raise RuntimeError("operation not permitted")

    with pytest.raises(RuntimeError, match="not permitted"):
        CudaRecorder(DEVICE, "cuda:1's")(work)
    assert driver.calls[-1][0] == "end"


def test_two_models_are_never_recorded_at_once(driver):
    at_once, most = [], []

    def work():
        at_once.append(None)
        most.append(len(at_once))
        threading.Event().wait(0.002)
        at_once.pop()

    threads = [
        threading.Thread(target=CudaRecorder(DEVICE, f"stream {n}"), args=(work,)) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 12
    assert max(most) == 1


def test_a_replay_that_gives_other_vectors_is_not_trusted(caplog):
    def stale(work):
        result = work().clone()
        return lambda: -result

    graphs = Graphs(
        lambda ids, layout: torch.ones(len(layout.starts), 4), torch.device("cpu"), stale
    )
    with caplog.at_level("WARNING", "nimbed"):
        for _ in range(3):
            assert graphs(np.array([1, 2, 3]), [3]) is None
    assert "its replay gives other vectors than its launches" in caplog.text


def test_a_batch_is_halved_after_the_error_has_let_go_of_its_activations(tmp_path, monkeypatch):
    embedder = nimbed.load(str(FAMILIES["bert"](tmp_path / "model")), device="cpu", backend="torch")
    expected = embedder.embed(TEXTS, input_type="passage").vectors
    engine = embedder.replicas()[0]
    real, held = engine._pooled, []

    class Activations:
        """What the failed batch had in memory."""

    def tight(ids, skip):
        assert sys.exc_info() == (None, None, None)
        assert not any(each() is not None for each in held), "the last batch is still alive"
        activations = Activations()
        held.append(weakref.ref(activations))
        if len(ids) > 1:
            raise torch.OutOfMemoryError("pretended")
        return real(ids, skip)

    gc.disable()  # what only the collector would free is not free
    try:
        monkeypatch.setattr(engine, "_pooled", tight)
        monkeypatch.setattr(engine, "_thread", None)  # as on a GPU, which alone runs out so
        got = embedder.embed(TEXTS, input_type="passage").vectors
    finally:
        gc.enable()
    np.testing.assert_allclose(got, expected, atol=2e-3)
    assert len(held) > len(TEXTS)


@pytest.mark.parametrize("family", ["bert", "llama", "bge-m3"])
def test_close_lets_go_of_the_model_without_the_collector(family, tmp_path):
    embedder = nimbed.load(str(FAMILIES[family](tmp_path / "model")), device="cpu", backend="torch")
    embedder.embed(TEXTS, input_type="passage")
    model = weakref.ref(embedder._loaded.engines[0]._model)
    gc.disable()
    try:
        embedder.close()
        assert model() is None
    finally:
        gc.enable()


def test_graphs_hold_the_model_but_the_model_not_the_graphs():
    class Model:
        def __call__(self, ids, layout):
            return torch.ones(len(layout.starts), 4)

    model = Model()
    graphs = Graphs(model, torch.device("cpu"), lambda work: work)
    assert graphs(np.array([1, 2, 3]), [3]) is not None
    seen = weakref.ref(model)
    gc.disable()
    try:
        del graphs, model
        assert seen() is None
    finally:
        gc.enable()
