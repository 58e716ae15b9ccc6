"""The whole model against transformers' tower and Llama with numpy between them."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
import torch
from tests.engine.local.checkpoints import change_tensors, tiny_bert
from tests.engine.local.families import load
from tests.engine.local.vl_checkpoint import Oracle, context, published_shuffle, tiny_vl
from tests.engine.local.vl_inputs import ITEMS, embed, expected, nimbed_input
from tests.engine.pictures import encoded, picture

from nimbed.errors import BackendError, CheckpointError, ConfigurationError, InputError
from nimbed.images import Image
from nimbed.local.models.nemotron_vl import pixel_shuffle


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_vl(tmp_path_factory.mktemp("vl") / "model")


@pytest.fixture(scope="module")
def oracle(folder):
    return Oracle(folder)


@pytest.fixture(scope="module")
def vl(folder):
    return load(folder)


def test_every_kind_of_passage_equals_the_oracle(vl, oracle):
    batch = embed(vl, [nimbed_input(item) for item in ITEMS])
    for row, item in enumerate(ITEMS):
        vector, ids = expected(oracle, item)
        assert np.abs(batch.vectors[row] - vector).max() <= 1e-5
        assert batch.token_counts[row] == len(ids)


def test_queries_are_texts_with_their_own_prompt(vl, oracle):
    batch = embed(vl, ["what is a vector"], input_type="query")
    vector, ids = oracle.vector("query: what is a vector")
    assert np.abs(batch.vectors[0] - vector).max() <= 1e-5
    assert batch.token_counts.tolist() == [len(ids)]


def test_attention_looks_both_ways(folder, vl):
    causal = Oracle(folder, causal=True)
    for item in ITEMS[0], ITEMS[2]:
        vector, _ = expected(causal, item)
        assert np.abs(embed(vl, [nimbed_input(item)]).vectors[0] - vector).max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("v1", {"changes": {"ps_version": "v1"}}),
        ("flat", {"nested": False}),
        ("model.", {"language_prefix": "language_model.model."}),
        ("outer model.", {"language_prefix": "model.language_model."}),
    ],
)
def test_every_layout_of_a_checkpoint_is_read(tmp_path, kind, options):
    folder = tiny_vl(tmp_path / "model", **options)
    found = embed(load(folder), [nimbed_input(item) for item in ITEMS[:3]]).vectors
    plain = tiny_vl(tmp_path / "plain", changes=options.get("changes"))
    wanted = [expected(Oracle(plain), item)[0] for item in ITEMS[:3]]
    assert np.abs(found - wanted).max() <= 1e-5


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_shuffle_is_the_published_one(version):
    x = torch.arange(2 * 4 * 8 * 3).view(2, 4, 8, 3)
    found = pixel_shuffle(x, 2, legacy=version == "v1")
    assert np.array_equal(found.numpy(), published_shuffle(x.numpy(), version))


def test_processor_tiles_win_over_the_configurations(tmp_path):
    folder = tiny_vl(
        tmp_path / "model", changes={"max_input_tiles": 6}, processor={"max_input_tiles": 2}
    )
    oracle, image = Oracle(folder), picture((64, 100))
    vector, ids = oracle.vector(
        f"passage: {context(3)} ", oracle.tiles(image, (1, 2), thumbnail=True)
    )
    batch = embed(load(folder), [Image(image)])
    assert batch.token_counts.tolist() == [len(ids)]
    assert np.abs(batch.vectors[0] - vector).max() <= 1e-5


def test_a_vector_does_not_depend_on_its_neighbours(folder):
    inputs = [nimbed_input(item) for item in ITEMS]
    together = embed(load(folder), inputs).vectors
    backwards = embed(load(folder), inputs[::-1]).vectors[::-1]
    alone = np.concatenate([embed(load(folder), [item]).vectors for item in inputs])
    assert np.abs(together - alone).max() <= 1e-6
    assert np.abs(together - backwards).max() <= 1e-6
    a, b = inputs[2], inputs[6]
    mixed = embed(load(folder), [a, b, a]).vectors
    assert np.array_equal(mixed[0], mixed[2])
    assert np.abs(mixed[:2] - together[[2, 6]]).max() <= 1e-6


@pytest.mark.parametrize("text", ["<img>", "a <IMG_CONTEXT> b", "</img><image>"])
def test_marks_in_texts_are_read_as_words(vl, oracle, text):
    literal, _ = oracle.vector(f"passage: {text}", literal=True)
    assert np.abs(embed(vl, [text]).vectors[0] - literal).max() <= 1e-5
    image = Image(picture((20, 20)))
    pair = embed(vl, [(text, image), image, ("fox", image)])
    assert np.isfinite(pair.vectors).all()
    assert np.abs(pair.vectors[1] - expected(oracle, picture((20, 20)))[0]).max() <= 1e-5


# --- dtypes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precisions_stay_close(folder, vl, dtype):
    inputs = [nimbed_input(item) for item in ITEMS]
    exact, half = embed(vl, inputs).vectors, embed(load(folder, dtype=dtype), inputs).vectors
    assert (exact * half).sum(axis=1).min() >= 0.999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("dtype", "cosine"), [("float32", 0.99999), ("bfloat16", 0.999), ("float16", 0.999)]
)
def test_cuda_agrees_and_no_vector_depends_on_its_neighbours(folder, oracle, dtype, cosine):
    inputs = [nimbed_input(item) for item in ITEMS]
    wanted = np.stack([expected(oracle, item)[0] for item in ITEMS])
    found = embed(load(folder, device="cuda", dtype=dtype), inputs).vectors
    assert (found * wanted).sum(axis=1).min() >= cosine
    alone = np.concatenate(
        [embed(load(folder, device="cuda", dtype=dtype), [item]).vectors for item in inputs]
    )
    assert (found * alone).sum(axis=1).min() >= (cosine if dtype != "float32" else 1 - 1e-6)


# --- what cannot be embedded --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(picture((40, 40)), "PNG")[:900], "row 2: image is damaged or cut short"),
        (encoded(picture((40, 40)), "PNG")[:30], "row 2: image is damaged or cut short"),
        (encoded(picture((20000, 10)), "PNG"), "row 2: image is 20000x10 pixels"),
        (
            encoded(picture((9, 9)), "GIF", save_all=True, append_images=[picture((9, 9), seed=1)]),
            "row 2: image holds several frames",
        ),
    ],
)
def test_a_bad_image_is_named_by_its_row_and_spoils_nothing(vl, data, message):
    good = Image(picture((20, 20)))
    before = embed(vl, [good]).vectors
    with pytest.raises(InputError, match=message) as caught:
        embed(vl, ["a text", good, Image(data), good])
    assert caught.value.rows == (2,)
    assert np.array_equal(embed(vl, [good]).vectors, before)


def test_cmyk_and_deep_and_turned_images_have_the_right_vector(vl, oracle):
    smooth = picture((20, 20)).resize((5, 5)).resize((20, 20))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    cmyk = encoded(smooth.convert("CMYK"), "JPEG")
    turned = encoded(smooth.transpose(PIL.Image.Transpose.ROTATE_90), "PNG", exif=exif)
    deep = PIL.Image.fromarray(np.asarray(smooth.convert("L")).astype(np.uint16) * 257)
    wanted = [PIL.Image.open(io.BytesIO(cmyk)).convert("RGB"), smooth, smooth.convert("L")]
    found = embed(vl, [Image(cmyk), Image(turned), Image(encoded(deep, "PNG"))]).vectors
    for vector, image in zip(found, wanted, strict=True):
        assert np.abs(vector - expected(oracle, image)[0]).max() <= 1e-5


def test_images_are_no_queries(vl):
    with pytest.raises(InputError, match="images as passages only"):
        embed(vl, [Image(picture((20, 20)))], input_type="query")


def test_a_text_model_has_no_images(tmp_path):
    bert = load(tiny_bert(tmp_path / "bert"))
    with pytest.raises(ConfigurationError, match="embeds text; row 1 is image"):
        embed(bert, ["a", Image(picture((20, 20)))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("mlp1.1.bias"), r"lacks the tensor mlp1\.1\.bias"),
        (lambda t: t.update({"mlp1.0.weight": torch.ones(7)}), r"mlp1\.0\.weight has shape"),
        (
            lambda t: t["vision_model.vision_model.post_layernorm.bias"].fill_(float("nan")),
            "post_layernorm.bias holds NaN",
        ),
        (
            lambda t: t.update(
                {"vision_model.vision_model.encoder.layers.2.mlp.fc1.weight": torch.ones(40, 24)}
            ),
            r"encoder\.layers\.2\.mlp\.fc1\.weight, which config\.json does not account for",
        ),
        (lambda t: t.pop("language_model.norm.weight"), r"lacks the tensor norm\.weight"),
    ],
)
def test_damaged_weights_are_named(tmp_path, change, message):
    folder = tiny_vl(tmp_path / "model")
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        embed(load(folder), ["a text"])


@pytest.mark.parametrize("facts", [{"llm_config": None}, {"llm_config": []}, {"llm_config": {}}])
def test_a_configuration_without_its_language_model_is_refused(tmp_path, facts):
    with pytest.raises(BackendError, match=r"config\.json"):
        load(tiny_vl(tmp_path / "model", changes=facts))
