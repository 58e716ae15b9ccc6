"""The tour's database answers as numpy does, or says why there is none."""

from __future__ import annotations

import re

import pytest

from nimbed import FakeEmbedder, search
from nimbed.errors import BackendError
from nimbed_cli.quickstart import Passage, search_database
from nimbed_pgvector import embedded_server

pytestmark = pytest.mark.postgres
# So few that eight times three candidates are all of them.
CORPUS = [Passage(f"module.name{n}", f"module.name{n}: does this and that") for n in range(20)]
QUESTIONS = ["what does it?", "and who?"]


def told() -> tuple[bool, str]:
    embedder = FakeEmbedder()
    floats = embedder.embed([passage.text for passage in CORPUS], input_type="passage")
    asked = embedder.embed(QUESTIONS, input_type="query")
    return search_database(CORPUS, floats, QUESTIONS, asked, embedder)


def test_the_database_of_the_tour_gives_the_nearest(server_dsn: str) -> None:
    embedder = FakeEmbedder()
    best = search.nearest(
        embedder.embed(QUESTIONS, input_type="query"),
        embedder.embed([passage.text for passage in CORPUS], input_type="passage"),
        1,
    )
    ran, answers = told()
    assert ran
    assert "cosine  nearest passage" in answers
    said = re.findall(r"\[cyan\] *(\S+)\[/cyan\]  (\S+)", answers)
    assert [name for _, name in said] == [CORPUS[row].id for row in best.rows[:, 0]]
    for (cosine, _), distance in zip(said, best.distances[:, 0], strict=True):
        assert float(cosine) == pytest.approx(1 - distance, abs=0.006)


def test_where_no_server_starts_the_tour_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: object) -> None:
        raise BackendError("no room [here]")

    monkeypatch.setattr(embedded_server, "embedded_server", refuse)
    ran, answers = told()
    assert not ran
    assert "could be started here: no room \\[here]" in answers
