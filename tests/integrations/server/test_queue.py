"""The queue under pressure: full, late, abandoned, poisoned, and busy while health is asked."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import httpx
import numpy as np
import openai
import pytest
from tests.engine.test_deadlines import Clock

from nimbed import FakeEmbedder

from .conftest import MODEL, wait_until
from .stub import Stub, busy, expected, is_right, post

SECRET = "the text of somebody"


def waiting(server):
    return server.app.state.models.default.backend.queue.items


def under_way(server):
    return server.app.state.models.default.backend.capacity.used


def test_a_full_queue_refuses_at_once_and_answers_all_it_has_admitted(serve):
    stub = Stub()
    server = serve({MODEL: stub}, max_queue=8)
    with concurrent.futures.ThreadPoolExecutor(24) as pool, busy(server, stub) as first:
        asked = {f"text {n}": pool.submit(post, server, [f"text {n}"]) for n in range(24)}
        wait_until(lambda: sum(answer.done() for answer in asked.values()) == 17)
        assert not first.done()
        stub.gate.set()
        is_right(first.result(), ["first"])
        answers = {text: answer.result() for text, answer in asked.items()}
    admitted = {text: each for text, each in answers.items() if each.status_code == 200}
    assert len(admitted) == 7
    for text, answer in admitted.items():
        is_right(answer, [text])
    for answer in answers.values():
        if answer.status_code == 200:
            continue
        assert answer.status_code == 503
        assert answer.json()["type"] == "overloaded_error"
        assert answer.json()["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["retry-after-ms"]) > 0
    assert under_way(server) == 0
    assert server.embed().status_code == 200


def test_tokens_are_bounded_as_items_are(serve):
    stub = Stub()
    server = serve({MODEL: stub}, max_queue_tokens=50)
    with concurrent.futures.ThreadPoolExecutor(4) as pool, busy(server, stub):
        queued = pool.submit(post, server, ["word " * 40])
        wait_until(lambda: waiting(server) == 1)
        refused = post(server, ["word " * 40])
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        stub.gate.set()
        is_right(queued.result(), ["word " * 40])


def test_health_answers_before_the_batch_that_runs_has_ended(serve):
    stub = Stub()
    server = serve({MODEL: stub})
    with busy(server, stub) as first:
        for path in ("/v1/health/live", "/v1/health/ready", "/v1/models", "/metrics"):
            assert server.client.get(path).status_code == 200
        assert "nimbed_queue_items" in server.client.get("/metrics").text
        assert not first.done()
    is_right(first.result(), ["first"])


def test_a_client_that_leaves_takes_its_inputs_out_of_the_queue(serve):
    stub = Stub()
    server = serve({MODEL: stub})
    with busy(server, stub):
        body = {"model": MODEL, "input": ["left 1", "left 2"]}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=0.3)
        wait_until(lambda: under_way(server) == 1)
    wait_until(lambda: waiting(server) == 0)
    assert server.embed(input=["after"], input_type="query").status_code == 200
    rows = [row for batch in stub.seen for row in batch]
    assert "query: after" in rows
    assert not [row for row in rows if "left" in row]
    assert 'nimbed_failures_total{type="disconnected"} 1.0' in server.client.get("/metrics").text


def test_what_waits_beyond_the_servers_patience_is_504_and_never_computed(serve):
    stub = Stub()
    server = serve({MODEL: stub}, request_timeout_s=0.2)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, busy(server, stub):
        late = pool.submit(post, server, ["late"])
        wait_until(lambda: waiting(server) == 1)
        threading.Event().wait(0.4)
        stub.gate.set()
        answer = late.result()
    assert answer.status_code == 504
    assert answer.json()["type"] == "timeout_error"
    assert answer.headers["x-should-retry"] == "false"
    assert not [row for batch in stub.seen for row in batch if "late" in row]


def test_of_eight_requests_of_which_five_fit_five_are_served(serve, monkeypatch):
    clock = Clock()
    for module in ("queue", "scheduler", "policy"):
        monkeypatch.setattr(f"nimbed.scheduling.{module}.time", clock)

    class Slow(Stub):
        def embed_rows(self, rows):
            made = super().embed_rows(rows)
            clock.now += sum(len(row.split()) for row in rows)  # a second a token
            return made

    stub = Slow()
    server = serve({MODEL: stub}, request_timeout_s=5.2 * 60)

    def store(texts):
        body = {"model": MODEL, "input": texts, "input_type": "passage"}
        return httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=30)

    assert store(["learn the pace"] * 20).status_code == 200
    texts = [[f"{n} {row}" for row in range(20)] for n in range(8)]  # 60 tokens each
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        with busy(server, stub):
            asked = [pool.submit(store, each) for each in texts]
            wait_until(lambda: sum(each.done() for each in asked) == 3)
            wait_until(lambda: waiting(server) == 5 * 20)
            for refused in [each.result() for each in asked if each.done()]:
                assert refused.status_code == 503
                assert 45 <= int(refused.headers["retry-after"]) <= 50  # 360 s of work in 312
        answers = [each.result() for each in asked]
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [503] * 3
    for answer, each in zip(answers, texts, strict=True):
        if answer.status_code == 200:
            got = [item["embedding"] for item in answer.json()["data"]]
            right = [expected(text, "passage") for text in each]
            np.testing.assert_allclose(got, right, atol=1e-6)


def test_an_sdks_own_patience_is_a_deadline(serve):
    stub = Stub()
    server = serve({MODEL: stub})
    with concurrent.futures.ThreadPoolExecutor(2) as pool, busy(server, stub):
        short = pool.submit(post, server, ["short"], **{"x-stainless-read-timeout": "0.2"})
        odd = pool.submit(post, server, ["odd"], **{"x-stainless-read-timeout": "soon"})
        wait_until(lambda: waiting(server) == 2)
        threading.Event().wait(0.4)
        stub.gate.set()
        assert short.result().status_code == 504
        is_right(odd.result(), ["odd"])
    assert not [row for batch in stub.seen for row in batch if "short" in row]


def test_openais_sdk_says_its_patience_in_that_header(serve):
    stub = Stub()
    server = serve({MODEL: stub})
    with (
        busy(server, stub),
        openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", timeout=0.3, max_retries=0
        ) as client,
    ):
        with pytest.raises(openai.APITimeoutError):
            client.embeddings.create(model=MODEL, input="impatient")
        wait_until(lambda: under_way(server) == 1)
    server.embed(input=["after"])
    assert not [row for batch in stub.seen for row in batch if "impatient" in row]


def test_a_direct_lane_has_deadlines_too(serve):
    class Slow(FakeEmbedder):
        async def aembed(self, inputs, **options):
            await asyncio.sleep(20)

    answer = serve({MODEL: Slow()}, request_timeout_s=0.1).embed()
    assert answer.status_code == 504


def test_a_poisoned_input_fails_alone(serve, logged):
    lines = logged("pretty", "debug")
    stub = Stub(poison=f"query: {SECRET}")
    server = serve({MODEL: stub})
    texts = [[f"text {n}"] for n in range(12)] + [[SECRET]]
    with concurrent.futures.ThreadPoolExecutor(13) as pool, busy(server, stub):
        asked = [pool.submit(post, server, each) for each in texts]
        wait_until(lambda: waiting(server) == 13)
        stub.gate.set()
        answers = [answer.result() for answer in asked]
    assert max(map(len, stub.seen)) == 13  # they were in one batch at first
    for each, answer in zip(texts[:-1], answers, strict=False):
        is_right(answer, each)
    assert answers[-1].status_code == 500
    assert answers[-1].headers["x-should-retry"] == "false"
    assert SECRET not in answers[-1].text
    written = "".join(lines())
    assert SECRET not in written
    assert "embed_rows" in written  # where it arose is said
    assert "RuntimeError" in answers[-1].json()["message"]


def test_a_batch_that_is_too_large_for_the_device_is_halved_and_served(serve):
    class Small(Stub):
        def embed_rows(self, rows):
            if len(rows) > 3:
                raise MemoryError("out of memory")
            return super().embed_rows(rows)

    server = serve({MODEL: Small()})
    texts = [f"text {n}" for n in range(40)]
    is_right(post(server, texts), texts)
    assert server.client.get("/v1/health/ready").status_code == 200


def test_vectors_that_are_no_numbers_are_500_and_never_sent(serve):
    class Broken(Stub):
        def embed_rows(self, rows):
            vectors = super().embed_rows(rows)
            vectors[[row.endswith("broken") for row in rows], 3] = np.nan
            return vectors

    server = serve({MODEL: Broken()})
    answer = post(server, ["broken"])
    assert answer.status_code == 500
    assert "NaN" in answer.json()["message"]
    is_right(post(server, ["whole"]), ["whole"])


def test_a_crash_of_ours_is_500_without_the_text(serve, logged):
    lines = logged("json", "debug")

    class Crashing(Stub):
        def prepare(self, inputs, options):
            if SECRET in inputs:
                raise KeyError(SECRET)
            return super().prepare(inputs, options)

    server = serve({MODEL: Crashing()})
    answer = server.embed(input=[SECRET])
    assert answer.status_code == 500
    assert answer.json()["type"] == "internal_error"
    assert SECRET not in answer.text
    assert server.embed().status_code == 200
    written = "".join(lines())
    assert "a request failed" in written
    assert "KeyError" in written
    assert SECRET not in written


def test_an_image_or_a_book_does_not_stop_a_query(serve):
    stub = Stub(budget=64)
    server = serve({MODEL: stub})
    book = [f"{'word ' * 60}{n}" for n in range(40)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool, busy(server, stub):
        slow = pool.submit(post, server, book)
        wait_until(lambda: waiting(server) == 40)
        quick = pool.submit(post, server, ["query"])
        wait_until(lambda: waiting(server) == 41)
        stub.gate.set()
        is_right(slow.result(), book)
        is_right(quick.result(), ["query"])
    turn = next(n for n, batch in enumerate(stub.seen) if "query: query" in batch)
    assert turn < 5
