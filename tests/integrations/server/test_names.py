"""Names that clients use: models, aliases, paths, suffixes, and what each of them fixes."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest

from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError
from nimbed.fake import FAKE_CARD
from nimbed_server import Settings, create_app, parse_alias

from .conftest import MODEL, running

NEMOTRON = "nvidia/llama-nemotron-embed-1b-v2"
LONG = "word " * 600


def embedder(name):
    return FakeEmbedder(replace(FAKE_CARD, id=name))


def vector(answer):
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["data"][0]["embedding"])


def wanted(text="a text", role="query", **options):
    return FakeEmbedder().embed([text], input_type=role, **options).vectors[0]


OPTIONS = [
    "dimensions=16",
    "embedding_type=int8",
    "embedding_type=uint8,int8_scale=even",
    "embedding_type=ubinary",
    "embedding_type=binary",
    "embedding_type=binary,as=packed",
    "embedding_type=binary,as=signs",
    "embedding_type=float",
    "dimensions=32,embedding_type=binary",
    "input_type=passage",
    "truncate=START",
    "truncate=END",
    "int8_scale=even",
]


@pytest.fixture(scope="module")
def named():
    """Serve the fake model by a name for each set of options."""
    aliases = tuple(parse_alias(f"it{n}={MODEL},{each}") for n, each in enumerate(OPTIONS))
    with running({MODEL: FakeEmbedder()}, Settings(port=0, aliases=aliases)) as server:
        yield server


def it(options):
    return f"it{OPTIONS.index(options)}"


@pytest.mark.parametrize(
    ("fixed", "options"),
    [
        ("dimensions=16", {"dimensions": 16}),
        ("embedding_type=int8", {"embedding_type": "int8", "int8_scale": "nim"}),
        (
            "embedding_type=uint8,int8_scale=even",
            {"embedding_type": "uint8", "int8_scale": "even"},
        ),
        ("embedding_type=ubinary", {"embedding_type": "ubinary"}),
        ("embedding_type=binary,as=packed", {"embedding_type": "binary"}),
        ("embedding_type=float", {}),
        (
            "dimensions=32,embedding_type=binary",
            {"dimensions": 32, "embedding_type": "binary"},
        ),
    ],
)
def test_a_name_fixes_size_and_type(named, fixed, options):
    answer = named.embed(model=it(fixed))
    np.testing.assert_allclose(vector(answer), wanted(**options), atol=1e-6)
    assert answer.json()["model"] == it(fixed)


def test_a_name_fixes_the_role_of_those_who_send_none(named):
    name = it("input_type=passage")
    np.testing.assert_allclose(vector(named.embed(model=name)), wanted(role="passage"), atol=1e-6)
    query = named.embed(model=f"{name}-query")
    np.testing.assert_allclose(vector(query), wanted(), atol=1e-6)


@pytest.mark.parametrize("side", ["START", "END"])
def test_a_name_fixes_where_a_text_is_cut(named, side):
    answer = named.embed(model=it(f"truncate={side}"), input=[LONG], truncate="NONE")
    np.testing.assert_allclose(vector(answer), wanted(LONG, truncate=side), atol=1e-6)
    assert answer.headers["x-nimbed-truncate"] == f"{side}; source=alias"
    assert answer.headers["x-nimbed-truncated"] == "0"


def test_a_client_that_says_where_to_cut_is_believed(named):
    text = " ".join(f"w{n}" for n in range(600))
    answer = named.embed(model=it("truncate=START"), input=[text], truncate="END")
    np.testing.assert_allclose(vector(answer), wanted(text, truncate="END"), atol=1e-6)


def test_a_name_may_fix_the_scale_alone(named):
    answer = named.embed(model=it("int8_scale=even"), embedding_type="int8")
    right = wanted(embedding_type="int8", int8_scale="even")
    np.testing.assert_array_equal(vector(answer), right)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_signs_are_one_number_a_dimension_in_every_encoding(named, encoding):
    name = it("embedding_type=binary,as=signs")
    answer = named.embed(model=name, encoding_format=encoding)
    got = answer.json()["data"][0]["embedding"]
    if encoding == "base64":
        got = np.frombuffer(base64.b64decode(got), "<f4")
    batch = FakeEmbedder().embed(["a text"], input_type="query", embedding_type="binary")
    np.testing.assert_array_equal(got, batch.signs()[0])


def test_openais_sdk_may_ask_for_signs_in_base64(named):
    sdk = {"X-Stainless-Lang": "python"}
    name = it("embedding_type=binary,as=signs")
    answer = named.embed(model=name, encoding_format="base64", headers=sdk)
    assert isinstance(answer.json()["data"][0]["embedding"], str)


@pytest.mark.parametrize(
    ("fixed", "asked"),
    [
        ("dimensions=16", {"dimensions": 32}),
        ("embedding_type=int8", {"embedding_type": "float"}),
        ("embedding_type=binary", {"embedding_type": "ubinary"}),
    ],
)
def test_a_request_that_contradicts_its_name_is_400(named, fixed, asked):
    answer = named.embed(model=it(fixed), **asked)
    assert answer.status_code == 400
    assert answer.json()["message"].startswith(f"{it(fixed)!r} fixes {fixed}; got ")
    name, _, value = fixed.partition("=")
    agreed = {name: int(value) if value.isdigit() else value}
    assert named.embed(model=it(fixed), **agreed).status_code == 200


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("small", "has the form NAME=MODEL"),
        ("=model", "has the form NAME=MODEL"),
        ("small=", "has the form NAME=MODEL"),
        ("small=m,size=3", "an option is one of dimensions"),
        ("small=m,dimensions", "an option is one of dimensions"),
        ("small=m,dimensions=3,dimensions=3", "once"),
        ("small=m,dimensions=x", "dimensions must be a number"),
        ("small=m,dimensions=-1", "dimensions must be a number"),
        ("small=m,embedding_type=int4", "embedding_type must be one of"),
        ("small=m,as=signs", "needs embedding_type=binary"),
        ("small=m,as=signs,embedding_type=int8", "needs embedding_type=binary"),
        ("small=m,as=bits,embedding_type=binary", "as must be one of"),
        ("small=m,truncate=end", "truncate must be one of"),
        ("small=m,input_type=document", "input_type must be one of"),
    ],
)
def test_an_alias_that_means_nothing_is_refused_where_it_is_read(text, reason):
    with pytest.raises(ConfigurationError, match=reason):
        parse_alias(text)


@pytest.mark.parametrize(
    ("aliases", "reason"),
    [
        (
            ["a=nobody"],
            "alias 'a' stands for 'nobody', which is not served; served are nimbed/fake",
        ),
        ([f"a={MODEL}", f"a={MODEL},dimensions=16"], "the name 'a' is given twice"),
        ([f"a={MODEL}", f"A={MODEL},dimensions=16"], "the name 'A' is given twice"),
        ([f"{MODEL}={MODEL},dimensions=16"], "the name 'nimbed/fake' is given twice"),
        ([f"a={MODEL},dimensions=17"], "alias 'a': .*17"),
        ([f"a={MODEL},embedding_type=float,int8_scale=nim"], "alias 'a': .*int8_scale"),
        ([f"a={MODEL},dimensions=16", "b=a,embedding_type=int8"], "stands for 'a'"),
    ],
)
def test_aliases_that_contradict_the_models_are_refused_before_anything_is_loaded(aliases, reason):
    settings = Settings(aliases=tuple(map(parse_alias, aliases)))
    with pytest.raises(ConfigurationError, match=reason):
        create_app({MODEL: FakeEmbedder()}, settings)


def test_a_server_without_a_model_is_refused():
    with pytest.raises(ConfigurationError, match="at least one model"):
        create_app({})


@pytest.fixture(scope="module")
def several():
    aliases = (f"small={NEMOTRON},dimensions=16", "t2v-tiny=other,dimensions=16")
    settings = Settings(port=0, aliases=tuple(map(parse_alias, aliases)))
    embedders = {NEMOTRON: embedder(NEMOTRON), "other": embedder("nimbed/fake")}
    with running(embedders, settings) as server:
        yield server


def test_the_models_are_listed_first_and_in_their_order(several):
    listed = several.client.get("/v1/models").json()
    names = [model["id"] for model in listed["data"]]
    assert names == [NEMOTRON, "other", "small", "t2v-tiny"]
    first = listed["data"][0]
    assert first["owned_by"] == "nvidia"
    assert first["root"] == first["id"]
    assert isinstance(first["created"], int)
    assert {model["object"] for model in listed["data"]} == {"model"}


@pytest.mark.parametrize(
    ("name", "served"),
    [
        (NEMOTRON, NEMOTRON),
        (NEMOTRON.upper(), NEMOTRON),
        ("nvidia/llama-3.2-nv-embedqa-1b-v2", NEMOTRON),
        ("nvidia/llama-3.2-nv-embedqa-1b-v2-passage", NEMOTRON),
        ("OTHER", "other"),
        (MODEL, "other"),
        ("small-query", "small"),
    ],
)
def test_a_model_answers_to_all_its_names(several, name, served):
    assert several.embed(model=name).json()["model"] == served


@pytest.mark.parametrize("name", ["", "query", "-query", "other-queries", "nvidia/", "other "])
def test_other_names_are_404(several, name):
    answer = several.embed(model=name)
    assert answer.status_code == 404
    assert f"available: '{NEMOTRON}', 'other', 'small', 't2v-tiny'" in answer.json()["message"]


@pytest.mark.parametrize(
    ("path", "served"),
    [
        ("/v1/embeddings", "other"),
        ("/small/v1/embeddings", "small"),
        ("/small-passage/v1/embeddings", "small"),
        (f"/{NEMOTRON}/v1/embeddings", NEMOTRON),
        ("/small/v1/v1/embeddings", "small"),
        ("/small//v1/embeddings/", "small"),
        ("/t2v-tiny/v1/embeddings", "t2v-tiny"),
        ("/SMALL/v1/embeddings", "small"),
    ],
)
def test_a_name_in_the_path_goes_before_the_one_in_the_body(several, path, served):
    answer = several.client.post(path, json={"model": "other", "input": "a"})
    assert answer.json()["model"] == served


def test_a_name_in_the_path_makes_the_one_in_the_body_needless(several):
    answer = several.client.post("/small/v1/embeddings", json={"input": "a"})
    assert answer.json()["model"] == "small"
    assert several.client.post("/v1/embeddings", json={"input": "a"}).status_code == 400


def test_an_unknown_name_in_a_path_is_404_with_the_names_there_are(several):
    answer = several.client.post("/nobody/v1/embeddings", json={"input": "a"})
    assert answer.status_code == 404
    assert "model 'nobody' not found; available:" in answer.json()["message"]


def test_a_container_behind_a_name_is_that_name(several):
    sent = {"text": "a", "config": {"task_type": "query"}}
    for path, width in (
        ("/vectors", 64),
        ("/t2v/vectors", 64),
        ("/t2v/small/vectors", 16),
        ("/t2v-tiny/vectors", 16),
        ("/t2v/t2v-tiny/vectors", 16),
    ):
        assert len(several.client.post(path, json=sent).json()["vector"]) == width
    assert several.client.get("/small/meta").json()["model"]["hidden_size"] == 16
    assert several.client.get("/small/.well-known/ready").status_code == 204


def test_two_models_of_one_name_are_refused():
    with pytest.raises(ConfigurationError, match="two models have the same name"):
        create_app({"one": FakeEmbedder(), "ONE": FakeEmbedder()})
