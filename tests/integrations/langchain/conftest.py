from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.engine.remote.double import Double
from tests.engine.remote.players import nim


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    """A strict NIM on a socket; the machine's own keys and proxies play no part."""
    for name in ("NVIDIA_API_KEY", "NIMBED_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    double = Double(nim())
    yield double
    double.stop()
