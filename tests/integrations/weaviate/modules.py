"""The settings of a stored vector in, the request that Weaviate's Go module makes of it out.

An independent reading of the modules' sources (class_settings.go, nvidia.go, cohere.go,
transformers.go): exact keys, a value of another type counts as absent, addresses are joined as
texts.
"""

from __future__ import annotations

from typing import Any

NVIDIA = "https://integrate.api.nvidia.com"
COHERE = "https://api.cohere.com"


def _text(settings: dict[str, Any], key: str, default: str) -> str:
    value = settings.get(key)
    return value if isinstance(value, str) else default


def request(vector: dict[str, Any]) -> dict[str, Any]:
    """Return url, model, truncate and whether the class name is embedded."""
    ((module, settings),) = vector["vectorizer"].items()
    if module == "text2vec-transformers":
        url = _text(settings, "inferenceUrl", "http://from-the-environment") + "/vectors"
        return {"url": url, "class_name": settings.get("vectorizeClassName", True)}
    cohere = module.endswith("cohere")
    home, path = (COHERE, "/v2/embed") if cohere else (NVIDIA, "/v1/embeddings")
    made: dict[str, Any] = {"url": _text(settings, "baseURL", home) + path}
    if cohere and "dimensions" in settings:
        made["dimensions"] = settings["dimensions"]
    if module.startswith("multi2vec"):
        weights = settings.get("weights", {})
        for kind in ("textFields", "imageFields"):
            names, each = settings.get(kind, []), weights.get(kind)
            assert each is None or len(each) == len(names), "wrong number of weights"
            made[kind] = dict(zip(names, each or [None] * len(names), strict=True))
        default = "embed-multilingual-v3.0" if cohere else "nvidia/nvclip"
        return made | {"model": _text(settings, "model", default)}
    truncate = _text(settings, "truncate", "END" if cohere else "NONE")
    assert truncate in ("NONE", "START", "END"), "wrong truncate type"
    return made | {
        "model": _text(settings, "model", "nvidia/nv-embed-v1"),
        "truncate": truncate,
        "class_name": settings.get("vectorizeClassName", cohere),
        "properties": settings.get("properties"),
    }


def body(vector: dict[str, Any], texts: list[str], role: str) -> dict[str, Any]:
    """Return what the module posts for some texts; the container's takes one at a time."""
    (module,) = vector["vectorizer"]
    if module == "text2vec-transformers":
        config = {"pooling_strategy": "masked_mean", "task_type": role}
        return {"text": texts[0], "dims": 0, "vector": None, "error": "", "config": config}
    said = request(vector)
    if module.endswith("cohere"):  # multi2vec's questions are search_document too
        query = role == "query" and module.startswith("text2vec")
        posted = {
            "texts": texts,
            "model": said["model"],
            "truncate": said.get("truncate", "END"),
            "input_type": "search_query" if query else "search_document",
            "embedding_types": ["float"],
        }
        return posted | ({"output_dimension": said["dimensions"]} if "dimensions" in said else {})
    sent = {"input": texts, "model": said["model"], "encoding_format": "float"}
    if module == "multi2vec-nvidia":
        return sent
    return sent | {"input_type": role, "truncate": said["truncate"]}
