"""Every encoder that transformers has gives what sentence-transformers gives for the same files."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tests.engine.local.checkpoints import change_config, change_tensors, tiny_bert, write_json
from tests.engine.local.families import OPTIONS, TEXTS, load
from tests.engine.local.oracles import token_ids, unit
from tests.engine.local.tiny_encoders import (
    ENCODERS,
    tiny_camembert,
    tiny_distilbert,
    tiny_gte,
    tiny_jina_adapters,
    tiny_jina_v3,
    tiny_modernbert,
    tiny_mpnet,
    tiny_nomic,
    tiny_nomic_moe,
    tiny_roberta,
)
from transformers import AutoModel

from nimbed import cards
from nimbed.errors import CheckpointError

LONG = "the warm sky over york and the river is not what a cat sleeps under " * 12
MANY = [*TEXTS, LONG, "a cat <pad> sleeps [PAD] where", *(LONG[:n] for n in (30, 75, 140, 141))]


@pytest.fixture(params=["torch", "onnxruntime"])
def either_backend(request, monkeypatch):
    monkeypatch.setitem(OPTIONS, "backend", request.param)


@pytest.fixture(scope="module", params=[*ENCODERS, "camembert"])
def folder(request, tmp_path_factory):
    build = ENCODERS.get(request.param, tiny_camembert)
    return build(tmp_path_factory.mktemp("encoder") / "model")


def test_it_equals_sentence_transformers_in_both_roles_and_so_do_the_token_ids(folder):
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = load(folder)
    for role, name in (("query", "query"), ("passage", "document")):
        got = ours.embed(MANY, input_type=role, truncate="END")
        expected = theirs.encode(MANY, prompt_name=name, normalize_embeddings=True)
        np.testing.assert_allclose(got.vectors, expected, atol=1e-5, rtol=0)
        ids = theirs.tokenizer([theirs.prompts[name] + text for text in MANY])["input_ids"]
        assert got.token_counts.tolist() == [min(len(row), 180) for row in ids]
        assert list(got.truncated) == [n for n, row in enumerate(ids) if len(row) > 180]
    assert got.truncated


@pytest.mark.parametrize("family", [*ENCODERS, "camembert"])
def test_alone_or_packed_a_vector_is_the_same_to_the_bit(family, tmp_path):
    # Heads of 16 numbers: with 8, fewer than any real model has, the product in torch's attention
    # depends on where its buffer lies, and so on the neighbours.
    heads = "n_heads" if family == "distilbert" else "num_attention_heads"
    ours = load(ENCODERS.get(family, tiny_camembert)(tmp_path / "model", **{heads: 2}))
    together = ours.embed(MANY, input_type="query", truncate="END").vectors
    alone = [ours.embed([text], input_type="query", truncate="END").vectors[0] for text in MANY]
    np.testing.assert_array_equal(together, np.stack(alone))


def embed(folder):
    return load(folder).embed(MANY, input_type="query", truncate="END").vectors


def sentence_transformers(folder):
    theirs = SentenceTransformer(str(folder), device="cpu")
    return theirs.encode(MANY, prompt_name="query", normalize_embeddings=True)


@pytest.mark.usefixtures("either_backend")
@pytest.mark.parametrize(
    "changes",
    [
        dict(norm_bias=True, attention_bias=True, mlp_bias=True, hidden_activation="silu"),
        dict(norm_eps=0.1, local_attention=13, num_hidden_layers=5),
        dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    ],
)
def test_modernbert_follows_its_configuration(tmp_path, changes):
    folder = tiny_modernbert(tmp_path / "model", **changes)
    np.testing.assert_allclose(embed(folder), sentence_transformers(folder), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("either_backend")
@pytest.mark.parametrize("local", [3000.0, None])
def test_modernbert_reads_its_first_configurations(tmp_path, local):
    folder = tiny_modernbert(tmp_path / "model")
    thetas = {"full_attention": 500.0, "sliding_attention": local or 500.0}
    tables = {kind: {"rope_type": "default", "rope_theta": n} for kind, n in thetas.items()}
    change_config(
        folder,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        rope_parameters=tables,
    )
    expected = sentence_transformers(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    del config["layer_types"], config["rope_parameters"]
    config |= {"global_attn_every_n_layers": 2, "global_rope_theta": 500.0}
    config |= {"local_rope_theta": local, "layer_norm_eps": 1e-5, "reference_compile": None}
    config |= {"position_embedding_type": "absolute", "repad_logits_with_grad": False}
    write_json(folder / "config.json", config)
    np.testing.assert_allclose(embed(folder), expected, atol=1e-5, rtol=0)


NOMIC = {
    **{"activation_function": "swiglu", "causal": False, "dense_seq_output": True},
    **{"fused_bias_fc": True, "fused_dropout_add_ln": True, "layer_norm_epsilon": 1e-12},
    **{"max_trained_positions": 2048, "mlp_fc1_bias": False, "mlp_fc2_bias": False},
    **{"model_type": "nomic_bert", "n_embd": 32, "n_head": 4, "n_inner": 64, "n_layer": 2},
    **{"n_positions": 8192, "pad_vocab_size_multiple": 64, "parallel_block": False},
    **{"prenorm": False, "qkv_proj_bias": False, "rotary_emb_base": 1000},
    **{"rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "type_vocab_size": 2},
    **{"rotary_emb_scale_base": None, "rotary_scaling_factor": None, "scale_attn_weights": True},
    **{"use_flash_attn": True, "use_rms_norm": False, "use_xentropy": True},
}


@pytest.mark.usefixtures("either_backend")
def test_nomic_bert_reads_its_publishers_configuration(tmp_path):
    folder = tiny_nomic(tmp_path / "model", type_vocab_size=2)
    expected = sentence_transformers(folder)
    vocabulary = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
    write_json(folder / "config.json", {**NOMIC, "vocab_size": vocabulary})
    np.testing.assert_allclose(embed(folder), expected, atol=1e-5, rtol=0)
    assert load(folder).card.max_tokens == 180


@pytest.mark.usefixtures("either_backend")
def test_gte_reads_its_publishers_configuration_and_rotation(tmp_path):
    """NTK's scaling of a base b by f is a base f·b, slowed by f^(2/d): transformers' linear."""
    folder = tiny_gte(tmp_path / "model", type_vocab_size=0)
    slowed = {"rope_type": "linear", "rope_theta": 3000.0, "factor": 3.0 ** (2 / 8)}
    change_config(folder, rope_parameters=slowed)
    expected = sentence_transformers(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    del config["rope_parameters"]
    config |= {"model_type": "new", "rope_theta": 1000.0, "position_embedding_type": "rope"}
    config |= {"rope_scaling": {"type": "ntk", "factor": 3.0}, "layer_norm_type": "layer_norm"}
    config |= {"logn_attention_clip1": False, "logn_attention_scale": False, "pack_qkv": True}
    config |= {"unpad_inputs": False, "use_memory_efficient_attention": False}
    write_json(folder / "config.json", config)
    change_tensors(folder, lambda own: [own.update({f"new.{n}": own.pop(n)}) for n in sorted(own)])
    np.testing.assert_allclose(embed(folder), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("build", [tiny_gte, tiny_nomic, tiny_jina_v3])
def test_transformers_own_names_of_tensors_make_no_difference(tmp_path, build):
    folder = build(tmp_path / "model")
    expected = embed(folder)
    model = AutoModel.from_pretrained(folder)
    model.save_pretrained(folder, save_original_format=False)
    names = load_file(folder / "model.safetensors")
    assert "layers.0.self_attn.q_proj.weight" in names
    np.testing.assert_array_equal(embed(folder), expected)


def mixture_states(folder, ids):
    """Run nomic-embed-text-v2-moe as its publisher describes it, in float64, all experts each."""
    w = {n: t.double() for n, t in load_file(folder / "model.safetensors").items()}
    functional = torch.nn.functional

    def linear(x, name):
        return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        return functional.layer_norm(x, (32,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def turned(x):
        angles = torch.arange(len(ids))[:, None] / 10000 ** (torch.arange(0, 8, 2) / 8)
        cos, sin = angles.cos().double()[:, None], angles.sin().double()[:, None]
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    words = w["embeddings.word_embeddings.weight"][ids]
    x = norm(words + w["embeddings.token_type_embeddings.weight"][0], "emb_ln")
    for number in range(4):
        at = f"encoder.layers.{number}"
        q, k, v = linear(x, f"{at}.attn.Wqkv").view(len(ids), 3, 4, 8).unbind(1)
        q, k, v = (t.transpose(0, 1) for t in (turned(q), turned(k), v))
        scores = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1)
        attended = (scores @ v).transpose(0, 1).reshape(len(ids), 32)
        x = norm(x + linear(attended, f"{at}.attn.out_proj"), f"{at}.norm1")
        if number % 2 == 0:
            made = linear(functional.gelu(linear(x, f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
        else:
            shares = (x @ w[f"{at}.mlp.router.layer.weight"].T).softmax(-1)
            least = shares.sort(-1).values[:, -2:-1]
            shares = shares * (shares >= least)
            first, second = (w[f"{at}.mlp.experts.mlp.w{n}"].view(6, 64, 32) for n in (1, 2))
            inner = functional.gelu(torch.einsum("th,efh->etf", x, first))
            made = torch.einsum("etf,efh,te->th", inner, second, shares)
            made = made + w[f"{at}.mlp.experts.bias"]
        x = norm(x + made, f"{at}.norm2")
    return x.numpy()


def test_a_mixture_of_experts_is_what_its_publisher_describes(tmp_path):
    folder = tiny_nomic_moe(tmp_path / "model")
    rows = token_ids(folder, TEXTS, prompt="query: ")
    expected = unit(np.stack([mixture_states(folder, row).mean(0) for row in rows]))
    got = load(folder).embed(TEXTS, input_type="query").vectors
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("role", "prompt_name", "task", "prompt"),
    [
        ("query", None, 0, "query: "),
        ("passage", None, 1, ""),
        ("query", "separation", 2, ""),
        ("passage", "separation", 2, ""),
    ],
)
def test_a_role_or_a_prompt_chooses_the_adapter(tmp_path, role, prompt_name, task, prompt):
    """Jina merges in each forward pass: x·(W + B·A·alpha/rank)ᵀ, and A·B into embeddings."""
    folder = tiny_jina_adapters(tmp_path / "model")
    ours = load(folder, prompt_name=prompt_name)
    got = ours.embed(TEXTS, input_type=role).vectors
    merged, stored = {}, load_file(folder / "model.safetensors")
    for name, tensor in stored.items():
        base, original, _ = name.partition(".parametrizations.weight.original")
        if original:
            a, b = (stored[f"{base}.parametrizations.weight.0.lora_{x}"][task] for x in "AB")
            tensor = tensor + (a @ b if "embeddings" in base else b @ a) * 1 / 2
        if ".0.lora_" not in name:
            merged[(f"{base}.weight" if original else name).removeprefix("roberta.")] = tensor
    plain = tiny_jina_v3(tmp_path / "plain")
    save_file(merged, plain / "model.safetensors", metadata={"format": "pt"})
    theirs = SentenceTransformer(str(plain), device="cpu")
    expected = theirs.encode(TEXTS, prompt=prompt, normalize_embeddings=True)
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    assert ours.card.asymmetric
    # Neither has a prompt; the weights differ.
    named = [
        load(folder, prompt_name=name).spec().fingerprint for name in ("passage", "separation")
    ]
    assert named[0] != named[1]


def test_a_card_of_a_model_with_adapters_chooses_them_by_role(tmp_path):
    folder = tiny_jina_adapters(tmp_path / "model")
    own, jina = load(folder), cards.find("jinaai/jina-embeddings-v3")
    facts = {"dimensions": 32, "matryoshka": (), "query_prompt": "query: ", "passage_prompt": ""}
    card = dataclasses.replace(jina, id=str(folder), **facts)
    for carded in (load(card), load(folder, card=card)):
        for role in ("query", "passage"):
            got, expected = (each.embed(TEXTS, input_type=role) for each in (carded, own))
            np.testing.assert_array_equal(got.vectors, expected.vectors)


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        (tiny_modernbert, {"layer_types": ["full_attention"]}, "layer_types .* each of 3 layers"),
        (tiny_modernbert, {"layer_types": ["full_attention"] * 2 + ["chunked"]}, "layer_types"),
        (tiny_modernbert, {"rope_parameters": {"rope_type": "default"}}, "rope_parameters .*table"),
        (tiny_modernbert, {"rope_scaling": {"type": "linear"}}, "rope_scaling .* only null"),
        (tiny_modernbert, {"hidden_activation": "relu"}, "hidden_act 'relu'"),
        (tiny_modernbert, {"local_attention": 0}, "local_attention 0"),
        (tiny_modernbert, {"sliding_window": 4}, "key 'sliding_window'"),
        (tiny_modernbert, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (tiny_mpnet, {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets 64"),
        (tiny_mpnet, {"pad_token_id": 0}, "pad_token_id 0"),
        (tiny_distilbert, {"activation": "relu"}, " activation 'relu'; nimbed knows only 'gelu'"),
        (tiny_distilbert, {"hidden_size": 48}, "dim 32, but hidden_size 48"),
        (tiny_roberta, {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        (tiny_roberta, {"is_decoder": True}, "is_decoder True"),
        (tiny_nomic, {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction 0.5"),
        (tiny_nomic, {"rotary_scaling_factor": 2}, "rotary_scaling_factor 2"),
        (tiny_nomic, {"prenorm": True}, "prenorm True"),
        (tiny_nomic, {"num_experts": 8}, "moe_every_n_layers None"),
        (tiny_nomic_moe, {"moe_top_k": 0}, "moe_top_k 0"),
        (tiny_nomic_moe, {"moe_top_k": 7}, "7 experts of 6"),
        (tiny_nomic_moe, {"num_experts": 4}, "mlp.experts.mlp.w1 has shape"),
        (tiny_nomic_moe, {"moe_normalize_expert_weights": True}, "moe_normalize_expert_weights"),
        (tiny_nomic, {"activation_function": "glu"}, "activation_function 'glu'"),
        (tiny_nomic, {"head_dim": 4}, "head_dim 4"),
        (tiny_nomic, {"qkv_proj_bias": True}, "lacks the tensor .*bias"),
        (tiny_jina_adapters, {"lora_adaptations": ["classification"]}, "without 'retrieval.query'"),
        (tiny_jina_adapters, {"load_trained_adapters": False}, "load_trained_adapters False"),
        (tiny_jina_v3, {"position_embedding_type": "alibi"}, "position_embedding_type 'alibi'"),
        (tiny_gte, {"model_type": "new", "logn_attention_scale": True}, "logn_attention_scale"),
        (tiny_gte, {"rope_parameters": {"rope_type": "dynamic"}}, "'dynamic' rotary positions"),
        (tiny_gte, {"rope_parameters": {"rope_type": "ntk", "mixed_b": 0.7}}, "mixed_b"),
        (tiny_bert, {"alibi_starting_size": 512}, "key 'alibi_starting_size'"),
    ],
)
def test_what_an_encoder_does_not_do_is_refused_by_name(tmp_path, build, changes, message):
    folder = build(tmp_path / "model")
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder).warmup()
