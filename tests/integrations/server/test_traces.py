"""OpenTelemetry: what a collector is sent when its variables are set."""

from __future__ import annotations

import http.server
import os
import threading

import httpx
import pytest

from .conftest import MODEL, wait_until

KEY, TEXT = "nvapi-never-traced", "a text that nobody may read"


class Collector(http.server.BaseHTTPRequestHandler):
    """An OpenTelemetry collector that keeps what it is sent."""

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["content-length"]))
        self.server.sent.append((self.path, self.headers.get("content-encoding"), sent))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def test_a_trace_arrives_and_holds_neither_text_nor_key(command, plain):
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        collector.sent = []
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        environment = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_SERVICE_NAME": "our-service",
        }
        behind = ("--base-url", plain.url, "--model", MODEL)
        server = command(*behind, "--api-key", KEY, environment=environment)
        answer = httpx.post(
            f"{server.url}/v1/embeddings",
            json={"model": MODEL, "input": [TEXT]},
            headers={"authorization": f"Bearer {KEY}"},
            timeout=60,
        )
        assert answer.status_code == 200
        assert len(answer.json()["data"][0]["embedding"]) == 64
        wait_until(lambda: bool(collector.sent))
        assert server.stop() == 0
        collector.shutdown()
    spans, names = [], set()
    for path, encoding, sent in collector.sent:
        assert path == "/v1/traces"
        assert encoding in (None, "identity")
        assert TEXT.encode() not in sent
        assert KEY.encode() not in sent
        request = trace_service.ExportTraceServiceRequest.FromString(sent)
        for resource in request.resource_spans:
            names |= {
                each.value.string_value
                for each in resource.resource.attributes
                if each.key == "service.name"
            }
            for scope in resource.scope_spans:
                spans += [span.name for span in scope.spans]
    assert names == {"our-service"}
    assert [name for name in spans if "POST" in name]
    assert not [name for name in spans if "health" in name]
