"""What users of LangChain's adapters complain about, on ours."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("langchain_core")

from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.load import dumpd
from pydantic import ValidationError

from nimbed import FakeEmbedder
from nimbed.errors import InputError, UnknownModelError
from nimbed_langchain import NimbedEmbeddings

SECRET = "nvapi-very-secret"
LONG = "word " * 600


def fake(**options: Any) -> NimbedEmbeddings:
    return NimbedEmbeddings.from_embedder(FakeEmbedder(), **options)


def test_another_model_is_loaded_after_a_copy_or_an_assignment() -> None:
    ours = NimbedEmbeddings()
    bits = ours.model_copy(update={"embedding_type": "ubinary"})
    assert ours.spec.model == bits.spec.model
    other = ours.model_copy(update={"model": "./no-such-folder"})
    ours.model = "./no-such-folder"
    for changed in (other, ours):
        with pytest.raises(UnknownModelError, match="no-such-folder"):
            changed.embed_query("a")


@pytest.mark.parametrize(
    "wrong",
    [{"truncate": "MIDDLE"}, {"trucate": "END"}, {"embedding_type": "bits"}, {"api_key": SECRET}],
)
def test_wrong_settings_are_refused_without_showing_the_key(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        NimbedEmbeddings(**{"api_key": SECRET, **wrong})
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)


@pytest.mark.parametrize("texts", ["one string", [1, 2], ["a", None], [""]])
def test_what_is_no_list_of_texts_is_a_value_error(texts: Any) -> None:
    with pytest.raises(ValueError, match="text|string"):
        fake().embed_documents(texts)
    with pytest.raises(ValueError, match="text|string"):
        asyncio.run(fake().aembed_documents(texts))


@pytest.mark.parametrize("text", [3, None, "", " \n", ["a"]])
def test_what_is_no_question_is_a_value_error(text: Any) -> None:
    with pytest.raises(ValueError, match="text|string|str"):
        fake().embed_query(text)


@pytest.mark.parametrize("truncate", ["NONE", "START", "END"])
def test_no_documents_give_no_vectors(truncate: Any) -> None:
    assert fake(truncate=truncate).embed_documents([]) == []


def test_a_text_too_long_amid_a_batch_is_named_or_cut() -> None:
    texts = ["short", LONG, "short too"]
    with pytest.raises(InputError) as caught:
        fake().embed_documents(texts)
    assert caught.value.rows == (1,)
    start, end = (fake(truncate=cut).embed_documents(texts) for cut in ("START", "END"))
    assert len(start) == len(end) == 3
    assert fake(truncate="END").embed_documents_typed(texts).truncated == (1,)


def test_packed_vectors_come_as_signs_that_rank_by_hamming_and_typed_as_bytes() -> None:
    ours, texts = fake(embedding_type="ubinary"), [f"text {n}" for n in range(20)]
    listed, query = np.array(ours.embed_documents(texts)), np.array(ours.embed_query("text 7"))
    typed, asked = ours.embed_documents_typed(texts), ours.embed_query_typed("text 7")
    assert set(np.unique(listed)) == {-1.0, 1.0}
    assert typed.vectors.shape == (20, 8)
    hamming = np.unpackbits(typed.bits() ^ asked.bits(), axis=1).sum(axis=1)
    np.testing.assert_array_equal(listed @ query, 64 - 2 * hamming.astype(int))
    assert ours.spec == typed.spec


def test_knobs_of_the_other_kind_of_model_are_refused() -> None:
    for wrong in ({"timeout": 3.0}, {"concurrency": 2}, {"base_url": "http://a", "device": "cpu"}):
        with pytest.raises(ValidationError, match="can only be used with a (server|local model)"):
            NimbedEmbeddings(**wrong)


@pytest.mark.parametrize("kind", ["float", "int8", "uint8", "binary"])
def test_every_number_is_one_that_json_knows(kind: Any) -> None:
    assert json.loads(json.dumps(fake(embedding_type=kind).embed_documents(["a"])))


def test_tokens_reach_langchains_usage_callback_sync_and_async() -> None:
    ours = fake()
    with get_usage_metadata_callback() as usage:
        ours.embed_documents(["one two", "three"])
        asyncio.run(ours.aembed_query("four"))
    # Each text has one word of prompt.
    assert usage.usage_metadata["nimbed/fake"]["input_tokens"] == 7


def test_the_key_is_in_no_text_and_no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIMBED_API_KEY", raising=False)
    ours = NimbedEmbeddings(model="m", base_url="http://localhost:9", api_key=SECRET)
    shown = [repr(ours), str(ours), ours.model_dump_json(), json.dumps(dumpd(ours), default=repr)]
    assert not [text for text in shown if SECRET in text]
    pickled = pickle.dumps(ours)
    assert SECRET.encode() not in pickled
    assert copy.deepcopy(ours).api_key == ours.api_key
    assert pickle.loads(pickled).api_key is None
    monkeypatch.setenv("NIMBED_API_KEY", "of-the-worker")
    assert pickle.loads(pickled).api_key.get_secret_value() == "of-the-worker"


def test_a_pickle_after_use_is_small_and_embeds_the_same() -> None:
    ours = NimbedEmbeddings()
    before = ours.embed_query("a cat")
    pickled = pickle.dumps(ours)
    assert len(pickled) < 2000
    np.testing.assert_allclose(pickle.loads(pickled).embed_query("a cat"), before, atol=1e-6)
