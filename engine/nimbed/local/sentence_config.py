"""What sentence-transformers writes beside a network: its modules, prompts, metric, lengths.

Modules are those of modules.json, in order, and those of a router's route. Each is named by its
class in sentence-transformers, and lies in a folder of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nimbed.errors import CheckpointError
from nimbed.local.json_files import FILES, check_keys, read_any_json, read_json, size_of
from nimbed.spec import InputType, Metric

__all__ = [
    "ListedModule",
    "Prompts",
    "SentenceConfig",
    "TransformerFile",
    "has_routes",
    "listed_modules",
    "of_route",
    "read_prompts",
    "read_sentence_config",
    "read_sparse_config",
    "read_transformer",
]

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


_FILE = "config_sentence_transformers.json"

# In the order in which sentence-transformers looks for them.
_LENGTH_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

# What a network gives for each task, and what sentence-transformers calls it.
_TASKS = {"feature-extraction": "last_hidden_state", "fill-mask": "logits"}

# Names by which roles' prompts go in the wild.
_QUERY_PROMPTS = ("query", "search_query", "retrieval.query", "s2p_query", "retrieval_query")
_PASSAGE_PROMPTS = (
    *("passage", "document", "corpus", "doc", "search_document"),
    *("retrieval.passage", "retrieval_passage", "retrieval_document"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """The prompts of a folder.

    Attributes:
        query: Put before a query; empty for none.
        passage: Likewise before a passage.
        tasks: Name and text of those that belong to neither role.
    """

    query: str = ""
    passage: str = ""
    tasks: tuple[tuple[str, str], ...] = ()

    def of_roles(self) -> dict[str, Any]:
        """Return what they change of a card: a model's own files have the last word."""
        if not self.query and not self.passage:
            return {}
        return {
            "query_prompt": self.query,
            "passage_prompt": self.passage,
            "asymmetric": self.query != self.passage,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceConfig:
    """What the file says, beside the prompts.

    Attributes:
        metric: How the model's vectors are compared: ``cosine``, or by another metric that counts
            their length.
        dimensions: How many of the first dimensions are kept, if the file says so.
        max_active: How many tokens a sparse vector keeps, if the file says so.
    """

    metric: Metric = "cosine"
    dimensions: int | None = None
    max_active: int | None = None


def read_sentence_config(folder: Path, *, normalized: bool) -> SentenceConfig:
    """Read all but the prompts.

    Args:
        folder: Of the checkpoint.
        normalized: Whether its modules end in unit vectors.

    Raises:
        CheckpointError: If a key is not known, or asks for what nimbed does not do.
    """
    where = folder / _FILE
    facts = read_json(where)
    check_keys(facts, where, FILES[_FILE])
    cut = facts.get("truncate_dim")
    dimensions = None if cut is None else size_of(facts, where, "truncate_dim")
    metric: Any = facts.get("similarity_fn_name") or "cosine"
    if metric not in ("cosine", "dot", "euclidean"):
        raise CheckpointError(
            f"{where} ranks by similarity_fn_name {metric!r}; nimbed ranks by cosine, dot and "
            f"euclidean"
        )
    if normalized and metric != "cosine":
        if dimensions is not None:
            raise CheckpointError(
                f"{where} ranks by similarity_fn_name {metric!r} and cuts unit vectors by "
                f"truncate_dim {dimensions}, of which nothing keeps its length; take one out"
            )
        metric = "cosine"  # unit vectors come in one order by all three
    return SentenceConfig(metric=metric, dimensions=dimensions)


def read_sparse_config(folder: Path) -> SentenceConfig:
    """Read all but the prompts of a SparseEncoder.

    Raises:
        CheckpointError: If a key is not known, or asks for what nimbed does not do.
    """
    where = folder / _FILE
    facts = read_json(where)
    check_keys(facts, where, FILES["SparseEncoder"])
    if facts.get("similarity_fn_name") not in (None, "dot"):
        raise CheckpointError(
            f"{where} ranks by similarity_fn_name {facts['similarity_fn_name']!r}; sparse vectors "
            f"are ranked by dot"
        )
    most = facts.get("max_active_dims")
    return SentenceConfig(
        metric="dot", max_active=None if most is None else size_of(facts, where, "max_active_dims")
    )


class TransformerFile(NamedTuple):
    """What a Transformer's sentence_*_config.json says.

    Attributes:
        config: All of it.
        task: What the network is asked for.
        max_tokens: The longest text, if this or the tokenizer's file says so.
        do_lower_case: Whether capitals are lowered before a text is tokenized.
    """

    config: dict[str, Any]
    task: str
    max_tokens: int | None
    do_lower_case: bool


def read_transformer(
    weights: Path, kind: str, *, task: str = "feature-extraction"
) -> TransformerFile:
    """Read the file of a Transformer, whose length outranks the tokenizer's own.

    Args:
        weights: The folder of the network.
        kind: What is known of its keys.
        task: What the network is asked for where the file does not say.
    """
    for name in _LENGTH_FILES:
        config = read_json(weights / name)
        if config:
            break
    else:
        name, config = "", {}
    where = weights / name
    check_keys(config, where, FILES[kind])
    task = config.get("transformer_task") or task
    if task not in _TASKS:
        raise CheckpointError(
            f"{where} gives transformer_task {task!r}; nimbed knows "
            f"{' and '.join(map(repr, _TASKS))}"
        )
    text = {"method": "forward", "method_output_name": _TASKS[task]}
    given = config.get("modality_config") or {}
    if not isinstance(given, dict) or given.get("text", text) != text:
        raise CheckpointError(f"{where} reads texts by modality_config {given!r}")
    lowers = bool(config.get("do_lower_case"))
    if config.get("max_seq_length") is not None:
        return TransformerFile(config, task, size_of(config, where, "max_seq_length"), lowers)
    where = weights / "tokenizer_config.json"
    tokenizer = read_json(where)
    key = "model_max_length" if "model_max_length" in tokenizer else "max_len"  # its first name
    # transformers writes 10^30 where no length is known.
    length = tokenizer.get(key)
    endless = isinstance(length, int | float) and length > 1e9
    known = length is not None and not endless
    longest = size_of(tokenizer, where, key) if known else None
    return TransformerFile(config, task, longest, lowers)


def read_prompts(folder: Path, *, told: bool = False) -> Prompts:
    """Sort the prompts of a folder into those of the two roles and those of other tasks.

    Args:
        folder: Of the checkpoint.
        told: Whether the caller names the prompt that goes before every text.

    Raises:
        CheckpointError: If a role has several, or another task's prompt goes before its texts.
    """
    where = folder / _FILE
    facts = read_json(where)
    prompts = facts.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(
        isinstance(text, str | None) for text in prompts.values()
    ):
        raise CheckpointError(
            f"{where} gives prompts {str(prompts)[:60]}, expected names and texts"
        )
    prompts = {name: text or "" for name, text in prompts.items()}
    query, passage = (
        _of_role(prompts, names, where) for names in (_QUERY_PROMPTS, _PASSAGE_PROMPTS)
    )
    known = (*_QUERY_PROMPTS, *_PASSAGE_PROMPTS)
    default = facts.get("default_prompt_name")
    both = all(
        any(name in prompts for name in names) for names in (_QUERY_PROMPTS, _PASSAGE_PROMPTS)
    )
    if default is not None and default not in known and not both and not told:
        raise CheckpointError(
            f"{where} puts the prompt {default!r} before every text by default_prompt_name, and "
            f"has none for queries ({', '.join(_QUERY_PROMPTS)}) or passages "
            f"({', '.join(_PASSAGE_PROMPTS)}); say prompt_name={default!r}, or '' for no prompt"
        )
    tasks = tuple((name, text) for name, text in prompts.items() if name not in known)
    return Prompts(query=query, passage=passage, tasks=tasks)


def _of_role(prompts: Mapping[str, Any], names: tuple[str, ...], where: Path) -> str:
    found = {prompts[name]: name for name in names if prompts.get(name)}
    if len(found) > 1:
        raise CheckpointError(
            f"{where} has several prompts for one role: {', '.join(found.values())}; leave one"
        )
    return next(iter(found), "")
