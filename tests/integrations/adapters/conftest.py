from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.engine.remote.double import Double
from tests.engine.remote.players import nim
from tests.integrations.adapters.frameworks import MATRYOSHKA, Adapter, Framework, forget

from nimbed.remote.embedder import RemoteEmbedder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    """A strict NIM on a socket; the machine's own keys and proxies play no part."""
    for name in ("NVIDIA_API_KEY", "NIMBED_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    double = Double(nim())
    yield double
    double.stop()


@pytest.fixture
def adapter(request: pytest.FixtureRequest, server: Double) -> Iterator[Callable[..., Adapter]]:
    """What makes an adapter on the server: ours, or NVIDIA's of the same framework."""
    framework: Framework
    framework, nvidias = request.param
    server.handler = nim(longest=50, matryoshka=True)
    if nvidias:
        yield lambda **settings: framework.make_nvidias(server.url, **settings)
        forget()
        return
    with RemoteEmbedder(MATRYOSHKA, base_url=server.url, dialect="nim") as embedder:
        yield lambda **settings: framework.from_embedder(embedder, **settings)
