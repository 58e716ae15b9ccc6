"""What was understood once is remembered, and answers as if it had been read anew."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from nimbed import FakeEmbedder
from nimbed.fake import FAKE_CARD
from nimbed_server import create_app
from nimbed_server.settings import Settings

from .conftest import MODEL
from .raw import Wire, post

WISHES = [
    {},
    {"model": MODEL.upper()},
    {"model": f"{MODEL}-passage"},
    {"model": "nobody"},
    {"dimensions": 16},
    {"dimensions": 16.0},
    {"dimensions": 17},
    {"dimensions": True},
    {"dimensions": [16]},
    {"input_type": "query"},
    {"input_type": "passage"},
    {"input_type": {}},
    {"embedding_type": "ubinary"},
    {"encoding_format": "base64"},
    {"modality": "text"},
    {"modality": ["text"]},
    {"modality": "image"},
    {"truncate": "END", "user": "somebody"},
    {"user": 5},
    {"input": []},
    {"input": [" "]},
    {"input": 3},
]


def said(answer):
    headers = {name: value for name, value in answer.headers.items() if name.startswith("x-nimbed")}
    body = answer.json()
    body.pop("requestId", None)
    return answer.status_code, headers, body


def test_every_wish_is_answered_the_same_at_first_and_ever_after(serve):
    """A server that has seen all the others, against one that has seen none."""
    used = serve({MODEL: FakeEmbedder()})
    for wish in WISHES:
        first = said(used.embed(**wish))
        assert said(serve({MODEL: FakeEmbedder()}).embed(**wish)) == first, wish
    for turn in itertools.chain(WISHES, reversed(WISHES)):
        assert said(used.embed(**turn)) == said(used.embed(**turn))
    fresh = serve({MODEL: FakeEmbedder()})
    for wish in reversed(WISHES):
        assert said(fresh.embed(**wish)) == said(used.embed(**wish)), wish


def test_true_is_not_one_where_one_is_a_size(serve):
    card = replace(FAKE_CARD, matryoshka=(1, 64))
    server = serve({MODEL: FakeEmbedder(card)})
    assert server.embed(dimensions=1).status_code == 200
    assert server.embed(dimensions=1.0).status_code == 200
    assert server.embed(dimensions=True).status_code == 400


@pytest.mark.parametrize("named", [True, False])
def test_only_so_many_ways_to_ask_are_remembered_and_only_those_of_models_there_are(named):
    app = create_app({MODEL: FakeEmbedder()}, Settings())
    reader = app.state.reader
    cases = itertools.product(*((letter.lower(), letter.upper()) for letter in MODEL))
    for spelling in itertools.islice(cases, 3000):
        body = f'{{"model": "{"".join(spelling)}", "input": "a"}}'.encode()
        reader.read(body, app.state.models.default if named else None)
    assert len(reader._known) <= (0 if named else 1024)


def test_an_answer_comes_in_one_piece_and_two_answers_in_their_order(plain):
    body = b'{"model": "nimbed/fake", "input": "a", "input_type": "query"}'
    with Wire(plain.port) as wire:
        wire.send(post(body, "x-request-id: 1") + post(body, "x-request-id: 2"))
        answers = [wire.answer(), wire.answer()]
        assert [answer.headers["x-request-id"] for answer in answers] == ["1", "2"]
        assert answers[0].json() == answers[1].json()
        wire.send(post(body))
        got = wire.socket.recv(1 << 16)
        head, _, rest = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\ndate: ")
        assert len(rest) == int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
