from __future__ import annotations

import asyncio

from .double import edited, error
from .players import nim


def test_a_batch_says_what_it_cost(serve, connect):
    double = serve(nim())
    double.script = [error("busy", 503), error("busy", 503)]
    texts = [f"text number {row}" for row in range(300)]
    report = connect(double, concurrency=1).embed(texts, input_type="passage").report
    assert (report.requests, report.retries) == (len(double.posts), 2) == (5, 2)
    assert report.tokens == 900
    assert report.bytes_sent == sum(len(post.body) for post in double.posts)
    assert report.bytes_received > 300 * 1024 * 4
    assert report.skipped == ()


def test_skipped_rows_are_listed(serve, connect):
    inner = nim()

    def handle(request):
        return error("unfit") if "bad" in request.texts else inner(request)

    embedder = connect(serve(handle), on_bad_input="skip")
    batch = embedder.embed(["a", "", "bad", "b"], input_type="query")
    assert batch.report.skipped == (1, 2)


def test_calls_at_the_same_time_are_counted_apart(serve, connect):
    embedder = connect(serve(nim()))

    async def both():
        return await asyncio.gather(
            embedder.aembed(["one"] * 200, input_type="query"),
            embedder.aembed(["one two"] * 500, input_type="passage"),
        )

    few, many = asyncio.run(both())
    assert (few.report.requests, many.report.requests) == (2, 4)
    assert (few.report.tokens, many.report.tokens) == (200, 1000)


def test_tokens_are_unknown_where_a_server_does_not_count(serve, connect):
    inner = nim()
    double = serve(lambda request: edited(inner(request), lambda said: said.pop("usage")))
    assert connect(double).embed(["a"], input_type="query").report.tokens is None
