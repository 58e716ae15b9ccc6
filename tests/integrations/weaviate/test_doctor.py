"""``nimbed doctor --weaviate`` as typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result
from weaviate.classes.config import Configure

from nimbed.errors import BackendError, ConfigurationError
from nimbed_cli.doctor import doctor
from nimbed_weaviate import vectorizer

from .double import Double


@pytest.fixture
def typed(double: Double) -> Callable[..., Result]:
    app = typer.Typer()
    app.command()(doctor)
    port = str(double.grpc_port)
    return lambda *words: CliRunner().invoke(app, [*words, "--grpc-port", port])


@pytest.fixture
def two(make: Callable[..., Any]) -> None:
    make("Good", vectorizer("m", base_url="http://nimbed:8000"))
    make("Bad", Configure.Vectors.text2vec_nvidia(base_url="http://nimbed:8000", truncate=True))


@pytest.mark.usefixtures("two")
def test_every_collection_is_checked_and_a_trap_fails_the_command(
    typed: Callable[..., Result], double: Double
) -> None:
    done = typed("--weaviate", double.url)
    assert done.exit_code == 1
    lines = [line.split("\t")[:3] for line in done.output.splitlines()]
    names = [line[0] for line in lines]
    assert names == sorted(names)
    assert ["Bad", "fail", "truncate"] in lines
    listed = json.loads(typed("--weaviate", double.url, "--json").output)
    failed = {each["collection"] for each in listed if each["verdict"] == "fail"}
    assert failed == {"Bad"}


@pytest.mark.usefixtures("two")
def test_a_good_collection_alone_passes(typed: Callable[..., Result], double: Double) -> None:
    done = typed("--weaviate", double.url, "--collection", "Good")
    assert done.exit_code == 0, done.output
    assert "Bad" not in done.output


def test_a_weaviate_without_collections_is_said_so(
    typed: Callable[..., Result], double: Double
) -> None:
    done = typed("--weaviate", double.url, "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, [])
    assert "no collections" in done.stderr


def test_what_cannot_be_examined_is_a_sentence(
    typed: Callable[..., Result], double: Double
) -> None:
    assert isinstance(typed().exception, ConfigurationError)
    missing = typed("--weaviate", double.url, "--collection", "Nothing")
    assert "no such collection" in str(missing.exception)
    assert isinstance(typed("--weaviate", "http://127.0.0.1:9").exception, BackendError)
