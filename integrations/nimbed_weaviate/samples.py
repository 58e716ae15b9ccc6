"""A live collection in, a few of its vectors out, and whether its index ranks such vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from weaviate.collections import Collection
from weaviate.exceptions import WeaviateBaseError

from nimbed import VectorSpec
from nimbed.findings import Finding
from nimbed_weaviate.indexing import KINDS, index_fault, kind_of
from nimbed_weaviate.setup import VectorSetup

__all__ = ["sample_findings"]

_SAMPLE = 20


def sample_findings(
    collection: Collection[Any, Any], setups: Sequence[VectorSetup], contract: VectorSpec | None
) -> Iterator[tuple[VectorSetup | None, Finding]]:
    """Yield what a few stored vectors show, beside the setup that it concerns.

    Args:
        collection: The collection.
        setups: Its vectors.
        contract: What :func:`nimbed_weaviate.batch_import` wrote down about them, if it did.
    """
    try:
        found = collection.query.fetch_objects(
            limit=_SAMPLE, include_vector=True, return_properties=[]
        )
    except WeaviateBaseError as error:
        yield None, Finding("vectors", "note", f"not looked at: {_first_line(error)}")
        return
    if not found.objects:
        yield None, Finding("vectors", "ok", "the collection is empty")
        return
    for setup in setups:
        rows = [each.vector.get(setup.name or "default") for each in found.objects]
        yield setup, _judged(setup, [row for row in rows if row], len(rows), contract)


def _judged(
    setup: VectorSetup, rows: Sequence[Any], looked_at: int, contract: VectorSpec | None
) -> Finding:
    if len(rows) < looked_at:
        return Finding(
            "vectors",
            "fail",
            f"{looked_at - len(rows)} of {looked_at} objects have none and are never found; a "
            f"server that answers without embeddings does that silently: import them again",
        )
    if isinstance(rows[0][0], (list, tuple)):
        return Finding("vectors", "note", "several a text, which is nothing that nimbed makes")
    sizes = sorted({len(row) for row in rows})
    if len(sizes) > 1:
        return Finding("vectors", "fail", f"of different lengths: {sizes}")
    kind = kind_of(np.array(rows))
    said = f"{looked_at} of {sizes[0]} dimensions looked at: {kind}"
    fault = index_fault(kind, setup.metric, setup.quantizers)
    if fault:
        return Finding("vectors", "fail", f"{said}, under {setup.metric}: {fault}")
    if contract is not None and (kind, sizes[0]) != (
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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
