"""ColBERT checkpoints in three layouts, against sentence-transformers and plain torch."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.multi_vector_encoder.modules import (
    HierarchicalTokenPooling,
    MultiVectorMask,
)
from tests.engine.local.checkpoints import change_tensors, tiny_bert, write_json
from tests.engine.local.families import load
from tests.engine.local.oracles import oracle, token_ids, weights_of
from tests.engine.local.sentence_folders import edit, transformer, width_of
from tests.engine.local.tiny_encoders import tiny_jina_colbert, tiny_modernbert
from tokenizers import Tokenizer
from transformers import AutoModel

from nimbed import ModelCard
from nimbed.errors import CheckpointError, ConfigurationError, TooLongError
from nimbed.search import distances, nearest

TEXTS = [
    "what is nvidia?",
    "a cat, a dog. the cat!",
    "over york and over the river; why? " * 4,  # more tokens than any role reads
    "quick",
]
EXPANDED = {"strategy": "fixed", "length": 24}


def projection(width: int, outputs: int = 16, **options: Any) -> Dense:
    options = {"bias": False, "activation_function": torch.nn.Identity(), **options}
    return Dense(width, outputs, module_input_name="token_embeddings", **options)


def saved(folder: Path, network: Path, *modules: Any, mask: Any = None, **options: Any) -> Path:
    """Save a MultiVectorEncoder over a network, as sentence-transformers does."""
    prompts = options.pop("prompts", {"query": "[Q] ", "document": "[D] "})
    torch.manual_seed(0)
    width = width_of(network)
    listed = [transformer(network, **options), *(modules or [projection(width)])]
    listed += [mask or MultiVectorMask(list(string.punctuation))]
    listed += [Normalize(module_input_name="token_embeddings")]
    model = MultiVectorEncoder(modules=listed, prompts=prompts, device="cpu").eval()
    model.save_pretrained(str(folder))
    return folder


def with_words(folder: Path, added: bool = False, **words: str) -> Path:
    """Give pieces of a tokenizer's vocabulary other names, as words that are one token."""
    where = folder / "tokenizer.json"
    content = json.loads(where.read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    for piece, word in zip(("##W", "##G"), words.values(), strict=True):
        vocabulary[word] = vocabulary.pop(piece)
        if added:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
            token = {"id": vocabulary[word], "content": word, "normalized": True, **flags}
            content["added_tokens"].append(token)
    where.write_text(json.dumps(content), "utf-8")
    return folder


def compare(folder: Path, **ours: Any) -> Any:
    """Compare both roles with sentence-transformers; returns nimbed's embedder."""
    theirs = MultiVectorEncoder(str(folder), device="cpu").eval()
    embedder = load(folder)
    assert embedder.kinds == ("multi",)
    for role, encode in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
        expected = encode(TEXTS, convert_to_numpy=True)
        found = embedder.embed_multi(TEXTS, input_type=role, truncate="END", **ours)
        assert found.spec == embedder.multi_spec()
        for mine, other in zip(found.rows(), expected, strict=True):
            assert mine.shape == other.shape
            np.testing.assert_allclose(mine, other, atol=1e-5, rtol=0)
    return embedder


@pytest.mark.parametrize(
    "options",
    [
        {"query_expansion": EXPANDED, "document_length": 30},
        {"query_expansion": {**EXPANDED, "attend": True}, "document_length": 30},
        {"query_expansion": {**EXPANDED, "strategy": "min", "token": "[SEP]"}, "query_length": 40},
        {"query_length": 12, "document_length": 100},
        {"mask": MultiVectorMask([".", "?", "nothing"], skiplist_tasks=["query", "document"])},
        {"prompts": {"query": "ask: "}, "mask": MultiVectorMask()},
    ],
    ids=["expanded", "attended", "at least", "not expanded", "skipped in both", "nothing skipped"],
)
def test_a_multi_vector_encoder_is_followed(tmp_path: Path, options: Any) -> None:
    compare(saved(tmp_path / "model", tiny_bert(tmp_path / "bert"), **options))


def test_several_dense_modules_and_windows_are_followed(tmp_path: Path) -> None:
    """ModernBERT, whose windows are shorter than an expanded query."""
    network = tiny_modernbert(tmp_path / "network")
    width = width_of(network)
    modules = [projection(width, 24, use_residual=True), projection(24, 8, bias=True)]
    folder = saved(tmp_path / "model", network, *modules, query_expansion=EXPANDED)
    embedder = compare(folder)
    assert embedder.card.dimensions == 8


def pylate(folder: Path, **changes: Any) -> Path:
    """Write a folder as PyLate does: a Dense module, and all else in one file's keys."""
    with_words(tiny_bert(folder), added=True, query="[Q] ", document="[D] ")
    torch.manual_seed(1)
    (folder / "1_Pooling" / "config.json").unlink()
    projection(width_of(folder)).save(str(folder / "1_Pooling"))
    (folder / "1_Pooling").rename(folder / "1_Dense")
    write_json(
        folder / "1_Dense" / "config.json",
        {
            "in_features": width_of(folder),
            "out_features": 16,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    types = ["sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"]
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": kind}
        for place, (path, kind) in enumerate(zip(("", "1_Dense"), types, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")
    settings = {
        "model_type": "ColBERT",
        "__version__": {"sentence_transformers": "5.1.1"},
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 20,
        "document_length": 40,
        "attend_to_expansion_tokens": False,
        "skiplist_words": list(string.punctuation),
        "do_query_expansion": True,
    }
    settings = {key: value for key, value in {**settings, **changes}.items() if value != "absent"}
    write_json(folder / "config_sentence_transformers.json", settings)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attend_to_expansion_tokens": True, "skiplist_words": None, "document_length": None},
        {"do_query_expansion": False, "query_prefix": "query: ", "skiplist_words": [",", "cat"]},
        {
            "model_type": "absent",
            "query_length": None,
            "prompts": {"query": "find "},
        },
    ],
    ids=["its defaults", "attended", "not expanded", "older"],
)
def test_pylates_folders_are_followed(tmp_path: Path, changes: Any) -> None:
    embedder = compare(pylate(tmp_path / "model", **changes))
    query = embedder.tokenize(["a cat"], input_type="query")[0]
    assert (query[1].text == "[Q] ") == (not changes.get("query_prefix"))


def stanfords(folder: Path, **changes: Any) -> Path:
    """Write a folder as Stanford's code does: the projection among the network's own weights."""
    with_words(tiny_bert(folder), query="[unused0]", document="[unused1]")
    for name in ("modules.json", "sentence_bert_config.json"):
        (folder / name).unlink()

    def project(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[f"bert.{name}"] = tensors.pop(name)
        tensors["linear.weight"] = torch.randn(16, 32, generator=torch.Generator().manual_seed(2))

    change_tensors(folder, project)
    edit(folder / "config.json", lambda config: {**config, "architectures": ["HF_ColBERT"]})
    settings = {
        "query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_token": "[Q]",
        "doc_token": "[D]", "query_maxlen": 20, "attend_to_mask_tokens": False, "dim": 16,
        "doc_maxlen": 30, "mask_punctuation": True, "similarity": "cosine", "bsize": 32,
        "interaction": "colbert", "checkpoint": "bert-base-uncased", "meta": {"hostname": "x"},
    }  # fmt: skip
    write_json(folder / "artifact.metadata", {**settings, **changes})
    return folder


def plainly(folder: Path, role: str, *, attended: bool, punctuation: bool) -> list[np.ndarray]:
    """What Stanford's ColBERT gives, in plain torch: ids, mask, BERT, projection, unit length."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    ids_of = tokenizer["model"]["vocab"]
    marker, longest = ("[unused0]", 20) if role == "query" else ("[unused1]", 30)
    weight = weights_of(folder)["linear.weight"]
    model = oracle(folder, prefix="bert.")
    out = []
    for cls, *words in token_ids(folder, TEXTS):
        words, end = words[:-1], words[-1]
        ids = [cls, ids_of[marker], *words[: longest - 3], end]
        real = len(ids)
        if role == "query":
            ids += [ids_of["[MASK]"]] * (longest - real)
        mask = torch.arange(len(ids)) < (len(ids) if attended else real)
        with torch.no_grad():
            states = model(torch.tensor([ids]), attention_mask=mask[None].long())[0][0]
        vectors = F.normalize(states @ weight.T, dim=1).numpy()
        left_out = string.punctuation if role == "passage" and punctuation else ""
        skipped = {ids_of.get(mark) for mark in left_out}
        out.append(vectors[[token not in skipped for token in ids]])
    return out


@pytest.mark.parametrize(
    "changes", [{}, {"attend_to_mask_tokens": True, "mask_punctuation": False, "similarity": "l2"}]
)
def test_stanfords_folders_are_followed(tmp_path: Path, changes: Any) -> None:
    folder = stanfords(tmp_path / "model", **changes)
    embedder = compare(folder)
    attended = changes.get("attend_to_mask_tokens", False)
    for role in ("query", "passage"):
        expected = plainly(
            folder, role, attended=attended, punctuation=changes.get("mask_punctuation", True)
        )
        found = embedder.embed_multi(TEXTS, input_type=role, truncate="END")
        for mine, other in zip(found.rows(), expected, strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-5, rtol=0)


def test_jinas_colbert_is_followed_without_its_own_code(tmp_path: Path) -> None:
    """By transformers' network of the same weights, and Stanford's formula in plain torch."""
    folder = tiny_jina_colbert(tmp_path / "model")
    embedder = load(folder)
    assert (embedder.kinds, embedder.card.dimensions) == (("multi",), 16)
    ids_of = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    weight = weights_of(folder)["linear.weight"]
    model = AutoModel.from_pretrained(folder / "native").eval()
    for role, marker, longest in (("query", "Query", 20), ("passage", "Document", 30)):
        found = embedder.embed_multi(TEXTS, input_type=role, truncate="END")
        for row, (begin, *words) in zip(found.rows(), token_ids(folder, TEXTS), strict=True):
            words, end = words[:-1][: longest - 3], words[-1]
            ids = [begin, ids_of[f"[{marker}Marker]"], *words, end]
            if role == "query":
                ids += [ids_of["<mask>"]] * (longest - len(ids))
            with torch.no_grad():
                states = model(torch.tensor([ids]))[0][0]
            vectors = F.normalize(states @ weight.T, dim=1).numpy()
            skipped = {ids_of.get(mark) for mark in string.punctuation if role == "passage"}
            kept = [token not in skipped for token in ids]
            np.testing.assert_allclose(row, vectors[kept], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary_emb_base": None}, "gives no rotary_emb_base"),
        ({"lora_adaptations": ["a"]}, "without 'retrieval.passage'|load_trained_adapters False"),
        ({"hidden_act": "relu"}, "gives hidden_act 'relu'"),
    ],
)
def test_another_network_of_jinas_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(tiny_jina_colbert(tmp_path / "model", **changes))


def test_a_text_is_the_same_in_any_company_and_in_every_order(tmp_path: Path) -> None:
    options: Any = {"query_expansion": EXPANDED, "document_length": 60}
    network = tiny_bert(tmp_path / "bert")
    edit(network / "config.json", lambda config: {**config, "num_attention_heads": 2})
    embedder = load(saved(tmp_path / "model", network, **options))
    texts = ["cat dog, " * (number % 7) + str(number) for number in range(40)]
    for role in ("query", "passage"):
        together = embedder.embed_multi(texts, input_type=role, truncate="END")
        for row in (0, 6, 20, 39):
            alone = embedder.embed_multi([texts[row]], input_type=role, truncate="END")
            np.testing.assert_array_equal(together.select([row]).vectors, alone.vectors)


def test_a_query_finds_its_passage_in_every_way_to_store_them(tmp_path: Path) -> None:
    embedder = load(saved(tmp_path / "model", tiny_bert(tmp_path / "bert"), query_length=40))
    texts = ["a cat sleeps under the warm sky", "the lazy dogs jumped over york", "what is nvidia"]
    queries = embedder.embed_multi(texts, input_type="query")
    for options in ({}, {"token_type": "int8", "pool_factor": 2}, {"token_type": "ubinary"}):
        passages = embedder.embed_multi(texts, input_type="passage", **options)
        assert passages.spec == embedder.multi_spec(**options)
        assert nearest(queries, passages, 1).rows.ravel().tolist() == [0, 1, 2]
    assert distances(queries, passages).shape == (3, 3)


def test_texts_are_too_long_by_their_role(tmp_path: Path) -> None:
    options: Any = {"query_expansion": EXPANDED, "document_length": 30}
    embedder = load(saved(tmp_path / "model", tiny_bert(tmp_path / "bert"), **options))
    assert (embedder.card.max_tokens, embedder.text_tokens) == (30, 30)
    for role, limit in (("query", 24), ("passage", 30)):
        with pytest.raises(TooLongError, match=str(limit)):
            embedder.embed_multi(TEXTS, input_type=role)
        found = embedder.embed_multi(TEXTS, input_type=role, truncate="START")
        assert found.truncated == (2,)
        assert found.token_counts.max() == limit
    expanded = embedder.embed_multi(["quick"], input_type="query")
    assert (expanded.token_counts.tolist(), len(expanded.vectors)) == ([24], 24)


def test_a_model_of_multi_vectors_alone_says_so(tmp_path: Path) -> None:
    embedder = load(saved(tmp_path / "model", tiny_bert(tmp_path / "bert")))
    for call in (embedder.spec, lambda: embedder.embed(["a"], input_type="query")):
        with pytest.raises(ConfigurationError, match="multi.*embed_multi"):
            call()
    embedder.warmup()


def test_a_folder_agrees_with_its_card(tmp_path: Path) -> None:
    folder = stanfords(tmp_path / "model")
    told = ModelCard(
        id="mine", architecture="bert", kinds=("multi",), dimensions=16, max_tokens=99,
        pooling="mean", asymmetric=True, query_prompt="[unused0] ", passage_prompt="[unused1] ",
    )  # fmt: skip
    embedder = load(folder, card=told)
    assert (embedder.card.max_tokens, embedder.multi_spec().model) == (30, "mine")
    plain = load(folder).embed_multi(TEXTS, input_type="query", truncate="END")
    found = embedder.embed_multi(TEXTS, input_type="query", truncate="END")
    np.testing.assert_array_equal(found.vectors, plain.vectors)
    with pytest.raises(CheckpointError, match="16 dimensions a token; colbert-ir/colbertv2.0 gi"):
        load(folder, card="colbertv2.0")
    with pytest.raises(CheckpointError, match="all-MiniLM-L6-v2 gives dense vectors of 384"):
        load(folder, card="minilm")
    with pytest.raises(CheckpointError, match="holds no ColBERT model, as mine is one"):
        load(tiny_bert(tmp_path / "bert"), card=told)


def test_every_setting_changes_the_space(tmp_path: Path) -> None:
    network = tiny_bert(tmp_path / "bert")
    changes: list[dict[str, Any]] = [
        {}, {"query_expansion": EXPANDED}, {"query_expansion": {**EXPANDED, "length": 25}},
        {"query_expansion": {**EXPANDED, "attend": True}}, {"mask": MultiVectorMask(["."])},
        {"query_expansion": {**EXPANDED, "token": "[SEP]"}}, {"prompts": {"query": "q"}},
        {"mask": MultiVectorMask(skiplist_tasks=["query"], skiplist_words=["."])},
    ]  # fmt: skip
    folders = [saved(tmp_path / str(n), network, **change) for n, change in enumerate(changes)]
    prints = [load(folder).multi_spec().fingerprint for folder in folders]
    change_tensors(folders[0] / "1_Dense", lambda tensors: tensors["linear.weight"].mul_(2))
    prints += [load(folders[0]).multi_spec().fingerprint]
    assert len(set(prints)) == len(changes) + 1


def test_a_network_attends_to_nothing_it_is_not_to_see(tmp_path: Path) -> None:
    """In bfloat16 by rectangles too; another token than the mask changes no word's vector."""
    network = tiny_bert(tmp_path / "bert")
    expanded = [{**EXPANDED, "token": token} for token in ("[MASK]", "cat")]
    folders = [
        saved(tmp_path / str(place), network, query_expansion=expansion)
        for place, expansion in enumerate(expanded)
    ]
    for dtype in ("float32", "bfloat16"):
        mask, cat = (
            load(folder, dtype=dtype).embed_multi(["quick"], input_type="query").vectors
            for folder in folders
        )
        words = len(load(folders[0]).tokenize(["quick"], input_type="query")[0])
        np.testing.assert_array_equal(mask[:words], cat[:words])
        assert not np.allclose(mask[words:], cat[words:], atol=1e-2)


CONFIG, MODULES = "config_sentence_transformers.json", "modules.json"
LENGTHS = "sentence_bert_config.json"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (CONFIG, {"surprise": 1}, "has the key 'surprise'"),
        (CONFIG, {"similarity_fn_name": "euclidean"}, "ranked by maxsim"),
        (LENGTHS, {"query_expansion": {"strategy": "all", "length": 9}}, "the strategy 'all'"),
        (LENGTHS, {"query_expansion": {"strategy": "min", "many": 9}}, "gives query_expansion"),
        (LENGTHS, {"query_expansion": {"strategy": "min"}}, "gives length None"),
        (LENGTHS, {"query_expansion": {**EXPANDED, "length": 999}}, "expanded to 999 tokens"),
        (LENGTHS, {"query_expansion": {**EXPANDED, "token": "[X]"}}, r"expands queries by '\[X\]'"),
        (LENGTHS, {"query_expansion": {**EXPANDED, "attend": 1}}, "gives attend 1, expected true"),
        (LENGTHS, {"document_length": 0}, "gives document_length 0"),
        ("2_MultiVectorMask/config.json", {"keep_only_token_ids": [7]}, "gives keep_only_token_id"),
        ("2_MultiVectorMask/config.json", {"skiplist_tasks": ["title"]}, "knows query, document"),
        ("2_MultiVectorMask/config.json", {"skiplist_words": "ab"}, "expected words"),
        ("3_Normalize/config.json", {"module_input_name": None}, "normalises no token_embeddings"),
        ("1_Dense/config.json", {"in_features": 8}, "takes vectors of 8 dimensions"),
        ("1_Dense/config.json", {"module_input_name": "sentence_embedding"}, "knows only 'token_e"),
        (MODULES, lambda listed: listed[:3], "lacks MultiVectorMask or Normalize"),
        (MODULES, lambda listed: [*listed, listed[1]], "is Dense behind Normalize"),
        (MODULES, lambda listed: listed[1:], "is Dense, which nimbed does not run there"),
    ],
)
def test_what_is_not_followed_is_refused(
    encoder: Path, tmp_path: Path, file: str, change: Any, message: str
) -> None:
    folder = Path(shutil.copytree(encoder, tmp_path / "model"))
    edit(folder / file, change if callable(change) else lambda content: {**content, **change})
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colbert")
    return saved(folder / "model", tiny_bert(folder / "bert"))


def pooled(folder: Path, encoder: Path, *options: Any, **keywords: Any) -> Path:
    """Add a module that pools tokens to a saved encoder."""
    shutil.copytree(encoder, folder)
    (folder / "4_Pooling").mkdir()
    HierarchicalTokenPooling(*options, **keywords).save(str(folder / "4_Pooling"))
    kind = "sentence_transformers.multi_vector_encoder.modules.HierarchicalTokenPooling"
    module = {"idx": 4, "name": "4", "path": "4_Pooling", "type": kind}
    edit(folder / MODULES, lambda listed: [*listed, module])
    return folder


def test_a_pooling_of_tokens_in_the_checkpoint_is_followed(tmp_path: Path, encoder: Path) -> None:
    roles = ["query", "document"]
    compare(pooled(tmp_path / "both", encoder, 1.5, num_protected_tokens=2, tasks=roles))
    embedder = compare(pooled(tmp_path / "passages", encoder, 2))
    plain = load(encoder)
    assert embedder.multi_spec().fingerprint != plain.multi_spec().fingerprint
    folder = pooled(tmp_path / "long", encoder, 2, normalize_embeddings=False)
    with pytest.raises(CheckpointError, match="normalize_embeddings"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_punctuation": "no"}, "gives mask_punctuation 'no'"),
        ({"interaction": "flipr"}, "gives interaction 'flipr'"),
        ({"temperature": 2}, "has the key 'temperature'"),
        ({"dim": 8}, "linear.weight"),
        ({"query_maxlen": 500}, "expanded to 500 tokens"),
    ],
)
def test_what_stanfords_settings_say_is_followed_or_refused(
    tmp_path: Path, change: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(stanfords(tmp_path / "model", **change)).warmup()
