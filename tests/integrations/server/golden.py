"""Weaviate's golden requests (weaviate.md 1.2, 3, 4), and a server with names for its users."""

from __future__ import annotations

import json
from dataclasses import replace

from nimbed import FakeEmbedder
from nimbed.fake import FAKE_CARD
from nimbed_server import Settings, parse_alias

from .conftest import PICTURES, running

CARD = replace(FAKE_CARD, id="nvidia/nv-embed-v1")
CLIP = replace(PICTURES, id="nvidia/nvclip")
ALIASES = (
    "small=nvidia/nv-embed-v1,dimensions=16",
    "int8=nvidia/nv-embed-v1,embedding_type=int8",
    "bits=nvidia/nv-embed-v1,embedding_type=binary,as=signs",
    "cut=nvidia/nv-embed-v1,truncate=END",
    "stored=nvidia/nvclip,input_type=passage",
)
IMPORT = (
    b'{"input":["OpenAI is a \\u003cresearch\\u003e company\\tof \xc3\xa9\xe2\x82\xac"],'
    b'"model":"nvidia/nv-embed-v1","encoding_format":"float","input_type":"passage",'
    b'"truncate":"NONE"}'
)
QUERY = (
    b'{"input":["SpaceX"],"model":"nvidia/nv-embed-v1","encoding_format":"float",'
    b'"input_type":"query","truncate":"NONE"}'
)
T2V = (
    b'{"text":"Frank Herbert","dims":0,"vector":null,"error":"",'
    b'"config":{"pooling_strategy":"masked_mean","task_type":"%s"}}'
)


def serving():
    """Serve a model of texts and one of pictures, with the aliases."""
    embedders = {CARD.id: FakeEmbedder(CARD), CLIP.id: FakeEmbedder(CLIP)}
    return running(embedders, Settings(port=0, aliases=tuple(map(parse_alias, ALIASES))))


def wanted(text, role, card=CARD, **options):
    return FakeEmbedder(card).embed([text], input_type=role, **options).vectors[0]


def body(texts, *, model="nvidia/nv-embed-v1", role="passage"):
    """Write what json.Marshal would, in the order of the Go struct."""
    listed = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
    return (
        f'{{"input":{listed},"model":"{model}","encoding_format":"float","input_type":"{role}",'
        f'"truncate":"NONE"}}'
    ).encode()


def clip(inputs, model="nvidia/nvclip"):
    """Write multi2vec-nvidia's body: neither role nor truncation."""
    listed = json.dumps(inputs, separators=(",", ":"))
    return f'{{"input":{listed},"model":"{model}","encoding_format":"float"}}'.encode()
