"""schemathesis against the running server: by our OpenAPI document, and by NVIDIA's hosted one.

It is run as its users run it, from the command line, with every check it has.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema_rs
import pytest

from nimbed_server import Settings

from .conftest import MODEL, PICTURES, running
from .stub import Worded

pytest.importorskip("schemathesis")

ROOT = Path(__file__).parents[3]
TOOL = "from schemathesis.cli import schemathesis; schemathesis()"

# The hosted NIM's contract in our words: its fields, words and statuses. It leaves the model open,
# shows base64 as a list of numbers, and knows neither null nor blank; there the API reference
# wins, so that what is checked here is that nothing breaks and every answer is one it names.
HOSTED = {
    "openapi": "3.1.0",
    "info": {"title": "hosted", "version": "2026-05-25"},
    "paths": {
        "/v1/embeddings": {
            "post": {
                "operationId": "createEmbedding",
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "required": ["model", "input"],
                                "properties": {
                                    "model": {"type": "string", "enum": [MODEL]},
                                    "input": {
                                        "oneOf": [
                                            {"type": "string"},
                                            {"type": "array", "items": {"type": "string"}},
                                        ]
                                    },
                                    "input_type": {"enum": ["query", "passage"]},
                                    "encoding_format": {"enum": ["float", "base64"]},
                                    "truncate": {"enum": ["NONE", "START", "END"]},
                                    "dimensions": {"type": "integer"},
                                    "user": {"type": "string"},
                                },
                            }
                        }
                    },
                },
                "responses": {
                    "200": {
                        "description": "vectors",
                        "content": {
                            "application/json": {
                                "schema": {
                                    "type": "object",
                                    "required": ["object", "data", "model", "usage"],
                                    "properties": {
                                        "object": {"const": "list"},
                                        "model": {"const": MODEL},
                                        "data": {
                                            "type": "array",
                                            "minItems": 1,
                                            "items": {
                                                "required": ["object", "index", "embedding"],
                                                "properties": {
                                                    "index": {"type": "integer"},
                                                    "object": {"const": "embedding"},
                                                    "embedding": {"type": ["array", "string"]},
                                                },
                                            },
                                        },
                                        "usage": {
                                            "required": ["prompt_tokens", "total_tokens"],
                                            "additionalProperties": {"type": "integer"},
                                        },
                                    },
                                }
                            }
                        },
                    },
                    # An unknown model is 404 by the API reference, whatever this one says.
                    **{str(status): {"description": "refused"} for status in (400, 401, 404, 429)},
                },
            }
        }
    },
}


# Of what the hosted document allows, NIM itself refuses some (blank texts, sizes that a model does
# not have), and null, which it does not allow, is taken for absent.
# The same schemas as those of version 2, and of /embed_sparse.
TWIN = ("--exclude-path", "/v1/embed", "--exclude-path", "/embed_all")
WITHOUT = ("--exclude-checks", "positive_data_acceptance,negative_data_rejection")


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    """Both examinations, side by side: their exit codes and reports."""
    folder = tmp_path_factory.mktemp("schemathesis")
    (folder / "hosted.json").write_text(json.dumps(HOSTED))
    with running({MODEL: Worded()}, Settings(port=0)) as server:
        started = {
            "ours": _started(folder, f"{server.url}/openapi.json", server.url, *TWIN),
            "hosted": _started(folder, "hosted.json", server.url, *WITHOUT),
        }
        yield {name: (run.communicate(timeout=300)[0], run.wait()) for name, run in started.items()}
        assert server.embed().status_code == 200


def _started(folder, document, url, *flags):
    return subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", "-c", TOOL, "run", document, "--url", url),
            *("--checks", "all", "--max-examples", "250", "--generation-deterministic"),
            *("--suppress-health-check", "all", "--no-color", *flags),
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.integrations.server.schema_hooks",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(("document", "cases"), [("ours", 600), ("hosted", 300)])
def test_a_document_is_kept_in_every_case(examined, document, cases):
    report, code = examined[document]
    assert code == 0, report[-6000:]
    assert int(re.search(r"([\d,]+) generated", report)[1].replace(",", "")) > cases


def test_our_document_is_valid_openapi_and_lists_what_is_served(plain):
    told = plain.client.get("/openapi.json").json()
    assert told["openapi"] == "3.1.0"
    schemas = told["components"]["schemas"]
    for schema in schemas.values():
        jsonschema_rs.Draft202012Validator(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
            | {"components": {"schemas": schemas}}
        )
    asked = schemas["EmbeddingsRequest"]["properties"]
    assert asked["model"]["enum"] == [MODEL, PICTURES.id]
    served = {f"{method} {path}" for path in told["paths"] for method in told["paths"][path]}
    assert served >= {
        "post /v1/embeddings",
        "post /vectors",
        "get /v1/models",
        "get /v1/health/live",
        "get /v1/health/ready",
        "get /v1/metrics",
        "get /v1/metadata",
        "get /v1/manifest",
        "get /v1/license",
        "get /v1/version",
    }


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"input": "a"},
        {"encoding_format": "base64"},
        {"embedding_type": "int8", "dimensions": 16},
        {"input_type": None, "modality": None, "dimensions": None, "user": None},
        {"modality": ["text"], "truncate": "END", "unknown": {"a": [None]}},
    ],
)
def test_answers_fit_our_document(plain, fields):
    told = plain.client.get("/openapi.json").json()

    def fits(name, value):
        schema = {"$ref": f"#/components/schemas/{name}", "components": told["components"]}
        jsonschema_rs.validate(schema, value)

    body = {"model": MODEL, "input": ["a text"], **fields}
    fits("EmbeddingsRequest", body)
    fits("Embeddings", plain.embed(**fields).json())
    fits("Error", plain.embed(input=[]).json())


def test_health_needs_no_key_and_the_rest_does_by_our_document(serve):
    told = serve(api_keys=("k",)).client.get("/openapi.json", headers={"authorization": "Bearer k"})
    paths = told.json()["paths"]
    assert told.json()["security"] == [{"bearer": []}]
    open_ = {path for path in paths if paths[path].get("get", {}).get("security") == []}
    assert open_ == {"/v1/health/live", "/v1/health/ready", "/docs", "/"}
