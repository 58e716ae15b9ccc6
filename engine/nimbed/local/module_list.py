"""The modules that modules.json lists, in order, and those of a router's route.

Each is named by its class in sentence-transformers, and lies in a folder of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nimbed.errors import CheckpointError
from nimbed.local.json_files import FILES, check_keys, read_any_json, read_json
from nimbed.spec import InputType

__all__ = ["ListedModule", "has_routes", "listed_modules", "of_route"]

# Classes of modules that are followed; nimbed.local.pipeline does so.
_MODULES = (
    *("Transformer", "StaticEmbedding", "WeightedLayerPooling", "Pooling", "Dense", "LayerNorm"),
    *("Normalize", "Dropout"),
)
# And of its MultiVectorEncoder.
_LATE = ("MultiVectorMask", "HierarchicalTokenPooling")
# And those of its SparseEncoder.
_SPARSE = ("MLMTransformer", "SpladePooling", "SparseStaticEmbedding", "SparseAutoEncoder")

# Names by which a router's routes go.
_ROUTES: dict[InputType, tuple[str, ...]] = {
    "query": ("query",),
    "passage": ("document", "passage", "doc", "corpus"),
}


class ListedModule(NamedTuple):
    """A module: its class's name, its folder, and where it is named."""

    kind: str
    path: Path
    where: str


def has_routes(folder: Path) -> bool:
    """Whether queries and passages go through modules or adapters of their own."""
    routed = any(kind in ("Router", "Asym") for kind, _, _ in listed_modules(folder))
    return routed or has_idf(folder) or _has_adapters(folder)


def has_idf(folder: Path) -> bool:
    """Whether queries have a table of weights beside a masked language model for passages.

    So OpenSearch published its first sparse encoders, without modules.json.
    """
    if (folder / "modules.json").is_file() or not (folder / "idf.json").is_file():
        return False
    named = read_json(folder / "config.json").get("architectures") or []
    return isinstance(named, list) and any(str(name).endswith("ForMaskedLM") for name in named)


def _has_adapters(folder: Path) -> bool:
    """Whether the network has an adapter for each of several tasks, as jina-embeddings-v3 has."""
    return bool(read_json(folder / "config.json").get("lora_adaptations"))


def listed_modules(folder: Path) -> Iterator[ListedModule]:
    """Yield the modules of modules.json."""
    listed = read_any_json(folder / "modules.json", empty=list)
    if not isinstance(listed, list):
        raise CheckpointError(f"{folder / 'modules.json'} is no list of modules")
    for place, module in enumerate(listed):
        where = f"{folder / 'modules.json'}, module {place}"
        if not isinstance(module, dict):
            raise CheckpointError(f"{where} is {type(module).__name__}, expected an object")
        if module.get("type") == "custom_st.Transformer" and _has_adapters(folder):
            # The checkpoint's own code picks an adapter; nimbed does so itself, by role.
            kind = "sentence_transformers.models.Transformer"
            module = {"path": module.get("path", ""), "type": kind}
        check_keys(module, where, FILES["modules.json"])
        yield _module(folder, str(module.get("path", "")), str(module.get("type", "")), where)


def _module(folder: Path, path: str, kind: str, where: str) -> ListedModule:
    # Other libraries' modules, and a checkpoint's own code, may go by the same last name.
    if kind == "pylate.models.Dense.Dense":  # whose files are sentence-transformers' own
        kind = "sentence_transformers.base.modules.dense.Dense"
    package, _, name = kind.rpartition(".")
    library, *parts = package.split(".")
    known: tuple[str, ...] = (*_MODULES, "Router", "Asym")
    if "sparse_encoder" in parts:
        known = _SPARSE
    elif "multi_vector_encoder" in parts:
        known = _LATE
    elif "cross_encoder" in parts:
        known = ()
    if library != "sentence_transformers" or name not in known:
        raise CheckpointError(
            f"{where} is {kind!r}, which nimbed does not run; it follows sentence-transformers' "
            f"{', '.join(_MODULES)}, Router, and {', '.join((*_SPARSE, *_LATE))}"
        )
    inside = (folder / path).resolve().is_relative_to(folder.resolve()) and (folder / path).is_dir()
    if not inside and name != "Normalize":  # whose folder older files name and do not have
        raise CheckpointError(f"{where} names the folder {path!r}, not found")
    return ListedModule(name, folder / path, where)


def of_route(module: ListedModule, role: InputType) -> Iterator[ListedModule]:
    """Yield the modules that a router has for a role, or any other module itself."""
    if module.kind not in ("Router", "Asym"):
        yield module
        return
    where = module.path / "router_config.json"
    if not where.is_file():
        where = module.path / "config.json"
    config = read_json(where, required=True)
    check_keys(config, where, FILES["Router"])
    types, structure = config.get("types"), config.get("structure")
    if not isinstance(types, dict) or not isinstance(structure, dict):
        raise CheckpointError(f"{where} has no objects types and structure")
    routes = [name for name in _ROUTES[role] if name in structure]
    strange = sorted(set(structure) - {name for names in _ROUTES.values() for name in names})
    if len(routes) != 1 or strange:
        raise CheckpointError(
            f"{where} has the routes {', '.join(structure)}; nimbed follows one for queries "
            f"(query) and one for passages ({', '.join(_ROUTES['passage'])})"
        )
    for name in structure[routes[0]]:
        if name not in types:
            raise CheckpointError(f"{where} gives no type for {name!r}")
        yield _module(module.path, str(name), str(types[name]), f"{where}, {name},")
