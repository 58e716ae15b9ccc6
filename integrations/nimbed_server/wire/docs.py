"""The page at ``/docs``: the OpenAPI document as HTML, without a script or anything fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from nimbed_server.settings import Settings
from nimbed_server.wire.openapi import ANY_MODEL, examples

__all__ = ["docs_page"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem; }
code, pre { font: .85rem/1.45 ui-monospace, monospace; }
pre { padding: .8rem; overflow-x: auto; border: 1px solid #8886; border-radius: 4px; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; }
td { border-top: 1px solid #8884; }
.verb { font-weight: 700; margin-right: .5rem; }
"""


def docs_page(document: Mapping[str, Any], settings: Settings) -> bytes:
    """Return the page as UTF-8 HTML.

    Args:
        document: Of :func:`nimbed_server.wire.openapi.document`.
        settings: The server's; where keys are needed the page says so.
    """
    base = document["servers"][0]["url"] if "servers" in document else ""
    schemas = document["components"]["schemas"]
    shown = examples(ANY_MODEL)
    told = document["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'><title>nimbed: API</title>",
        f"<style>{_STYLE}</style><h1>nimbed {escape(told['version'])}</h1>",
        f"<p>{escape(told['description'])} The whole document: "
        f"<a href='{escape(base)}/openapi.json'>openapi.json</a>. {ANY_MODEL} stands for a name "
        f"that <a href='{escape(base)}/v1/models'>/v1/models</a> lists.</p>",
    ]
    if settings.api_keys:
        parts.append("<p>Send a key with each request: <code>Authorization: Bearer KEY</code>.</p>")
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            parts.append(
                f"<h2><span class=verb>{verb.upper()}</span><code>{escape(base + path)}</code></h2>"
                f"<p>{escape(operation['summary'])}.</p>"
            )
            if path in shown:
                name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                parts += [
                    _fields(schemas[name.rpartition("/")[2]]),
                    _curl(base + path, shown[path], settings),
                ]
    return "\n".join(parts).encode()


def _fields(schema: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{escape(name)}</code>{' *' if name in schema['required'] else ''}"
        f"<td>{escape(_kind(name, field))}<td>{escape(field.get('description', ''))}"
        for name, field in schema["properties"].items()
    ]
    return f"<table><tr><th>field (* needed)<th>value<th>{''.join(rows)}</table>"


def _kind(name: str, field: Mapping[str, Any]) -> str:
    """Return what a field takes, in words: its values where they are few."""
    if name == "model":
        return "string"
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "anyOf" in field:
        return " or ".join(_kind("", each) for each in field["anyOf"] if each != {"type": "null"})
    if field.get("type") == "array":
        return f"array of {_kind('', field.get('items', {}))}"
    return str(field.get("type", "any"))


def _curl(path: str, body: Mapping[str, Any], settings: Settings) -> str:
    scheme = "https" if settings.tls_cert else "http"
    key = " -H 'Authorization: Bearer KEY'" if settings.api_keys else ""
    text = (
        f"curl {scheme}://HOST:{settings.port}{path}{key} \\\n"
        f"  -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    )
    return f"<pre>{escape(text, quote=False)}</pre>"
