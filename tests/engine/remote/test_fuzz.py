"""Whatever a server says: right vectors in their places, or an error that names rows and no key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimbed.errors import RemoteError
from nimbed.remote.embedder import RemoteEmbedder
from nimbed.remote.retry import RetryPolicy

from .double import Double, Response, as_json, edited, vectors
from .players import DIMENSIONS, E5, nim

KEY = "nvapi-do-not-tell-anyone"
NIM = nim()
TEXTS = ["zero", "one", "two", "three"]
EXPECTED = vectors([f"passage: {text}" for text in TEXTS], DIMENSIONS)
ONCE = RetryPolicy(retries=1, shortest=0.001, longest=0.001)
SERVED = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["data", "index", "embedding", "x"]), inner)
    ),
    max_leaves=6,
)
ROW = st.integers(0, len(TEXTS) - 1)


@pytest.fixture(scope="module")
def double() -> Iterator[Double]:
    served = Double(NIM)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def thief() -> Iterator[Double]:
    served = Double(NIM)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def embedder(double: Double) -> Iterator[RemoteEmbedder]:
    with RemoteEmbedder(
        E5, base_url=double.url, dialect="nim", api_key=KEY, retry=ONCE, timeout=10
    ) as made:
        yield made


def embedded(embedder: RemoteEmbedder) -> Any:
    """The vectors, or None for an error that is as it should be."""
    try:
        batch = embedder.embed(TEXTS, input_type="passage")
    except RemoteError as raised:
        error = raised
    else:
        assert batch.vectors.shape == (len(TEXTS), DIMENSIONS)
        np.testing.assert_allclose(np.linalg.norm(batch.vectors, axis=1), 1, atol=1e-5)
        return batch.vectors
    assert error.rows
    assert set(error.rows) <= set(range(len(TEXTS)))
    assert KEY not in f"{error} {error!r} {vars(error)}"
    return None


@SERVED
@given(
    order=st.permutations(range(len(TEXTS))),
    more=st.dictionaries(st.text("xyz", min_size=1, max_size=3), JSON, max_size=3),
    usage=JSON,
    content_type=st.sampled_from(
        ["text/html", "application/octet-stream", "", "x; charset=latin-1"]
    ),
)
def test_what_does_not_matter_changes_nothing(
    double: Double,
    embedder: RemoteEmbedder,
    order: list[int],
    more: dict[str, Any],
    usage: Any,
    content_type: str,
) -> None:
    def edit(said: dict[str, Any]) -> None:
        said["data"] = [{**more, **said["data"][row]} for row in order]
        said.update({**more, "data": said["data"], "usage": usage})

    double.handler = lambda request: replace(
        edited(NIM(request), edit), headers={"content-type": content_type}
    )
    np.testing.assert_allclose(embedded(embedder), EXPECTED, atol=1e-6)


@SERVED
@given(st.data())
def test_an_answer_that_is_wrong_is_an_error_or_mended(
    double: Double, embedder: RemoteEmbedder, data: st.DataObject
) -> None:
    kind = data.draw(
        st.sampled_from(["index", "embedding", "item", "data", "all", "drop", "again", "width"])
    )
    row, other, value = data.draw(ROW), data.draw(ROW), data.draw(JSON)
    width = data.draw(st.integers(0, 2 * DIMENSIONS).filter(lambda n: n != DIMENSIONS))

    def edit(said: dict[str, Any]) -> None:
        items = said["data"]
        if kind == "drop":
            del items[row]
        elif kind == "again":
            items.append(items[row])
        elif kind == "item":
            items[row] = value
        elif kind == "data":
            said["data"] = value
        elif kind == "width":
            items[row]["embedding"] = ([0.25] * width) if other % 2 else "AAAA" * width
        elif kind == "all":
            said.clear()
            said["error"] = value
        else:
            items[row][kind] = value

    double.handler = lambda request: edited(NIM(request), edit)
    got = embedded(embedder)
    if got is not None:
        np.testing.assert_allclose(got, EXPECTED, atol=1e-6)


@SERVED
@given(
    at=st.floats(0, 1),
    junk=st.binary(max_size=12),
    remove=st.integers(0, 40),
    how=st.sampled_from(["whole", "reset", "short", "long"]),
)
def test_damaged_bytes_never_hang_and_never_give_half_a_result(
    double: Double, embedder: RemoteEmbedder, at: float, junk: bytes, remove: int, how: str
) -> None:
    def handle(request: Any) -> Response:
        right = NIM(request)
        start = int(at * len(right.body))
        body = right.body[:start] + junk + right.body[start + remove :]
        if how == "reset":
            return replace(right, body=body, cut=start)
        length = len(body) + {"whole": 0, "short": -7, "long": 7}[how]
        # What is promised and never comes would be waited for: the connection ends instead.
        ends = len(body) if how == "long" else None
        return replace(right, body=body, headers={"content-length": str(length)}, cut=ends)

    double.handler = handle
    embedded(embedder)
    double.handler = NIM
    np.testing.assert_allclose(embedded(embedder), EXPECTED, atol=1e-6)


@SERVED
@given(status=st.integers(200, 599), said=JSON | st.just(KEY), headed=st.booleans())
def test_any_status_with_any_body_is_an_error_that_shows_no_key(
    double: Double, embedder: RemoteEmbedder, status: int, said: Any, headed: bool
) -> None:
    headers = {"x_request_id": f"Bearer {KEY}", "retry_after": "9999"} if headed else {}
    double.handler = lambda request: as_json(said, status, **headers)
    assert embedded(embedder) is None


@SERVED
@given(st.data())
def test_no_redirect_carries_the_key_away(
    double: Double, thief: Double, embedder: RemoteEmbedder, data: st.DataObject
) -> None:
    host = thief.origin.removeprefix("http://")
    own = double.origin.removeprefix("http://")
    place = data.draw(
        st.sampled_from(
            [
                f"http://{host}/v1/embeddings",
                f"//{host}/v1/embeddings",
                f"http://{own}@{host}/v1/embeddings",
                f"http://user:word@{host}/v1/embeddings",
                f"http:\\\\{host}/v1/embeddings",
                f"HTTP://{host.replace('127.0.0.1', 'LOCALHOST')}/v1/embeddings",
                f"http://{own}\t@{host}/",
                f"http://{'a' * 70}/v1",
                "http://a..b/v1",
            ]
        )
        | st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=20)
    )
    status = data.draw(st.sampled_from([301, 302, 303, 307, 308]))
    double.handler = lambda request: Response(status, headers={"location": place})
    thief.seen.clear()
    embedded(embedder)
    assert not [request for request in thief.seen if KEY in str(request.headers)]


def test_the_key_did_reach_the_server_itself(double: Double, embedder: RemoteEmbedder) -> None:
    double.handler = NIM
    embedded(embedder)
    assert double.posts[-1].headers["authorization"] == f"Bearer {KEY}"
    assert json.loads(double.posts[-1].body)["input"] == TEXTS
