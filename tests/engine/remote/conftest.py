from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nimbed.cards import ModelCard
from nimbed.remote.dialects import CAPABILITIES
from nimbed.remote.embedder import RemoteEmbedder
from nimbed.remote.rate_limit import RATES
from nimbed.remote.retry import RetryPolicy

from .double import Double, Handler
from .players import E5, nim, plain

#: Waits short enough for tests.
QUICK = RetryPolicy(shortest=0.01, longest=0.05, deadline=20)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's own keys, proxies and authorities play no part, nor what other tests taught."""
    for name in (
        "NVIDIA_API_KEY",
        "NIMBED_API_KEY",
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    ):
        monkeypatch.delenv(name, raising=False)
    yield
    CAPABILITIES.clear()
    RATES.clear()


@pytest.fixture
def serve() -> Iterator[Callable[..., Double]]:
    """Starts doubles, and stops them."""
    running: list[Double] = []

    def start(handler: Handler | None = None, **options: Any) -> Double:
        running.append(Double(handler or plain(), **options))
        return running[-1]

    yield start
    for double in running:
        double.stop()


@pytest.fixture
def connect() -> Iterator[Callable[..., RemoteEmbedder]]:
    """Makes embedders for a double, and closes them."""
    made: list[RemoteEmbedder] = []

    def make(double: Double, model: str | ModelCard | None = E5, **options: Any) -> RemoteEmbedder:
        facts = {"base_url": double.url, "dialect": "nim", "retry": QUICK, **options}
        made.append(RemoteEmbedder(model, **facts))
        return made[-1]

    yield make
    for embedder in made:
        embedder.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    pytest.importorskip("cryptography")
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "self-signed.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def secure(serve, certificate):
    """A NIM behind that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return serve(nim(), tls=context)
