"""Which role an input takes, and that a client is told where it did not say."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from tests.engine.pictures import drawing, encoded

from nimbed import FakeEmbedder, Image

from .conftest import MODEL, PICTURES


def vector(answer, row=0):
    return np.array(answer.json()["data"][row]["embedding"], np.float32)


def expected(text, role, card=None):
    fake = FakeEmbedder(card) if card else FakeEmbedder()
    return fake.embed([text], input_type=role).vectors[0]


@pytest.mark.parametrize("role", ["query", "passage"])
def test_the_role_that_is_sent_is_the_role_embedded(plain, role):
    answer = plain.embed(input_type=role)
    np.testing.assert_allclose(vector(answer), expected("a text", role), atol=1e-6)
    assert "x-nimbed-input-type" not in answer.headers


@pytest.mark.parametrize("role", ["query", "passage"])
def test_a_suffix_of_the_model_is_a_role(plain, role):
    answer = plain.embed(model=f"{MODEL}-{role}")
    np.testing.assert_allclose(vector(answer), expected("a text", role), atol=1e-6)
    assert answer.json()["model"] == MODEL


def test_a_suffix_and_a_field_that_contradict_each_other_are_refused(plain):
    answer = plain.embed(model=f"{MODEL}-query", input_type="passage")
    assert answer.status_code == 400
    assert "send one of them" in answer.json()["message"]
    assert plain.embed(model=f"{MODEL}-query", input_type="query").status_code == 200


def test_a_model_that_is_really_called_so_is_not_taken_apart(serve):
    server = serve({MODEL: FakeEmbedder(), f"{MODEL}-query": FakeEmbedder(PICTURES)})
    answer = server.embed(model=f"{MODEL}-query", input_type="passage")
    assert answer.json()["model"] == f"{MODEL}-query"


def test_a_text_without_a_role_is_a_query_and_the_answer_says_so(plain):
    answer = plain.embed()
    np.testing.assert_allclose(vector(answer), expected("a text", "query"), atol=1e-6)
    assert answer.headers["x-nimbed-input-type"] == "query; source=default"


def test_a_client_without_roles_is_logged_once(serve, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("nimbed.server"), "propagate", True)
    server = serve()
    with caplog.at_level("WARNING", logger="nimbed.server"):
        for agent in ("one", "one", "two"):
            server.embed(headers={"user-agent": agent})
    assert sum("without input_type" in record.message for record in caplog.records) == 2
    assert "a text" not in caplog.text


def test_a_role_may_be_required(serve):
    server = serve(require_input_type=True)
    answer = server.embed()
    assert answer.status_code == 400
    assert answer.json()["message"] == ("'input_type' parameter is required for asymmetric models")
    assert server.embed(input_type="query").status_code == 200
    assert server.embed(model=f"{MODEL}-passage").status_code == 200


def picture():
    return Image(encoded(drawing())).data_url()


def test_images_without_a_role_are_passages_and_texts_beside_them_queries(plain):
    answer = plain.embed(model=PICTURES.id, input=[picture(), "a text"])
    assert answer.headers["x-nimbed-input-type"] == "mixed; source=default"
    image = Image.from_data_url(picture())
    np.testing.assert_allclose(vector(answer), expected(image, "passage", PICTURES), atol=1e-6)
    np.testing.assert_allclose(vector(answer, 1), expected("a text", "query", PICTURES), atol=1e-6)
    alone = plain.embed(model=PICTURES.id, input=[picture()])
    assert alone.headers["x-nimbed-input-type"] == "passage; source=default"


def test_an_image_is_never_a_query(plain):
    answer = plain.embed(model=PICTURES.id, input=[picture()], input_type="query")
    assert answer.status_code == 400
    assert answer.json()["message"] == (
        'input_type="query" is not supported with images; the VLM model processes images as '
        'passages only. Use input_type="passage" or omit input_type.'
    )


def test_an_alias_may_name_the_role_of_those_who_cannot(serve):
    from nimbed_server import parse_alias

    server = serve(aliases=(parse_alias(f"stored={MODEL},input_type=passage"),))
    answer = server.embed(model="stored")
    np.testing.assert_allclose(vector(answer), expected("a text", "passage"), atol=1e-6)
    assert answer.headers["x-nimbed-input-type"] == "passage; source=alias"
    asked = server.embed(model="stored", input_type="query")
    np.testing.assert_allclose(vector(asked), expected("a text", "query"), atol=1e-6)
