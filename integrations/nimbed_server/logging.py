"""The server's log on standard error, and OpenTelemetry's spans: never a text or a key."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import sys
import time
import traceback
from typing import Any, Literal, TextIO

import orjson

from nimbed.errors import install_line

__all__ = ["LOG", "LogFormat", "printable", "set_up", "traced"]

LogFormat = Literal["pretty", "json"]

LOG = logging.getLogger("nimbed.server")

# A fact that needs no quotes: without a blank, so that it cannot be read as two.
_PLAIN = re.compile(r"[!#-<>-~]+\Z")


# Characters of a traceback, its end: with them a line has less than the 4096 bytes that a pipe
# takes at once if it takes anything.
_FRAMES = 3000


def printable(text: str, *, most: int = 200) -> str:
    """Return the beginning of a stranger's text, everything escaped that is not printable ASCII."""
    return text[:most].encode("unicode_escape").decode()


class _Json(logging.Formatter):
    """One JSON object a line; fields come from the record's ``facts``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = _frames(record)
        return orjson.dumps(line, default=str).decode()


class _Pretty(logging.Formatter):
    """Time, level, message and the facts behind it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, and the frames of a traceback below it."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        facts = "".join(f" {k}={_fact(v)}" for k, v in getattr(record, "facts", {}).items())
        line = f"{clock} {record.levelname.lower():7} {record.getMessage()}{facts}"
        return f"{line}\n{_frames(record)}" if record.exc_info else line


_WARNING = {"name": LOG.name, "levelno": logging.WARNING, "levelname": "WARNING"}


class _Errors(logging.StreamHandler[TextIO]):
    """Writes to standard error, and rather loses lines than waits for whoever should read them.

    A pipe takes 64 kB that nobody reads; the next line would stop the server.
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it."""
        if not self._takes():
            self._lost += 1
            return
        if self._lost:
            said = f"{self._lost} lines of this log are lost: nobody read them"
            self._lost = 0
            super().emit(logging.makeLogRecord({**_WARNING, "msg": said}))
        super().emit(record)

    def _takes(self) -> bool:
        try:
            return bool(select.select([], [self.stream], [], 0)[1])
        except (OSError, ValueError):  # no file, or a system that waits for sockets alone
            return True


def _fact(value: object) -> str:
    text = str(value)
    return text if _PLAIN.match(text) else json.dumps(text)


def _frames(record: logging.LogRecord) -> str:
    """Return where an exception arose and of what kind it is; its words may quote a text."""
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    kind, _, trace = record.exc_info
    return "".join(traceback.format_tb(trace))[-_FRAMES:] + kind.__name__


def set_up(form: LogFormat, *, level: str = "info") -> None:
    """Send the server's log, and uvicorn's complaints, to standard error."""
    handler = _Errors()
    handler.setFormatter(_Json() if form == "json" else _Pretty())
    for name, at in (("nimbed", level.upper()), ("uvicorn.error", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(at)


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
