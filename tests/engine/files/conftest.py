import json

import numpy as np
import pytest

from nimbed import EmbeddingBatch, FakeEmbedder


@pytest.fixture
def embedder():
    return FakeEmbedder()


@pytest.fixture
def write_jsonl(tmp_path):
    def write(records, name="texts.jsonl"):
        path = tmp_path / name
        lines = [line if isinstance(line, str) else json.dumps(line) for line in records]
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


class CountingEmbedder(FakeEmbedder):
    """Gives unit vectors without hashing, and remembers how many texts each call had."""

    def __init__(self):
        super().__init__()
        self.sizes = []
        self.on_call = lambda: None

    def embed(self, inputs, *, input_type, embedding_type="float", progress=False, **_):
        self.on_call()
        self.sizes.append(len(inputs))
        return EmbeddingBatch.from_floats(
            np.ones((len(inputs), 64), np.float32),
            spec=self.spec(embedding_type=embedding_type),
            input_type=input_type,
            token_counts=np.ones(len(inputs), np.int32),
        )


@pytest.fixture
def counting_embedder():
    return CountingEmbedder()
