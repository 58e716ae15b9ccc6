"""Twenty thousand texts through a server that fails every fifth call in any way it can."""

from __future__ import annotations

import random
import threading
import tracemalloc
from collections import Counter
from dataclasses import replace

import numpy as np

from nimbed import cards
from nimbed.cards import ModelCard
from nimbed.remote.retry import RetryPolicy

from .double import Response, answer, edited, error

TEXTS = 20_000
DIMENSIONS = 64
CARD: ModelCard = replace(
    cards.find("nvidia/nv-embedqa-e5-v5"), id="storm", dimensions=DIMENSIONS, aliases=()
)
_NAN = [float("nan")] * DIMENSIONS


def rows_of(texts):
    """A unit vector that holds its text's number, exact in float32."""
    numbers = np.array([int(text.rsplit(" ", 1)[1]) for text in texts], np.float64)
    angles = numbers * (np.pi / 2 / TEXTS)
    rows = np.zeros((len(texts), DIMENSIONS), np.float32)
    rows[:, 0], rows[:, 1] = np.cos(angles), np.sin(angles)
    return rows


class Storm:
    """Fails by dice, and counts every text that was embedded with success."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.coming = []
        self.lock = threading.Lock()
        self.embedded = Counter()
        self.failed = Counter()

    def __call__(self, request):
        good = answer(
            rows_of(request.texts),
            encoding=request.json["encoding_format"],
            tokens=len(request.texts) * 4,
        )
        with self.lock:
            if self.dice.random() >= 0.2:
                self.embedded.update(request.texts)
                return good
            if not self.coming:
                self.coming = self.dice.sample(list(FAULTS), len(FAULTS))
            name = self.coming.pop()
            self.failed[name] += 1
        return FAULTS[name](good)


FAULTS = {
    "429 ms": lambda good: error("slow down", 429, retry_after_ms="2"),
    "429 s": lambda good: error("slow down", 429, retry_after="0.005"),
    "500": lambda good: error("oops", 500),
    "502": lambda good: Response(502, b"<html>Bad Gateway</html>"),
    "503": lambda good: error("full", 503),
    "reset": lambda good: replace(good, cut=1000),
    "closed": lambda good: Response(close=True),
    "half a JSON": lambda good: replace(good, body=good.body[: len(good.body) // 2]),
    "stall": lambda good: replace(good, stall=2.0),
    "count": lambda good: edited(good, lambda said: said["data"].pop()),
    "twice": lambda good: edited(good, lambda said: said["data"][0].update(index=1)),
    "shifted": lambda good: edited(
        good, lambda said: [item.update(index=item["index"] + 1) for item in said["data"]]
    ),
    "no index": lambda good: edited(good, lambda said: said["data"][0].pop("index")),
    "NaN": lambda good: edited(good, lambda said: said["data"][0].update(embedding=_NAN)),
    "width": lambda good: edited(good, lambda said: said["data"][0].update(embedding="AAAAAA==")),
    "base64": lambda good: edited(good, lambda said: said["data"][0].update(embedding="AAAA")),
}


def test_no_storm_loses_shifts_or_repeats_a_vector(serve, connect):
    storm = Storm(seed=4)
    embedder = connect(
        serve(storm),
        CARD,
        timeout=1.0,
        retry=RetryPolicy(retries=12, shortest=0.002, longest=0.02),
    )
    texts = [f"text number {row}" for row in range(TEXTS)]
    batch = embedder.embed(texts, input_type="passage")
    np.testing.assert_allclose(batch.vectors, rows_of(texts), atol=1e-6)
    assert set(storm.failed) == set(FAULTS)
    assert set(storm.embedded) == set(texts)
    assert set(storm.embedded.values()) == {1}
    assert batch.token_counts.sum() == 4 * TEXTS


def test_memory_holds_the_result_and_little_else(serve, connect):
    storm = Storm(seed=8)
    embedder = connect(
        serve(storm),
        CARD,
        timeout=1.0,
        retry=RetryPolicy(retries=12, shortest=0.002, longest=0.02),
    )
    texts = [f"text number {row}" for row in range(TEXTS)]
    embedder.embed(texts[:2000], input_type="passage")
    tracemalloc.start()
    batch = embedder.embed(texts, input_type="passage", embedding_type="ubinary")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The floats would be 5 MB, their answers as text 7 MB; server and client share the process.
    assert len(batch.vectors.tobytes()) == TEXTS * DIMENSIONS // 8
    assert peak < 8_000_000
