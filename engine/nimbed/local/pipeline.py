"""The modules of a sentence-transformers folder, followed or refused by name.

``modules.json`` says what happens to a text after the network: pooling, dense layers, norms. A
module that is left out gives other vectors without a word, so each is followed here or refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from nimbed.cards import Pooling
from nimbed.errors import CheckpointError
from nimbed.local.head_config import AutoEncoder, ColBert, Multi, Sparse, Splade, TokenTable
from nimbed.local.json_files import FILES, check_keys, read_json, refuse_other_kinds, size_of
from nimbed.local.sentence_config import (
    ListedModule,
    has_idf,
    listed_modules,
    of_route,
    read_sentence_config,
    read_sparse_config,
    read_transformer,
)
from nimbed.local.tokenizer_config import NO_CHANGES, TokenizerChanges
from nimbed.spec import InputType, Kind, Metric

__all__ = [
    "DenseModule",
    "LayerWeights",
    "NormModule",
    "Pipeline",
    "PoolingMode",
    "read_config",
    "read_dense",
    "read_pipeline",
    "weights_in",
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

# Modules that begin a pipeline.
_FIRST = ("Transformer", "StaticEmbedding", "MLMTransformer", "SparseStaticEmbedding")

# The modules with weights in a folder of their own.
_WITH_WEIGHTS = ("SparseAutoEncoder", "WeightedLayerPooling", "Dense", "LayerNorm")

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


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """A weighted mean of each token's states, in place of the last layer's.

    Attributes:
        folder: Of its weights, one for each layer that counts.
        first: The first layer that counts; 0 is what the network makes of words and positions.
        last: The network's last layer, which is also their number.
    """

    folder: Path
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What a checkpoint's own files say of everything but the network.

    Attributes:
        folder: Of the checkpoint.
        weights: Folder of the network: the same, or one inside it.
        static: Whether the network is one table of words, which pools by itself.
        layers: Which layers' states are pooled; None for the last layer's.
        pooling: Modes, whose vectors are joined; None if no file says.
        include_prompt: Whether the prompt's tokens are pooled.
        modules: What follows the pooling, in order, unit length aside.
        max_tokens: The longest text, if a file says so.
        do_lower_case: Whether capitals are lowered before a text is tokenized.
        tokenizer: What is changed of tokenizer.json.
        metric: How the vectors are compared; only by cosine are they brought to unit length.
        dimensions: How many of the vector's first dimensions are kept, if a file says so.
        module_weights: Files that hold the modules' weights.
        sparse: What makes sparse vectors of the token states, if anything does.
        multi: Likewise for multi-vectors.
        dense: Whether there is one vector a text, too.
        max_active: How many tokens a sparse vector keeps, if a file says so.
    """

    folder: Path
    weights: Path
    static: bool = False
    layers: LayerWeights | None = None
    pooling: tuple[PoolingMode, ...] | None = None
    include_prompt: bool = True
    modules: tuple[DenseModule | NormModule, ...] = ()
    max_tokens: int | None = None
    do_lower_case: bool = False
    tokenizer: TokenizerChanges = NO_CHANGES
    metric: Metric = "cosine"
    dimensions: int | None = None
    module_weights: tuple[Path, ...] = ()
    sparse: Sparse | None = None
    multi: Multi | None = None
    dense: bool = True
    max_active: int | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors that come of it."""
        given = {"dense": self.dense, "sparse": self.sparse, "multi": self.multi}
        return tuple(kind for kind in get_args(Kind) if given[kind])

    @property
    def card_pooling(self) -> Pooling | tuple[Pooling, ...]:
        """The pooling as a card has it; mean if no file says."""
        modes = self.pooling or ("mean",)
        return modes[0] if len(modes) == 1 else modes

    @property
    def identity(self) -> str:
        """What follows the network, as a content id has it; empty for a mean and nothing else.

        Unit length and metric stand in the spec, as do prompts, and lengths in the limits.
        """
        tokenizer = dataclasses.astuple(self.tokenizer) if self.tokenizer else None
        if isinstance(self.multi, ColBert):
            each = [dataclasses.astuple(module)[1:] for module in self.modules]
            return repr((dataclasses.astuple(self.multi), each, tokenizer))
        autoencoder = self.sparse if isinstance(self.sparse, AutoEncoder) else None
        if self.sparse is not None and not self.dense and autoencoder is None:
            head = "table" if isinstance(self.sparse, TokenTable) else self.sparse
            return repr((head, tokenizer))
        ends = (self.layers, *self.modules, autoencoder)
        modules = [module for module in ends if module is not None]
        if self.card_pooling == "mean" and self.include_prompt and not modules:
            return "" if tokenizer is None else repr(tokenizer)
        # The folder's name, which comes first, changes no vector.
        facts = [(type(module).__name__, *dataclasses.astuple(module)[1:]) for module in modules]
        named = (self.card_pooling, self.include_prompt, facts)
        return repr(named if tokenizer is None else (*named, tokenizer))

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
        if isinstance(self.sparse, AutoEncoder) and self.sparse.inputs != width:
            raise CheckpointError(
                f"{self.sparse.folder / 'config.json'} takes vectors of {self.sparse.inputs} "
                f"dimensions, but is given {width}"
            )
        return width

    def steps(self) -> Iterator[str]:
        """Yield what happens to a text, step by step, for people."""
        if isinstance(self.sparse, TokenTable):
            yield "SparseStaticEmbedding"
            return
        yield "StaticEmbedding" if self.static else "Transformer"
        if isinstance(self.sparse, Splade):
            taken = "log1p of " * self.sparse.logarithms
            yield f"SpladePooling by {self.sparse.pooling} of {taken}relu"
            return
        if self.layers is not None:
            yield f"WeightedLayerPooling of layers {self.layers.first} to {self.layers.last}"
        if isinstance(self.multi, ColBert):
            yield from self.multi.steps()
        elif not self.static:
            prompt = "" if self.include_prompt else ", without the prompt"
            yield f"Pooling by {' and '.join(self.pooling or ('mean',))}{prompt}"
        for module in self.modules:
            if isinstance(module, DenseModule):
                residual = " + input" if module.residual else ""
                yield f"Dense {module.inputs} to {module.outputs}, {module.activation}{residual}"
            else:
                yield f"LayerNorm {module.width}"
        if self.dimensions is not None:
            yield f"first {self.dimensions} dimensions"
        if isinstance(self.sparse, AutoEncoder):
            yield from self.sparse.steps(self.max_active)
        yield "unit length" if self.metric == "cosine" else f"compared by {self.metric}"


def read_pipeline(folder: Path, *, role: InputType | None = None) -> Pipeline:
    """Follow the files of a checkpoint's folder.

    Args:
        folder: Of the checkpoint.
        role: Whose route is followed where there are several.

    Raises:
        CheckpointError: If one is malformed, missing, or asks for what nimbed does not do; the
            message names the file and the key.
    """
    refuse_other_kinds(folder)
    modules = list(listed_modules(folder))
    if role is not None:
        modules = [each for module in modules for each in of_route(module, role)]
    reader = _Reader(folder)
    if not modules:
        reader.read_without_modules(role)
    for place, module in enumerate(modules):
        reader.read_module(place, module)
    return reader.finished()


class _Reader:
    """Collects what the files say."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._weights = folder
        self._static = False
        self._layers: LayerWeights | None = None
        self._pooling: tuple[PoolingMode, ...] | None = None
        self._include_prompt = True
        self._modules: list[DenseModule | NormModule] = []
        self._normalized = False
        self._module_weights: list[Path] = []
        self._sparse: Splade | TokenTable | AutoEncoder | None = None
        self._task = "feature-extraction"

    @classmethod
    def kinds(cls) -> Mapping[str, Callable[[_Reader, Path], None]]:
        """Return what reads each kind of module."""
        return {
            "Transformer": _Reader._read_transformer,
            "StaticEmbedding": _Reader._read_static,
            "WeightedLayerPooling": _Reader._read_layers,
            "Pooling": _Reader._read_pooling,
            "Dense": _Reader._read_dense,
            "LayerNorm": _Reader._read_norm,
            "Normalize": _Reader._read_normalize,
            "Dropout": _Reader._read_dropout,
            "MLMTransformer": _Reader._read_transformer,
            "SpladePooling": _Reader._read_splade,
            "SparseStaticEmbedding": _Reader._read_table,
            "SparseAutoEncoder": _Reader._read_autoencoder,
        }

    def read_module(self, place: int, module: ListedModule) -> None:
        """Follow one module."""
        kind, path, where = module
        if kind not in self.kinds():
            raise CheckpointError(f"{where} is {kind}, which nimbed does not run there")
        if (kind in _FIRST) != (place == 0):
            raise CheckpointError(f"{where} is {kind}; a Transformer comes first, and only there")
        if self._sparse is not None:
            raise CheckpointError(f"{where} is {kind} behind what gives sparse vectors")
        if kind in ("WeightedLayerPooling", "SpladePooling"):
            if place != 1 or self._static:
                raise CheckpointError(f"{where} is {kind}; it stands behind a Transformer alone")
        elif kind not in (*_FIRST, "Pooling") and self._pooling is None:
            raise CheckpointError(f"{where} is {kind} before any Pooling")
        if self._normalized and kind not in ("Dropout", "SparseAutoEncoder"):
            raise CheckpointError(
                f"{where} is {kind} behind Normalize; nimbed ends in unit vectors"
            )
        if kind == "MLMTransformer":
            self._task = "fill-mask"  # unless its own file says otherwise
        self.kinds()[kind](self, path)
        if kind in _WITH_WEIGHTS:
            self._module_weights.extend(weights_in(path))

    def read_without_modules(self, role: InputType | None) -> None:
        """Read what a folder without modules.json may have all the same."""
        if role is not None and has_idf(self._folder):
            if role == "passage":
                self._task, self._sparse = "fill-mask", Splade(special=False)
                return
            self._static, self._sparse = True, TokenTable(self._folder / "idf.json")
            self._module_weights.append(self._sparse.path)
        elif (self._folder / "1_Pooling" / "config.json").is_file():
            self._read_pooling(self._folder / "1_Pooling")

    def finished(self) -> Pipeline:
        """Return what was found, the metric and lengths beside it included."""
        if self._layers is not None and self._pooling is None:
            raise CheckpointError(f"{self._folder} weights its layers, but has no Pooling")
        longest, lowers = self._of_transformer()
        if isinstance(self._sparse, Splade) != (self._task == "fill-mask"):
            raise CheckpointError(
                f"{self._folder} has a Transformer for the task {self._task!r}; SpladePooling, and "
                f"nothing else, stands behind one for 'fill-mask'"
            )
        kept = self._sparse.kept if isinstance(self._sparse, AutoEncoder) else None
        if self._sparse is not None:
            said = read_sparse_config(self._folder)
        else:
            said = read_sentence_config(self._folder, normalized=self._normalized)
        return Pipeline(
            folder=self._folder,
            weights=self._weights,
            static=self._static,
            layers=self._layers,
            pooling=self._pooling,
            include_prompt=self._include_prompt,
            modules=tuple(self._modules),
            max_tokens=longest,
            do_lower_case=lowers,
            metric=said.metric,
            dimensions=said.dimensions,
            module_weights=tuple(self._module_weights),
            sparse=self._sparse,
            dense=self._sparse is None,
            max_active=said.max_active or kept,
        )

    def _read_transformer(self, path: Path) -> None:
        self._weights = path

    def _read_static(self, path: Path) -> None:
        self._weights, self._static = path, True
        self._pooling = ("mean",)

    def _read_splade(self, path: Path) -> None:
        config, where = read_config(path, "SpladePooling")
        pooling = config.get("pooling_strategy", "max")
        activation = config.get("activation_function", "relu")
        if pooling not in ("max", "sum") or activation not in ("relu", "log1p_relu"):
            raise CheckpointError(
                f"{where} pools by {pooling!r} with {activation!r}; nimbed pools by max or sum, "
                f"with relu or log1p_relu"
            )
        self._sparse = Splade(pooling, 2 if activation == "log1p_relu" else 1)

    def _read_table(self, path: Path) -> None:
        config, where = read_config(path, "SparseStaticEmbedding")
        table = path / "model.safetensors"
        if config.get("path") is not None:
            table = path / Path(str(config["path"])).name
            if not table.is_file() or table.suffix != ".json":
                raise CheckpointError(
                    f"{where} takes its weights from {config['path']!r}; nimbed reads a JSON file "
                    f"beside it"
                )
        self._weights, self._static, self._sparse = path, True, TokenTable(table)
        self._module_weights.append(table)

    def _read_autoencoder(self, path: Path) -> None:
        config, where = read_config(path, "SparseAutoEncoder")
        if self._static:
            raise CheckpointError(
                f"{where} stands behind a StaticEmbedding; nimbed runs it behind a Transformer"
            )
        # sentence-transformers' own sizes, where the file does not say.
        sizes = {"hidden_dim": 512, "k": 8} | config
        self._sparse = AutoEncoder(
            folder=path,
            inputs=size_of(sizes, where, "input_dim"),
            latents=size_of(sizes, where, "hidden_dim"),
            kept=size_of(sizes, where, "k"),
            scaled=config.get("normalize") is True,
            unit=self._normalized,
        )

    def _read_layers(self, path: Path) -> None:
        config, where = read_config(path, "WeightedLayerPooling")
        # sentence-transformers' own sizes, where the file does not say.
        last = size_of({"num_hidden_layers": 12} | config, where, "num_hidden_layers")
        first = config.get("layer_start", 4)
        if not isinstance(first, int) or isinstance(first, bool) or not 0 <= first <= last:
            raise CheckpointError(
                f"{where} gives layer_start {first!r}, expected an integer from 0 to {last}"
            )
        self._layers = LayerWeights(path, first, last)

    def _read_pooling(self, path: Path) -> None:
        config, where = read_config(path, "Pooling")
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
        self._modules.append(read_dense(path, "Dense"))

    def _read_norm(self, path: Path) -> None:
        config, where = read_config(path, "LayerNorm")
        self._modules.append(NormModule(path, size_of(config, where, "dimension")))

    def _read_normalize(self, path: Path) -> None:
        read_config(path, "Normalize", required=False)
        self._normalized = True

    def _read_dropout(self, path: Path) -> None:
        read_config(path, "Dropout", required=False)

    def _of_transformer(self) -> tuple[int | None, bool]:
        """Return the longest text, and whether capitals are lowered.

        A sentence_*_config.json outranks the tokenizer's own length. A table of words has neither,
        and cuts where tokenizer.json does.
        """
        if self._static and self._sparse is None:
            where = self._weights / "tokenizer.json"
            cut = read_json(where).get("truncation")
            return size_of(cut, where, "max_length") if isinstance(cut, dict) else None, False
        said = read_transformer(self._weights, "Transformer", task=self._task)
        self._task = said.task
        return said.max_tokens, said.do_lower_case


def read_dense(path: Path, kind: str) -> DenseModule:
    """Return a Dense module, of one vector a text or of one a token."""
    config, where = read_config(path, kind)
    inputs, outputs = (size_of(config, where, f"{end}_features") for end in ("in", "out"))
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise CheckpointError(
            f"{where} has the activation_function {config['activation_function']!r}; nimbed "
            f"has {', '.join(_ACTIVATIONS)}"
        )
    return DenseModule(
        path,
        inputs,
        outputs,
        bias=config.get("bias", True) is not False,
        activation=activation,
        residual=config.get("use_residual") is True,
    )


def read_config(path: Path, kind: str, *, required: bool = True) -> tuple[dict[str, Any], Path]:
    """Return a module's configuration, whose keys are known, and where it stands."""
    where = path / "config.json"
    config = read_json(where, required=required)
    check_keys(config, where, FILES[kind])
    return config, where


def weights_in(folder: Path) -> list[Path]:
    """Return the files of a module's weights."""
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
