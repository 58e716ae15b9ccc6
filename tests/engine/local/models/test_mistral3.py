"""Mistral 3 (Nemotron-3.5-Embed) against transformers' own: texts, images and pairs of both."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.engine.local.checkpoints import change_config, change_tensors
from tests.engine.local.families import TEXTS, load
from tests.engine.local.mistral3_checkpoint import LONGEST, Oracle, tiny_mistral3
from tests.engine.pictures import picture

from nimbed.errors import CheckpointError, InputError
from nimbed.images import Image

# Smaller than a square, a whole number of squares, neither, and larger than is shown.
SIZES = [(5, 11), (16, 24), (37, 21), (40, 40), (200, 90), (30, 333)]
PICTURES = [picture(size, seed) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_mistral3(tmp_path_factory.mktemp("mistral3") / "model")


@pytest.fixture(scope="module")
def ours(folder):
    return load(folder)


@pytest.fixture(scope="module")
def items():
    """What is embedded, and the whole prompt that stands for it."""
    found = [(text, f"passage: {text}", None) for text in TEXTS]
    found += [(Image(p), "passage: [IMG]", p) for p in PICTURES]
    found += [
        ((text, Image(p)), f"passage: [IMG] {text}", p)
        for text, p in zip(TEXTS, PICTURES, strict=True)
    ]
    return found


def embed(embedder, inputs, **options):
    return embedder.embed(inputs, **{"input_type": "passage", **options})


def check(embedder, oracle, items):
    batch = embed(embedder, [item for item, _, _ in items])
    for row, (_, text, image) in enumerate(items):
        vector, ids = oracle.vector(text, image)
        assert np.abs(batch.vectors[row] - vector).max() <= 1e-5, text
        assert batch.token_counts[row] == len(ids)


def test_texts_images_and_pairs_equal_transformers(folder, ours, items):
    oracle = Oracle(folder)
    check(ours, oracle, items)
    batch = embed(ours, TEXTS, input_type="query")
    expected = np.stack([oracle.vector(f"query: {text}")[0] for text in TEXTS])
    assert np.abs(batch.vectors - expected).max() <= 1e-5
    assert ours.card.modalities == ("text", "image", "text_image")


def test_an_image_of_one_square_is_read_too(folder, ours):
    """transformers' whole model fails there: it takes the one token for its batch."""
    image, oracle = picture((5, 3)), Oracle(folder)
    made = oracle.processor(image, return_tensors="pt")
    ids = oracle.tokenizer("passage: [IMG][IMG_END]")["input_ids"]
    with torch.no_grad():
        tower = oracle.model.vision_tower(made["pixel_values"]).last_hidden_state
        states = oracle.model.multi_modal_projector(tower[0], made["image_sizes"])
        embedded = oracle.model.get_input_embeddings()(torch.tensor([ids]))
        embedded[0, ids.index(oracle.model.config.image_token_id)] = states[0]
        mean = oracle.model.language_model(inputs_embeds=embedded).last_hidden_state[0].mean(0)
    got = embed(ours, [Image(image)]).vectors[0]
    assert np.abs(got - (mean / mean.norm()).numpy()).max() <= 1e-5


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("with a head", {"head": True}),
        ("a plain Mistral", {"language": {"model_type": "mistral", "rope_parameters": None}}),
        ("gelu", {"vision": {"hidden_act": "gelu"}}),
        ("biases", {"changes": {"multimodal_projector_bias": True}}),
        ("rope", {"vision": {"rope_parameters": {"rope_theta": 50.0, "rope_type": "axial"}}}),
        ("levels", {"processor": {"image_mean": [0.1, 0.5, 0.9], "image_std": [0.5, 0.2, 1.0]}}),
        ("smaller", {"processor": {"size": {"longest_edge": 17}}}),
    ],
)
def test_every_kind_of_checkpoint_equals_transformers(tmp_path, items, kind, options):
    folder = tiny_mistral3(tmp_path / "model", **options)
    check(load(folder), Oracle(folder), items[3:-2:3])


def test_a_vector_does_not_depend_on_its_neighbours(folder, items):
    inputs = [item for item, _, _ in items]
    together = embed(load(folder), inputs).vectors
    backwards = embed(load(folder), inputs[::-1]).vectors[::-1]
    alone = np.concatenate([embed(load(folder), [item]).vectors for item in inputs[4:12:2]])
    small = load(folder)
    small.warmup()
    small.replicas()[0].budget = 40  # the tower sees one image at a time
    for got in (backwards, embed(small, inputs).vectors):
        assert np.abs(together - got).max() <= 1e-6
    assert np.abs(together[4:12:2] - alone).max() <= 1e-6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precisions_stay_close(folder, ours, items, dtype):
    inputs = [item for item, _, _ in items]
    exact, half = embed(ours, inputs).vectors, embed(load(folder, dtype=dtype), inputs).vectors
    assert (exact * half).sum(axis=1).min() >= 0.999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("dtype", "cosine"), [("float32", 0.99999), ("bfloat16", 0.999), ("float16", 0.999)]
)
def test_cuda_agrees_and_no_vector_depends_on_its_neighbours(folder, ours, items, dtype, cosine):
    inputs = [item for item, _, _ in items]
    wanted, there = embed(ours, inputs).vectors, load(folder, device="cuda", dtype=dtype)
    found = embed(there, inputs).vectors
    assert (found * wanted).sum(axis=1).min() >= cosine
    alone = np.concatenate([embed(there, [item]).vectors for item in inputs])
    assert (found * alone).sum(axis=1).min() >= (cosine if dtype != "float32" else 1 - 1e-6)


@pytest.mark.parametrize("text", ["a [IMG] b", "[IMG_END]", "<|begin_of_text|> [cat] <b>"])
def test_special_tokens_in_a_text_are_read_as_words(folder, ours, text):
    oracle = Oracle(folder)
    vector, ids = oracle.vector(f"passage: {text}", literal=True)
    batch = embed(ours, [text])
    assert np.abs(batch.vectors[0] - vector).max() <= 1e-5
    assert batch.token_counts[0] == len(ids)
    pair = embed(ours, [(text, Image(PICTURES[1]))])
    assert np.isfinite(pair.vectors).all()


@pytest.mark.parametrize("truncate", ["START", "END"])
def test_a_long_text_is_cut_and_its_image_is_not(folder, ours, truncate):
    long, image = "the warm sky by the river " * 100, PICTURES[1]
    (count,) = embed(ours, [(long, Image(image))], truncate=truncate).token_counts
    assert count == 500
    with pytest.raises(InputError, match="500"):
        embed(ours, [(long, Image(image))])


def test_an_image_of_which_nothing_is_left_is_refused_by_its_row(ours):
    with pytest.raises(InputError, match=f"row 1: image is 3x900 pixels.* has {LONGEST}; crop"):
        embed(ours, ["a text", Image(picture((3, 900)))])


TEMPLATED = "{% for m in messages %}[INST]{{ m.content }}{% endfor %}"


def test_prompts_are_joined_as_the_template_has_it(tmp_path):
    folder = tiny_mistral3(tmp_path / "model")
    assert load(folder).card.query_prompt == "query: "  # "query:" in the file
    (folder / "chat_template.jinja").write_text(TEMPLATED, "utf-8")
    with pytest.raises(CheckpointError, match="a chat template that nimbed does not know"):
        load(folder)
    (folder / "chat_template.jinja").unlink()
    assert load(folder).card.query_prompt == "query:"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"vision_config": None}, "lacks vision_config"),
        (
            {
                "text_config": {
                    "model_type": "gemma",
                    "max_position_embeddings": 9,
                    "hidden_size": 32,
                }
            },
            "text_config of model_type 'gemma'",
        ),
        ({"is_causal": True}, "is_causal True, and its text_config False"),
        ({"vision_feature_layer": -2}, "vision_feature_layer -2"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act 'relu'"),
        ({"spatial_merge_size": 1}, "spatial_merge_size"),
        ({"image_token_index": 3}, "the one token 3"),
        ({"image_newline": True}, "the key 'image_newline'"),
    ],
)
def test_a_configuration_it_cannot_follow_is_refused(tmp_path, facts, message):
    folder = tiny_mistral3(tmp_path / "model")
    change_config(folder, **facts)
    with pytest.raises(CheckpointError, match=message):
        embed(load(folder), [Image(PICTURES[1])])


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"patch_size": 16}, "patch_size 16"),
        ({"image_token": "[PIC]"}, r"does not read \[PIC\]"),
        ({"image_processor": {"do_center_crop": True}}, "crops"),
        ({"image_processor": {"resample": 2}}, "resample 2"),
        ({"image_processor": {"size": {"height": 3, "width": 3}}}, "expected a longest_edge"),
        ({"image_processor": {"image_mean": [1]}}, "image_mean"),
        ({"image_processor": {"min_pixels": 3}}, "the key 'min_pixels'"),
    ],
)
def test_a_processor_it_cannot_follow_is_refused(tmp_path, facts, message):
    folder = tiny_mistral3(tmp_path / "model")
    path = folder / "processor_config.json"
    own = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**own, **facts}), "utf-8")
    with pytest.raises(CheckpointError, match=message):
        embed(load(folder), [Image(PICTURES[1])])


def test_damaged_weights_are_named(tmp_path):
    folder = tiny_mistral3(tmp_path / "model")
    change_tensors(folder, lambda t: t.pop("multi_modal_projector.linear_1.weight"))
    with pytest.raises(CheckpointError, match=r"lacks the tensor linear_1\.weight"):
        embed(load(folder), ["a text"])
