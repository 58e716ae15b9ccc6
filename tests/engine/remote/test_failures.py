"""Each fault a server or a network can play, once (then mended) and for ever (then raised)."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from email.utils import formatdate
from time import perf_counter, sleep, time

import numpy as np
import pytest

from nimbed.errors import BackendError, InputError, OverloadedError, RemoteError
from nimbed.remote.response import read_failure
from nimbed.remote.retry import Failure, RejectedInputError, RetryPolicy, error_of

from .double import Response, as_json, edited, error, gzipped, vectors
from .players import DIMENSIONS, nim

BRIEF = RetryPolicy(retries=2, shortest=0.001, longest=0.002)
NIM = nim()
TEXTS = ["zero", "one", "two"]
EXPECTED = vectors([f"passage: {text}" for text in TEXTS], DIMENSIONS)


def broken(edit):
    return lambda request: edited(NIM(request), edit)


def put(position, value):
    def edit(said):
        said["data"][position]["embedding"] = value

    return broken(edit)


def cut(request):
    return Response(**{**NIM(request).__dict__, "cut": 5000})


def cut_json(request):
    whole = NIM(request)
    return Response(200, whole.body[: len(whole.body) // 2], whole.headers)


FAULTS = {
    "429 in milliseconds": error("slow down", 429, retry_after_ms="5"),
    "429 in seconds": error("slow down", 429, retry_after="0.01"),
    "429 as a date": error("slow down", 429, retry_after=formatdate(time() - 9, usegmt=True)),
    "429 without a wait": error("slow down", 429),
    "503": error("queue full", 503),
    "500": error("internal", 500),
    "502 with HTML": Response(502, b"<html><body>Bad <b>Gateway</b></body></html>"),
    "504": Response(504),
    "408": error("late", 408),
    "reset at once": Response(200, b"x" * 100, cut=0),
    "reset in mid-body": cut,
    "kept connection closed": Response(close=True),
    "truncated JSON": cut_json,
    "stall": Response(stall=5),
    "not JSON": Response(200, b"OK"),
    "an error in disguise": as_json({"error": "busy"}),
    "too few": broken(lambda said: said["data"].pop()),
    "too many": broken(lambda said: said["data"].append(said["data"][0])),
    "duplicate index": broken(lambda said: said["data"][1].update(index=0)),
    "missing index": broken(lambda said: said["data"][1].pop("index")),
    "NaN": put(1, [float("nan")] * DIMENSIONS),
    "another width": put(1, [0.5] * 7),
    "base64 of 3 bytes": put(1, "AAAA"),
    "null": put(1, None),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_that_passes_is_mended(serve, connect, fault):
    double = serve(NIM)
    embedder = connect(double, timeout=0.3)
    double.script = [fault]
    batch = embedder.embed(TEXTS, input_type="passage")
    np.testing.assert_allclose(batch.vectors, EXPECTED, atol=1e-6)
    assert len(double.posts) == 2
    assert double.posts[0].body == double.posts[1].body


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_that_stays_is_raised_and_never_a_short_or_shifted_result(serve, connect, fault):
    double = serve(lambda request: fault if isinstance(fault, Response) else fault(request))
    with pytest.raises(RemoteError) as caught:
        connect(double, retry=BRIEF, timeout=0.3).embed(TEXTS, input_type="passage")
    assert caught.value.retryable
    assert set(caught.value.rows) <= {0, 1, 2}
    assert caught.value.rows
    assert not isinstance(caught.value, InputError)
    deadline = time() + 10
    while len(double.posts) < 3 and time() < deadline:
        sleep(0.01)  # the server may read the last request after the client gave it up
    assert len(double.posts) == 3


@pytest.mark.parametrize("name", ["NaN", "base64 of 3 bytes", "null"])
def test_a_senseless_vector_is_blamed_on_its_row(serve, connect, name):
    double = serve(FAULTS[name])
    with pytest.raises(RemoteError) as caught:
        connect(double, retry=BRIEF).embed(TEXTS, input_type="passage")
    assert caught.value.rows == (1,)


def test_a_shuffled_answer_is_put_in_order(serve, connect):
    double = serve(broken(lambda said: said["data"].reverse()))
    batch = connect(double).embed(TEXTS, input_type="passage")
    np.testing.assert_allclose(batch.vectors, EXPECTED, atol=1e-6)
    assert len(double.posts) == 1


def test_a_compressed_answer_is_read(serve, connect):
    double = serve(lambda request: gzipped(NIM(request)))
    batch = connect(double).embed(TEXTS, input_type="passage")
    np.testing.assert_allclose(batch.vectors, EXPECTED, atol=1e-6)


def test_damaged_compression_is_a_fault_like_others(serve, connect):
    double = serve(NIM)
    double.script = [Response(200, b"not gzip", {"content-encoding": "gzip"})]
    batch = connect(double).embed(TEXTS, input_type="passage")
    np.testing.assert_allclose(batch.vectors, EXPECTED, atol=1e-6)


def test_a_server_that_is_not_there_is_an_error_that_may_be_retried(serve, connect):
    double = serve(NIM)
    embedder = connect(double, retry=BRIEF)
    double.stop()
    with pytest.raises(RemoteError, match="cannot connect") as caught:
        embedder.embed(TEXTS, input_type="passage")
    assert caught.value.retryable
    assert caught.value.status is None


def test_an_overload_that_stays_says_when_to_come_back(serve, connect):
    double = serve(lambda request: error("full", 503, retry_after="900", x_request_id="r-7"))
    with pytest.raises(OverloadedError) as caught:
        connect(double).embed(TEXTS, input_type="passage")
    assert caught.value.retry_after == 900
    assert caught.value.request_id == "r-7"
    assert len(double.posts) == 1  # longer than anybody's patience


def test_a_spent_quota_is_raised_at_once(serve, connect):
    body = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    double = serve(lambda request: as_json(body, 429))
    with pytest.raises(RemoteError) as caught:
        connect(double).embed(TEXTS, input_type="passage")
    assert caught.value.code == "insufficient_quota"
    assert len(double.posts) == 1


@pytest.mark.parametrize(("status", "hint"), [(401, "no api key was sent"), (404, "model's name")])
def test_a_refusal_is_raised_at_once_with_a_hint(serve, connect, status, hint):
    double = serve(lambda request: error("no", status))
    with pytest.raises(RemoteError, match=hint) as caught:
        connect(double).embed(TEXTS, input_type="passage")
    assert caught.value.status == status
    assert not caught.value.retryable
    assert len(double.posts) == 1


def test_the_deadline_ends_the_retries(serve, connect):
    double = serve(lambda request: error("busy", 503))
    policy = RetryPolicy(retries=10_000, shortest=0.05, longest=0.05, deadline=0.4)
    with pytest.raises(OverloadedError):
        connect(double, retry=policy).embed(TEXTS, input_type="passage")
    assert 2 <= len(double.posts) <= 12


def poisoned(*poison, status=400, message="cannot embed this"):
    def handle(request):
        return error(message, status) if set(poison) & set(request.texts) else NIM(request)

    return handle


@pytest.mark.parametrize("row", [0, 1, 77, 199])
def test_one_bad_text_is_named_by_its_row_alone(serve, connect, row):
    texts = [f"text {n}" for n in range(200)]
    embedder = connect(serve(poisoned(texts[row])))
    with pytest.raises(RejectedInputError, match=f"cannot embed this .row {row}.") as caught:
        embedder.embed(texts, input_type="passage")
    assert caught.value.rows == (row,)
    assert caught.value.status == 400
    assert isinstance(caught.value, InputError)
    assert isinstance(caught.value, BackendError)


def test_bad_texts_of_one_request_are_named_together(serve, connect):
    texts = [f"text {n}" for n in range(60)]
    embedder = connect(serve(poisoned("text 20", "text 41")))
    with pytest.raises(RejectedInputError) as caught:
        embedder.embed(texts, input_type="passage")
    assert caught.value.rows == (20, 41)


def test_skipped_bad_texts_cost_their_neighbours_nothing(serve, connect):
    texts = [f"text {n}" for n in range(200)]
    double = serve(poisoned("text 3", "text 77", "text 78"))
    batch = connect(double, on_bad_input="skip").embed(texts, input_type="passage")
    expected = vectors([f"passage: {text}" for text in texts], DIMENSIONS)
    expected[[3, 77, 78]] = 0
    np.testing.assert_allclose(batch.vectors, expected, atol=1e-6)
    poison = {"text 3", "text 77", "text 78"}
    embedded = Counter()
    for request in double.posts:
        embedded.update(request.texts if poison.isdisjoint(request.texts) else [])
    assert embedded == Counter(set(texts) - poison)


def test_when_everything_is_refused_the_texts_are_not_halved_for_ever(serve, connect):
    double = serve(lambda request: error("unfit"))
    with pytest.raises(RemoteError, match="unfit"):
        connect(double, concurrency=1).embed([f"t{n}" for n in range(64)], input_type="query")
    assert len(double.posts) <= 8
    double.seen.clear()
    with pytest.raises(RemoteError, match="unfit"):
        connect(double).embed([f"t{n}" for n in range(5000)], input_type="query")
    assert len(double.posts) <= 32 + 8
    double.seen.clear()
    with pytest.raises(RemoteError, match="unfit"):
        connect(double, concurrency=1, on_bad_input="skip").embed(
            [f"t{n}" for n in range(64)], input_type="query"
        )
    assert len(double.posts) <= 24


def test_a_text_that_exhausts_the_servers_memory_is_found(serve, connect):
    def handle(request):
        if "huge" in request.texts:
            return error("out of memory", 500, x_should_retry="false")
        return NIM(request)

    texts = [*(f"text {n}" for n in range(50)), "huge"]
    with pytest.raises(RemoteError) as caught:
        connect(serve(handle)).embed(texts, input_type="passage")
    assert caught.value.rows == (50,)


def test_a_position_that_the_server_names_is_tried_first(serve, connect):
    texts = [f"text {n}" for n in range(64)]

    def handle(request):
        if "text 40" in request.texts:
            return error(f"input[{request.texts.index('text 40')}] is unfit")
        return NIM(request)

    double = serve(handle)
    with pytest.raises(RejectedInputError) as caught:
        connect(double).embed(texts, input_type="passage")
    assert caught.value.rows == (40,)
    assert len(double.posts) == 4


BODIES = [
    ({"error": "one"}, "one", None),
    ({"error": {"message": "one", "code": "c"}}, "one", "c"),
    ({"object": "error", "message": "one", "type": "t"}, "one", "t"),
    ({"message": {"detail": [{"loc": ["body"]}]}, "type": "t"}, '[{"loc": ["body"]}]', "t"),
    ({"detail": "one"}, "one", None),
    ({"detail": [{"msg": "one"}]}, '[{"msg": "one"}]', None),
    ({"title": "one", "status": 402}, "one", None),
    ({"error": "one", "error_type": "Validation"}, "one", None),
    ("one", "one", None),
    ([1], "[1]", None),
]


@pytest.mark.parametrize(("body", "message", "code"), BODIES)
def test_error_bodies_of_every_shape_are_read(body, message, code):
    failure = read_failure(400, {}, json.dumps(body).encode())
    assert failure.message == message
    assert failure.code == code


def test_html_and_nothing_are_read_as_words():
    html = b"<html><style>b {}</style><h1>502</h1>\n<p>Bad Gateway</p></html>"
    assert read_failure(502, {}, html).message == "502 Bad Gateway"
    assert read_failure(502, {}, b"").message == "no explanation"


def test_a_page_of_tags_alone_is_read_in_no_time():
    began = perf_counter()
    assert read_failure(502, {}, b"<" * 300_000).message.startswith("<<")
    for _ in range(20):  # to look for the end of each would take half a minute
        assert read_failure(502, {}, b"<script>" * 50_000).message == "no explanation"
    assert perf_counter() - began < 2
    assert read_failure(502, {}, b"<scripture>Gone</scripture>").message == "Gone"


def test_control_characters_of_a_server_are_shown_and_not_obeyed(serve, connect):
    words = {"message": "\x1b]0;you\x07 \u009b31m\r\nforged line", "code": "\x1b[2J"}
    double = serve(lambda request: as_json({"error": words}, 400))
    with pytest.raises(RemoteError) as caught:
        connect(double).embed(["a"], input_type="query")
    assert "\\x1b]0;you\\x07 \\x9b31m forged line" in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.code == "\\x1b[2J"


def test_a_position_without_end_and_a_date_beyond_time_are_not_read():
    headers = {"retry-after": "Wed, 01 Jan 99999999999 00:00:00 GMT"}
    failure = read_failure(400, headers, b"input[" + b"9" * 5000 + b"] is unfit")
    assert failure.positions == ()
    assert failure.retry_after is None


def test_a_secret_is_blotted_out_before_the_message_is_cut():
    failure = read_failure(
        400, {}, b"x" * 495 + b"secret", scrub=lambda s: s.replace("secret", "*")
    )
    assert "secr" not in failure.message


def test_an_error_survives_a_pickle_whole():
    failure = Failure(kind="status", message="m", status=400, code="c", request_id="r")
    made = error_of(failure, server="http://h/v1", model="m", rows=(3,), keyless=False)
    copy = pickle.loads(pickle.dumps(made))
    assert type(copy) is RejectedInputError
    assert copy.__dict__ == made.__dict__
    assert (copy.rows, copy.status, str(copy)) == ((3,), 400, str(made))
