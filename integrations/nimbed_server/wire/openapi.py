"""The OpenAPI document, made from the table that validates and the names that are served."""

from __future__ import annotations

from typing import Any

from nimbed.version import __version__
from nimbed_server.models import ServedModels
from nimbed_server.settings import Settings
from nimbed_server.wire.fields import FIELDS

__all__ = ["document"]

# Not blank, as Python has it: ECMAScript's \s lacks five of its blanks and has one that is none.
_NOT_BLANK = {"type": "string", "pattern": "[^\\s\\x1c-\\x1f\\x85]|\\ufeff"}


def document(models: ServedModels, settings: Settings) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of one server."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nimbed",
            "version": __version__,
            "description": "Embeddings in the contract of NVIDIA's NIM for text and image "
            "embedding, and of OpenAI within it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(),
        "components": {
            "schemas": _schemas(models, settings),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}] if settings.api_keys else [],
    }


def _paths() -> dict[str, Any]:
    posts = {
        "/v1/embeddings": ("embed", "EmbeddingsRequest", "Embeddings", "Error"),
        "/vectors": ("vectorize", "VectorsRequest", "Vectors", "VectorsError"),
    }
    gets = {
        "/v1/models": ("listModels", "Models"),
        "/v1/health/live": ("live", "Health"),
        "/v1/health/ready": ("ready", "Health"),
        "/v1/metadata": ("metadata", "Anything"),
        "/v1/manifest": ("manifest", "Anything"),
        "/v1/license": ("license", "Anything"),
        "/v1/version": ("version", "Anything"),
        "/meta": ("meta", "Anything"),
        "/openapi.json": ("openapi", "Anything"),
    }
    paths: dict[str, Any] = {}
    for path, (name, asked, answered, error) in posts.items():
        content = {"application/json": {"schema": _to(asked)}}
        paths[path] = {
            "post": {
                "operationId": name,
                "requestBody": {"required": True, "content": content},
                "responses": {
                    "200": _answer("The vectors.", answered),
                    **_errors(error, 400, 401, 404, 408, 413, 415, 429, 500, 502, 503, 504),
                },
            }
        }
    for path, (name, answered) in gets.items():
        is_health = "health" in path
        errors = (405,) if is_health else (401, 405, 429)
        responses = {"200": _answer("As NIM answers.", answered), **_errors("Error", *errors)}
        if is_health:
            responses["503"] = _answer("Not ready.", "Health")
        paths[path] = {"get": {"operationId": name, "responses": responses}}
        if is_health:
            paths[path]["get"]["security"] = []
    for path in ("/v1/metrics", "/metrics"):
        text = {"text/plain": {"schema": {"type": "string"}}}
        paths[path] = {
            "get": {
                "operationId": path.strip("/").replace("/", "_"),
                "responses": {
                    "200": {"description": "Prometheus text.", "content": text},
                    **_errors("Error", 401, 405, 429),
                },
            }
        }
    return paths


def _schemas(models: ServedModels, settings: Settings) -> dict[str, Any]:
    properties = {field.name: dict(field.schema) for field in FIELDS if field.schema is not None}
    text = _NOT_BLANK
    properties["model"]["enum"] = [model.name for model in models]
    properties["input"]["anyOf"] = [
        text,
        {"type": "array", "items": text, "minItems": 1, "maxItems": settings.max_items},
    ]
    kinds = sorted(
        {kind for backend in models.backends.values() for kind in backend.card.modalities}
    )
    one = {"type": "string", "enum": kinds}
    properties["modality"]["anyOf"] = [
        one,
        {"type": "array", "items": one, "minItems": 1, "maxItems": settings.max_items},
    ]
    sizes = {size for backend in models.backends.values() for size in backend.card.sizes}
    properties["dimensions"]["enum"] = sorted(sizes)
    # One served model need not be named.
    required = [
        field.name
        for field in FIELDS
        if field.required and (field.name != "model" or len(models.backends) > 1)
    ]
    for name in properties.keys() - set(required):
        properties[name] = _or_null(properties[name])
    config = {
        "task_type": _or_null({"type": "string", "enum": ["", "query", "passage"]}),
        # Weaviate's zero stands for no size, as null does.
        "dimensions": _or_null({"type": "integer", "enum": [0, *sorted(sizes)]}),
        "pooling_strategy": {"description": "Ignored: a model has one."},
    }
    strings = {"type": "string"}
    number = {"type": "number"}
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
                    embedding={"anyOf": [{"type": "array", "items": number}, strings]},
                ),
            },
            model=strings,
            usage=_object(prompt_tokens={"type": "integer"}, total_tokens={"type": "integer"}),
        ),
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
    502: "The server behind this one failed.",
    503: "The queue is full, the model is loading, or the server stops.",
    504: "The request's time ran out before the work began.",
}
