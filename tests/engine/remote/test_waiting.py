"""Servers that let nothing pass for a minute, by a clock that jumps to whatever comes next."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import selectors
import time

import numpy as np
import pytest

from nimbed import cards
from nimbed.errors import OverloadedError, RemoteError
from nimbed.remote.http import Http, Reply
from nimbed.remote.retry import RetryPolicy, wait_in_words

from .double import Double, Request, as_json, error, vectors
from .players import E5, nim, plain

DIMENSIONS = 16
CARD = dataclasses.replace(cards.find(E5), dimensions=DIMENSIONS)
TEXTS = [f"text number {row}" for row in range(5000)]
NIM = nim(dimensions=DIMENSIONS, hosted=True)
LATENCY = 0.15


class Clock(selectors.DefaultSelector):
    """Where everybody waits for a time alone, that time is now."""

    now = 0.0

    def select(self, timeout=None):
        events = super().select(timeout if timeout is None else 0)
        if not events and timeout:
            Clock.now += timeout
        return events


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        super().__init__(Clock())

    def time(self):
        return Clock.now


def now():
    return Clock.now


class Played:
    """A server without a socket, whose answers take a moment of that clock."""

    url = "http://played.example/v1"

    def __init__(self, handler):
        self.handler = handler
        self.posts = []

    async def request(self, method, url, body=None, *, traffic):
        traffic.requests += 1
        await asyncio.sleep(LATENCY)
        request = Request(method, url.removeprefix("http://played.example"), {}, body or b"", 0)
        if method == "POST":
            self.posts.append(request)
        answered = self.handler(request)
        return Reply(answered.status, answered.headers, answered.body)


@pytest.fixture
def serve(monkeypatch):
    """Play a server in place of every connection."""
    monkeypatch.setattr("nimbed.remote.embedder.asyncio.SelectorEventLoop", JumpingLoop)

    def start(handler):
        played = Played(handler)

        async def request(self, *given, **named):
            return await played.request(*given, **named)

        monkeypatch.setattr(Http, "request", request)
        return played

    return start


class Sliding:
    """So many requests in any minute."""

    def __init__(self, most=40):
        self.most, self.times = most, []

    def take(self):
        self.times = [at for at in self.times if at > now() - 60]
        if len(self.times) < self.most:
            self.times.append(now())
            return 0.0
        return self.times[0] + 60 - now()

    @property
    def left(self):
        return self.most - len(self.times)


class Fixed(Sliding):
    """So many requests in each minute from the first request on."""

    begun = None

    def take(self):
        if self.begun is None or now() >= self.begun + 60:
            self.begun, self.times = now(), []
        if len(self.times) < self.most:
            self.times.append(now())
            return 0.0
        return self.begun + 60 - now()


def limited(window, refusal, server=NIM, **headers):
    def handle(request):
        if request.method == "GET":
            return server(request)
        wait = window.take()
        if wait > 0:
            return refusal(wait)
        answered = server(request)
        for name, value in headers.items():
            answered.headers[name] = value(window)
        return answered

    return handle


REFUSALS = {
    "silent": lambda wait: error("Too Many Requests", 429),
    "words": lambda wait: error(f"Rate limit reached. Please retry in {wait:.0f} s", 429),
    "minutes": lambda wait: error(f"Please try again in {wait // 60:.0f}m{wait % 60:.2f}s.", 429),
    "field": lambda wait: as_json({"error": {"message": "slow", "retry_after": wait}}, 429),
    "seconds": lambda wait: error("slow down", 429, retry_after=f"{wait:.1f}"),
    "milliseconds": lambda wait: error("slow down", 429, retry_after_ms=f"{wait * 1000:.0f}"),
    "reset": lambda wait: error(
        "slow down",
        429,
        x_ratelimit_remaining_requests="0",
        x_ratelimit_reset_requests=f"{wait:.1f}s",
    ),
}


@pytest.mark.parametrize(
    ("window", "dialect", "a_request"),
    [
        (Sliding, "nim-hosted", 50),
        (Fixed, "nim-hosted", 50),
        (Sliding, "openai", 50),  # which allows nobody knows what
        (Fixed, "vllm", 64),
        (Sliding, "tei", 32),
    ],
)
def test_a_limit_by_the_minute_costs_few_requests(
    serve, connect, caplog, window, dialect, a_request
):
    server = NIM if dialect == "nim-hosted" else plain(DIMENSIONS, model=E5)
    double = serve(limited(window(), REFUSALS["silent"], server=server))
    embedder = connect(double, CARD, dialect=dialect, batch_size=a_request, retry=RetryPolicy())
    with caplog.at_level(logging.WARNING, "nimbed.remote"):
        batch = embedder.embed(TEXTS, input_type="passage")
    needed = math.ceil(len(TEXTS) / a_request)
    assert needed <= len(double.posts) <= 1.1 * needed
    expected = vectors([f"passage: {text}" for text in TEXTS[::500]], DIMENSIONS)
    np.testing.assert_allclose(batch.vectors[::500], expected, atol=1e-6)
    assert "waiting" in caplog.text


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_wait_is_kept_however_it_is_told(serve, connect, refusal):
    double = serve(limited(Fixed(most=20), refusal))
    embedder = connect(double, CARD, batch_size=50, concurrency=2, retry=RetryPolicy())
    embedder.embed(TEXTS[:1500], input_type="passage")
    assert 30 <= len(double.posts) <= 33 + 2 * (refusal is REFUSALS["silent"])


def test_a_limit_by_the_second_is_kept_over_a_socket(connect):
    begun, granted = time.monotonic(), []

    def handle(request):
        granted[:] = [at for at in granted if at > time.monotonic() - 1]
        if len(granted) == 10:
            wait = granted[0] + 1 - time.monotonic()
            return error("slow down", 429, retry_after_ms=f"{wait * 1000:.0f}")
        granted.append(time.monotonic())
        return NIM(request)

    double = Double(handle)
    try:
        embedder = connect(double, CARD, batch_size=1, retry=RetryPolicy())
        batch = embedder.embed(TEXTS[:30], input_type="passage")
    finally:
        double.stop()
    expected = vectors([f"passage: {text}" for text in TEXTS[:30]], DIMENSIONS)
    np.testing.assert_allclose(batch.vectors, expected, atol=1e-6)
    assert time.monotonic() - begun > 1.9  # thirty do not fit into less
    assert len(double.posts) <= 60


def test_a_limit_that_answers_announce_costs_no_request(serve, connect):
    window = Fixed()
    headers = {
        "x-ratelimit-remaining-requests": lambda window: str(window.left),
        "x-ratelimit-reset-requests": lambda window: f"{window.begun + 60.5 - now():.2f}s",
    }
    double = serve(limited(window, REFUSALS["silent"], **headers))
    embedder = connect(double, CARD, batch_size=50, retry=RetryPolicy())
    embedder.embed(TEXTS, input_type="passage")
    assert len(double.posts) == 100


def test_two_embedders_share_what_is_known_of_a_server(serve, connect):
    double = serve(limited(Sliding(), REFUSALS["words"]))
    first, second = (
        connect(double, CARD, dialect="nim-hosted", retry=RetryPolicy()) for _ in range(2)
    )
    first.embed(TEXTS[:2500], input_type="passage")
    second.embed(TEXTS[:1000], input_type="passage")
    assert len(double.posts) <= 77


@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:3128"])
def test_a_cold_start_passes(serve, connect, caplog, monkeypatch, proxy):
    monkeypatch.setenv("HTTP_PROXY", proxy)
    begun = now()

    def handle(request):
        if now() < begun + 75:
            return error("Model is loading", 503)
        return NIM(request)

    double = serve(handle)
    with caplog.at_level(logging.WARNING, "nimbed.remote"):
        batch = connect(double, CARD, retry=RetryPolicy()).embed(["a"], input_type="query")
    assert len(batch) == 1
    assert "Model is loading" in caplog.text
    assert ("(through the proxy http://127.0.0.1:3128 of HTTP_PROXY)" in caplog.text) is bool(proxy)
    assert 75 < now() - begun < 120


def test_a_refusal_for_ever_ends_at_the_deadline(serve, connect):
    begun = now()
    double = serve(lambda request: error("slow down", 429))
    with pytest.raises(OverloadedError, match="slow down"):
        connect(double, CARD, batch_size=50, retry=RetryPolicy(deadline=60)).embed(
            TEXTS, input_type="passage"
        )
    assert now() - begun < 90


def test_what_was_finished_is_kept(serve, connect):
    window = Fixed()
    double = serve(limited(window, lambda wait: error("slow down", 429, retry_after="3600")))
    embedder = connect(double, CARD, batch_size=50, retry=RetryPolicy())
    with pytest.raises(RemoteError) as caught:
        embedder.embed(TEXTS, input_type="passage")
    partial = caught.value.partial
    assert len(partial.rows) == 40 * 50 == len(partial.batch)
    some = list(partial.rows)[::199]
    expected = vectors([f"passage: {TEXTS[row]}" for row in some], DIMENSIONS)
    np.testing.assert_allclose(partial.batch.vectors[::199], expected, atol=1e-6)
    assert partial.batch.spec == embedder.spec()


def test_where_nothing_was_finished_nothing_is_kept(serve, connect):
    double = serve(lambda request: error("no", 404))
    with pytest.raises(RemoteError) as caught:
        connect(double, CARD).embed(["a"], input_type="query")
    assert caught.value.partial is None


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("Rate limit reached. retry in 41 s", 41.0),
        ("Please try again in 6m0s.", 360.0),
        ("Please try again in 1m12.5s", 72.5),
        ("Please try again in 450ms.", 0.45),
        ("try again in 20s", 20.0),
        ("Please retry after 6 seconds", 6.0),
        ("wait 2 minutes and try again", 120.0),
        ("Quota resets in 30 sec", 30.0),
        ("You may retry later", None),
        ("limit of 40 requests per minute", None),
        ("try again with fewer than 50 inputs", None),
        ("retry in 5 models", None),
    ],
)
def test_a_wait_is_read_from_words(words, seconds):
    assert wait_in_words(words) == seconds
