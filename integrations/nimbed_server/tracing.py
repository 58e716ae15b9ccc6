"""OpenTelemetry spans, where its environment variables ask for them.

The library's own ASGI instrumentation makes them; nothing is imported otherwise.
"""

from __future__ import annotations

import os
from typing import Any

from nimbed.errors import install_line
from nimbed_server.logging import LOG

__all__ = ["traced"]

_ASKED = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def traced(app: Any) -> Any:
    """Return the application inside its instrumentation, if an exporter's address is set.

    Health probes and metrics are left out, as are bodies and keys: the instrumentation records
    method, path and status.
    """
    asked = any(os.environ.get(name) for name in _ASKED)
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if not asked or off or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return app
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        LOG.warning(
            "OpenTelemetry is asked for, but %s is missing; run: %s",
            error.name,
            install_line("otel"),
        )
        return app
    # The resource reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, which go before ours.
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "nimbed"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return OpenTelemetryMiddleware(
        app,
        tracer_provider=provider,
        excluded_urls="health,.well-known,metrics",
        exclude_spans=["receive", "send"],
    )
