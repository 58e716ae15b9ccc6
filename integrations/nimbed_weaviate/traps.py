"""What Weaviate's modules do with their settings: the traps that a configuration is in.

Settings in, findings out; knows no client. Read from the modules' sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nimbed.findings import Finding, Verdict
from nimbed_weaviate.addresses import NVIDIA, address_fault, is_forgiven, is_loopback, is_nvidia
from nimbed_weaviate.indexing import index_fault
from nimbed_weaviate.setup import VectorSetup

__all__ = ["setup_findings", "version_findings"]

_ANEW = "it cannot be changed: make the collection anew with nimbed_weaviate.vectorizer(...)"


def setup_findings(setup: VectorSetup) -> Iterator[Finding]:
    """Yield what is right and wrong with the setup of one vector."""
    known = _MODULES.get(setup.module)
    if known is not None:
        yield from known(setup)
    elif setup.module == "none":
        yield Finding("module", "ok", "none: the vectors are given with the objects")
    else:
        yield Finding("module", "note", f"{setup.module}: nimbed knows nothing about it")
    if setup.metric == "hamming":
        fault = index_fault("signs", setup.metric, setup.quantizers)
        if fault:
            yield Finding("index", "fail", f"{fault}; {_ANEW}")
            return
    said = f"{setup.metric}, quantised by {' and '.join(sorted(setup.quantizers)) or 'nothing'}"
    yield Finding("index", "ok", said)


def version_findings(
    version: str, modules: Mapping[str, Any], wanted: frozenset[str]
) -> Iterator[Finding]:
    """Yield what is known about a version of Weaviate, and which modules it lacks.

    Args:
        version: As the server says it.
        modules: The modules that it says it has; it leaves this out if it has none.
        wanted: The modules that the collection uses.
    """
    parts = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:3])
    missing = sorted(wanted - set(modules))
    if missing:
        yield Finding(
            "module",
            "fail",
            f"{', '.join(missing)} is not switched on in this Weaviate {version}; name it in "
            f"ENABLE_MODULES, and leave API_BASED_MODULES_DISABLED unset",
        )
    faults: list[str] = []
    if wanted and parts < (1, 38, 8):
        faults.append(
            "a connection that the embedding server closed fails its texts (mended in 1.38.8); "
            "keep that server's keep-alive above 90 s"
        )
    if wanted and (parts < (1, 37, 13) or (1, 38, 0) <= parts < (1, 38, 5)):
        faults.append("fewer vectors than texts crash it (mended in 1.37.13 and 1.38.5)")
    if faults:
        yield Finding("version", "note", f"Weaviate {version}: {'; '.join(faults)}")
    else:
        yield Finding("version", "ok", f"Weaviate {version}")


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
    if "weights" in settings and setup.metric != "cosine":
        yield Finding(
            "weights",
            "fail",
            f"weighted vectors are no longer of unit length, which {setup.metric} counts and "
            f"cosine does not; {_ANEW}",
        )


def _container(setup: VectorSetup) -> Iterator[Finding]:
    settings = setup.settings
    keys = ("inferenceUrl", "passageInferenceUrl", "queryInferenceUrl")
    given = {key: settings[key] for key in keys if settings.get(key)}
    faults = [f"{key}: {fault}" for key, url in given.items() if (fault := _url(url, "/vectors"))]
    if faults:
        yield Finding("address", "fail", f"{'; '.join(faults)}; {_ANEW}")
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
            f"{key!r} is not read, 'baseURL' is: texts go to {goes} and not to {value}; {_ANEW}",
        )
    if stored is None:
        if not strays:
            yield Finding("address", "ok", f"NVIDIA's own ({NVIDIA}), asked for the model {model}")
        return
    fault = _url(stored, "/v1/embeddings")
    if fault is None:
        said = f"{stored}, asked for the model {model}"
        if is_nvidia(stored):
            yield Finding("address", "ok", said)
        elif is_loopback(stored):
            yield Finding(
                "address",
                "note",
                f"{said}: in a container that is Weaviate itself; give a name that leads out of it",
            )
        else:
            yield Finding(
                "address", "ok", f"{said}; if private, leave MODULES_VALIDATE_BASE_URL unset there"
            )
        return
    mended = "send X-Nvidia-Baseurl (nimbed_weaviate.headers(..., redirect=True)), or make it anew"
    lenient = isinstance(stored, str) and is_forgiven(stored)
    only = "; a nimbed server answers there all the same, others do not" if lenient else ""
    yield Finding("address", "note" if lenient else "fail", f"{fault}{only}; {mended}")


def _truncate(settings: Mapping[str, Any]) -> Finding:
    value = settings.get("truncate", "NONE")
    fails = "a text that is too long fails, and the up to nine others of its request with it"
    if not isinstance(value, str):
        return Finding(
            "truncate",
            "fail",
            f"{value!r} is no text, so Weaviate ignores it and sends NONE: {fails}; {_ANEW}",
        )
    if value == "NONE":
        return Finding("truncate", "note", f"NONE: {fails}; override it at the server, or use END")
    return Finding("truncate", "ok", value)


def _class_name(settings: Mapping[str, Any], *, default: bool) -> Finding:
    if settings.get("vectorizeClassName", default):
        return Finding(
            "collection name",
            "note",
            f"it is put before every text that is embedded (vectorizeClassName), and before no "
            f"question; {_ANEW}",
        )
    return Finding("collection name", "ok", "not embedded")


def _key() -> Finding:
    return Finding(
        "key",
        "ok",
        "Weaviate sends nothing without one, even to a server that wants none: connect with "
        "headers=nimbed_weaviate.headers(...), or set NVIDIA_APIKEY there",
    )


def _url(stored: object, path: str) -> str | None:
    if not isinstance(stored, str):
        return f"{stored!r} is no text, so Weaviate ignores it"
    return address_fault(stored, path=path)


def _plain(key: str) -> str:
    return key.replace("_", "").lower()
