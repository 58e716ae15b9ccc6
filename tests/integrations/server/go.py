"""Weaviate's side of the wire, as its Go code reads an answer (weaviate.md 1.5, 1.6, 4).

Strict where encoding/json is: a string in a float's place, 3.0 for an integer, NaN, a number that
float32 cannot hold. Keys it does not know it ignores.
"""

from __future__ import annotations

import http.client
import json
import math
from dataclasses import dataclass

_MOST = 3.4028234663852886e38


class GoError(Exception):
    """What Weaviate would show its user."""


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]


class Weaviate:
    """One keep-alive connection of Go's; bodies are sent as they stand."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def post(self, path, body, *, key="dummy"):
        headers = {
            "User-Agent": "Go-http-client/1.1",
            "Authorization": f"Bearer {key}",
            "Accept": "application/json",
            "Content-Type": "application/json",
            "Accept-Encoding": "gzip",
        }
        return self._exchange("POST", path, body, headers)

    def post_bare(self, path, body):
        """As text2vec-transformers does: no Content-Type, no key."""
        headers = {"User-Agent": "Go-http-client/1.1", "Accept-Encoding": "gzip"}
        return self._exchange("POST", path, body, headers)

    def get(self, path):
        return self._exchange("GET", path, None, {"User-Agent": "Go-http-client/1.1"})

    def _exchange(self, method, path, body, headers):
        self.connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            self.connection.putheader(name, value)
        if body is not None:
            self.connection.putheader("Content-Length", str(len(body)))
        self.connection.endheaders(body)
        answer = self.connection.getresponse()
        held = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, answer.read(), held)

    def close(self):
        self.connection.close()


def embeddings(answer):
    """Return the vectors that Weaviate would store, in array order; it never looks at index."""
    if answer.status != 200:
        raise GoError(_reason(answer))
    body = _object(_loads(answer.body), "embeddingsResponse")
    for name in ("id", "model", "object"):
        _string(body.get(name), name)
    usage = body.get("usage")
    if usage is not None:
        for name in ("prompt_tokens", "total_tokens"):
            _integer(_object(usage, "usage").get(name), name)
    data = body.get("data")
    if not isinstance(data, list) or not data:
        raise GoError("empty embeddings response")
    vectors = []
    for item in data:
        _string(_object(item, "embeddingsData").get("object"), "object")
        _integer(item.get("index"), "index")
        vectors.append(_float32s(item.get("embedding"), "embedding"))
    return vectors


def vector(answer):
    """Return the vector of the transformers container's answer."""
    body = _loads(answer.body)
    if answer.status != 200:
        error = _object(body, "vecRequest").get("error")
        _string(error, "error")
        raise GoError(f"fail with status {answer.status}: {error}")
    _string(_object(body, "vecRequest").get("text"), "text")
    _integer(body.get("dims"), "dims")
    _string(body.get("error"), "error")
    return _float32s(body.get("vector"), "vector")


def _reason(answer):
    said = {400: "message", 402: "detail", 422: "title", 500: "title"}.get(answer.status)
    shown = f"connection to NVIDIA API failed with status: {answer.status}"
    if said is None:
        return shown
    body = _object(_loads(answer.body), "errorResponse")
    for name in ("object", "message", "title", "detail"):
        _string(body.get(name), name)
    return f"{shown} error: {body.get(said)}"


def _loads(body):
    def refuse(word):
        raise GoError(f"invalid character in {word}")

    return json.loads(body.decode("utf-8", "strict"), parse_constant=refuse)


def _object(value, name):
    if not isinstance(value, dict):
        raise GoError(f"cannot unmarshal {value!r} into {name}")
    return value


def _string(value, name):
    if not isinstance(value, str | None):
        raise GoError(f"cannot unmarshal {value!r} into {name} of type string")


def _integer(value, name):
    if value is not None and type(value) is not int:
        raise GoError(f"cannot unmarshal {value!r} into {name} of type int64")


def _float32s(values, name):
    if not isinstance(values, list) or not values:
        raise GoError(f"cannot unmarshal into {name} of type []float32, or no vector at all")
    for value in values:
        if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > _MOST:
            raise GoError(f"cannot unmarshal {value!r} into {name} of type float32")
    return values
