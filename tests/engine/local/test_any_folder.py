"""Whatever sentence-transformers saves is followed as it would, or refused by the name of a key."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from sentence_transformers.sentence_transformer.modules import (
    Dropout,
    LayerNorm,
    Pooling,
    StaticEmbedding,
)
from tests.engine.local.checkpoints import tiny_bert
from tests.engine.local.sentence_folders import (
    EXAMPLES,
    MODES,
    assert_same,
    edit,
    saved,
    transformer,
    weighted_layers,
)
from tests.engine.local.tiny_tokenizers import bert_tokenizer

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
        "static": draw(st.sampled_from([False, False, False, True])),
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
    if plan["static"]:
        modules, size = [static()], WIDTH
    else:
        first = [transformer(network)]
        if plan["first_layer"] is not None:
            first = weighted_layers(network, plan["first_layer"])
        first[0].max_seq_length = plan["longest"]
        pooling = Pooling(WIDTH, tuple(plan["modes"]), include_prompt=plan["include_prompt"])
        modules, size = [*first, pooling], WIDTH * len(plan["modes"])
    more, _ = ends(plan["layers"], size, plan)
    modules += [*more, *[Normalize()] * plan["normalize"]]
    saved(folder, modules, **said(plan))
    if plan["cased"] and not plan["static"]:
        edit(folder / "tokenizer_config.json", lambda c: {**c, "do_lower_case": False})
    if plan["old"]:
        spell_as_before(folder, plan)
    return SentenceTransformer(str(folder), device="cpu")


def static(cut: int | None = None) -> StaticEmbedding:
    """Return a table of words, whose tokenizer may cut texts."""
    tokenizer = bert_tokenizer()
    if cut is not None:
        tokenizer.enable_truncation(cut)
    table = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), WIDTH))
    return StaticEmbedding(tokenizer, embedding_weights=table.astype(np.float32))


def ends(layers, size: int, plan) -> tuple[list[Any], int]:
    """Return what stands behind a pooling, and its width."""
    after, bias, residual = plan["dense"]
    function = getattr(torch.nn, plan["activation"])()
    modules: list[Any] = []
    for kind in layers:
        if kind == "dense":
            options = {"bias": bias, "activation_function": function, "use_residual": residual}
            modules.append(Dense(size, after, **options))
            size = after
        else:
            modules.append(LayerNorm(size) if kind == "norm" else Dropout(0.2))
    return modules, size


def said(plan) -> dict[str, Any]:
    """Return the options of a model."""
    options = {
        "prompts": plan["prompts"],
        "truncate_dim": plan["cut"],
        "similarity_fn_name": plan["metric"],
    }
    return {name: value for name, value in options.items() if value is not None}


def spell_as_before(folder: Path, plan) -> None:
    """Write the folder as sentence-transformers did before version 5: names, keys and places."""
    pooling = next(folder.glob("*_Pooling"), None)
    if pooling is not None:
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
            if module["type"].endswith(".Pooling"):
                module["path"] = "7_Pooling"
        return modules

    edit(folder / "modules.json", renamed)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
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
    assert_same(folder, theirs, alone=False)
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


@st.composite
def routed(draw):
    """What queries and passages have for themselves, and what they share."""
    layers = st.lists(st.sampled_from(["dense", "norm", "dropout"]), max_size=2)
    return {
        **draw(plans()),
        "split": draw(st.sampled_from(["network", "pipeline", "ends"])),
        "kinds": draw(st.tuples(*[st.sampled_from(["static", "network"])] * 2)),
        "own": draw(st.tuples(layers, layers)),
        "units": draw(st.sampled_from([(True, True), (False, False), (True, False)])),
        "shared": draw(st.booleans()),
        "table_cut": draw(st.sampled_from([None, 6])),
        "default": draw(st.sampled_from([None, "query", "document"])),
        "layout": draw(st.sampled_from(["6", "5", "asym"])),
        "passages": draw(st.sampled_from(["document", "document", "passage", "corpus"])),
        "third": draw(st.sampled_from([False] * 9 + [True])),
    }


def build_routed(network, folder: Path, plan) -> tuple[SentenceTransformer, bool]:
    """Save a model with two routes; return it, and whether it has two widths."""
    made: dict[str, Any] = {}

    def beginning(kind: str) -> list[Any]:
        if plan["shared"] and kind in made:
            return made[kind]
        if kind == "static":
            made[kind] = [static(plan["table_cut"])]
        else:
            first = transformer(network)
            first.max_seq_length = plan["longest"]
            made[kind] = [first, Pooling(WIDTH, plan["modes"][0], plan["include_prompt"])]
        return made[kind]

    names = ("query", plan["passages"])
    own = [ends(layers, WIDTH, plan) for layers in plan["own"]]
    units = [[Normalize()] * unit for unit in plan["units"]]
    routes: dict[str, list[Any]] = {}
    after: list[Any] = []
    for name, kind, (modules, _), unit in zip(names, plan["kinds"], own, units, strict=True):
        if plan["split"] == "network":
            routes[name] = beginning(kind)
        elif plan["split"] == "pipeline":
            routes[name] = [*beginning(kind), *modules, *unit]
        else:
            routes[name] = [*modules, *unit] or [Dropout(0.1)]
    if plan["split"] == "network":
        after = own[0][0]
    router = Router(routes, default_route=names[0] if plan["default"] == "query" else None)
    parts = [router, *after]
    if plan["split"] == "ends":
        parts = [*beginning(plan["kinds"][0]), router]
    if plan["normalize"] and plan["split"] != "pipeline" and not any(plan["units"]):
        parts.append(Normalize())
    saved(folder, parts, **said(plan))
    if plan["layout"] != "6":
        spell_routes(folder, plan["layout"])
    theirs = SentenceTransformer(str(folder), device="cpu")
    return theirs, plan["split"] != "network" and own[0][1] != own[1][1]


def spell_routes(folder: Path, layout: str) -> None:
    """Write a router as sentence-transformers 5 did, or as Asym, its name before."""

    def old(kind: str) -> str:
        name = kind.rpartition(".")[2]
        name = "Asym" if name == "Router" and layout == "asym" else name
        return f"sentence_transformers.models.{name}"

    edit(folder / "modules.json", lambda listed: [{**m, "type": old(m["type"])} for m in listed])
    where = next(folder.rglob("router_config.json"))
    edit(where, lambda c: {**c, "types": {name: old(kind) for name, kind in c["types"].items()}})
    if layout == "asym":
        edit(where, lambda config: {**config, "parameters": {"allow_empty_key": True}})
        where.rename(where.with_name("config.json"))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(plan=routed())
def test_any_routes_are_followed_or_refused(network, tmp_path_factory, plan):
    folder = tmp_path_factory.mktemp("routes") / "model"
    theirs, widths = build_routed(network, folder, plan)
    if plan["third"]:
        where = next(
            path for path in folder.rglob("*config.json") if "structure" in path.read_text()
        )
        edit(where, lambda c: {**c, "structure": {**c["structure"], "image": []}})
    refusals = why_refused(plan, widths)
    if refusals:
        with pytest.raises(CheckpointError, match="|".join(refusals)):
            nimbed.load(str(folder), device="cpu")
        return
    assert_same(folder, theirs, alone=False, passages=plan["passages"])


def why_refused(plan, widths: bool) -> list[str]:
    """Return what messages may name of a plan that is refused."""
    ranked = plan["metric"] in ("dot", "euclidean")
    units = [*plan["units"]] if plan["split"] != "network" else [False]
    if plan["normalize"] and plan["split"] != "pipeline" and not any(plan["units"]):
        units = [True]
    reasons = {
        "has the routes .*image": plan["third"],
        "gives queries .* dimensions and passages": widths and not plan["cut"],
        "by similarity_fn_name its vectors keep": ranked and len(set(units)) > 1,
        "similarity_fn_name .* cuts unit vectors": ranked and any(units) and plan["cut"],
    }
    return [words for words, holds in reasons.items() if holds]
