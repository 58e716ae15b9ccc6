"""Every key of a checkpoint's JSON files is read, known to change nothing, or refused by name."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from tests.engine.local.families import FAMILIES
from tests.engine.local.sentence_folders import edit, saved, transformer
from transformers import CONFIG_MAPPING

import nimbed
from nimbed.errors import CheckpointError
from nimbed.local.checkpoint import read_checkpoint
from nimbed.local.config_keys import keys_of
from nimbed.local.device import place
from nimbed.local.engine import build_engine
from nimbed.local.hub import locate
from nimbed.local.json_files import check_keys, usual_names
from nimbed.local.tokenizer import read_tokenizer

# config.json as these types have it -> the file of local/models/ that runs it.
WRITTEN = {
    "bert": "bert",
    "xlm-roberta": "xlm_roberta",
    "camembert": "xlm_roberta",
    "distilbert": "distilbert",
    "gemma3_text": "gemma3",
    "llama": "llama",
    "mistral": "mistral",
    "ministral3": "ministral3",
    "mistral3": "mistral3",
    "modernbert": "modernbert",
    "mpnet": "mpnet",
    "nomic_bert": "nomic_bert",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "roberta": "xlm_roberta",
}


class Watched(dict):
    """A configuration that remembers which of its keys were asked for."""

    def __init__(self, content, asked, at=""):
        nested = {
            key: Watched(value, asked, f"{at}{key}.") if isinstance(value, dict) else value
            for key, value in content.items()
        }
        super().__init__(nested)
        self.asked, self.at = asked, at

    def get(self, key, default=None):
        self.asked.add(f"{self.at}{key}")
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked.add(f"{self.at}{key}")
        return super().__getitem__(key)


def declared(keys, at=""):
    """Yield the keys that a table says are read, nested ones with their places."""
    yield from (f"{at}{key}" for key in keys.aliases)
    yield from (f"{at}{key}" for key in keys.read)
    for key, inner in keys.nested.items():
        yield f"{at}{key}"
        yield from declared(inner, f"{at}{key}.")
    # What must have one value may be looked at as well.
    yield from (f"{at}{key}" for key in keys.only)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_reads_no_key_that_the_table_lacks(family, tmp_path):
    checkpoint = read_checkpoint(locate(str(FAMILIES[family](tmp_path / "model"))), revision=None)
    asked: set[str] = set()
    checkpoint = dataclasses.replace(checkpoint, config=Watched(checkpoint.config, asked))
    build_engine(checkpoint, place("cpu", "float32"))
    read_tokenizer(checkpoint)
    # Where the language model's own configuration would be in a model that has several.
    asked -= {"text_config", "llm_config"}
    model_type = checkpoint.config["model_type"]
    known = set(declared(keys_of(checkpoint.card.architecture, model_type)))
    assert asked <= known, f"read, but not in json_files.py: {sorted(asked - known)}"


@pytest.mark.parametrize("model_type", WRITTEN)
def test_what_transformers_writes_is_known(model_type):
    keys = keys_of(WRITTEN[model_type], model_type)
    config = usual_names(CONFIG_MAPPING[model_type]().to_dict(), "config.json", keys)
    check_keys(config, "config.json", keys)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of every kind of module; returns its path and what it was saved from."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    network = FAMILIES["bert"](tmp_path_factory.mktemp("tiny") / "model")
    modules = [transformer(network), Pooling(32), Dense(32, 8), LayerNorm(8), Normalize()]
    saved(folder, modules)
    return folder


FILES = [
    "config.json",
    "tokenizer_config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "3_LayerNorm/config.json",
    "4_Normalize/config.json",
    "modules.json",
]


@pytest.mark.parametrize("file", FILES)
def test_a_key_that_nobody_knows_is_refused_by_name(whole, file, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "model")
    nimbed.load(str(folder), device="cpu")
    if file == "modules.json":
        edit(folder / file, lambda modules: [{**modules[0], "twist": 0.5}, *modules[1:]])
    else:
        edit(folder / file, lambda config: {**config, "twist": 0.5})
    with pytest.raises(CheckpointError, match=f"{file}.* has the key 'twist'"):
        nimbed.load(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("bert", {"is_decoder": True}, "gives is_decoder True; nimbed knows only False or null"),
        ("bert", {"pruned_heads": {"1": [0]}}, "gives pruned_heads"),
        ("bert", {"quantization_config": {"bits": 4}}, "quantization_config, has the key 'bits'"),
        (
            "llama",
            {"quantization_config": {"quant_method": "gptq"}},
            "quantization_config, gives quant_method 'gptq'; nimbed knows only 'compressed-tens",
        ),
        ("bert", {"rope_theta": 10000.0}, "has the key 'rope_theta'"),
        ("llama", {"rope_scaling": {"type": "linear", "turns": 3}}, "rope_scaling, has the key"),
        ("llama", {"rope_scaling": [1]}, "expected a table"),
        ("llama", {"attn_logit_softcapping": 50.0}, "has the key 'attn_logit_softcapping'"),
        ("distilbert", {"activation": "relu"}, "gives activation 'relu'; nimbed knows only 'gelu'"),
        ("distilbert", {"hidden_size": 33}, "gives dim 32, but hidden_size 33"),
        ("nvembed", {"text_config": {"twist": 1}}, "text_config, has the key 'twist'"),
    ],
)
def test_a_configuration_that_asks_for_something_else_is_refused(family, change, message, tmp_path):
    folder = FAMILIES[family](tmp_path / "model")
    edit(folder / "config.json", lambda config: {**config, **change})
    with pytest.raises(CheckpointError, match=message):
        nimbed.load(str(folder), device="cpu")


def test_keys_that_change_no_vector_change_nothing(tmp_path):
    folder = FAMILIES["bert"](tmp_path / "model")
    before = nimbed.load(str(folder), device="cpu", dtype="float32")
    expected = before.embed(["the river"], input_type="query").vectors
    more = {"gradient_checkpointing": True, "id2label": {"0": "A"}, "use_cache": False}
    edit(folder / "config.json", lambda config: {**config, **more, "quantization_config": None})
    (folder / "generation_config.json").write_text(json.dumps({"anything": 1}), "utf-8")
    after = nimbed.load(str(folder), device="cpu", dtype="float32")
    assert (after.embed(["the river"], input_type="query").vectors == expected).all()
