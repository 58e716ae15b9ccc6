"""What each module of Weaviate does with its settings, and the traps in them.

Read from the modules' sources. A module that a nimbed server can stand behind is judged in full; of
others it is said what they lose at such a server, and what to take instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from nimbed.errors import ConfigurationError
from nimbed.reports import Finding, Verdict
from nimbed_weaviate.connection import (
    NVIDIA,
    address_fault,
    is_forgiven,
    is_loopback,
    is_nvidia,
    served_at,
)
from nimbed_weaviate.indexes import VectorSetup

__all__ = ["ANEW", "module_findings"]

ANEW = "it cannot be changed: make the collection anew with nimbed_weaviate.vectorizer(...)"
# Where Weaviate turns by itself, of its older and its newer versions.
_COHERE = ("https://api.cohere.ai", "https://api.cohere.com")

_NO_ROLE = "it sends no role, so that a question is embedded as the passages are"
_OFFLINE = (
    "its batches need Weaviate to reach the internet for a tokenizer, and fail with "
    "'panic occurred' where it does not"
)


@dataclass(frozen=True, slots=True)
class _Stranger:
    """A module that is made for another server.

    Attributes:
        key: The setting with the address.
        own: The end of its own provider's host; empty where it has none.
        loses: What goes wrong at an embedding server of another kind.
    """

    key: str
    own: str
    loses: str


_STRANGERS: Mapping[str, _Stranger] = {
    "text2vec-openai": _Stranger("baseURL", ".openai.com", f"{_NO_ROLE}; {_OFFLINE}"),
    "text2vec-huggingface": _Stranger(
        "endpointURL", ".huggingface.co", f"{_NO_ROLE}, and neither truncate nor dimensions"
    ),
    "text2vec-ollama": _Stranger(
        "apiEndpoint", "", f"it speaks Ollama's API, which nimbed serve does not; {_NO_ROLE}"
    ),
    "text2vec-voyageai": _Stranger("baseURL", ".voyageai.com", _OFFLINE),
    "text2vec-jinaai": _Stranger("baseURL", ".jina.ai", _OFFLINE),
    "text2vec-mistral": _Stranger("baseURL", ".mistral.ai", f"{_NO_ROLE}; {_OFFLINE}"),
    "text2multivec-jinaai": _Stranger("baseURL", ".jina.ai", f"{_NO_ROLE}; {_OFFLINE}"),
}


def module_findings(setup: VectorSetup) -> Iterator[Finding]:
    """Yield what is right and wrong with how the module of a vector is set up."""
    known = _MODULES.get(setup.module)
    if known is not None:
        yield from known(setup)
    elif setup.module == "none":
        yield Finding("module", "ok", "none: the vectors are given with the objects")
    else:
        yield _stranger(setup)


def _stranger(setup: VectorSetup) -> Finding:
    """Say what a module loses at an address that is not its own provider's."""
    known, settings = _STRANGERS.get(setup.module), setup.settings
    address = settings.get(known.key) if known is not None else None
    if known is None or not isinstance(address, str) or not address:
        return Finding("module", "note", f"{setup.module}: nimbed knows nothing about it")
    host = urlsplit(address).hostname or ""
    if known.own and f".{host}".endswith(known.own):
        return Finding("module", "note", f"{setup.module} at its own {host}: nimbed is not asked")
    try:
        right = served_at(address)
    except ConfigurationError:
        right = "http://nimbed:8000"
    model = settings.get("model") or settings.get("passageModel") or "MODEL"
    instead = f"vectorizer({model!r}, base_url={right!r}, module='text2vec-cohere')"
    return Finding(
        "module",
        "note",
        f"{setup.module} at {address}: {known.loses}; at a nimbed server take "
        f"nimbed_weaviate.{instead}, with headers({right!r}, module='text2vec-cohere')",
    )


def _nvidia_text(setup: VectorSetup) -> Iterator[Finding]:
    yield from _nvidia_address(setup.settings)
    yield _key()
    yield _truncate(setup.settings)
    yield _class_name(setup.settings, default=False)


def _nvidia_images(setup: VectorSetup) -> Iterator[Finding]:
    settings = setup.settings
    yield from _nvidia_address(settings)
    yield _key()
    ignored = sorted({"truncate", "truncation"} & set(settings))
    if ignored:
        yield Finding(
            "truncate",
            "note",
            f"{ignored[0]} is stored but never sent by multi2vec-nvidia; set it at the server",
        )
    yield Finding(
        "roles",
        "note",
        "multi2vec-nvidia sends no role, so a question is embedded as the passages are; let "
        "`model` name an alias of nimbed serve that has a default role",
    )
    yield from _weights(setup)


def _weights(setup: VectorSetup) -> Iterator[Finding]:
    if "weights" in setup.settings and setup.metric != "cosine":
        yield Finding(
            "weights",
            "fail",
            f"weighted vectors are no longer of unit length, which {setup.metric} counts and "
            f"cosine does not; {ANEW}",
        )


def _cohere_text(setup: VectorSetup) -> Iterator[Finding]:
    yield from _cohere_address(setup.settings)
    yield _key("COHERE_APIKEY")
    yield _truncate(setup.settings, default="END", others=95)
    yield _class_name(setup.settings, default=True)


def _cohere_images(setup: VectorSetup) -> Iterator[Finding]:
    yield from _cohere_address(setup.settings)
    yield _key("COHERE_APIKEY")
    yield Finding(
        "roles",
        "note",
        "multi2vec-cohere sends a question as search_document, so it is embedded as the passages "
        "are; text2vec-cohere sends both roles",
    )
    yield from _weights(setup)


def _container(setup: VectorSetup) -> Iterator[Finding]:
    settings = setup.settings
    keys = ("inferenceUrl", "passageInferenceUrl", "queryInferenceUrl")
    given = {key: settings[key] for key in keys if settings.get(key)}
    faults = [f"{key}: {fault}" for key, url in given.items() if (fault := _url(url, "/vectors"))]
    if faults:
        yield Finding("address", "fail", f"{'; '.join(faults)}; {ANEW}")
    else:
        where = ", ".join(map(str, given.values())) or "where TRANSFORMERS_INFERENCE_API points"
        yield Finding("address", "ok", f"{where}; no model is sent, the address alone chooses it")
    yield Finding(
        "key",
        "note",
        "text2vec-transformers sends no key: its server must be open, but to Weaviate alone",
    )
    yield _class_name(settings, default=True)


_MODULES: Mapping[str, Callable[[VectorSetup], Iterator[Finding]]] = {
    "text2vec-nvidia": _nvidia_text,
    "multi2vec-nvidia": _nvidia_images,
    "text2vec-cohere": _cohere_text,
    "multi2vec-cohere": _cohere_images,
    "text2vec-transformers": _container,
}


def _nvidia_address(settings: Mapping[str, Any]) -> Iterator[Finding]:
    stored, model = settings.get("baseURL"), settings.get("model")
    # The server itself stores its default under the misspelt key.
    strays = {
        key: value
        for key, value in settings.items()
        if key != "baseURL" and _plain(key) in ("baseurl", "endpoint") and value != NVIDIA
    }
    if strays:
        key, value = next(iter(strays.items()))
        goes = stored or f"NVIDIA's cloud, {NVIDIA},"
        verdict: Verdict = "note" if stored == value else "fail"
        yield Finding(
            "address key",
            verdict,
            f"{key!r} is not read, 'baseURL' is: texts go to {goes} and not to {value}; {ANEW}",
        )
    if stored is None:
        if not strays:
            yield Finding("address", "ok", f"NVIDIA's own ({NVIDIA}), asked for the model {model}")
        return
    yield _address(stored, model, "/v1/embeddings", "X-Nvidia-Baseurl")


def _cohere_address(settings: Mapping[str, Any]) -> Iterator[Finding]:
    stored, model = settings.get("baseURL"), settings.get("model")
    # The server stores its defaults: Cohere's cloud, which is not ours to judge.
    if stored is None or str(stored).rstrip("/") in _COHERE:
        yield Finding("address", "ok", f"Cohere's own, asked for the model {model}")
        return
    yield _address(stored, model, "/v2/embed", "X-Cohere-Baseurl")


def _address(stored: object, model: object, path: str, header: str) -> Finding:
    """Judge an address that is not the module's own."""
    fault = _url(stored, path)
    if fault is None:
        assert isinstance(stored, str)  # else there were one
        said = f"{stored}, asked for the model {model}"
        if is_nvidia(stored):
            if path != "/v1/embeddings":
                return Finding("address", "fail", f"{said}: it does not speak Cohere's API; {ANEW}")
            return Finding("address", "ok", said)
        if is_loopback(stored):
            return Finding(
                "address",
                "note",
                f"{said}: in a container that is Weaviate itself; give a name that leads out of it",
            )
        return Finding(
            "address", "ok", f"{said}; if private, leave MODULES_VALIDATE_BASE_URL unset there"
        )
    mended = f"send {header} (nimbed_weaviate.headers(..., redirect=True)), or make it anew"
    lenient = isinstance(stored, str) and is_forgiven(stored)
    only = "; a nimbed server answers there all the same, others do not" if lenient else ""
    return Finding("address", "note" if lenient else "fail", f"{fault}{only}; {mended}")


def _truncate(
    settings: Mapping[str, Any], *, default: str = "NONE", others: int | str = "nine"
) -> Finding:
    value = settings.get("truncate", default)
    fails = f"a text that is too long fails, and the up to {others} others of its request with it"
    if not isinstance(value, str):
        said = f"{value!r} is no text, so Weaviate ignores it and sends {default}"
        if default != "NONE":
            return Finding("truncate", "note", said)
        return Finding("truncate", "fail", f"{said}: {fails}; {ANEW}")
    if value == "NONE":
        return Finding("truncate", "note", f"NONE: {fails}; override it at the server, or use END")
    return Finding("truncate", "ok", value)


def _class_name(settings: Mapping[str, Any], *, default: bool) -> Finding:
    if settings.get("vectorizeClassName", default):
        return Finding(
            "collection name",
            "note",
            f"it is put before every text that is embedded (vectorizeClassName), and before no "
            f"question; {ANEW}",
        )
    return Finding("collection name", "ok", "not embedded")


def _key(variable: str = "NVIDIA_APIKEY") -> Finding:
    return Finding(
        "key",
        "ok",
        f"Weaviate sends nothing without one, even to a server that wants none: connect with "
        f"headers=nimbed_weaviate.headers(...), or set {variable} there",
    )


def _url(stored: object, path: str) -> str | None:
    if not isinstance(stored, str):
        return f"{stored!r} is no text, so Weaviate ignores it"
    return address_fault(stored, path=path)


def _plain(key: str) -> str:
    return key.replace("_", "").lower()
