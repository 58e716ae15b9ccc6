"""LangChain's own suites, none of their tests overridden, on the embedded default."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langchain_tests")

from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from nimbed_langchain import NimbedEmbeddings


class TestUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[NimbedEmbeddings]:
        return NimbedEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return (
            {"NIMBED_API_KEY": "from-the-environment"},
            {"base_url": "http://localhost:8000"},
            {"api_key": "from-the-environment"},
        )


class TestUnitPackedBits(TestUnit):
    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"embedding_type": "ubinary"}


class TestIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[NimbedEmbeddings]:
        return NimbedEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {}


class TestIntegrationPackedBits(TestIntegration):
    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"embedding_type": "ubinary"}
