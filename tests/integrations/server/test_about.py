"""What the server says about itself: health, models, licences, metrics."""

from __future__ import annotations

import hashlib

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from nimbed import FakeEmbedder, VectorSpec
from nimbed.version import __version__
from nimbed_server import Settings, parse_alias

from .conftest import MODEL, PICTURES, running
from .stub import Stub

KEY, TEXT = "nvapi-never-traced", "a text that nobody may read"


ALIASES = (
    f"even={MODEL},embedding_type=int8,int8_scale=even",
    f"small={MODEL},embedding_type=int8",
)


@pytest.fixture(scope="module")
def server():
    embedders = {MODEL: FakeEmbedder(), PICTURES.id: FakeEmbedder(PICTURES)}
    settings = Settings(port=0, aliases=tuple(map(parse_alias, ALIASES)))
    with running(embedders, settings) as started:
        yield started


def get(server, path):
    answer = server.client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    return answer.json()


def test_health_has_nims_bodies(server):
    assert get(server, "/v1/health/ready") == {
        "object": "health.response",
        "message": "ready",
        "ready": True,
    }
    assert get(server, "/v1/health/live") == {
        "object": "health.response",
        "message": "live",
        "live": True,
    }


def test_the_containers_health_is_204_without_a_body(server):
    for path in ("/.well-known/live", "/.well-known/ready"):
        answer = server.client.get(path)
        assert answer.status_code == 204
        assert answer.content == b""
        assert "content-length" not in answer.headers


def test_metadata_has_what_nv_ingest_reads(server):
    told = get(server, "/v1/metadata")
    assert told["version"] == __version__
    assert told["modelInfo"][0]["shortName"] == MODEL
    assert {type(each["modelUrl"]) for each in told["modelInfo"]} == {str}
    assert told["assetInfo"] == [MODEL, PICTURES.id]
    assert isinstance(told["licenseInfo"], dict)
    assert {"repository_override", "selectedModelProfileId"} <= set(told)


def test_metadata_names_the_space_of_every_name_by_its_fingerprint(server):
    spaces = get(server, "/v1/metadata")["spaces"]
    fake = FakeEmbedder()
    assert VectorSpec.from_dict(spaces[MODEL]).fingerprint == fake.spec().fingerprint
    even = fake.spec(embedding_type="int8", int8_scale="even")
    assert VectorSpec.from_dict(spaces["even"]).fingerprint == even.fingerprint


def test_the_space_of_an_int8_name_has_the_scale_that_is_served(server):
    space = VectorSpec.from_dict(get(server, "/v1/metadata")["spaces"]["small"])
    served = FakeEmbedder().spec(embedding_type="int8", int8_scale="nim")
    assert space.fingerprint == served.fingerprint


def test_the_manifest_is_yaml_of_the_models(server):
    told = get(server, "/v1/manifest")
    models = yaml.safe_load(told["manifest_file"])["models"]
    assert [model["name"] for model in models] == [MODEL, PICTURES.id]
    assert models[0]["dimensions"] == 64
    assert models[0]["max_tokens"] == 512


def test_the_licence_is_whole_and_its_sum_right(server):
    told = get(server, "/v1/license")
    assert {"name", "path", "sha", "size", "url", "type", "content"} == set(told)
    assert told["sha"] == hashlib.sha1(told["content"].encode()).hexdigest()
    assert told["size"] == len(told["content"])
    assert f"{MODEL}: Apache-2.0" in told["content"]


def test_the_version_is_the_packages(server):
    assert get(server, "/v1/version")["release"] == __version__


@pytest.mark.parametrize("sent", ["abc-123", "A:b/c=d+e.f"])
def test_a_plain_request_id_comes_back(server, sent):
    answer = server.embed(headers={"x-request-id": sent})
    assert answer.headers["x-request-id"] == sent
    refused = server.embed(input=[], headers={"x-request-id": sent})
    assert refused.json()["requestId"] == sent


def test_another_request_id_is_replaced_by_one_of_ours(server):
    seen = {
        server.embed(headers={"x-request-id": sent}).headers["x-request-id"]
        for sent in ("", "a b", "x" * 200, "<script>", "a\tb")
    }
    assert len(seen) == 5
    assert not seen & {"a b", "x" * 200, "<script>"}


def metrics(server, path="/v1/metrics"):
    answer = server.client.get(path)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def model(name, **labels):
    return name, tuple(sorted({"model": MODEL, **labels}.items()))


def test_metrics_count_what_was_done(serve):
    server = serve({MODEL: Stub()})
    before = metrics(server)
    server.embed(input=["one two", "three"], input_type="query")
    server.embed(input=["four"], input_type="passage")
    server.embed(input=[], input_type="passage")
    server.client.get("/nowhere")
    after = metrics(server)

    def grown(name):
        return after[name] - before.get(name, 0)

    assert grown(model("nimbed_items_total", input_type="query")) == 2
    assert grown(model("nimbed_items_total", input_type="passage")) == 1
    assert grown(model("nimbed_tokens_total")) == 3 + 2 + 2
    assert grown(model("nimbed_tokenize_seconds_count")) == 2
    assert grown(model("nimbed_infer_seconds_count")) == 2
    assert grown(model("nimbed_batch_items_sum")) == 3
    assert grown(model("nimbed_batch_tokens_sum")) == 7
    assert grown(model("nimbed_queue_seconds_count")) == 2
    assert grown(("nimbed_serialize_seconds_count", ())) == 2
    ok = (("endpoint", "/v1/embeddings"), ("status", "200"))
    assert grown(("nimbed_requests_total", ok)) == 2
    bad = (("endpoint", "/v1/embeddings"), ("status", "400"))
    assert grown(("nimbed_requests_total", bad)) == 1
    unknown = (("endpoint", "unknown"), ("status", "404"))
    assert grown(("nimbed_requests_total", unknown)) == 1
    assert grown(("nimbed_failures_total", (("type", "invalid_request_error"),))) == 1
    assert after[model("nimbed_ready")] == 1
    assert after[model("nimbed_queue_items")] == 0


def test_metrics_have_the_names_that_tritons_dashboards_read(serve):
    server = serve({MODEL: Stub()})
    before = metrics(server)
    server.embed(input=["one", "two", "three"], input_type="query")
    server.embed(model=MODEL, input=["a"], dimensions=17)
    after = metrics(server)
    grown = {
        name: after[model(f"nv_inference_{name}")] - before[model(f"nv_inference_{name}")]
        for name in (
            "request_success",
            "request_failure",
            "count",
            "exec_count",
            "request_duration_us",
            "queue_duration_us",
            "compute_infer_duration_us",
            "pending_request_count",
        )
    }
    assert grown["request_success"] == 1
    assert grown["request_failure"] == 1
    assert grown["count"] == 3
    assert grown["exec_count"] == 1
    assert grown["request_duration_us"] > grown["compute_infer_duration_us"] > 0
    assert grown["queue_duration_us"] > 0
    assert grown["pending_request_count"] == 0


def test_no_label_holds_what_a_client_may_choose(serve):
    server = serve({MODEL: FakeEmbedder()}, api_keys=(KEY,))
    headers = {"authorization": f"Bearer {KEY}", "user-agent": TEXT, "x-request-id": "chosen"}
    server.embed(input=[TEXT], model="chosen", headers=headers)
    server.embed(input=[TEXT], user="chosen", headers=headers)
    server.client.get("/chosen/v1/models", headers=headers)
    server.client.request("CHOSEN", "/v1/models", headers=headers)
    told = server.client.get("/metrics", headers=headers).text
    assert "chosen" not in told.lower()
    assert TEXT not in told
    assert KEY not in told
