import dataclasses
import json

import pytest

from nimbed import VectorSpec, cards
from nimbed.spec import EmbeddingType


@pytest.fixture(autouse=True)
def _narrow_terminal(narrow_terminal):
    pass


def test_the_catalogue_lists_every_card_once_in_80_columns(nimbed_command):
    outcome = nimbed_command("models")
    assert outcome.code == 0
    first_words = [line.split()[0] for line in outcome.out.splitlines() if line.strip()]
    for card in cards.catalogue():
        assert first_words.count(card.id) == 1
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_in_a_pipe_the_catalogue_is_tab_separated_lines(nimbed_command, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setenv("COLUMNS", "20")
    head, *rows = (line.split("\t") for line in nimbed_command("models").out.splitlines())
    assert head == ["model", "dimensions", "tokens", "inputs"]
    assert [row[0] for row in rows] == [card.id for card in cards.catalogue()]
    assert {len(row) for row in rows} == {4}


def test_in_a_pipe_one_card_is_named_facts_and_a_table(nimbed_command, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setenv("COLUMNS", "20")
    out = nimbed_command("models", "minilm", "--store", "pgvector").out
    facts, _, table = out.partition("\n\n")
    card = cards.find("minilm")
    assert ["model", card.id] in [line.split("\t") for line in facts.splitlines()]
    assert ["before a query", repr(card.query_prompt)] in [
        line.split("\t") for line in facts.splitlines()
    ]
    assert [
        "float", "vector(384)", "cosine", "<=>", "index=hnsw, operator_class=vector_cosine_ops",
    ] in [line.split("\t") for line in table.splitlines()]  # fmt: skip


def test_operators_are_shown_whole_in_80_columns(nimbed_command):
    words = nimbed_command("models", "minilm", "--store", "pgvector").out.split()
    for kind in ("vector_cosine", "halfvec_cosine", "halfvec_l2", "bit_hamming"):
        assert f"operator_class={kind}_ops" in words


@pytest.mark.parametrize("name", ["minilm", "nvidia/llama-3.2-nv-embedqa-1b-v2"])
def test_one_card_shows_its_facts_and_the_spec_of_every_type(nimbed_command, name):
    card = cards.find(name)
    out = nimbed_command("models", name).out
    assert card.id in out
    assert repr(card.query_prompt) in out
    assert card.licence[:20] in out
    for kind in EmbeddingType.__args__:
        spec = card.spec(embedding_type=kind)
        row = next(line.split() for line in out.splitlines() if line.split()[:1] == [kind])
        assert row == [
            kind,
            spec.metric,
            spec.dtype,
            f"{spec.width:,}",
            f"{spec.bytes_per_vector:,}",
            spec.fingerprint,
        ]


def test_a_note_is_shown_whole(nimbed_command):
    card = next(card for card in cards.catalogue() if len(card.note) > 100)
    out = nimbed_command("models", card.id).out
    assert card.note in " ".join(out.split())


def test_json_holds_every_fact_of_the_catalogue(nimbed_command):
    listed = json.loads(nimbed_command("models", "--json").out)
    assert [facts["id"] for facts in listed] == [card.id for card in cards.catalogue()]
    for facts, card in zip(listed, cards.catalogue(), strict=True):
        assert facts.pop("sizes") == list(card.sizes)
        assert facts == json.loads(json.dumps(dataclasses.asdict(card)))


def test_json_of_one_card_holds_specs_that_can_be_loaded(nimbed_command):
    name = "nvidia/llama-nemotron-embed-1b-v2"
    facts = json.loads(nimbed_command("models", name, "--dimensions", "384", "--json").out)
    specs = [VectorSpec.from_dict(spec) for spec in facts["specs"]]
    assert [spec.embedding_type for spec in specs] == list(EmbeddingType.__args__)
    assert {spec.dimensions for spec in specs} == {384}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["minilmm"], "the catalogue has no model 'minilmm'"),
        (["minilm", "--dimensions", "100"], "it offers 384"),
        (["--dimensions", "100"], "needs the name of a model"),
    ],
)
def test_misuse_says_what_is_possible(nimbed_command, arguments, message):
    outcome = nimbed_command("models", *arguments)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_store_says_how_it_wants_each_type(nimbed_command):
    fields = json.loads(nimbed_command("models", "minilm", "--store", "pgvector", "--json").out)
    assert fields["fields"]["ubinary"]["type"] == "bit(384)"
    assert fields["fields"]["float"]["operator"] == "<=>"
    assert "bit(384)" in nimbed_command("models", "minilm", "--store", "pgvector").out


def test_a_store_that_cannot_have_a_type_says_why_and_an_unknown_one_is_misuse(nimbed_command):
    shown = nimbed_command("models", "minilm", "--store", "qdrant")
    assert shown.code == 0
    assert "no hamming" in " ".join(shown.out.split())
    wrong = nimbed_command("models", "minilm", "--store", "pgvectr")
    assert wrong.code == 2
    assert "did you mean 'pgvector'" in wrong.err
    assert nimbed_command("models", "--store", "pgvector").code == 2


def test_a_folder_is_described_by_its_own_files(nimbed_command, tmp_path):
    pytest.importorskip("torch")  # which writes the checkpoint
    from tests.engine.local.checkpoints import tiny_bert

    folder = tiny_bert(tmp_path / "mine", pooling="cls", prompts={"query": "ask: "})
    facts = json.loads(nimbed_command("models", folder, "--json").out)
    assert (facts["id"], facts["pooling"], facts["query_prompt"]) == ("mine", "cls", "ask: ")
    (folder / "modules.json").write_text('[{"type": "a.Router", "path": ""}]', "utf-8")
    outcome = nimbed_command("models", folder)
    assert outcome.code != 0
    assert "Router', which nimbed does not run" in " ".join(outcome.err.split())
