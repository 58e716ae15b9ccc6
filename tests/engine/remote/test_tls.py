from __future__ import annotations

import pytest

from nimbed.errors import RemoteError


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(secure, connect):
    with pytest.raises(RemoteError, match="certificate cannot be trusted") as caught:
        connect(secure, api_key="k-1").embed(["a"], input_type="query")
    assert not caught.value.retryable
    assert not secure.seen


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_certificate_of_the_callers_own_authority_is_accepted(
    secure, connect, certificate, monkeypatch, variable
):
    monkeypatch.setenv(variable, str(certificate))
    embedder = connect(secure, api_key="k-1")
    assert len(embedder.embed(["a"], input_type="query")) == 1
    assert len(embedder.embed(["b"], input_type="query")) == 1
    assert secure.connections == 1
