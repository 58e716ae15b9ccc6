"""The modules of a sentence-transformers folder, followed or refused by name.

``modules.json`` says what happens to a text after the network: pooling, dense layers, norms. Every
key of the JSON files that it leads to is understood here, known to be irrelevant, or refused, since
a module that is left out gives other vectors without a word.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from nimbed.cards import Pooling
from nimbed.errors import CheckpointError

__all__ = [
    "DenseModule",
    "NormModule",
    "Pipeline",
    "PoolingMode",
    "read_json",
    "read_pipeline",
    "role_prompts",
]

PoolingMode = Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]

# Before version 6 a flag a mode, concatenated in this order.
_FLAGS: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

# Names by which roles' prompts go in the wild.
_QUERY_PROMPTS = ("query", "search_query", "retrieval.query", "s2p_query", "retrieval_query")
_PASSAGE_PROMPTS = (
    *("passage", "document", "corpus", "doc", "search_document"),
    *("retrieval.passage", "retrieval_passage", "retrieval_document"),
)

# In the order in which sentence-transformers looks for them.
_LENGTH_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "LeakyReLU", "ELU")


@dataclass(frozen=True, slots=True)
class DenseModule:
    """act(x·Wᵀ + b), and x, or its projection, added if ``residual``."""

    folder: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str
    residual: bool


@dataclass(frozen=True, slots=True)
class NormModule:
    """A layer norm over the vector, with torch's own epsilon of 1e-5."""

    folder: Path
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What a checkpoint's own files say of everything but the network.

    Attributes:
        folder: Of the checkpoint.
        weights: Folder of the network: the same, or one inside it.
        pooling: Modes, whose vectors are joined; None if no file says.
        include_prompt: Whether the prompt's tokens are pooled.
        modules: What follows the pooling, in order, unit length aside.
        max_tokens: The longest text, if a file says so.
        query_prompt: Text put before a query, if a file says so.
        passage_prompt: Likewise before a passage.
        other_prompts: Names of prompts for other tasks, which no role uses.
        dimensions: How many of the vector's first dimensions are kept, if a file says so.
        module_weights: Files that hold the modules' weights.
    """

    folder: Path
    weights: Path
    pooling: tuple[PoolingMode, ...] | None = None
    include_prompt: bool = True
    modules: tuple[DenseModule | NormModule, ...] = ()
    max_tokens: int | None = None
    query_prompt: str = ""
    passage_prompt: str = ""
    other_prompts: tuple[str, ...] = ()
    dimensions: int | None = None
    module_weights: tuple[Path, ...] = ()

    @property
    def card_pooling(self) -> Pooling | tuple[Pooling, ...]:
        """The pooling as a card has it; mean if no file says."""
        modes = self.pooling or ("mean",)
        return modes[0] if len(modes) == 1 else modes

    @property
    def identity(self) -> str:
        """What follows the network, as a content id has it; empty for a mean and nothing else.

        Unit length is always there, and so are prompts and lengths in the spec or the limits.
        """
        if self.card_pooling == "mean" and self.include_prompt and not self.modules:
            return ""
        # The folder's name, which comes first, changes no vector.
        facts = [
            (type(module).__name__, *dataclasses.astuple(module)[1:]) for module in self.modules
        ]
        return repr((self.card_pooling, self.include_prompt, facts))

    def width(self, states: int) -> int:
        """Return the width of the vector that comes of token states of a width.

        Raises:
            CheckpointError: If a module takes another width than it is given.
        """
        width = states * len(self.pooling or ("mean",))
        for module in self.modules:
            wanted = module.inputs if isinstance(module, DenseModule) else module.width
            if wanted != width:
                raise CheckpointError(
                    f"{module.folder / 'config.json'} takes vectors of {wanted} dimensions, but is "
                    f"given {width}"
                )
            width = module.outputs if isinstance(module, DenseModule) else width
        return width


def read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    """Return a JSON object, or an empty one if an optional file is absent."""
    content = _json(path, required=required)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected an object")
    return content


def read_pipeline(folder: Path) -> Pipeline:
    """Follow the files of a checkpoint's folder.

    Raises:
        CheckpointError: If one is malformed, missing, or asks for what nimbed does not do; the
            message names the file and the key.
    """
    _refuse_other_kinds(folder)
    listed = _json(folder / "modules.json", empty=list)
    if not isinstance(listed, list):
        raise CheckpointError(f"{folder / 'modules.json'} is no list of modules")
    reader = _Reader(folder)
    if not listed:
        reader.read_without_modules()
    for place, module in enumerate(listed):
        reader.read_module(place, module)
    return reader.finished()


class _Reader:
    """Collects what the files say."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._weights = folder
        self._pooling: tuple[PoolingMode, ...] | None = None
        self._include_prompt = True
        self._modules: list[DenseModule | NormModule] = []
        self._normalized = False
        self._module_weights: list[Path] = []

    def read_module(self, place: int, module: object) -> None:
        """Follow one entry of modules.json."""
        where = f"{self._folder / 'modules.json'}, module {place}"
        if not isinstance(module, dict):
            raise CheckpointError(f"{where} is {type(module).__name__}, expected an object")
        _only_keys(module, where, known=("idx", "name", "path", "type"), empty=("kwargs",))
        kind = str(module.get("type", "")).rpartition(".")[2]
        path = self._folder / str(module.get("path", ""))
        inside = path.resolve().is_relative_to(self._folder.resolve()) and path.is_dir()
        if not inside and kind != "Normalize":  # whose folder older files name and do not have
            raise CheckpointError(f"{where} names the folder {module.get('path')!r}, not found")
        readers: dict[str, Callable[[Path], None]] = {
            "Transformer": self._read_transformer,
            "Pooling": self._read_pooling,
            "Dense": self._read_dense,
            "LayerNorm": self._read_norm,
            "Normalize": self._read_normalize,
            "Dropout": self._read_dropout,
        }
        if kind not in readers:
            raise CheckpointError(
                f"{where} is {module.get('type')!r}, which nimbed does not run; it follows "
                f"{', '.join(readers)}"
            )
        if (kind == "Transformer") != (place == 0):
            raise CheckpointError(f"{where} is {kind}; a Transformer comes first, and only there")
        if kind not in ("Transformer", "Pooling") and self._pooling is None:
            raise CheckpointError(f"{where} is {kind} before any Pooling")
        if self._normalized and kind != "Dropout":
            raise CheckpointError(
                f"{where} is {kind} behind Normalize; nimbed ends in unit vectors"
            )
        readers[kind](path)

    def read_without_modules(self) -> None:
        """Read what a folder without modules.json may have all the same."""
        if (self._folder / "1_Pooling" / "config.json").is_file():
            self._read_pooling(self._folder / "1_Pooling")

    def finished(self) -> Pipeline:
        """Return what was found, the prompts and lengths beside it included."""
        where = self._folder / "config_sentence_transformers.json"
        facts = read_json(where)
        _only_keys(
            facts,
            where,
            known=(
                *("__version__", "prompts", "default_prompt_name", "similarity_fn_name"),
                *("truncate_dim", "model_type"),
            ),
        )
        _only_value(facts, where, "model_type", None, "SentenceTransformer")
        metric = facts.get("similarity_fn_name")
        if metric not in (None, "cosine") and not (
            self._normalized and metric in ("dot", "euclidean")
        ):
            raise CheckpointError(
                f"{where} ranks by similarity_fn_name {metric!r}, and not by cosine on unit "
                f"vectors, as nimbed's are ranked: its answers would come in another order"
            )
        cut = facts.get("truncate_dim")
        dimensions = None if cut is None else _size(facts, where, "truncate_dim")
        query, passage, others = _prompts(facts, where)
        return Pipeline(
            folder=self._folder,
            weights=self._weights,
            pooling=self._pooling,
            include_prompt=self._include_prompt,
            modules=tuple(self._modules),
            max_tokens=self._longest(),
            query_prompt=query,
            passage_prompt=passage,
            other_prompts=others,
            dimensions=dimensions,
            module_weights=tuple(self._module_weights),
        )

    def _read_transformer(self, path: Path) -> None:
        self._weights = path

    def _read_pooling(self, path: Path) -> None:
        where = path / "config.json"
        config = read_json(path / "config.json", required=True)
        _only_keys(
            config,
            where,
            known=(
                *("embedding_dimension", "word_embedding_dimension", "pooling_mode"),
                *("include_prompt", *_FLAGS),
            ),
        )
        if self._pooling is not None:
            raise CheckpointError(f"{where} is a second pooling")
        named = config.get("pooling_mode")
        flagged = [mode for flag, mode in _FLAGS.items() if config.get(flag)]
        modes = [named] if isinstance(named, str) else list(named or flagged or ["mean"])
        known: list[PoolingMode] = []
        for mode in modes:
            if mode not in get_args(PoolingMode):
                raise CheckpointError(
                    f"{where} pools by {mode!r}; nimbed pools by {', '.join(get_args(PoolingMode))}"
                )
            known.append(cast(PoolingMode, mode))
        if named and flagged and sorted(flagged) != sorted(known):
            raise CheckpointError(f"{where} pools by {named!r} and by {', '.join(flagged)}")
        self._pooling = tuple(known)
        self._include_prompt = config.get("include_prompt", True) is not False

    def _read_dense(self, path: Path) -> None:
        where = path / "config.json"
        config = read_json(path / "config.json", required=True)
        _only_keys(
            config,
            where,
            known=(
                *("in_features", "out_features", "bias", "activation_function"),
                *("module_input_name", "module_output_name", "use_residual"),
            ),
        )
        for name in ("module_input_name", "module_output_name"):
            _only_value(config, where, name, None, "sentence_embedding")
        inputs, outputs = (_size(config, where, name) for name in ("in_features", "out_features"))
        activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
        if activation not in _ACTIVATIONS:
            raise CheckpointError(
                f"{where} has the activation_function {config['activation_function']!r}; nimbed "
                f"has {', '.join(_ACTIVATIONS)}"
            )
        self._modules.append(
            DenseModule(
                path,
                inputs,
                outputs,
                bias=config.get("bias", True) is not False,
                activation=activation,
                residual=config.get("use_residual") is True,
            )
        )
        self._module_weights.extend(_weights_in(path))

    def _read_norm(self, path: Path) -> None:
        where = path / "config.json"
        config = read_json(path / "config.json", required=True)
        _only_keys(config, where, known=("dimension",))
        width = _size(config, where, "dimension")
        self._modules.append(NormModule(path, width))
        self._module_weights.extend(_weights_in(path))

    def _read_normalize(self, path: Path) -> None:
        config = read_json(path / "config.json")
        where = path / "config.json"
        _only_keys(config, where, known=("module_input_name", "module_output_name"))
        for name in ("module_input_name", "module_output_name"):
            _only_value(config, where, name, None, "sentence_embedding")
        self._normalized = True

    def _read_dropout(self, path: Path) -> None:
        _only_keys(read_json(path / "config.json"), path / "config.json", known=("dropout",))

    def _longest(self) -> int | None:
        """Return the longest text; a sentence_*_config.json outranks the tokenizer's own."""
        for name in _LENGTH_FILES:
            config = read_json(self._weights / name)
            if config:
                break
        else:
            name, config = "", {}
        where = self._weights / name
        _only_keys(
            config,
            where,
            known=(
                *("max_seq_length", "do_lower_case", "transformer_task", "module_output_name"),
                *("modality_config", "unpad_inputs"),
            ),
            empty=(
                *("processing_kwargs", "query_length", "document_length", "query_expansion"),
                *("model_args", "tokenizer_args", "config_args", "processor_args"),
            ),
        )
        _only_value(config, where, "transformer_task", None, "feature-extraction")
        _only_value(config, where, "module_output_name", None, "token_embeddings")
        text = {"method": "forward", "method_output_name": "last_hidden_state"}
        given = config.get("modality_config") or {}
        if not isinstance(given, dict) or given.get("text", text) != text:
            raise CheckpointError(f"{where} reads texts by modality_config {given!r}")
        if config.get("do_lower_case") and not _lowers(self._weights / "tokenizer.json"):
            raise CheckpointError(
                f"{where} asks for do_lower_case, but tokenizer.json keeps capitals; save the "
                f"tokenizer with do_lower_case, or take the key out"
            )
        if config.get("max_seq_length") is not None:
            return _size(config, where, "max_seq_length")
        where, key = self._weights / "tokenizer_config.json", "model_max_length"
        tokenizer = read_json(where)
        # transformers writes 10^30 where no length is known.
        known = tokenizer.get(key) is not None and not float(tokenizer[key]) > 1e9
        return _size(tokenizer, where, key) if known else None


def role_prompts(folder: Path) -> tuple[str, str]:
    """Return the prompts that a folder has for queries and passages; empty if it has none.

    Raises:
        CheckpointError: If a role has several, or another prompt goes before every text.
    """
    where = folder / "config_sentence_transformers.json"
    return _prompts(read_json(where), where)[:2]


def _prompts(facts: Mapping[str, Any], where: Path) -> tuple[str, str, tuple[str, ...]]:
    """Return the prompts of the two roles by their usual names, and the names of the others."""
    prompts = facts.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise CheckpointError(f"{where} has bad prompts")
    roles = []
    for names in (_QUERY_PROMPTS, _PASSAGE_PROMPTS):
        found = {prompts[name]: name for name in names if prompts.get(name)}
        if len(found) > 1:
            raise CheckpointError(
                f"{where} has several prompts for one role: {', '.join(found.values())}; leave one"
            )
        roles.append(next(iter(found), ""))
    known = (*_QUERY_PROMPTS, *_PASSAGE_PROMPTS)
    default = facts.get("default_prompt_name")
    if default is not None and default not in known:
        raise CheckpointError(
            f"{where} puts the prompt {default!r} before every text by default_prompt_name; nimbed "
            f"has prompts for queries ({', '.join(_QUERY_PROMPTS)}) and passages "
            f"({', '.join(_PASSAGE_PROMPTS)})"
        )
    return roles[0], roles[1], tuple(name for name in prompts if name not in known)


def _refuse_other_kinds(folder: Path) -> None:
    """Refuse what looks like a checkpoint but gives no dense vector of a text."""
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds an adapter (adapter_config.json), not a model; merge it into its base "
            f"model first, with peft's merge_and_unload()"
        )
    if (folder / "artifact.metadata").is_file():
        raise CheckpointError(f"{folder} holds a ColBERT model, which gives a vector a token")
    named = read_json(folder / "config.json").get("architectures") or []
    for name in map(str, named if isinstance(named, list) else []):
        if name.endswith("ForSequenceClassification") and not (folder / "modules.json").is_file():
            raise CheckpointError(
                f"{folder} holds a {name}: a classifier or cross-encoder, which scores texts or "
                f"pairs and gives no vectors"
            )
        if name == "HF_ColBERT":
            raise CheckpointError(f"{folder} holds a ColBERT model, which gives a vector a token")


def _weights_in(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])


def _lowers(tokenizer: Path) -> bool:
    """Whether a tokenizer.json lowers capitals."""

    def lowers(normalizer: Any) -> bool:
        if not isinstance(normalizer, dict):
            return False
        parts = normalizer.get("normalizers") or []
        lowering = normalizer.get("type") == "Lowercase" or normalizer.get("lowercase") is True
        return lowering or any(map(lowers, parts))

    return lowers(read_json(tokenizer).get("normalizer"))


def _only_keys(
    config: Mapping[str, Any],
    where: object,
    *,
    known: tuple[str, ...],
    empty: tuple[str, ...] = (),
) -> None:
    """Refuse a key that is not understood; those of ``empty`` must say nothing."""
    for key, value in config.items():
        if key in known or (key in empty and value in (None, {}, [], "")):
            continue
        raise CheckpointError(
            f"{where} has the key {key!r} ({str(value)[:60]!r}), which nimbed does not understand; "
            f"without it the vectors might be others"
        )


def _size(config: Mapping[str, Any], where: object, key: str) -> int:
    size = config.get(key)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise CheckpointError(f"{where} gives {key} {size!r}, expected a positive integer")
    return size


def _only_value(config: Mapping[str, Any], where: object, key: str, *values: object) -> None:
    """Refuse a value that is not listed; the last one is what nimbed does."""
    if config.get(key) not in values:
        raise CheckpointError(
            f"{where} gives {key} {config[key]!r}; nimbed knows only {values[-1]!r} there"
        )


def _json(path: Path, *, required: bool = False, empty: Callable[[], Any] = dict) -> Any:
    if not path.is_file():
        if required:
            raise CheckpointError(f"{path} is missing; is this the folder of a model?")
        return empty()
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
