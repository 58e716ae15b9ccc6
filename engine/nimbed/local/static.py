"""Static embeddings in numpy, from a table of tokens without a network.

Of a dense model the mean of a table's rows, a row a token (model2vec's potion): what
sentence-transformers' StaticEmbedding does, without special tokens or a cut. Dense layers and norms
behind it are applied to one vector at a time, so none depends on its neighbours. Of a sparse one
the weight of each token (SparseStaticEmbedding): OpenSearch's queries.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nimbed.errors import CheckpointError, ConfigurationError
from nimbed.local.checkpoint import Checkpoint
from nimbed.local.head_config import TokenTable
from nimbed.local.json_files import read_json
from nimbed.local.pipeline import DenseModule, NormModule
from nimbed.local.plan import Engine, HostResults, Results, micro_batches
from nimbed.local.tensors import safetensors_names, weight_files
from nimbed.local.tokenizer_config import read_vocabulary

if TYPE_CHECKING:
    from nimbed.local.tokenizer import Row

__all__ = ["StaticEngine", "TableEngine", "static_engine"]

Floats = NDArray[np.float32]
Module = Callable[[Floats], Floats]

_erf = np.vectorize(math.erf, otypes=[np.float32])


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(np.tanh(x / 2) / 2 + 0.5, np.float32)  # exp would overflow


# torch's names of activations, with torch's own parameters.
_ACTIVATIONS: dict[str, Module] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "GELU": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "Sigmoid": _sigmoid,
    "SiLU": lambda x: x * _sigmoid(x),
    "LeakyReLU": lambda x: np.where(x > 0, x, x * np.float32(0.01)),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}


def static_engine(checkpoint: Checkpoint) -> Engine:
    """Read a checkpoint without a network.

    Raises:
        CheckpointError: As the engines do.
    """
    sparse = isinstance(checkpoint.pipeline.sparse, TokenTable)
    return TableEngine(checkpoint) if sparse else StaticEngine(checkpoint)


class _HostEngine(ABC):
    """What both have in common; see :class:`nimbed.local.plan.Engine`."""

    budget = 65_536
    look_ahead = 1
    on_host = True
    computes_in = "float32"
    computes_on = "cpu"

    def warm_up(self) -> None:  # noqa: B027 - the same for each of them
        """Nothing has to be made ready."""

    def results(self, out: Floats, finished: Callable[[int], None]) -> HostResults:
        """Return what takes the vectors of a call."""
        return HostResults(out, finished)

    def plan(self, ids: Sequence[Row], *, budget: int) -> Iterator[NDArray[np.intp]]:
        """Yield the rows of each batch."""
        return micro_batches([len(row) for row in ids], budget=budget)

    def launch(
        self,
        ids: Sequence[Row],
        rows: NDArray[np.intp],
        results: Results,
        /,
        *,
        skip: Sequence[int] | None = None,
        first_row: int = 0,
    ) -> None:
        """Embed a batch of the plan."""
        results.put(rows + first_row, self._vectors([ids[row] for row in rows.tolist()]))

    @abstractmethod
    def _vectors(self, rows: Sequence[Row]) -> Any:
        """Return the vectors of a batch, in the form that the results of its kind take."""

    @abstractmethod
    def embed_rows(self, rows: Sequence[tuple[Row, int]]) -> Floats:
        """Return vectors of shape (len(rows), dimensions), not normalised."""


class StaticEngine(_HostEngine):
    """One table in memory.

    Args:
        checkpoint: With a table ``embedding.weight`` or, as model2vec writes it, ``embeddings``
            and perhaps ``mapping`` (a token's row) and ``weights`` (a token's factor).

    Raises:
        CheckpointError: If there is no such table, its parts do not fit each other, or a module's
            weights are missing, misshapen or damaged.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._folder = checkpoint.folder
        tensors = _read(checkpoint.folder)
        table = tensors.get("embedding.weight", tensors.get("embeddings"))
        if table is None or table.ndim != 2 or table.dtype.kind != "f":
            raise CheckpointError(
                f"{self._folder} holds no table of floats, embedding.weight or embeddings"
            )
        if not np.isfinite(table).all():
            raise CheckpointError(f"{self._folder}: the table of words holds NaN or infinity")
        self._table = table
        self._dimensions = checkpoint.card.dimensions
        self._rows, self._factors = tensors.get("mapping"), tensors.get("weights")
        self._vocabulary = len(table if self._rows is None else self._rows)
        shapes = {len(part) for part in (self._rows, self._factors) if part is not None}
        fits = self._rows is None or bool(
            self._rows.dtype.kind in "iu"
            and (self._rows >= 0).all()
            and (self._rows < len(table)).all()
        )
        modules = checkpoint.pipeline.modules
        self._modules = [_module(module) for module in modules]
        # What is cut off behind a mean need not be summed.
        self._columns = table.shape[1] if modules else self._dimensions
        if not fits or shapes - {self._vocabulary} or table.shape[1] < self._columns:
            raise CheckpointError(f"{self._folder}: mapping, weights and embeddings do not agree")

    def _vectors(self, rows: Sequence[Row]) -> Floats:
        return np.stack([self._mean(row) for row in rows])

    def embed_rows(self, rows: Sequence[tuple[Row, int]]) -> Floats:
        """Return vectors of shape (len(rows), dimensions), not normalised."""
        vectors = [self._mean(ids) for ids, _ in rows]
        return np.stack(vectors) if vectors else np.empty((0, self._dimensions), np.float32)

    def _mean(self, row: Row) -> Floats:
        ids = _known_ids(row, self._vocabulary)
        words: Floats = self._table[ids if self._rows is None else self._rows[ids]]
        words = words.astype(np.float32)
        if self._factors is not None:
            words *= self._factors[ids, None].astype(np.float32)
        vector: Floats = words[:, : self._columns].mean(axis=0)
        for module in self._modules:
            vector = module(vector)
        return vector[: self._dimensions]


class TableEngine(_HostEngine):
    """A weight for each token in memory, for sparse vectors.

    Raises:
        CheckpointError: If the file is damaged, or holds a weight below 0, or one of a word that
            the tokenizer does not know.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        assert isinstance(checkpoint.pipeline.sparse, TokenTable)  # what it is chosen by
        path, size = checkpoint.pipeline.sparse.path, checkpoint.card.dimensions
        self._id = checkpoint.card.id
        if path.suffix == ".json":
            self._weights = _weights_of(read_json(path), checkpoint.folder, path, size)
        else:
            self._weights = _read(path.parent)["weight"].astype(np.float32)
        if not (np.isfinite(self._weights) & (self._weights >= 0)).all():
            raise CheckpointError(f"{path} holds weights that are not finite, or below 0")

    def _vectors(self, rows: Sequence[Row]) -> tuple[None, list[Any], None]:
        sparse: list[Any] = []
        for row in rows:
            ids = np.unique(_known_ids(row, len(self._weights)))
            ids = ids[self._weights[ids] > 0]
            sparse.append((ids.astype(np.int32), self._weights[ids]))
        return None, sparse, None

    def embed_rows(self, rows: Sequence[tuple[Row, int]]) -> Floats:
        """Refuse to give dense vectors."""
        raise ConfigurationError(f"{self._id} gives sparse vectors, not dense ones")


def _weights_of(table: dict[str, Any], folder: Path, path: Path, size: int) -> Floats:
    """Return an array of the weights that a JSON file gives to words."""
    vocabulary, weights = read_vocabulary(folder), np.zeros(size, np.float32)
    for word, weight in table.items():
        if word not in vocabulary or not isinstance(weight, int | float):
            raise CheckpointError(
                f"{path} gives {word!r} the weight {weight!r}; expected numbers, and words of "
                f"tokenizer.json"
            )
        weights[vocabulary[word]] = weight
    return weights


def _known_ids(row: Row, size: int) -> NDArray[np.int64]:
    from nimbed.local.tokenizer import ids_of

    ids = np.fromiter(ids_of(row), np.int64, len(row))
    if ids.max() >= size:
        raise CheckpointError(
            f"the tokenizer gave id {ids.max()}, the table has {size} rows; "
            f"tokenizer.json belongs to another model"
        )
    return ids


def _module(module: DenseModule | NormModule) -> Module:
    """Read what follows the mean; the formulas are those of :mod:`nimbed.local.pooling`."""
    tensors = _read(module.folder)

    def get(name: str, *shape: int) -> Floats:
        tensor = tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{module.folder} lacks the tensor {name}")
        if tensor.shape != shape or tensor.dtype.kind != "f" or not np.isfinite(tensor).all():
            raise CheckpointError(
                f"{module.folder}: {name} has shape {tensor.shape} and holds {tensor.dtype}; "
                f"expected finite floats of shape {shape}"
            )
        return tensor.astype(np.float32)

    if isinstance(module, NormModule):
        scale, shift = (get(f"norm.{name}", module.width) for name in ("weight", "bias"))
        return lambda x: (x - x.mean()) / np.sqrt(x.var() + np.float32(1e-5)) * scale + shift
    if not module.bias and "linear.bias" in tensors:
        raise CheckpointError(f"{module.folder} has a bias that its config.json denies")
    weight = get("linear.weight", module.outputs, module.inputs)
    bias = get("linear.bias", module.outputs) if module.bias else np.float32(0)
    activation, projection = _ACTIVATIONS[module.activation], None
    if module.residual and module.inputs != module.outputs:
        projection = get("residual.weight", module.outputs, module.inputs)

    def dense(x: Floats) -> Floats:
        out = activation(weight @ x + bias)
        if not module.residual:
            return out
        return out + (x if projection is None else projection @ x)

    return dense


def _read(folder: Path) -> dict[str, NDArray[Any]]:
    files = weight_files(folder, "model.safetensors")
    if not files:
        raise CheckpointError(
            f"{folder} holds no model.safetensors, which alone is read here; "
            f"SentenceTransformer(folder).save(folder) writes it"
        )
    owner = safetensors_names(files, "numpy")
    from safetensors import safe_open

    tensors: dict[str, NDArray[Any]] = {}
    for name, path in owner.items():
        try:
            with safe_open(path, framework="numpy") as file:
                tensors[name] = file.get_tensor(name)
        except Exception as error:  # whatever the bytes provoke
            raise CheckpointError(f"{folder}: cannot read {name}: {error}") from error
    return tensors
