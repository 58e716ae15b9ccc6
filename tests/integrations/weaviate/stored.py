"""A collection as a client sends it in, as Weaviate stores and answers it out.

Defaults of the server and of its modules, from Weaviate's sources (config.go of each module,
entities/vectorindex).
"""

from __future__ import annotations

import copy
import re
from typing import Any

MODULE_DEFAULTS: dict[str, dict[str, Any]] = {
    "text2vec-nvidia": {
        "vectorizeClassName": False,
        "model": "nvidia/nv-embed-v1",
        "truncate": "NONE",
        "baseUrl": "https://integrate.api.nvidia.com",  # sic: read as baseURL, written so
    },
    "multi2vec-nvidia": {},
    "text2vec-cohere": {
        "vectorizeClassName": True,
        "model": "embed-multilingual-v3.0",
        "truncate": "END",
        "baseURL": "https://api.cohere.com",
    },
    "multi2vec-cohere": {},
    "text2vec-transformers": {"vectorizeClassName": True, "poolingStrategy": "masked_mean"},
    "text2vec-openai": {"vectorizeClassName": True, "model": "text-embedding-3-small"},
    "text2vec-huggingface": {"vectorizeClassName": True},
    "text2vec-ollama": {"vectorizeClassName": True, "apiEndpoint": "http://localhost:11434"},
    "text2vec-weaviate": {},
    "none": {},
}

HNSW: dict[str, Any] = {
    "skip": False,
    "cleanupIntervalSeconds": 300,
    "maxConnections": 32,
    "efConstruction": 128,
    "ef": -1,
    "dynamicEfMin": 100,
    "dynamicEfMax": 500,
    "dynamicEfFactor": 8,
    "vectorCacheMaxObjects": 1000000000000,
    "flatSearchCutoff": 40000,
    "distance": "cosine",
    "pq": {
        "enabled": False,
        "bitCompression": False,
        "segments": 0,
        "centroids": 256,
        "trainingLimit": 100000,
        "encoder": {"type": "kmeans", "distribution": "log-normal"},
    },
    "bq": {"enabled": False},
    "sq": {"enabled": False, "trainingLimit": 100000, "rescoreLimit": 20},
    "rq": {"enabled": False, "bits": 8, "rescoreLimit": 20},
    "filterStrategy": "sweeping",
    "multivector": {
        "enabled": False,
        "muvera": {"enabled": False, "ksim": 4, "dprojections": 16, "repetitions": 10},
        "aggregation": "maxSim",
    },
    "skipDefaultQuantization": False,
    "trackDefaultQuantization": False,
}

FLAT: dict[str, Any] = {
    "distance": "cosine",
    "vectorCacheMaxObjects": 1000000000000,
    "pq": {"enabled": False, "rescoreLimit": -1, "cache": False},
    "bq": {"enabled": False, "rescoreLimit": -1, "cache": False},
    "sq": {"enabled": False, "rescoreLimit": -1, "cache": False},
    "rq": {"enabled": False, "rescoreLimit": -1, "cache": False, "bits": 8},
    "skipDefaultQuantization": False,
    "trackDefaultQuantization": False,
}

HFRESH: dict[str, Any] = {
    "distance": "cosine",
    "maxPostingSizeKB": 48,
    "replicas": 4,
    "searchProbe": 64,
    "rq": {"enabled": False, "bits": 8, "rescoreLimit": 350},
}

CLASS: dict[str, Any] = {
    "invertedIndexConfig": {
        "bm25": {"b": 0.75, "k1": 1.2},
        "cleanupIntervalSeconds": 60,
        "stopwords": {"additions": None, "preset": "en", "removals": None},
        "usingBlockMaxWAND": True,
    },
    "multiTenancyConfig": {
        "autoTenantActivation": False,
        "autoTenantCreation": False,
        "enabled": False,
    },
    "replicationConfig": {
        "asyncEnabled": False,
        "deletionStrategy": "NoAutomatedResolution",
        "factor": 1,
    },
    "shardingConfig": {
        "actualCount": 1,
        "actualVirtualCount": 128,
        "desiredCount": 1,
        "desiredVirtualCount": 128,
        "function": "murmur3",
        "key": "_id",
        "strategy": "hash",
        "virtualPerPhysical": 128,
    },
}


def stored(sent: dict[str, Any], *, default_quantization: str = "") -> dict[str, Any]:
    """Return what Weaviate answers to GET /v1/schema/{class} after this was created."""
    known = copy.deepcopy(CLASS)
    _merge(known, copy.deepcopy(sent))
    known["properties"] = [stored_property(each) for each in sent.get("properties") or []]
    for vector in known.get("vectorConfig", {}).values():
        ((module, settings),) = vector["vectorizer"].items()
        vector["vectorizer"] = {module: MODULE_DEFAULTS[module] | (settings or {})}
        _index(vector, default_quantization)
    if "vectorConfig" not in known:
        module = known.setdefault("vectorizer", "none")
        settings = known.get("moduleConfig", {}).get(module, {})
        if module != "none":
            known["moduleConfig"] = {module: MODULE_DEFAULTS[module] | settings}
        _index(known, default_quantization)
    return known


def stored_property(sent: dict[str, Any]) -> dict[str, Any]:
    defaults = {"indexFilterable": True, "indexRangeFilters": False, "indexSearchable": True}
    return defaults | {"tokenization": "word"} | sent


def type_of(value: Any) -> str:
    """Return the type that Weaviate gives to a property that it was never told about."""
    if isinstance(value, list):
        return f"{type_of(value[0]) if value else 'text'}[]"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, dict):
        return "object"
    return "date" if re.fullmatch(r"\d{4}-\d\d-\d\dT.*", value) else "text"


def _index(vector: dict[str, Any], default_quantization: str) -> None:
    kind = vector.setdefault("vectorIndexType", "hnsw")
    given = vector.get("vectorIndexConfig", {})
    if kind == "dynamic":
        index = {"distance": "cosine", "threshold": 10_000} | given
        for part, defaults in (("hnsw", HNSW), ("flat", FLAT)):
            index[part] = _filled(defaults, given.get(part, {}), default_quantization)
    elif kind == "hfresh":
        index = _filled(HFRESH, given, "")
    else:
        index = _filled(HNSW if kind == "hnsw" else FLAT, given, default_quantization)
    vector["vectorIndexConfig"] = index


def _filled(
    defaults: dict[str, Any], given: dict[str, Any], default_quantization: str
) -> dict[str, Any]:
    index = copy.deepcopy(defaults)
    _merge(index, given)
    compressed = any(index[name]["enabled"] for name in ("pq", "bq", "sq", "rq") if name in index)
    if default_quantization and not compressed and not index["skipDefaultQuantization"]:
        index[default_quantization]["enabled"] = True
    return index


def _merge(into: dict[str, Any], given: dict[str, Any]) -> None:
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def not_allowed(made: dict[str, Any], allowed: frozenset[str]) -> dict[str, Any] | None:
    """Return Weaviate's answer where ALLOWED_COMPRESSION_TYPES has not what was configured."""
    for vector in made["vectorConfig"].values():
        index = vector["vectorIndexConfig"]
        for each in (index, index.get("hnsw", {}), index.get("flat", {})):
            for name in ("pq", "bq", "sq", "rq"):
                used = each.get(name, {})
                value = f"rq-{used.get('bits', 8)}" if name == "rq" else name
                if used.get("enabled") and value not in allowed:
                    return {
                        "errorCode": "CONFIG_NOT_ALLOWED",
                        "restriction": "compression",
                        "value": value,
                        "allowed": sorted(allowed),
                        "message": f"compression {value!r} is not allowed",
                    }
    return None
