"""What users of LlamaIndex's adapters complain about, on ours."""

from __future__ import annotations

import asyncio
import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.rate_limiter import TokenBucketRateLimiter
from llama_index.core.schema import Document, ImageDocument, ImageNode, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from pydantic import ValidationError

from nimbed import FakeEmbedder, Image
from nimbed.batch import PartialResult
from nimbed.errors import ConfigurationError, InputError, RemoteError, UnknownModelError
from nimbed.fake import FAKE_CARD
from nimbed_llama_index import NimbedEmbedding, NimbedTextSplitter

SECRET = "nvapi-very-secret"
REMOTE = {"model_name": "m", "base_url": "http://localhost:9"}


def fake(**options: Any) -> NimbedEmbedding:
    return NimbedEmbedding.from_embedder(FakeEmbedder(), **options)


def hashed(**settings: Any) -> str:
    return get_transformation_hash([TextNode(text="a")], NimbedEmbedding(**settings))


def test_it_is_an_embedding_that_llama_index_knows() -> None:
    assert BaseEmbedding.__name__ in [each.__name__ for each in NimbedEmbedding.__mro__]
    assert NimbedEmbedding.class_name() == "NimbedEmbedding"


def test_model_is_taken_for_model_name() -> None:
    ours = NimbedEmbedding(model="./no-such-folder", base_url=None)
    assert (ours.model_name, ours.model) == ("./no-such-folder", None)
    with pytest.raises(UnknownModelError, match="no-such-folder"):
        ours.get_query_embedding("a")
    named = NimbedEmbedding(model_name="./no-such-folder")
    assert ours.to_dict() == named.to_dict()
    assert hashed(model="./no-such-folder") == hashed(model_name="./no-such-folder")
    assert pickle.loads(pickle.dumps(ours)).model_name == "./no-such-folder"
    served = NimbedEmbedding(model="m", base_url=REMOTE["base_url"])
    assert served.to_dict() == NimbedEmbedding(**REMOTE).to_dict()
    assert NimbedEmbedding(model="m", model_name="m").model_name == "m"
    ours = NimbedEmbedding()
    ours.model = "other"
    assert ours.model_name == "other"


def test_two_names_for_the_model_that_differ_are_refused() -> None:
    with pytest.raises(ValidationError, match="mean the same and differ: 'a' and 'b'"):
        NimbedEmbedding(model="a", model_name="b")
    ours = NimbedEmbedding(model_name="b")
    with pytest.raises(ValidationError, match="use model_name"):
        ours.model = "a"
    ours.model_name = "c"
    assert (ours.model_name, ours.model) == ("c", None)


def test_another_model_is_loaded_after_an_assignment() -> None:
    ours = NimbedEmbedding()
    assert ours.spec.dimensions == 384
    ours.model_name = "./no-such-folder"
    with pytest.raises(UnknownModelError, match="no-such-folder"):
        ours.get_query_embedding("a")


@pytest.mark.parametrize(
    "wrong",
    [{"truncate": "MIDDLE"}, {"modell": "m"}, {"base_url": "http://a"}, {"embedding_type": "bits"}],
)
def test_wrong_settings_are_refused_without_showing_the_key(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        NimbedEmbedding(**{"api_key": SECRET, **wrong})
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)


def test_the_key_is_in_no_text_no_dict_and_no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIMBED_API_KEY", raising=False)
    ours = NimbedEmbedding(**REMOTE, api_key=SECRET)
    shown = [repr(ours), str(ours.to_dict()), ours.to_json(), str(ours.to_payload())]
    assert not [text for text in shown if SECRET in text]
    pickled = pickle.dumps(ours)
    assert SECRET.encode() not in pickled
    assert pickle.loads(pickled).api_key is None
    assert ours.api_key is not None
    monkeypatch.setenv("NIMBED_API_KEY", "of-the-worker")
    assert pickle.loads(pickled).api_key.get_secret_value() == "of-the-worker"


def test_the_hash_of_a_pipeline_follows_the_vectors_and_no_knob() -> None:
    plain = hashed()
    for knob in (
        {"device": "cpu"},
        {"embed_batch_size": 7},
        {"num_workers": 2},
        {"progress": True},
        {"cache": SimpleKVStore()},
    ):
        assert hashed(**knob) == plain
    assert hashed(**REMOTE) == hashed(**REMOTE, api_key=SECRET)
    changes: list[dict[str, Any]] = [
        {"model_name": "other"},
        {"dimensions": 64},
        {"embedding_type": "int8"},
        {"embedding_type": "int8", "int8_scale": "nim"},
        {"truncate": "END"},
        {"revision": "main"},
    ]
    assert len({plain, *(hashed(**change) for change in changes)}) == 1 + len(changes)


def test_from_dict_gives_back_what_to_dict_said() -> None:
    ours = NimbedEmbedding(**REMOTE, dimensions=64, truncate="END")
    assert NimbedEmbedding.from_dict(ours.to_dict()).to_dict() == ours.to_dict()


def test_a_pickle_after_use_is_small_and_leaves_the_original_whole() -> None:
    store = SimpleKVStore()
    ours = NimbedEmbedding(
        cache=store, rate_limiter=TokenBucketRateLimiter(requests_per_minute=6000)
    )
    before = ours.get_text_embedding("a cat")
    fields = dict(ours.__dict__)
    pickled = pickle.dumps(ours)
    assert len(pickled) < 2000
    assert ours.__dict__ == fields
    np.testing.assert_allclose(pickle.loads(pickled).get_text_embedding("a cat"), before, atol=1e-6)


def test_a_text_too_long_amid_a_batch_is_named_or_cut() -> None:
    texts = ["short", "word " * 600, "short too"]
    with pytest.raises(InputError) as caught:
        fake().get_text_embedding_batch(texts)
    assert caught.value.rows == (1,)
    assert len(fake(truncate="END").get_text_embedding_batch(texts)) == 3


@pytest.mark.parametrize("text", [3, None, "", " \n"])
def test_what_is_no_text_is_a_value_error(text: Any) -> None:
    for embed in (fake().get_text_embedding, fake().get_query_embedding):
        with pytest.raises(ValueError, match="text|string|str"):
            embed(text)


def test_no_texts_give_no_vectors() -> None:
    assert fake().get_text_embedding_batch([]) == []


def test_images_are_embedded_where_the_card_has_them(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image")
    pil.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    path, memory = str(tmp_path / "red.png"), io.BytesIO((tmp_path / "red.png").read_bytes())
    sees = NimbedEmbedding.from_embedder(
        FakeEmbedder(replace(FAKE_CARD, modalities=("text", "image")))
    )
    one, two = sees.get_image_embedding_batch([path, memory])
    assert one == two == sees.get_image_embedding(path)
    with pytest.raises(ConfigurationError, match="embeds text"):
        fake().get_image_embedding(path)


@pytest.mark.parametrize(
    ("call", "chunks"),
    [
        (lambda ours: ours.get_text_embedding("a"), [["a"]]),
        (lambda ours: ours.get_query_embedding("a"), [["a"]]),
        (lambda ours: ours.get_text_embedding_batch(["a", "b", "c"]), [["a", "b"], ["c"]]),
        (lambda ours: asyncio.run(ours.aget_text_embedding("a")), [["a"]]),
        (lambda ours: asyncio.run(ours.aget_query_embedding("a")), [["a"]]),
        (
            lambda ours: asyncio.run(ours.aget_text_embedding_batch(["a", "b", "c"])),
            [["a", "b"], ["c"]],
        ),
    ],
)
def test_events_tell_texts_and_vectors(call: Any, chunks: list[list[str]]) -> None:
    seen: list[Any] = []

    class Watch(BaseEventHandler):
        def handle(self, event: Any, **_: Any) -> None:
            seen.append(event)

    ours = fake(embedding_type="ubinary")
    ours.embed_batch_size = 2
    root, watch = get_dispatcher(), Watch()
    root.add_event_handler(watch)
    try:
        made = call(ours)
    finally:
        root.event_handlers.remove(watch)
    ends = [event for event in seen if isinstance(event, EmbeddingEndEvent)]
    assert sum(isinstance(event, EmbeddingStartEvent) for event in seen) == len(chunks)
    assert sorted(event.chunks for event in ends) == chunks
    vectors = [
        row for event in sorted(ends, key=lambda end: end.chunks) for row in event.embeddings
    ]
    assert vectors == (made if isinstance(made[0], list) else [made])


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    fake().get_text_embedding_batch(["a", "b"], show_progress=True)
    assert "Generating embeddings" in capsys.readouterr().err


@pytest.mark.parametrize("asynchronous", [False, True])
def test_images_in_a_pipeline_are_embedded_as_what_they_show(
    tmp_path: Path, asynchronous: bool
) -> None:
    pil = pytest.importorskip("PIL.Image")
    for colour in ("red", "blue"):
        pil.new("RGB", (4, 4), colour).save(tmp_path / f"{colour}.png")
    red, blue = str(tmp_path / "red.png"), str(tmp_path / "blue.png")
    pairs = FakeEmbedder(replace(FAKE_CARD, modalities=("text", "image", "text_image")))
    ours = NimbedEmbedding.from_embedder(pairs)
    split = NimbedTextSplitter(embed_model=ours)
    pipeline = IngestionPipeline(transformations=[split, ours], disable_cache=True)
    documents = [
        Document(text="a cat"),
        ImageDocument(image_path=red),
        ImageDocument(image_path=blue, text="a sea"),
    ]
    if asynchronous:
        nodes = asyncio.run(pipeline.arun(documents=documents))
    else:
        nodes = pipeline.run(documents=documents)
    wanted = pairs.embed(["a cat", Image(red), ("a sea", Image(blue))], input_type="passage")
    assert [node.embedding for node in nodes] == wanted.lists()
    assert ours([ImageNode(image_path=red)])[0].embedding == wanted.lists()[1]


def test_an_image_that_cannot_be_embedded_is_named_by_its_node(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image").new("RGB", (4, 4)).save(tmp_path / "a.png")
    ours = NimbedEmbedding.from_embedder(
        FakeEmbedder(replace(FAKE_CARD, modalities=("text", "image")))
    )
    text, path = TextNode(text="a"), str(tmp_path / "a.png")
    with pytest.raises(InputError, match="of node far is not here, and an address is not") as far:
        ours([text, ImageNode(id_="far", image_url="http://localhost:9/a.png")])
    with pytest.raises(InputError, match="node both has a text .* takes no pairs") as both:
        ours([text, ImageNode(id_="both", image_path=path, text="a caption")])
    assert far.value.rows == both.value.rows == (1,)
    with pytest.raises(ConfigurationError, match="embeds text"):
        fake()([ImageNode(image_path=path)])


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_names_the_rows_of_the_call_in_whatever_batch(
    cached: bool, asynchronous: bool
) -> None:
    ours = fake(cache=SimpleKVStore() if cached else None)
    ours.embed_batch_size = 3
    embed = ours.get_text_embedding_batch
    if asynchronous:
        embed = lambda texts: asyncio.run(ours.aget_text_embedding_batch(texts))  # noqa: E731
    texts = [f"text {n}" for n in range(10)]
    ours.get_text_embedding_batch([*texts[:4], *texts[5:]])  # the cache leaves one row of a batch
    for place in (4, 9):
        wrong = [*texts[:place], " ", *texts[place + 1 :]]
        with pytest.raises(InputError, match=f"row {place} is; leave it out") as caught:
            embed(wrong)
        assert caught.value.rows == (place,)


def test_an_error_in_a_pipeline_names_the_places_of_nodes(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image").new("RGB", (4, 4)).save(tmp_path / "a.png")
    sees = replace(FAKE_CARD, modalities=("text", "image"))
    ours = NimbedEmbedding.from_embedder(FakeEmbedder(sees))
    image = ImageNode(image_path=str(tmp_path / "a.png"))
    with pytest.raises(InputError, match="row 2 is; leave it out"):
        ours([image, TextNode(text="a"), TextNode(text=" ")])


def test_a_servers_failure_names_the_rows_of_the_call_and_what_was_done() -> None:
    class Failing(FakeEmbedder):
        def embed(self, inputs: Any, **options: Any) -> Any:
            if "bad" not in inputs:
                return super().embed(inputs, **options)
            error = RemoteError("it would not (row 1)", rows=(1,))
            error.partial = PartialResult((0,), super().embed(inputs[:1], **options))
            raise error

    ours = NimbedEmbedding.from_embedder(Failing())
    ours.embed_batch_size = 2
    with pytest.raises(RemoteError, match=r"it would not \(row 3\)") as caught:
        ours.get_text_embedding_batch(["a", "b", "c", "bad"])
    assert caught.value.rows == (3,)
    assert caught.value.partial is not None
    assert caught.value.partial.rows == (2,)
