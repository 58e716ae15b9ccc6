"""A request that is only accepted (202), and polled as NVIDIA's gateway wants it."""

from __future__ import annotations

import numpy as np
import pytest

from nimbed.errors import RemoteError

from .double import Response, as_json, vectors
from .players import DIMENSIONS, nim


def polled(times, *, request_id="abc-1", final=None):
    inner, polls = nim(hosted=True), []

    def handle(request):
        if request.method == "POST":
            polls.append(inner(request))
            return Response(202, headers={"nvcf-reqid": request_id})
        if not request.path.startswith("/v2/nvcf/pexec/status/"):
            return Response(404)
        times[0] -= 1
        if times[0] > 0:
            return Response(202, headers={"nvcf-reqid": request_id})
        return final or polls[-1]

    return handle


def test_an_accepted_request_is_polled_at_its_own_origin_with_its_key(serve, connect):
    double = serve(polled([3]))
    embedder = connect(double, dialect="nim-hosted", api_key="k-1")
    batch = embedder.embed(["a"], input_type="query")
    np.testing.assert_allclose(batch.vectors, vectors(["query: a"], DIMENSIONS), atol=1e-6)
    polls = [request for request in double.seen if request.method == "GET"]
    assert [poll.path for poll in polls] == ["/v2/nvcf/pexec/status/abc-1"] * 3
    assert {poll.headers["authorization"] for poll in polls} == {"Bearer k-1"}


def test_a_polled_request_may_fail(serve, connect):
    final = as_json({"title": "Payment required", "status": 402}, 402)
    with pytest.raises(RemoteError, match="credits") as caught:
        connect(serve(polled([1], final=final)), dialect="nim-hosted").embed(
            ["a"], input_type="query"
        )
    assert caught.value.status == 402


def test_a_request_id_that_would_lead_elsewhere_is_not_followed(serve, connect):
    double = serve(polled([1], request_id="../../v1/models?x="))
    with pytest.raises(RemoteError, match="NVCF-REQID"):
        connect(double, dialect="nim-hosted").embed(["a"], input_type="query")
    assert not [request for request in double.seen if request.method == "GET"]
