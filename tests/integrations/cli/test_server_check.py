from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.engine.remote.conftest import no_keys, serve
from tests.engine.remote.double import answer, as_json, error, vector, vectors
from tests.engine.remote.players import DIMENSIONS, E5, listing, nim, openai, plain, tei, vllm
from tests.engine.remote.test_verified import cutting_tei
from tests.integrations.server.conftest import running

from nimbed import cards
from nimbed.batch import EmbeddingBatch
from nimbed.errors import ConfigurationError
from nimbed.fake import FakeEmbedder
from nimbed_cli.server_check import examine, examine_all
from nimbed_server import Settings, parse_alias

__all__ = ["no_keys", "serve"]  # fixtures

LLAMA = "nvidia/llama-nemotron-embed-1b-v2"


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_a_healthy_nim_gets_a_clean_bill(serve):
    double = serve(nim(LLAMA, 2048, matryoshka=True, types=["float", "ubinary"]))
    findings = by_name(examine(double.url, LLAMA))
    assert {finding.verdict for finding in findings.values()} == {"ok"} | {
        findings["dimensions"].verdict
    }
    assert "speaks nim" in findings["reach"].detail
    assert "reach the model" in findings["roles"].detail
    assert "required for asymmetric models" in findings["roles"].detail
    assert "384 asked, 384 given" in findings["dimensions"].detail
    assert "ubinary (bits agree by 1.000)" in findings["types"].detail
    assert {"latency of 1", "latency of 8", "latency of 32"} < findings.keys()


@pytest.mark.parametrize(
    ("player", "dialect"),
    [(vllm(E5, DIMENSIONS), "vllm"), (tei(E5, DIMENSIONS), "tei")],
)
def test_prefixed_roles_are_found_to_reach_the_model(serve, player, dialect):
    findings = by_name(examine(serve(player).url, E5))
    assert f"speaks {dialect}" in findings["reach"].detail
    assert findings["roles"].verdict == "ok"
    assert "the card's prompt gives the same (1.0000)" in findings["roles"].detail


def test_a_server_that_swallows_the_role_is_found_out(serve):
    findings = by_name(examine(serve(plain()).url, E5, dialect="nim"))
    assert findings["roles"].verdict == "fail"
    assert "does not reach the model" in findings["roles"].detail


def test_a_server_with_a_prompt_of_its_own_is_noted(serve):
    def handle(request):
        role = request.json.get("input_type", "")
        return answer(vectors([f"<{role}> {text}" for text in request.texts], DIMENSIONS))

    findings = by_name(examine(serve(handle).url, E5, dialect="nim"))
    assert findings["roles"].verdict == "note"


def test_bits_in_another_order_are_noted(serve):
    double = serve(nim(LLAMA, 2048, types=["float", "ubinary"], reverse_bits=True))
    findings = by_name(examine(double.url, LLAMA))
    assert findings["types"].verdict == "note"
    assert findings["dimensions"].verdict == "note"


def test_base64_that_says_something_else_than_the_floats_is_found_out(serve):
    def handle(request):
        rows = vectors(request.texts, DIMENSIONS)
        encoding = request.json.get("encoding_format")
        return answer(rows[:, ::-1] if encoding == "base64" else rows, encoding=encoding)

    findings = by_name(examine(serve(handle).url, E5, dialect="openai"))
    assert findings["base64"].verdict == "fail"


def test_an_old_gateway_is_usable_and_its_gaps_are_noted(serve):
    double = serve(openai("text-embedding-3-small", 1536))
    findings = by_name(examine(double.url, "text-embedding-3-small"))
    assert findings["base64"].verdict == "note"
    assert findings["roles"].verdict == "ok"
    assert findings["types"].detail.startswith("float alone")


class Local(FakeEmbedder):
    """What a local checkpoint of the double's model would give."""

    def embed(self, inputs, *, input_type, **options):
        prompts = [self.card.prompt(input_type) + text for text in inputs]
        return EmbeddingBatch.from_floats(
            np.array([vector(prompt, self.card.dimensions) for prompt in prompts]),
            spec=self.spec(),
            input_type=input_type,
            token_counts=np.ones(len(prompts), np.int32),
        )


def test_parity_with_a_local_checkpoint_is_measured(serve):
    findings = by_name(examine(serve(nim()).url, E5, against=Local(cards.find(E5))))
    assert findings["parity"].verdict == "ok"
    assert "1.00000" in findings["parity"].detail


def test_another_checkpoint_is_found_out(serve):
    other = dataclasses.replace(cards.find(E5), query_prompt="q ", passage_prompt="p ")
    url = serve(nim()).url
    assert by_name(examine(url, E5, against=Local(other)))["parity"].verdict == "fail"
    narrow = dataclasses.replace(cards.find(E5), dimensions=64)
    parity = by_name(examine(url, E5, against=Local(narrow)))["parity"]
    assert "1024 dimensions there, 64 here" in parity.detail


def test_a_server_that_cannot_embed_is_one_failed_finding(serve):
    double = serve(lambda request: error("no such key", 401))
    (finding,) = examine(double.url, E5, dialect="nim")
    assert (finding.name, finding.verdict) == ("reach", "fail")
    assert "no such key" in finding.detail


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ConfigurationError):
        examine("localhost:8000", E5)


def test_a_refused_key_is_called_one_where_the_model_is_asked_for(serve):
    double = serve(lambda request: error("no such key", 401))
    (finding,) = examine(double.url)
    assert "[401] no such key" in finding.detail
    assert "no api key was sent" in finding.detail
    assert examine_all(double.url)[""][0].detail == finding.detail


def test_every_model_of_a_server_is_examined(serve):
    inner = plain(24)

    def handle(request):
        return listing("house/a", "house/b") if request.path == "/v1/models" else inner(request)

    found = examine_all(serve(handle).url, dialect="nim")
    assert list(found) == ["house/a", "house/b"]
    for findings in found.values():
        assert by_name(findings)["reach"].verdict == "ok"


def test_different_texts_with_one_vector_are_found_out(serve):
    double = serve(lambda request: answer(vectors(["same"] * len(request.texts), DIMENSIONS)))
    finding = by_name(examine(double.url, E5, dialect="nim"))["vectors"]
    assert finding.verdict == "fail"
    assert "the same vector" in finding.detail


def test_zeros_are_found_out(serve):
    double = serve(lambda request: answer(0 * vectors(request.texts, DIMENSIONS)))
    (finding,) = examine(double.url, E5, dialect="nim")
    assert finding.verdict == "fail"
    assert "zeros" in finding.detail


def test_every_name_of_nimbeds_own_server_is_known_by_its_spec():
    card = cards.find("minilm")
    fixed = {
        "bits": "embedding_type=ubinary",
        "signs": "embedding_type=binary,as=signs",
        "codes": "embedding_type=int8,int8_scale=even",
        "stored": "input_type=passage,truncate=END",
    }
    aliases = tuple(parse_alias(f"{name}={card.id},{fixes}") for name, fixes in fixed.items())
    with running({card.id: FakeEmbedder(card)}, Settings(port=0, aliases=aliases)) as server:
        found = {name: by_name(each) for name, each in examine_all(server.url).items()}
    assert list(found) == [card.id, *fixed]
    assert "fail" not in {each.verdict for rows in found.values() for each in rows.values()}
    for name, kind in (("bits", "ubinary"), ("signs", "binary"), ("codes", "int8")):
        said = f"serves {name}, which is {card.id} ({kind}, 384 dimensions)"
        assert said in found[name]["reach"].detail
        assert found[name]["alias"].detail.startswith("100.0% of its numbers")
    assert f"which is {card.id} (float, 384 dimensions)" in found["stored"]["reach"].detail


def test_a_name_that_gives_something_else_than_its_spec_is_found_out(serve):
    spec = cards.find(E5).spec(embedding_type="ubinary")
    inner = plain(DIMENSIONS)

    def handle(request):
        if request.path == "/v1/metadata":
            return as_json({"version": "1", "spaces": {"bits": spec.to_dict()}})
        if request.method == "POST" and request.json["model"] == "bits":
            return answer(7 * np.eye(8, 128))
        return inner(request)

    finding = by_name(examine(serve(handle).url, "bits", dialect="nim"))["alias"]
    assert finding.verdict == "fail"
    assert "type: nimbed serve --check" in finding.detail


@pytest.mark.parametrize(
    ("status", "mend"), [(401, "type: export NIMBED_API_KEY=KEY"), (404, "type: curl -i http")]
)
def test_what_to_type_next_is_said(serve, status, mend):
    double = serve(lambda request: error("no", status))
    (finding,) = examine(double.url, E5, dialect="nim")
    assert mend in finding.detail


@pytest.mark.parametrize(
    ("player", "dialect", "verdict", "words"),
    [
        (nim(longest=512), "nim", "ok", "more than 512 tokens are refused"),
        (cutting_tei(512), "tei", "fail", "reads 512 and says nothing"),
        (cutting_tei(9000), "openai", "ok", "more than the card says"),
        (lambda request: answer(vectors(request.texts, DIMENSIONS)), "openai", "note", "no tokens"),
    ],
)
def test_a_text_that_is_cut_in_silence_is_found_out(serve, player, dialect, verdict, words):
    finding = by_name(examine(serve(player).url, E5, dialect=dialect))["length"]
    assert finding.verdict == verdict
    assert words in finding.detail
