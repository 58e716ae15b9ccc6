"""A live collection in, the traps that its configuration is in out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from weaviate import WeaviateClient
from weaviate.collections import Collection
from weaviate.outputs.config import CollectionConfig

from nimbed.errors import ConfigurationError
from nimbed.findings import Finding
from nimbed_weaviate.contract import contract_of
from nimbed_weaviate.faults import sentences
from nimbed_weaviate.samples import sample_findings
from nimbed_weaviate.setup import vector_setups
from nimbed_weaviate.traps import setup_findings, version_findings

__all__ = ["check", "check_all"]


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
    with sentences(f"checking the collection {named.name}"):
        return list(_findings(client, named, named.config.get()))


def check_all(client: WeaviateClient) -> dict[str, list[Finding]]:
    """Do what :func:`check` does for every collection, by its name."""
    with sentences("listing the collections"):
        names = sorted(client.collections.list_all())
    return {name: check(client, name) for name in names}


def _findings(
    client: WeaviateClient, collection: Collection[Any, Any], config: CollectionConfig
) -> Iterator[Finding]:
    meta = client.get_meta()
    setups = vector_setups(config)
    wanted = frozenset(setup.module for setup in setups) - {"none"}
    yield from version_findings(str(meta["version"]), meta.get("modules") or {}, wanted)
    several = len(setups) > 1
    for setup in setups:
        for finding in setup_findings(setup):
            yield _named(finding, setup.name if several else "")
    yield from _property_names(config, wanted)
    try:
        contract = contract_of(config)
    except ConfigurationError as error:
        yield Finding("contract", "fail", str(error))
        contract = None
    if contract is not None:
        said = f"{contract.embedding_type} of {contract.model}, {contract.dimensions} dimensions"
        yield Finding("contract", "ok", f"{said}, fingerprint {contract.fingerprint}")
    if config.multi_tenancy_config.enabled and collection.tenant is None:
        yield Finding("vectors", "note", "not looked at: pass collection.with_tenant(...)")
        return
    if not client.is_live():  # else the client would try again for a minute
        yield Finding("vectors", "note", "not looked at: Weaviate does not answer by gRPC")
        return
    for concerned, finding in sample_findings(collection, setups, contract):
        yield _named(finding, concerned.name if several and concerned else "")


def _property_names(config: CollectionConfig, wanted: frozenset[str]) -> Iterator[Finding]:
    said = [
        each.name
        for each in config.properties
        for module, options in _module_options(each)
        if module in wanted
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


def _module_options(each: Any) -> list[tuple[str, Any]]:
    """Return a property's options for each module; an unnamed vector has one module."""
    options = dict(each.vectorizer_configs or {})
    if each.vectorizer is not None and each.vectorizer_config is not None:
        options.setdefault(str(each.vectorizer), each.vectorizer_config)
    return list(options.items())


def _named(finding: Finding, vector: str) -> Finding:
    return dataclasses.replace(finding, name=f"{vector}: {finding.name}") if vector else finding
