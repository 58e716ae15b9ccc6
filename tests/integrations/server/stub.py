"""A model without weights behind the engine's real scheduler, held and broken at will.

And the ways to ask a server for its vectors, and to know them when they come.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import re
import threading

import httpx
import numpy as np

from nimbed import FakeEmbedder
from nimbed.embedder import Managed, Prepared, Token
from nimbed.errors import InputError
from nimbed.fake import FAKE_CARD
from nimbed.inputs import check_texts


class Stub(Managed):
    """Vectors are drawn from the hash of the prompted text; a word is a token.

    Attributes:
        gate: Batches wait for it; open unless :meth:`hold` closes it.
        held: Set while a batch waits at the gate.
        seen: Texts of every batch that ran.
        poison: A row whose mere presence makes its batch raise.
    """

    card = FAKE_CARD  # an attribute, before the property that an interface makes of it

    def __init__(self, card=FAKE_CARD, *, budget=64, poison=None):
        self.card = card
        self.budget = budget
        self.look_ahead = 1
        self.on_host = False
        self.poison = poison
        self.gate = threading.Event()
        self.gate.set()
        self.held = threading.Event()
        self.seen: list[list[str]] = []

    def hold(self):
        self.held.clear()
        self.gate.clear()

    def spec(self, **options):
        return self.card.spec(**options)

    def prepare(self, inputs, options):
        texts = check_texts(inputs)
        return Prepared(
            rows=[self.card.prompt(options.input_type) + text for text in texts],
            counts=[1 + len(text.split()) for text in texts],
            truncated=(),
        )

    def replicas(self):
        return [self]

    def embed_rows(self, rows):
        if not self.gate.is_set():
            self.held.set()
            self.gate.wait()
        self.seen.append(list(rows))
        if self.poison in rows:
            raise RuntimeError(f"cannot embed {self.poison!r}")
        return np.stack([hashed(row, self.card.dimensions) for row in rows])


class Worded(FakeEmbedder):
    """Tokens are words; two of them stand around every text."""

    def tokenize(self, texts, *, input_type=None, special=True):
        prompt = self.card.prompt(input_type) if input_type else ""
        found = []
        for text in texts:
            words = re.finditer(r"\S+", prompt + text)
            tokens = [Token(len(each[0]), each[0], *each.span(), False) for each in words]
            ends = [Token(1, "[CLS]", 0, 0, True), Token(2, "[SEP]", 0, 0, True)]
            found.append([ends[0], *tokens, ends[1]] if special else tokens)
        return found

    def detokenize(self, ids, *, input_type):
        raise InputError("words are gone", rows=range(len(ids)))


def hashed(text, dimensions):
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(dimensions, np.float32)


def expected(text, role="query", card=FAKE_CARD):
    """Return the unit vector that a stub gives a text."""
    vector = hashed(card.prompt(role) + text, card.dimensions)
    return vector / np.linalg.norm(vector)


@contextlib.contextmanager
def busy(server, stub):
    """Hold the device with a first request until the block ends; yield that request's future."""
    stub.hold()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, server, ["first"])
        try:
            assert stub.held.wait(20)
            yield first
        finally:
            stub.gate.set()


def post(server, texts, **headers):
    """Ask over a connection of its own."""
    body = {"model": FAKE_CARD.id, "input": texts, "input_type": "query"}
    with httpx.Client(base_url=server.url, timeout=30) as client:
        return client.post("/v1/embeddings", json=body, headers=headers)


def is_right(answer, texts):
    assert answer.status_code == 200, answer.text
    got = [item["embedding"] for item in answer.json()["data"]]
    np.testing.assert_allclose(got, [expected(text) for text in texts], atol=1e-6)
