"""The OpenAPI document, made from the table that validates and the served names, and its page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nimbed.version import __version__
from nimbed_server.models import ServedModels
from nimbed_server.routes.cohere import COHERE_FIELDS
from nimbed_server.routes.kinds import KINDS_FIELDS, TEI_FIELDS
from nimbed_server.settings import Settings
from nimbed_server.wire.fields import FIELDS, TOKENIZE_FIELDS, Field

__all__ = ["ANY_MODEL", "docs_page", "document", "examples"]

# Not blank, as Python has it: ECMAScript's \s lacks five of its blanks and has one that is none.
_NOT_BLANK = {"type": "string", "pattern": "[^\\s\\x1c-\\x1f\\x85]|\\ufeff"}


#: What a page of documentation says in place of a model's name, to strangers.
ANY_MODEL = "MODEL"

# Of each operation: its name, a summary, and the schemas of its request, answer and error.
_POSTS = {
    "/v1/embeddings": (
        "embed",
        "Embed texts or images: NIM's contract, and OpenAI's within it",
        ("EmbeddingsRequest", "Embeddings", "Error"),
    ),
    "/v1/embeddings/kinds": (
        "embedKinds",
        "Embed texts as dense, sparse and multi-vectors in one pass, each with its contract",
        ("KindsRequest", "Kinds", "Error"),
    ),
    "/embed_sparse": (
        "embedSparse",
        "Embed texts as weights of tokens, as text-embeddings-inference does",
        ("TeiRequest", "Weights", "TeiError"),
    ),
    "/embed_all": (
        "embedAll",
        "Embed texts as a vector a token, as text-embeddings-inference does",
        ("TeiRequest", "TokenVectors", "TeiError"),
    ),
    "/v2/embed": (
        "cohereEmbedV2",
        "Embed as Cohere's API does, version 2; images or inputs may stand for texts",
        ("CohereRequest", "CohereEmbeddings", "CohereError"),
    ),
    "/v1/embed": (
        "cohereEmbedV1",
        "Embed as Cohere's API does, version 1",
        ("CohereRequest", "CohereEmbeddings", "CohereError"),
    ),
    "/vectors": (
        "vectorize",
        "Embed one text as Weaviate's text2vec-transformers container does",
        ("VectorsRequest", "Vectors", "VectorsError"),
    ),
    "/tokenize": (
        "tokenize",
        "Show the tokens of texts, as text-embeddings-inference (inputs) or vLLM (prompt)",
        ("TokenizeRequest", "Tokens", "Error"),
    ),
}
_GETS = {
    "/v1/models": ("listModels", "List the names that are served", "Models"),
    "/v1/health/live": ("live", "Whether the server runs", "Health"),
    "/v1/health/ready": ("ready", "Whether every model is loaded", "Health"),
    "/v1/metadata": ("metadata", "Versions, and the contracts of every name's vectors", "Anything"),
    "/v1/manifest": ("manifest", "The models as YAML", "Anything"),
    "/v1/license": ("license", "The licences", "Anything"),
    "/v1/version": ("version", "The server's version", "Anything"),
    "/info": ("info", "Model, limits, pooling and arithmetic", "Anything"),
    "/meta": ("meta", "The model as Weaviate's container says it", "Anything"),
    "/openapi.json": ("openapi", "This document", "Anything"),
}
_TEXTS = ("/v1/metrics", "/metrics", "/docs", "/")


def document(models: ServedModels, settings: Settings, *, base: str = "") -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of one server.

    Args:
        models: The names that it answers to.
        settings: How it behaves.
        base: What stands before its paths, for clients behind a proxy.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nimbed",
            "version": __version__,
            "description": "Embeddings in the contract of NVIDIA's NIM for text and image "
            "embedding, of OpenAI within it, and of Cohere; sparse vectors and multi-vectors.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        **({"servers": [{"url": base}]} if base else {}),
        "paths": _paths(models),
        "components": {
            "schemas": _schemas(models, settings),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}] if settings.api_keys else [],
    }


def examples(model: str) -> dict[str, dict[str, Any]]:
    """Return a request for each path that takes one.

    Args:
        model: The name to ask for.
    """
    texts = ["gzip compresses a file.", "The heart pumps blood."]
    cohere = {
        "model": model,
        "texts": texts,
        "input_type": "search_document",
        "embedding_types": ["float"],
    }
    return {
        "/v1/embeddings": {"model": model, "input": texts, "input_type": "passage"},
        "/v1/embeddings/kinds": {"model": model, "input": texts, "input_type": "passage"},
        "/embed_sparse": {"model": model, "inputs": texts, "input_type": "passage"},
        "/embed_all": {"model": model, "inputs": texts[:1], "input_type": "query"},
        "/v2/embed": cohere,
        "/v1/embed": cohere,
        "/vectors": {"text": texts[0], "config": {"task_type": "passage"}},
        "/tokenize": {"inputs": texts[0], "input_type": "passage"},
    }


def _paths(models: ServedModels) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    shown = examples(models.default.name)
    for path, (name, summary, (asked, answered, error)) in _POSTS.items():
        content = {"application/json": {"schema": _to(asked), "example": shown[path]}}
        paths[path] = {
            "post": {
                "operationId": name,
                "summary": summary,
                "requestBody": {"required": True, "content": content},
                "responses": {
                    "200": _answer("The answer.", answered),
                    **_errors(error, 400, 401, 404, 408, 413, 415, 429, 500, 501, 502, 503, 504),
                },
            }
        }
    for path, (name, summary, answered) in _GETS.items():
        is_health = "health" in path
        errors = (405,) if is_health else (401, 405, 429)
        responses = {"200": _answer("The answer.", answered), **_errors("Error", *errors)}
        if is_health:
            responses["503"] = _answer("Not ready.", "Health")
        operation = {"operationId": name, "summary": summary, "responses": responses}
        paths[path] = {"get": operation | ({"security": []} if is_health else {})}
    for path in _TEXTS:
        metrics = "metrics" in path
        kind, said = ("plain", "Prometheus metrics") if metrics else ("html", "This documentation")
        content = {f"text/{kind}": {"schema": {"type": "string"}}}
        paths[path] = {
            "get": {
                "operationId": path.strip("/").replace("/", "_") or "root",
                "summary": said,
                "responses": {
                    "200": {"description": "A text.", "content": content},
                    **_errors("Error", 401, 405, 429),
                },
            }
        }
        if not metrics:
            paths[path]["get"]["security"] = []
    return paths


def _schemas(models: ServedModels, settings: Settings) -> dict[str, Any]:
    properties, cohere, tokens, kinds, tei = map(
        _properties, (FIELDS, COHERE_FIELDS, TOKENIZE_FIELDS, KINDS_FIELDS, TEI_FIELDS)
    )
    text = _NOT_BLANK
    texts = [text, {"type": "array", "items": text, "minItems": 1, "maxItems": settings.max_items}]
    for each in (properties, cohere, tokens, kinds, tei):
        each["model"]["enum"] = [model.name for model in models]
    properties["input"]["anyOf"] = kinds["input"]["anyOf"] = tei["inputs"]["anyOf"] = texts
    shown = sorted(
        {kind for backend in models.backends.values() for kind in backend.card.modalities}
    )
    one = {"type": "string", "enum": shown}
    properties["modality"]["anyOf"] = [
        one,
        {"type": "array", "items": one, "minItems": 1, "maxItems": settings.max_items},
    ]
    sizes = {size for backend in models.backends.values() for size in backend.card.sizes}
    properties["dimensions"]["enum"] = kinds["dimensions"]["enum"] = sorted(sizes)
    # One served model need not be named.
    required = [
        field.name
        for field in FIELDS
        if field.required and (field.name != "model" or len(models.backends) > 1)
    ]
    # What else may stand for texts is said in the summary.
    cohere = {key: value for key, value in cohere.items() if key not in ("images", "inputs")}
    cohere["texts"] |= {"items": text, "maxItems": settings.max_items}
    cohere["input_type"]["enum"] = ["search_document", "search_query"]
    cohere["output_dimension"]["enum"] = sorted(sizes)
    tokens["inputs"]["anyOf"] = [text, {"type": "array", "items": text, "minItems": 1}]
    del tokens["prompt"]
    for each, needed in (
        (properties, required),
        (cohere, [*required[:-1], "texts", "input_type"]),
        (tokens, ["inputs"]),
        (kinds, required),
        (tei, ["inputs"]),
    ):
        for name in each.keys() - set(needed):
            each[name] = _or_null(each[name])
    config = {
        "task_type": _or_null({"type": "string", "enum": ["", "query", "passage"]}),
        # Weaviate's zero stands for no size, as null does.
        "dimensions": _or_null({"type": "integer", "enum": [0, *sorted(sizes)]}),
        "pooling_strategy": {"description": "Ignored: a model has one."},
    }
    strings = {"type": "string"}
    number = {"type": "number"}
    numbers = {"type": "array", "items": number}
    encoded = {"anyOf": [numbers, strings]}
    usage = _object(prompt_tokens={"type": "integer"}, total_tokens={"type": "integer"})
    return {
        "EmbeddingsRequest": {
            "type": "object",
            "required": required,
            "properties": properties,
        },
        "Embeddings": _object(
            object={"const": "list"},
            data={
                "type": "array",
                "items": _object(
                    object={"const": "embedding"},
                    index={"type": "integer", "minimum": 0},
                    embedding=encoded,
                ),
            },
            model=strings,
            usage=usage,
        ),
        "KindsRequest": {"type": "object", "required": required, "properties": kinds},
        "Kinds": _object(
            object={"const": "list"},
            data={
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["object", "index", "tokens"],
                    "properties": {
                        "object": {"const": "embedding"},
                        "index": {"type": "integer", "minimum": 0},
                        "embedding": encoded,
                        "sparse_embedding": _object(indices=encoded, values=encoded),
                        "token_embeddings": {
                            "anyOf": [{"type": "array", "items": numbers}, strings]
                        },
                        "tokens": {"type": "integer"},
                    },
                },
            },
            model=strings,
            input_type={"enum": ["query", "passage"]},
            specs={"type": "object"},
            truncated={"type": "array", "items": {"type": "integer"}},
            usage=usage,
        ),
        "TeiRequest": {"type": "object", "required": ["inputs"], "properties": tei},
        "Weights": {
            "type": "array",
            "items": {
                "type": "array",
                "items": _object(index={"type": "integer", "minimum": 0}, value=number),
            },
        },
        "TokenVectors": {"type": "array", "items": {"type": "array", "items": numbers}},
        "TeiError": _object(error=strings, error_type=strings),
        "CohereRequest": {
            "type": "object",
            "required": [*required[:-1], "texts", "input_type"],
            "properties": cohere,
        },
        "CohereEmbeddings": _object(
            id=strings,
            response_type={"enum": ["embeddings_floats", "embeddings_by_type"]},
            texts={"type": "array", "items": strings},
            meta={"type": "object"},
            embeddings={"type": ["object", "array"]},
        ),
        "CohereError": _object(message=strings),
        "TokenizeRequest": {"type": "object", "required": ["inputs"], "properties": tokens},
        "Tokens": {
            "type": "array",
            "items": {
                "type": "array",
                "items": _object(id={"type": "integer"}, text=strings, special={"type": "boolean"}),
            },
        },
        "VectorsRequest": {
            "type": "object",
            "required": ["text"],
            "properties": {
                "text": text,
                "config": _or_null({"type": "object", "properties": config}),
            },
        },
        "Vectors": _object(
            text=strings,
            vector={"type": "array", "items": number},
            dim={"type": "integer"},
            dims={"type": "integer"},
        ),
        "VectorsError": _object(error=strings),
        "Error": _object(object={"const": "error"}, message=strings, type=strings),
        "Health": _object(object={"const": "health.response"}, message=strings),
        "Models": _object(
            object={"const": "list"},
            data={
                "type": "array",
                "items": _object(
                    id=strings,
                    object={"const": "model"},
                    created={"type": "integer"},
                    owned_by=strings,
                ),
            },
        ),
        "Anything": {"type": "object"},
    }


def _properties(fields: Sequence[Field]) -> dict[str, dict[str, Any]]:
    return {field.name: dict(field.schema) for field in fields if field.schema is not None}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an optional field, where null means that it is absent."""
    described = {"description": schema["description"]} if "description" in schema else {}
    named = {key: value for key, value in schema.items() if key != "description"}
    return {**described, "anyOf": [named, {"type": "null"}]}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _to(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(text: str, schema: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _to(schema)}}}


def _errors(schema: str, *statuses: int) -> dict[str, Any]:
    return {str(status): _answer(_STATUSES[status], schema) for status in statuses}


_STATUSES = {
    400: "The request is wrong; the message says how to mend it.",
    401: "A key is needed, or it is not known.",
    404: "The model or the path is not known.",
    405: "The path takes another verb.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is compressed.",
    429: "This key has sent too many requests.",
    500: "The model failed.",
    501: "The tokenizer is elsewhere, or the model cannot do this.",
    502: "The server behind this one failed.",
    503: "The queue is full, the model is loading, or the server stops.",
    504: "The request's time ran out before the work began.",
}


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
        document: Of :func:`nimbed_server.openapi.document`.
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
                    _field_table(schemas[name.rpartition("/")[2]]),
                    _curl(base + path, shown[path], settings),
                ]
    return "\n".join(parts).encode()


def _field_table(schema: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{escape(name)}</code>{' *' if name in schema['required'] else ''}"
        f"<td>{escape(_values(name, field))}<td>{escape(field.get('description', ''))}"
        for name, field in schema["properties"].items()
    ]
    return f"<table><tr><th>field (* needed)<th>value<th>{''.join(rows)}</table>"


def _values(name: str, field: Mapping[str, Any]) -> str:
    """Return what a field takes, in words: its values where they are few."""
    if name == "model":
        return "string"
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "anyOf" in field:
        return " or ".join(_values("", each) for each in field["anyOf"] if each != {"type": "null"})
    if field.get("type") == "array":
        return f"array of {_values('', field.get('items', {}))}"
    return str(field.get("type", "any"))


def _curl(path: str, body: Mapping[str, Any], settings: Settings) -> str:
    scheme = "https" if settings.tls_cert else "http"
    key = " -H 'Authorization: Bearer KEY'" if settings.api_keys else ""
    text = (
        f"curl {scheme}://HOST:{settings.port}{path}{key} \\\n"
        f"  -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    )
    return f"<pre>{escape(text, quote=False)}</pre>"
