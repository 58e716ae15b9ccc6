"""Late chunks against transformers' states of the whole document, pooled by span in numpy."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from sentence_transformers.sentence_transformer.modules import Pooling
from tests.engine.local import oracles
from tests.engine.local.families import FAMILIES, TEXTS, load
from tests.engine.local.sentence_folders import saved, transformer, width_of
from tokenizers import Tokenizer

from nimbed import FakeEmbedder
from nimbed.chunks import ContextText, LateSplitter, Splitter
from nimbed.errors import ConfigurationError, TooLongError
from nimbed.load import chunk_splitter

DOCUMENT = "  ".join(f"{text}. And {text}, number {n}!\n\n" for n, text in enumerate(TEXTS))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder and embedder of a family, made once."""
    kept: dict[tuple[str, str], Any] = {}

    def make(family: str, backend: str = "torch") -> Any:
        if (family, backend) not in kept:
            folder = FAMILIES[family](tmp_path_factory.mktemp(family) / "model")
            kept[family, backend] = (folder, load(folder, backend=backend))
        return kept[family, backend]

    return make


def expected(folder, chunk: ContextText, prompt: str) -> np.ndarray:
    """The mean of the states of the tokens whose last character lies in the chunk."""
    encoding = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt + chunk.document)
    inside = []
    for place, ((_, end), special) in enumerate(
        zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    ):
        end -= len(prompt)
        before = end <= 0 and not (special and place > 0)
        behind = bool(special) and place > 0
        first, last = chunk.start == 0, chunk.stop == len(chunk.document)
        if before or behind:
            inside.append(first if before else last)
        else:
            inside.append(chunk.start < end <= chunk.stop)
    states = oracles.states(oracles.oracle(folder), encoding.ids)
    mean = states[np.array(inside)].mean(0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize(
    ("family", "backend"),
    [(family, "torch") for family in ("bert", "xlm-roberta", "llama", "mistral")]
    + [(family, "onnxruntime") for family in ("bert", "xlm-roberta")],
)
def test_chunks_pool_the_states_of_the_whole_document(made, family, backend):
    folder, embedder = made(family, backend)
    prompt = embedder.card.passage_prompt
    for overlap in (0, 4):
        chunks = LateSplitter(embedder, tokens=32, overlap=overlap).split(DOCUMENT)
        assert len(chunks) > 5
        assert [DOCUMENT[chunk.start : chunk.stop] for chunk in chunks] == [
            str(chunk.text) for chunk in chunks
        ]
        batch = embedder.embed([chunk.text for chunk in chunks], input_type="passage")
        theirs = [expected(folder, chunk.text, prompt) for chunk in chunks]
        np.testing.assert_allclose(batch.vectors, theirs, atol=1e-5)
        assert all(batch.token_counts > 0)
        plain = embedder.embed([str(chunk.text) for chunk in chunks], input_type="passage")
        assert np.abs(plain.vectors - batch.vectors).max() > 1e-3


def test_a_document_that_is_one_chunk_has_its_plain_vector_and_dense_layers_follow(made):
    torchs = [(family, "torch") for family in ("bert", "gemma3", "llama")]
    for family, backend in [*torchs, ("bert", "onnxruntime"), ("mpnet", "onnxruntime")]:
        embedder = made(family, backend)[1]
        whole = [ContextText(text, 0, len(text)) for text in TEXTS]
        late = embedder.embed([*whole[:3], *TEXTS[3:]], input_type="passage").vectors
        plain = embedder.embed(TEXTS, input_type="passage").vectors
        np.testing.assert_allclose(late, plain, atol=1e-6)


def test_a_prompt_that_is_not_pooled_belongs_to_no_chunk(tmp_path):
    network = transformer(FAMILIES["bert"](tmp_path / "network"))
    pooling = Pooling(width_of(tmp_path / "network"), "mean", include_prompt=False)
    prompts = {"query": "ask: ", "document": "the long passage: "}
    saved(tmp_path / "model", [network, pooling], prompts=prompts)
    embedder = load(tmp_path / "model")
    assert embedder.card.passage_prompt
    late = [ContextText(text, 0, len(text)) for text in TEXTS]
    np.testing.assert_allclose(
        embedder.embed(late, input_type="passage").vectors,
        embedder.embed(TEXTS, input_type="passage").vectors,
        atol=1e-6,
    )
    halves = [ContextText(TEXTS[1], 0, 12), ContextText(TEXTS[1], 12, len(TEXTS[1]))]
    counts = embedder.embed(halves, input_type="passage").token_counts
    assert sum(counts) < embedder.embed([TEXTS[1]], input_type="passage").token_counts[0]


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_chunk_never_depends_on_its_neighbours(made, backend):
    embedder = made("bert", backend)[1]
    documents = [DOCUMENT[:120], DOCUMENT[40:], DOCUMENT]
    chunks = [
        chunk.text
        for each in LateSplitter(embedder, tokens=32).split_all(documents)
        for chunk in each
    ]
    together = embedder.embed(chunks, input_type="passage").vectors
    turned = embedder.embed(chunks[::-1], input_type="passage").vectors[::-1]
    alone = [embedder.embed([chunk], input_type="passage").vectors[0] for chunk in chunks]
    np.testing.assert_array_equal(together, turned)
    np.testing.assert_array_equal(together, alone)


def test_a_document_longer_than_the_model_reads_is_read_in_the_longest_parts_that_fit(made):
    embedder = made("xlm-roberta")[1]  # 64 tokens
    (chunks,) = LateSplitter(embedder, tokens=24).split_all([DOCUMENT])
    read = list(dict.fromkeys(chunk.text.document for chunk in chunks))
    assert "".join(read) == "".join(chunk.text for chunk in chunks) == DOCUMENT
    assert max(embedder.count_tokens(read, input_type="passage")) <= 64
    assert len(read) < len(chunks)
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    # Who makes chunks of his own is told.
    with pytest.raises(TooLongError, match="LateSplitter"):
        embedder.embed([ContextText(DOCUMENT, 0, 20)], input_type="passage")


def test_what_cannot_be_chunked_late_says_why(made):
    for family, why in [("bge-m3", "it pools by cls"), ("nvembed", "it pools by latent")]:
        with pytest.raises(ConfigurationError, match=why):
            LateSplitter(made(family)[1], tokens=32)
    fake = FakeEmbedder()
    chunk = ContextText("a part of a text", 0, 6)
    with pytest.raises(ConfigurationError, match="row 0 is a chunk with the text around it"):
        fake.embed_kinds([chunk], kinds=["sparse"], input_type="passage")
    with pytest.raises(ConfigurationError, match="chunk_mode must be one of 'plain', 'late'"):
        chunk_splitter(fake, tokens=32, mode="early")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="str does not give"):
        LateSplitter("a text", tokens=32)


def test_equal_words_in_other_company_are_other_chunks():
    left, right = ContextText("one two", 0, 3), ContextText("one too", 0, 3)
    assert left == ContextText("one two", 0, 3) == pickle.loads(pickle.dumps(left))
    assert left != right
    assert len({left, right, ContextText("one two", 0, 3)}) == 2
    fake = FakeEmbedder()
    vectors = fake.embed([left, right, "one"], input_type="passage").vectors
    assert not np.allclose(vectors[0], vectors[1])
    assert isinstance(chunk_splitter(fake, tokens=32), Splitter)
