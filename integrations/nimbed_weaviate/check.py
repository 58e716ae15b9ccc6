"""Checks of a live collection, for settings and vectors that give wrong results silently."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from weaviate import WeaviateAsyncClient, WeaviateClient
from weaviate.collections import Collection, CollectionAsync
from weaviate.exceptions import WeaviateBaseError
from weaviate.outputs.config import CollectionConfig

from nimbed import VectorSpec
from nimbed.errors import ConfigurationError
from nimbed.reports import Finding
from nimbed.spec import MultiVectorSpec
from nimbed_weaviate.calls import Calls, in_thread
from nimbed_weaviate.connection import translate_errors
from nimbed_weaviate.indexes import KINDS, VectorSetup, index_fault, kind_of, vector_setups
from nimbed_weaviate.modules import ANEW, module_findings
from nimbed_weaviate.properties import (
    StoredSpec,
    contract_of,
    digest_properties,
    module_options,
)

__all__ = ["acheck", "check", "check_all"]

_SAMPLE = 20


def check(client: WeaviateClient, collection: str | Collection[Any, Any]) -> list[Finding]:
    """Name the traps that a collection is in, each with what to do about it.

    Reads the configuration and a few stored vectors; nothing is changed or embedded. What
    Weaviate sends to a server cannot be seen from here: ``nimbed doctor --base-url`` examines
    the server.

    Args:
        client: A connected client.
        collection: The collection, or its name.

    Returns:
        Findings: ``fail`` must be mended, ``note`` should be known, ``ok`` is as it should be.
        Where a collection has several vectors the finding's name begins with the vector's.

    Raises:
        ConfigurationError: If there is no such collection.
        BackendError: If Weaviate cannot be read.
    """
    named = client.collections.get(collection) if isinstance(collection, str) else collection
    with translate_errors(f"checking the collection {named.name}"):
        return list(_findings(Calls(budget=0), client, named))


async def acheck(
    client: WeaviateAsyncClient, collection: str | CollectionAsync[Any, Any]
) -> list[Finding]:
    """Do what :func:`check` does, through Weaviate's async client."""
    named = client.collections.get(collection) if isinstance(collection, str) else collection
    calls = Calls(budget=0, loop=asyncio.get_running_loop())
    # The same methods; what they return is awaited where the calls are made.
    job = functools.partial(
        _findings, calls, cast(WeaviateClient, client), cast("Collection[Any, Any]", named)
    )
    with translate_errors(f"checking the collection {named.name}"):
        return await in_thread(lambda: list(job()), calls)


def check_all(client: WeaviateClient) -> dict[str, list[Finding]]:
    """Do what :func:`check` does for every collection, by its name."""
    with translate_errors("listing the collections"):
        names = sorted(client.collections.list_all())
    return {name: check(client, name) for name in names}


def _findings(
    calls: Calls, client: WeaviateClient, collection: Collection[Any, Any]
) -> Iterator[Finding]:
    config = calls(collection.config.get)
    meta = calls(client.get_meta)
    setups = vector_setups(config)
    used = frozenset(setup.module for setup in setups) - {"none"}
    yield from _version_findings(str(meta["version"]), meta.get("modules") or {}, used)
    several = len(setups) > 1
    for setup in setups:
        for finding in _setup_findings(setup):
            yield _named(finding, setup.name if several else "")
    yield from _property_names(config, used)
    reached = calls(client.is_live)  # else the client would try again for a minute
    contracts: dict[str, StoredSpec] = {}
    for setup in setups:
        try:
            known = digest_properties(calls, collection, config, sample=reached)
            contract = contract_of(config, known.get(setup.name, ""))
        except ConfigurationError as error:
            yield _named(Finding("contract", "fail", str(error)), setup.name if several else "")
            continue
        if contract is not None:
            contracts[setup.name] = contract
            kind = "multi-vectors"
            if isinstance(contract, VectorSpec):
                kind = contract.embedding_type
            said = f"{kind} of {contract.model}, {contract.dimensions} dimensions"
            finding = Finding("contract", "ok", f"{said}, fingerprint {contract.fingerprint}")
            yield _named(finding, setup.name if several else "")
    if config.multi_tenancy_config.enabled and collection.tenant is None:
        yield Finding("vectors", "note", "not looked at: pass collection.with_tenant(...)")
        return
    if not reached:
        yield Finding("vectors", "note", "not looked at: Weaviate does not answer by gRPC")
        return
    for concerned, finding in _sample_findings(calls, collection, setups, contracts):
        yield _named(finding, concerned.name if several and concerned else "")


def _property_names(config: CollectionConfig, used: frozenset[str]) -> Iterator[Finding]:
    said = [
        each.name
        for each in config.properties
        for module, options in module_options(each)
        if module in used
        and module.startswith("text2vec")
        and options.vectorize_property_name
        and not options.skip
    ]
    if said:
        yield Finding(
            "property names",
            "note",
            f"put before the values that are embedded: {', '.join(sorted(set(said)))}; give "
            f"vectorize_property_name=False for them in a new collection",
        )


def _named(finding: Finding, vector: str) -> Finding:
    return dataclasses.replace(finding, name=f"{vector}: {finding.name}") if vector else finding


def _setup_findings(setup: VectorSetup) -> Iterator[Finding]:
    """Yield what is right and wrong with the setup of one vector."""
    yield from module_findings(setup)
    if setup.metric == "hamming":
        fault = index_fault("signs", setup.metric, setup.quantizers, index=setup.index)
        if fault:
            yield Finding("index", "fail", f"{fault}; {ANEW}")
            return
    quantizers = " and ".join(sorted(setup.quantizers))
    said = f"{setup.index}, {setup.metric}, quantised by {quantizers or 'nothing'}"
    if quantizers:
        said += ", as the collection or the server's DEFAULT_QUANTIZATION has it"
    yield Finding("index", "ok", said)


def _version_findings(
    version: str, modules: Mapping[str, Any], used: frozenset[str]
) -> Iterator[Finding]:
    """Yield what is known about a version of Weaviate, and which modules it lacks.

    Args:
        version: As the server says it.
        modules: The modules that it says it has; it leaves this out if it has none.
        used: The modules that the collection uses.
    """
    parts = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:3])
    missing = sorted(used - set(modules))
    if missing:
        yield Finding(
            "module",
            "fail",
            f"{', '.join(missing)} is not switched on in this Weaviate {version}; name it in "
            f"ENABLE_MODULES, and leave API_BASED_MODULES_DISABLED unset",
        )
    faults: list[str] = []
    if used and parts < (1, 38, 8):
        faults.append(
            "a connection that the embedding server closed fails its texts (mended in 1.38.8); "
            "keep that server's keep-alive above 90 s"
        )
    if used and (parts < (1, 37, 13) or (1, 38, 0) <= parts < (1, 38, 5)):
        faults.append("fewer vectors than texts crash it (mended in 1.37.13 and 1.38.5)")
    if faults:
        yield Finding("version", "note", f"Weaviate {version}: {'; '.join(faults)}")
    else:
        yield Finding("version", "ok", f"Weaviate {version}")


def _sample_findings(
    calls: Calls,
    collection: Collection[Any, Any],
    setups: Sequence[VectorSetup],
    contracts: Mapping[str, StoredSpec],
) -> Iterator[tuple[VectorSetup | None, Finding]]:
    """Yield what a few stored vectors show, beside the setup that it concerns.

    Args:
        calls: Makes the calls.
        collection: The collection.
        setups: Its vectors.
        contracts: What :func:`nimbed_weaviate.batch_import` wrote down about them, by name.
    """
    try:
        fetch = functools.partial(
            collection.query.fetch_objects,
            limit=_SAMPLE,
            include_vector=True,
            return_properties=[],
        )
        found = calls(fetch)
    except WeaviateBaseError as error:
        yield None, Finding("vectors", "note", f"not looked at: {_first_line(error)}")
        return
    if not found.objects:
        yield None, Finding("vectors", "ok", "the collection is empty")
        return
    for setup in setups:
        rows = [each.vector.get(setup.name or "default") for each in found.objects]
        yield (
            setup,
            _judged(setup, [row for row in rows if row], len(rows), contracts.get(setup.name)),
        )


def _judged(
    setup: VectorSetup, rows: Sequence[Any], looked_at: int, contract: StoredSpec | None
) -> Finding:
    if len(rows) < looked_at:
        cure = (
            f"nimbed_weaviate.embed_stored(collection, embedder, vector={setup.name!r}) makes them"
            if setup.module == "none"
            else "a server that answers without embeddings does that silently: import them again"
        )
        return Finding(
            "vectors",
            "fail",
            f"{looked_at - len(rows)} of {looked_at} objects have none and are never found; {cure}",
        )
    if isinstance(rows[0][0], (list, tuple)):
        return _judged_tokens(rows, looked_at, contract)
    sizes = sorted({len(row) for row in rows})
    if len(sizes) > 1:
        return Finding("vectors", "fail", f"of different lengths: {sizes}")
    kind = kind_of(np.array(rows))
    said = f"{looked_at} of {sizes[0]} dimensions looked at: {kind}"
    fault = index_fault(kind, setup.metric, setup.quantizers, index=setup.index)
    if fault:
        return Finding("vectors", "fail", f"{said}, under {setup.metric}: {fault}")
    if isinstance(contract, VectorSpec) and (kind, sizes[0]) != (
        KINDS[contract.embedding_type],
        contract.dimensions,
    ):
        return Finding(
            "vectors",
            "fail",
            f"{said}, but the collection promises {contract.embedding_type} vectors of "
            f"{contract.model}, {contract.dimensions} dimensions: something else wrote into it",
        )
    return Finding("vectors", "ok", said)


def _judged_tokens(rows: Sequence[Any], looked_at: int, contract: StoredSpec | None) -> Finding:
    """Return what the tokens' vectors of a few texts show."""
    sizes = sorted({len(token) for row in rows for token in row})
    said = f"{looked_at} multi-vectors of {', '.join(map(str, sizes))} dimensions looked at"
    if not isinstance(contract, MultiVectorSpec):
        return Finding("vectors", "note", f"{said}; nimbed did not fill them")
    if sizes != [contract.dimensions]:
        return Finding(
            "vectors",
            "fail",
            f"{said}, but the collection promises {contract.dimensions} of {contract.model}: "
            f"something else wrote into it",
        )
    return Finding("vectors", "ok", said)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
