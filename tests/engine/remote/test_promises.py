"""Whatever a server refuses or ignores, a batch is what the spec said before, or an error."""

from __future__ import annotations

import base64
import dataclasses
import itertools

import numpy as np
import pytest

from nimbed import cards
from nimbed.batch import quantize, slice_normalize
from nimbed.errors import ConfigurationError, NimbedError
from nimbed.remote.dialects import DIALECTS

from .double import answer, as_json, error, vectors
from .players import listing

pytestmark = pytest.mark.filterwarnings("ignore:nothing is known about")

FULL, SHORT = 64, 16
MODEL = "house/model"
CARD = dataclasses.replace(
    cards.find("nvidia/llama-nemotron-embed-1b-v2"),
    id=MODEL,
    aliases=(),
    dimensions=FULL,
    matryoshka=(SHORT, 32),
)
FIELDS = ("dimensions", "encoding_format", "input_type", "truncate", "embedding_type", "none")
TEXTS = [f"text {n}" for n in range(3)]
WORDS = {
    "refuses": "Model does not support changing {field}",
    "forbids": "Extra inputs are not permitted: ('body', '{field}')",
}


def served(field, manner):
    """A server that refuses a field, or takes no notice of it."""

    def handle(request):
        asked = request.json
        if field in asked and manner in WORDS:
            return error(WORDS[manner].format(field=field))
        role = asked.get("input_type") if field != "input_type" else None
        texts = [f"{role}: {text}" if role else text for text in request.texts]
        rows = vectors(texts, FULL)
        if field != "dimensions":
            rows = rows[:, : asked.get("dimensions", FULL)]
        if asked.get("embedding_type") == "ubinary" and field != "embedding_type":
            return answer(np.packbits(rows > 0, axis=1))
        encoding = asked.get("encoding_format") if field != "encoding_format" else None
        return answer(rows, encoding=encoding, model=MODEL)

    return handle


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("card", [CARD, None], ids=["card", "no card"])
def test_spec_and_batch_never_disagree(serve, connect, dialect, field, card):
    double = serve(served(field, ""))
    for manner, dimensions, kind in itertools.product(
        [*WORDS, "ignores"], [None, SHORT, FULL], ["float", "ubinary", "int8"]
    ):
        double.handler = served(field, manner)
        embedder = connect(double, card or f"{MODEL}-{manner}", dialect=dialect)
        asked = {"dimensions": dimensions, "embedding_type": kind}
        try:
            batch = embedder.embed(TEXTS, input_type="query", truncate="END", **asked)
            spec = embedder.spec(**asked)
        except NimbedError:
            assert field in ("dimensions", "input_type")
            continue
        assert batch.spec == spec
        assert batch.vectors.shape == (3, spec.width)
        assert spec.dimensions == (dimensions or FULL)
        heads = ["query: ", ""] if dialect in ("nim", "nim-hosted") or card else [""]
        full = [vectors([head + text for text in TEXTS], FULL) for head in heads]
        made = [quantize(slice_normalize(rows, spec.dimensions), spec) for rows in full]
        assert any(np.allclose(batch.vectors, rows, atol=1e-6) for rows in made)
        embedder.close()


def test_dimensions_that_are_refused_for_an_unknown_model_are_an_error(serve, connect):
    double = serve(served("dimensions", "refuses"))
    embedder = connect(double, MODEL, dialect="vllm")
    with pytest.raises(ConfigurationError, match="does not support changing dimensions"):
        embedder.embed(TEXTS, input_type="query", dimensions=8)
    with pytest.raises(ConfigurationError, match="ModelCard"):
        embedder.embed(TEXTS, input_type="query", dimensions=8)
    assert len(embedder.embed(TEXTS, input_type="query")) == 3


def test_dimensions_learnt_by_one_who_has_a_card_do_not_mislead_one_who_has_none(serve, connect):
    double = serve(served("dimensions", "refuses"))
    batch = connect(double, CARD, dialect="vllm").embed(TEXTS, input_type="query", dimensions=SHORT)
    assert batch.vectors.shape == (3, SHORT)
    with pytest.raises(ConfigurationError, match="dimensions=16"):
        connect(double, MODEL, dialect="vllm").embed(TEXTS, input_type="query", dimensions=SHORT)


def test_a_role_that_a_gateway_drops_on_the_way_is_an_error_with_the_cure(serve, connect):
    double = serve(lambda request: error("'input_type' parameter is required"))
    with pytest.raises(ConfigurationError, match="dialect='nim-suffix'"):
        connect(double, CARD, dialect="openai").embed(TEXTS, input_type="query")
    assert len(double.posts) <= 3


@pytest.mark.parametrize("dialect", ["nim", "auto"])
def test_a_name_that_fixes_a_type_is_refused_by_that_type(serve, connect, dialect):
    space = cards.find("minilm").spec(embedding_type="ubinary")
    bits = np.packbits(vectors(TEXTS, 384) > 0, axis=1)

    def handle(request):  # as nimbed's own server answers: base64 of bytes, which are no floats
        if request.path == "/v1/models":
            return listing("bits", owner="nimbed")
        if request.path == "/v1/metadata":
            return as_json({"spaces": {"bits": space.to_dict()}})
        data = [
            {"index": n, "embedding": base64.b64encode(row.tobytes()).decode()}
            for n, row in enumerate(bits)
        ]
        return as_json({"data": data})

    double = serve(handle)
    embedder = connect(double, "bits", dialect=dialect)
    for _ in range(2):
        with pytest.raises(ConfigurationError) as caught:
            embedder.embed(TEXTS, input_type="query")
    assert f"a name of {space.model!r} that fixes embedding_type='ubinary'" in str(caught.value)
    assert not double.posts
