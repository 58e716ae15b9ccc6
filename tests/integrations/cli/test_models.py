import dataclasses
import json
import shutil

import pytest
from tests.engine.local.checkpoints import change_config, tiny_bert

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
    assert head == ["model", "dimensions", "tokens", "inputs", "vectors"]
    assert [row[0] for row in rows] == [card.id for card in cards.catalogue()]
    assert [row[4] for row in rows] == [", ".join(card.kinds) for card in cards.catalogue()]


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


def test_a_part_of_a_name_lists_the_models_that_have_it(nimbed_command, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR")
    head, *rows = (line.split("\t") for line in nimbed_command("models", "qwen").out.splitlines())
    wanted = [card.id for card in cards.catalogue() if "qwen" in card.id.lower()]
    assert head == ["model", "dimensions", "tokens", "inputs", "vectors"]
    assert [row[0] for row in rows] == wanted
    assert len(wanted) > 1
    listed = json.loads(nimbed_command("models", "QWEN", "--json").out)
    assert [facts["id"] for facts in listed] == wanted
    refused = nimbed_command("models", "qwen", "--store", "pgvector")
    assert refused.code == 2
    assert f"'qwen' is a part of {len(wanted)}: {wanted[0]}, " in refused.err


def test_a_part_of_one_name_alone_describes_that_model(nimbed_command):
    (card,) = (card for card in cards.catalogue() if "dinggemma" in card.id.lower())
    described = nimbed_command("models", "dinggemma", "--json")
    assert json.loads(described.out)["id"] == card.id


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


@pytest.fixture
def folder(tmp_path):
    return tiny_bert(tmp_path / "mine", pooling="cls", prompts={"query": "q: ", "sort": "s: "})


def test_a_folder_is_described_from_its_json_files_alone(nimbed_command, folder):
    (folder / "model.safetensors").unlink()
    outcome = nimbed_command("models", str(folder), "--json")
    facts = json.loads(outcome.out)
    assert (facts["id"], facts["dimensions"], facts["query_prompt"]) == ("mine", 32, "q: ")
    assert facts["task_prompts"] == [["sort", "s: "]]
    assert facts["pipeline"] == ["Transformer", "Pooling by cls", "unit length"]
    shown = nimbed_command("models", str(folder), "--check").out
    assert "can be loaded" in shown
    assert "the files that this describes" in shown
    assert "sort 's: '" in shown


def test_a_sparse_encoder_is_described_without_types_of_dense_vectors(nimbed_command, tmp_path):
    from tests.engine.local.sparse_folders import inference_free

    folder, _ = inference_free(tmp_path)
    facts = json.loads(nimbed_command("models", str(folder), "--json").out)
    assert (facts["kinds"], facts["specs"], facts["asymmetric"]) == (["sparse"], [], False)
    assert facts["pipeline"] == [
        "query: SparseStaticEmbedding",
        "passage: Transformer",
        "passage: SpladePooling by max of log1p of log1p of relu",
    ]
    shown = nimbed_command("models", "naver/splade-v3")
    assert ["vectors", "sparse"] in [line.split() for line in shown.out.splitlines()]
    refused = nimbed_command("models", "naver/splade-v3", "--store", "pgvector")
    assert refused.code == 2
    assert "gives sparse vectors, not dense ones" in refused.err


def test_what_stands_in_the_way_is_said(nimbed_command, folder):
    change_config(folder, twist=1)
    outcome = nimbed_command("models", str(folder), "--check")
    assert outcome.code != 0
    assert "has the key 'twist'" in outcome.err


def test_a_hub_id_is_checked_in_the_cache_and_offline_says_so(nimbed_command, folder, monkeypatch):
    import huggingface_hub.constants as constants

    cache = folder.parent / "cache"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    outcome = nimbed_command("models", "someone/model", "--check")
    assert outcome.code != 0
    assert "not in the Hugging Face cache and the hub cannot be reached" in outcome.err
    base = cache / "models--someone--model"
    shutil.copytree(folder, base / "snapshots" / "0123")
    (base / "snapshots" / "0123" / "model.safetensors").unlink()
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("0123")
    facts = json.loads(nimbed_command("models", "someone/model", "--check", "--json").out)
    assert (facts["id"], facts["pipeline"][1]) == ("someone/model", "Pooling by cls")


def test_a_folder_is_checked_against_the_model_it_is_said_to_hold(nimbed_command, folder):
    outcome = nimbed_command("models", str(folder), "--card", "minilm")
    assert outcome.code != 0
    assert "pools by cls; sentence-transformers/all-MiniLM-L6-v2 pools by mean" in outcome.err
    outcome = nimbed_command("models", "minilm", "--card", "minilm")
    assert "card= says what a folder holds" in outcome.err


def test_a_model_that_ranks_by_dot_has_one_type(nimbed_command):
    out = nimbed_command("models", "multi-qa-mpnet-base-dot-v1", "--store", "pgvector").out
    assert "<#>" in out
    assert "int8" not in out


def test_every_command_takes_a_card_and_a_prompt(nimbed_command, folder, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("the river\n")
    ask = ("embed", str(texts), "-o", str(tmp_path / "v.npy"), "--input-type", "query")
    outcome = nimbed_command(*ask, "--model", str(folder), "--card", "minilm")
    assert "pools by cls" in outcome.err
    outcome = nimbed_command(*ask, "--model", str(folder), "--prompt-name", "sort")
    assert outcome.code == 0
    outcome = nimbed_command(*ask, "--model", str(folder), "--prompt-name", "tidy")
    assert "prompt_name may be 'query', 'passage', '', 'sort'" in outcome.err
    for command in ("load", "search", "tradeoff", "serve"):
        help_text = nimbed_command(command, "--help").out
        assert "--card" in help_text
        assert "--prompt-name" in help_text
    serve = ("serve", "--check", "--model", str(folder))
    assert "pools by cls" in nimbed_command(*serve, "--card", "minilm").err
    assert nimbed_command(*serve, "--prompt-name", "sort").code == 0
    assert nimbed_command(*serve, "--prompt-name", "-").code == 0
    assert "prompt_name may be" in nimbed_command(*serve, "--prompt-name", "tidy").err
    outcome = nimbed_command(*serve, "--prompt-name", "sort", "--prompt-name", "sort")
    assert "prompt_names belong to models, in their order; got 2 for 1" in outcome.err
