"""An audit of a collection names what was planted in it, and passes what is sound."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import typer
import weaviate
from typer.testing import CliRunner
from weaviate.classes.config import DataType, Property

import nimbed
from nimbed import FakeEmbedder
from nimbed.audit import Audit
from nimbed.errors import ConfigurationError
from nimbed.fake import FAKE_CARD
from nimbed_cli.audit import audit as audit_command
from nimbed_weaviate import audit, batch_import, self_provided, vectorizer

from .double import Double

CARD = dataclasses.replace(FAKE_CARD, dimensions=128, matryoshka=(64, 128))
OTHER = dataclasses.replace(CARD, id="other/model", passage_prompt="doc: ")
OBJECTS = [
    {"body": f"passage number {n} of a longer story", "title": f"Title {n}", "tag": f"t{n % 3}"}
    for n in range(40)
]
Embed = Callable[[list[str]], list[list[float]]]
#: How each type lies in Weaviate, made without the audit's code.
FORMS: dict[str, Callable[[Any], Any]] = {
    "float": lambda batch: batch.vectors,
    "int8": lambda batch: batch.vectors.astype(float),
    "ubinary": lambda batch: batch.signs(),
}


def embedded(texts: list[str], kind: str, *, card: Any = CARD, role: Any = "passage") -> Any:
    batch = FakeEmbedder(card).embed(texts, input_type=role, embedding_type=kind, truncate="END")  # type: ignore[arg-type]
    return FORMS[kind](batch).tolist()


def field(*names: str, before: str = "") -> list[str]:
    return [before + " ".join(each[name] for name in names) for each in OBJECTS]


#: The finding, a part of its words, and the vectors that were planted instead of title and body.
FAULTS: list[tuple[str, str, Callable[[str], Any]]] = [
    ("role", "as queries", lambda kind: embedded(field("body", "title"), kind, role="query")),
    ("text", "the collection's name in front", lambda kind: embedded(
        field("body", "title", before="Doc Pages "), kind)),
    ("text", "all properties of type text", lambda kind: embedded(
        field("body", "tag", "title"), kind)),
    ("text", "all properties of type text with their names", lambda kind: embedded(
        ["body {body} tag {tag} title {title}".format(**each) for each in OBJECTS], kind)),
    ("text", "the field body alone", lambda kind: embedded(field("body"), kind)),
    ("text", "the field title alone", lambda kind: embedded(field("title"), kind)),
    ("prompt", "without the prompt", lambda kind: embedded(
        field("body", "title"), kind, card=dataclasses.replace(CARD, passage_prompt=""))),
    ("model", "other/model as passages", lambda kind: embedded(
        field("body", "title"), kind, card=OTHER)),
    ("order", "of another row", lambda kind: embedded(field("body", "title"), kind)[::-1]),
    ("origin", "nothing that was tried", lambda kind: embedded(field("tag", "tag"), kind)),
    ("numbers", "nothing but zeros", lambda kind: [[0.0] * 128] * 40),
    ("presence", "without a vector", lambda kind: [[]] * 40),
]  # fmt: skip


@pytest.fixture
def stored(client: weaviate.WeaviateClient, double: Double) -> Callable[[Any], Any]:
    """A collection of text2vec-nvidia over title and body, with the vectors that are given."""

    def store(vectors: Any) -> Any:
        config = vectorizer(
            CARD.id, base_url="http://nimbed:8000", source_properties=["title", "body"]
        )
        properties = [
            Property(name=name, data_type=DataType.TEXT) for name in ("body", "tag", "title")
        ]
        made = client.collections.create("DocPages", vector_config=config, properties=properties)
        double.objects["DocPages"] = {
            f"{n:08x}-0000-4000-8000-000000000000": (each, {"default": vector} if vector else {})
            for n, (each, vector) in enumerate(zip(OBJECTS, vectors, strict=True))
        }
        return made

    return store


def examined(collection: Any, **more: Any) -> Audit:
    others = {"other/model": functools.partial(FakeEmbedder, OTHER)}
    return audit(collection, FakeEmbedder(CARD), others=others, **more)


@pytest.mark.parametrize("kind", FORMS)
def test_what_the_module_stored_is_sound(stored: Callable[[Any], Any], kind: str) -> None:
    found = examined(stored(embedded(field("body", "title"), kind)))
    assert found.ok, found.findings
    assert (found.rows, found.sound) == (40, 40)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize(("name", "words", "plant"), FAULTS, ids=[each[1] for each in FAULTS])
def test_a_planted_fault_is_named(
    stored: Callable[[Any], Any], kind: str, name: str, words: str, plant: Any
) -> None:
    sound = embedded(field("body", "title"), kind)
    collection = stored(sound[:10] + plant(kind)[10:])
    found = examined(collection)
    failed = [each for each in found.findings if each.verdict == "fail"]
    assert [each.name for each in failed] == [name], found.findings
    assert words in failed[0].detail
    assert failed[0].detail.startswith("30 of 40")
    assert (found.sound, found.ok) == (10, False)


def test_since_when_some_objects_are_wrong_is_told(
    stored: Callable[[Any], Any], double: Double
) -> None:
    sound = embedded(field("body", "title"), "float")
    wrong = embedded(field("body", "title"), "float", role="query")
    collection = stored(sound[:25] + wrong[25:])
    for n, uuid in enumerate(double.objects["DocPages"]):
        double.updated[uuid] = 1_700_000_000_000 + n * 86_400_000
    said = {each.name: each.detail for each in examined(collection).findings}
    assert "written since 2023-12-09" in said["role"]
    assert said["role"].endswith("and every row since")


@pytest.mark.parametrize("kind", ["float", "int8", "uint8", "binary"])
def test_an_import_of_ours_is_sound_and_found_out_when_it_is_changed(
    client: weaviate.WeaviateClient, double: Double, kind: Any
) -> None:
    fake = FakeEmbedder()
    config = self_provided(fake.spec(embedding_type=kind))
    text = [Property(name="text", data_type=DataType.TEXT)]
    collection = client.collections.create("Docs", vector_config=config, properties=text)
    rows = [(n, f"passage {n}", {"title": f"Title {n}"}) for n in range(30)]
    batch_import(collection, rows, fake, embedding_type=kind)
    found = audit(collection, fake, rows=12)
    assert (found.ok, found.rows, found.sound) == (True, 12, 12), found.findings
    for properties, _ in list(double.objects["Docs"].values())[:6]:
        properties["text"] = "changed by hand"
    found = audit(collection, fake)
    assert [each.detail[:8] for each in found.findings if each.verdict == "fail"] == ["6 of 30:"]


def test_what_cannot_be_told_is_asked(client: weaviate.WeaviateClient) -> None:
    fake = FakeEmbedder()
    two = [self_provided(fake.spec(), name=name) for name in ("a", "b")]
    collection = client.collections.create("Two", vector_config=two)
    with pytest.raises(ConfigurationError, match="which vector of the collection Two.*'a', 'b'"):
        audit(collection, fake)
    with pytest.raises(ConfigurationError, match="which property.*none of type text"):
        audit(collection, fake, vector="a")
    with pytest.raises(ConfigurationError, match="1 object or more"):
        audit(collection, fake, rows=0)


def test_the_command_audits_a_collection(
    stored: Callable[[Any], Any], double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def pretend(model: str, **how: Any) -> FakeEmbedder:
        asked.append((model, how.get("base_url")))
        return FakeEmbedder(CARD)

    monkeypatch.setattr(nimbed, "load", pretend)
    stored(embedded(field("body", "title"), "float"))
    app = typer.Typer()
    app.command()(audit_command)
    words = [double.url, "--collection", "DocPages", "--grpc-port", str(double.grpc_port)]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, asked) == (0, [(CARD.id, "http://nimbed:8000")]), done.output
    double.objects["DocPages"] = {
        uuid: (each, {"default": vectors["default"][::-1]})
        for uuid, (each, vectors) in double.objects["DocPages"].items()
    }
    done = CliRunner().invoke(app, [*words, "--model", CARD.id])
    assert (done.exit_code, "fail\torigin" in done.stdout) == (1, True), done.output
