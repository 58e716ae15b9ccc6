"""nimbed's whole server over a model that costs nothing: what is left is the server. PORT"""

import sys
from dataclasses import replace

import numpy as np

from nimbed.embedder import Prepared
from nimbed.fake import FAKE_CARD, FakeEmbedder
from nimbed_server import Settings, create_app
from nimbed_server.running import run

CARD = replace(FAKE_CARD, dimensions=1024, matryoshka=())
ROWS = np.random.default_rng(0).standard_normal((4096, 1024)).astype(np.float32)


class _Replica:
    budget = 32768
    look_ahead = 1
    on_host = False

    def embed_rows(self, rows):
        return ROWS[: len(rows)]


class Stub(FakeEmbedder):
    def prepare(self, inputs, options):
        return Prepared(rows=inputs, counts=[8] * len(inputs), truncated=())

    def replicas(self):
        return [_Replica()]


settings = Settings(port=int(sys.argv[1]), max_queue=100_000)
run(create_app({"m": Stub(CARD)}, settings), settings)
