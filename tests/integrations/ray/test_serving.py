import socket

import numpy as np
import openai
import pytest

import nimbed
from nimbed.errors import BackendError, ConfigurationError
from nimbed_ray import nim_server, serve_app

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")

MODEL = "nimbed/fake"


@pytest.fixture
def port(cluster):
    """Start Serve's proxy on a free port of the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = int(probe.getsockname()[1])
    serve.start(http_options={"host": "127.0.0.1", "port": free})
    yield free
    serve.shutdown()


def test_serve_answers_the_openai_client(port):
    application = serve_app(nim_server({MODEL: nimbed.FakeEmbedder()}), replicas=(1, 2), cpus=0.5)
    serve.run(application)
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        for role in ("query", "passage"):
            answer = client.embeddings.create(
                model=MODEL, input=["one", "two"], extra_body={"input_type": role}
            )
            wanted = nimbed.FakeEmbedder().embed(["one", "two"], input_type=role)
            given = np.array([item.embedding for item in answer.data], np.float32)
            np.testing.assert_allclose(given, wanted.vectors, atol=1e-7)
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="another", input="one")
    status = serve.status().applications["default"].deployments["nimbed"]
    assert status.replica_states == {"RUNNING": 1}


class Broken(nimbed.FakeEmbedder):
    def embed(self, inputs, **options):
        raise BackendError("the weights are damaged")


def test_a_model_that_cannot_be_read_is_no_replica():
    with pytest.raises(BackendError, match="broken cannot be loaded: the weights are damaged"):
        nim_server({"broken": Broken()})()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"replicas": 0}, "replicas must be a number from 1"),
        ({"replicas": (3, 2)}, "replicas must be a number from 1, or"),
        ({"target_ongoing_requests": 9, "max_ongoing_requests": 8}, "at most max_ongoing"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(options, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        serve_app(nim_server({MODEL: nimbed.FakeEmbedder()}), **options)
