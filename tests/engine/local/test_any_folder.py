"""Whatever sentence-transformers saves is followed as it would, or refused by the name of a key."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from tests.engine.local.checkpoints import tiny_bert
from tests.engine.local.sentence_folders import (
    MODES,
    assert_same,
    edit,
    saved,
    transformer,
    weighted_layers,
)

import nimbed
from nimbed.errors import CheckpointError

WIDTH = 32
FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


ACTIVATIONS = ["Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "LeakyReLU", "ELU"]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


@st.composite
def plans(draw):
    """What to save: modules, and options of the model."""
    return {
        "first_layer": draw(st.sampled_from([None, None, 0, 1, 2])),
        "modes": draw(st.lists(st.sampled_from(MODES), min_size=1, max_size=2, unique=True)),
        "include_prompt": draw(st.booleans()),
        "longest": draw(st.sampled_from([12, 20, 60])),
        "layers": draw(st.lists(st.sampled_from(["dense", "norm", "dropout"]), max_size=3)),
        "dense": draw(st.tuples(st.sampled_from([8, 12]), st.booleans(), st.booleans())),
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "normalize": draw(st.booleans()),
        "prompts": draw(
            st.sampled_from([{}, {"query": "ask: "}, {"query": "ask: ", "document": "keep the: "}])
        ),
        "cut": draw(st.sampled_from([None, 5])),
        "metric": draw(st.sampled_from([None, "cosine", "dot", "euclidean"])),
        "old": draw(st.booleans()),
        "cased": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }


def build(network, folder: Path, plan) -> SentenceTransformer:
    first = [transformer(network)]
    if plan["first_layer"] is not None:
        first = weighted_layers(network, plan["first_layer"])
    first[0].max_seq_length = plan["longest"]
    pooling = Pooling(WIDTH, tuple(plan["modes"]), include_prompt=plan["include_prompt"])
    modules = [*first, pooling]
    size = WIDTH * len(plan["modes"])
    after, bias, residual = plan["dense"]
    function = getattr(torch.nn, plan["activation"])()
    for kind in plan["layers"]:
        if kind == "dense":
            options = {"bias": bias, "activation_function": function, "use_residual": residual}
            modules.append(Dense(size, after, **options))
            size = after
        else:
            modules.append(LayerNorm(size) if kind == "norm" else Dropout(0.2))
    modules.extend([Normalize()] if plan["normalize"] else [])
    options = {
        "prompts": plan["prompts"],
        "truncate_dim": plan["cut"],
        "similarity_fn_name": plan["metric"],
    }
    saved(folder, modules, **{name: value for name, value in options.items() if value is not None})
    if plan["cased"]:
        edit(folder / "tokenizer_config.json", lambda c: {**c, "do_lower_case": False})
    if plan["old"]:
        spell_as_before(folder, plan)
    return SentenceTransformer(str(folder), device="cpu")


def spell_as_before(folder: Path, plan) -> None:
    """Write the folder as sentence-transformers did before version 5: names, keys and places."""
    pooling = next(folder.glob("*_Pooling"))
    edit(
        pooling / "config.json",
        lambda config: {
            "word_embedding_dimension": WIDTH,
            **{flag: mode in plan["modes"] for mode, flag in FLAGS.items()},
            "include_prompt": plan["include_prompt"],
        },
    )
    pooling.rename(folder / "7_Pooling")
    edit(
        folder / "sentence_bert_config.json",
        lambda config: {"max_seq_length": plan["longest"], "do_lower_case": False},
    )

    def renamed(modules):
        for module in modules:
            module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
            module["path"] = module["path"].replace(pooling.name, "7_Pooling")
        return modules

    edit(folder / "modules.json", renamed)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plan=plans())
def test_any_folder_is_followed_or_refused(network, tmp_path_factory, plan):
    folder = tmp_path_factory.mktemp("any") / "model"
    theirs = build(network, folder, plan)
    other = plan["metric"] in ("dot", "euclidean")
    if other and plan["normalize"] and plan["cut"]:
        with pytest.raises(CheckpointError, match="similarity_fn_name"):
            nimbed.load(str(folder), device="cpu")
        return
    assert_same(folder, theirs, atol=2e-5, alone=False)
    # One key, or one module, that nobody knows: refused by name, wherever it stands.
    place = random.Random(plan["seed"])
    files = [p for p in folder.rglob("*.json") if p.name not in ("tokenizer.json", "modules.json")]
    file = place.choice(sorted(files))
    other = shutil.copytree(folder, tmp_path_factory.mktemp("strange") / "model")
    edit(other / file.relative_to(folder), lambda config: {**config, "twist": plan["seed"]})
    with pytest.raises(CheckpointError, match="'twist'"):
        nimbed.load(str(other), device="cpu")
    shutil.copy(file, other / file.relative_to(folder))
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    entry = place.randrange(len(modules))
    named = [{**m, "twist": 1} if n == entry else m for n, m in enumerate(modules)]
    (other / "modules.json").write_text(json.dumps(named), "utf-8")
    with pytest.raises(CheckpointError, match=f"module {entry} has the key 'twist'"):
        nimbed.load(str(other), device="cpu")
    strange = {**modules[-1], "type": "sentence_transformers.models.Twist"}
    modules.insert(place.randrange(1, len(modules) + 1), strange)
    (other / "modules.json").write_text(json.dumps(modules), "utf-8")
    with pytest.raises(CheckpointError, match="Twist"):
        nimbed.load(str(other), device="cpu")
