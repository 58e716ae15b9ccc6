"""An encoder in ONNX Runtime on the CPU: pooled float32 vectors from token ids, without torch.

Texts of one length run together, few tokens at a time, and nothing is padded: a vector then is the
same to the bit whatever its neighbours are, since no operation sees more than its own row or text.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto

from nimbed.cards import Pooling
from nimbed.errors import BackendError, CheckpointError, ConfigurationError
from nimbed.local.checkpoint import Checkpoint
from nimbed.local.onnx.encoders import encoder
from nimbed.local.onnx.graph import Floats, Graph, modules_graph
from nimbed.local.onnx.weights import Array, CodeType, open_arrays
from nimbed.local.plan import HostResults, Results
from nimbed.local.tensors import give_back
from nimbed.local.tokenizer import Row, ids_of

__all__ = ["OnnxEngine"]

# Tokens that run together at most. Of 256 texts of 16 to 256 tokens, runs of 512 to 1,024 took the
# least time (RESULTS.md); more leave the caches.
_RUN = 1024

# Queries of a block at most that attends through a window, if that is no wider.
_BLOCK = 128

# Engines of this process, for :func:`_after_fork`.
_engines: weakref.WeakSet[OnnxEngine] = weakref.WeakSet()


def _after_fork() -> None:
    for engine in _engines:
        engine.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class OnnxEngine:
    """One replica of a model in ONNX Runtime; see :class:`nimbed.local.plan.Engine`.

    Attributes:
        budget: Tokens that keep it busy.
        look_ahead: Budgets of waiting rows to look through for equal lengths.
        on_host: That it computes on the host's own processor.
        computes_in: ``float32``, or ``int8`` where the products of MLPs are of bytes.
        computes_on: ``cpu``.

    Args:
        checkpoint: The model, whose weights are read at once.
        int8: Whether the products of MLPs, most of an encoder's work, are of bytes.

    Raises:
        CheckpointError: If the weights are damaged or do not fit the configuration.
    """

    look_ahead = 4
    on_host = True
    computes_on = "cpu"

    def __init__(self, checkpoint: Checkpoint, *, int8: bool = False) -> None:
        self._checkpoint, self._int8 = checkpoint, int8
        self.computes_in = "int8" if int8 else "float32"
        self.budget = max(_RUN, 512 * threads())
        self._lock = threading.Lock()
        self._network: _Network | None = _Network(checkpoint, int8=int8)
        _engines.add(self)

    def forked(self) -> None:
        """Know that this is a child of the process that made the engine; read the model anew.

        What the parent read may neither be used here nor destroyed, even when the process ends:
        both wait for threads that a child has not. So a reference is given away that never comes
        back.
        """
        self._lock = threading.Lock()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._network))
        self._network = None

    def warm_up(self) -> None:
        """Do what the first batches would otherwise have to wait for: nothing."""

    def results(self, out: Floats, finished: Callable[[int], None]) -> HostResults:
        """Return what takes the vectors of a call."""
        return HostResults(out, finished)

    def plan(self, ids: Sequence[Row], *, budget: int) -> Iterator[NDArray[np.intp]]:
        """Yield rows of one length, the longest first, few tokens at a time.

        Args:
            ids: Token ids a row.
            budget: Tokens of a run at most.
        """
        counts = np.fromiter((len(row) for row in ids), np.int64, len(ids))
        order = np.argsort(-counts, kind="stable")
        lengths = counts[order]
        most = min(budget, _RUN)
        start = 0
        while start < len(order):
            length = int(lengths[start])
            stop = int(np.searchsorted(-lengths, -length, side="right"))
            stop = min(stop, start + max(1, most // length))
            yield order[start:stop]
            start = stop

    def launch(
        self,
        ids: Sequence[Row],
        rows: NDArray[np.intp],
        results: Results,
        *,
        skip: Sequence[int] | None = None,
        first_row: int = 0,
    ) -> None:
        """Embed rows of one length; see :meth:`nimbed.local.plan.Engine.launch`."""
        chosen = rows.tolist()
        parts = [
            (place, 0 if skip is None else skip[row], None) for place, row in enumerate(chosen)
        ]
        results.put(rows + first_row, self._embed([ids_of(ids[row]) for row in chosen], parts))

    def embed_ranges(
        self, documents: Sequence[list[int]], ranges: Sequence[Sequence[tuple[int, int]]]
    ) -> Floats:
        """Return vectors of parts of documents; see :class:`nimbed.local.plan.ContextEngine`."""
        return np.concatenate(
            [
                self._embed([ids], [(0, first, stop) for first, stop in own])
                for ids, own in zip(documents, ranges, strict=True)
            ]
        )

    def _embed(self, rows: Sequence[list[int]], parts: Sequence[_Part]) -> Floats:
        with self._lock:  # one run has all the threads, and its memory alone
            if self._network is None:
                self._network = _Network(self._checkpoint, int8=self._int8)
            return self._network(rows, parts)

    def embed_rows(self, rows: Sequence[tuple[Row, int]]) -> Floats:
        """Return pooled vectors of shape (len(rows), dimensions), not normalised."""
        out = np.empty((len(rows), self._checkpoint.card.dimensions), np.float32)
        ids, skip = [row for row, _ in rows], [skipped for _, skipped in rows]
        results = self.results(out, lambda done: None)
        for part in self.plan(ids, budget=self.budget):
            self.launch(ids, part, results, skip=skip)
        return out


# What is pooled: which text of a run, its first token, and the one behind its last if not all.
_Part: TypeAlias = "tuple[int, int, int | None]"


class _Network:
    """The sessions of one model: the encoder, and what follows its pooling."""

    def __init__(self, checkpoint: Checkpoint, *, int8: bool) -> None:
        card, pipeline = checkpoint.card, checkpoint.pipeline
        self._pooling = (card.pooling,) if isinstance(card.pooling, str) else card.pooling
        self._dimensions = card.dimensions
        with open_arrays(checkpoint.folder) as tensors:
            kind = int8_weights() if int8 else None
            built = encoder(card.architecture, checkpoint.config, tensors, int8=kind)
            tensors.drop_pages()  # what was looked at, the table of words above all
            self._encoder = _session(built.model, built.weights, threads())
        self._words = built.words
        self._learnt, self._padding = built.learnt, built.padding
        self._distances, self._window = built.distances, built.window
        self._turns = built.turns
        self._takes = [each.name for each in self._encoder.get_inputs()]
        del built  # ONNX Runtime has laid out copies of its own
        self._modules: onnxruntime.InferenceSession | None = None
        if pipeline.modules:
            # Their products are small: one thread is as fast.
            self._modules = _session(*modules_graph(pipeline.modules), 1)
        give_back()

    def __call__(self, rows: Sequence[list[int]], parts: Sequence[_Part]) -> Floats:
        """Return vectors of parts of texts, which have one length.

        Raises:
            CheckpointError: If the tokenizer gives ids that the network does not know.
            ConfigurationError: If the texts are longer than what it learnt.
            BackendError: If ONNX Runtime fails.
        """
        ids = np.array(rows, np.int32)
        if ids.max() >= len(self._words):
            raise CheckpointError(
                f"the tokenizer gave id {ids.max()}, the model knows {len(self._words)}; "
                f"tokenizer.json belongs to another model"
            )
        if ids.shape[1] > self._learnt:
            raise ConfigurationError(
                f"the model learnt {self._learnt} positions, a text has {ids.shape[1]} "
                f"tokens; lower max_tokens on the model's card"
            )
        feed: dict[str, NDArray[Any]] = {
            "ids": ids,
            "positions": self._positions(ids),
            "words": self._words,
        }
        if self._distances is not None:
            feed["bias"] = _bias(self._distances, ids.shape[1])
        for name, frequencies in self._turns.items():
            angles = np.arange(ids.shape[1], dtype=np.float32)[:, None] * frequencies
            feed |= {f"{name}cosines": np.cos(angles), f"{name}sines": np.sin(angles)}
        if self._window is not None:
            feed |= blocks(len(ids), ids.shape[1], self._window)
        states = _run(self._encoder, {name: feed[name] for name in self._takes})
        pooled = np.stack(
            [_pooled(states[row][:stop], first, self._pooling) for row, first, stop in parts]
        )
        if self._modules is not None:
            pooled = _run(self._modules, {"pooled": pooled})
        return pooled[:, : self._dimensions]

    def _positions(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        if self._padding is None:
            return np.arange(ids.shape[1], dtype=np.int32)[None].repeat(len(ids), 0)
        # fairseq's: a text may hold the padding id, which takes its own number as its position.
        counted = (ids != self._padding).astype(np.int32)
        positions: NDArray[np.int32] = np.cumsum(counted, 1, np.int32) * counted + self._padding
        return positions


def _bias(distances: Floats, tokens: int) -> Floats:
    """Return what is added to the scores of a text, of shape (1, heads, queries, keys)."""
    nearest = distances.shape[1] // 2
    around = distances[:, nearest + 1 - tokens : nearest + tokens]
    windows = np.lib.stride_tricks.sliding_window_view(around, tokens, axis=1)
    return np.ascontiguousarray(windows[None, :, ::-1])


def blocks(texts: int, tokens: int, window: int) -> dict[str, NDArray[Any]]:
    """Return the blocks in which texts of one length attend through a window.

    All blocks have as many queries, so the last begins early enough to end with the text, and as
    many keys. A text that is hardly longer than what a block sees is one block.

    Args:
        texts: How many.
        tokens: Of each.
        window: Tokens that are seen on either side.

    Returns:
        ``queries`` and ``keys``, the rows of each block, counted through all texts, of shape
        (blocks, queries) and (blocks, keys); ``hidden`` of shape (blocks or 1, 1, queries, keys),
        what is added to the scores; and ``back`` of shape (texts, tokens), where each token is
        among the queries.
    """
    most = max(_BLOCK, window)
    count = 1 if tokens <= most + 2 * window else -(-tokens // most)
    size = -(-tokens // count)
    starts = np.minimum(np.arange(count) * size, tokens - size)[:, None]
    seen = min(tokens, size + 2 * window)
    queries = starts + np.arange(size)
    keys = np.clip(starts - window, 0, tokens - seen) + np.arange(seen)
    far = np.abs(queries[:, :, None] - keys[:, None, :]) > window
    hidden = np.where(far, np.float32(-1e30), np.float32(0))[:, None]
    block = np.minimum(np.arange(tokens) // size, count - 1)
    back = block * size + np.arange(tokens) - starts[block, 0]
    text = np.arange(texts)[:, None]
    return {
        "queries": (queries[None] + text[:, :, None] * tokens).reshape(-1, size),
        "keys": (keys[None] + text[:, :, None] * tokens).reshape(-1, seen),
        "hidden": hidden if count == 1 else np.tile(hidden, (texts, 1, 1, 1)),
        "back": back + text * (count * size),
    }


def threads() -> int:
    """Return how many threads an operation is divided among: OMP_NUM_THREADS, or the cores."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdigit() and int(said) > 0:
        return int(said)
    usable = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    return min(len(usable), 16)


@functools.cache
def int8_weights() -> CodeType:
    """Return the type of weights whose products with uint8 are exact, and fast, on this processor.

    ONNX Runtime multiplies uint8 by int8 fastest. But without VNNI or AMX a processor of Intel's or
    AMD's adds pairs of such products in 16 bits, which are too few; uint8 by uint8 is then added in
    32. Which it does is seen by trying.
    """
    graph, inputs = Graph(), 64
    weights = graph.codes("weights", np.full((inputs, 16), 127, np.int8))
    one, scales = (
        graph.constant(np.array(1, np.float32)),
        graph.weight("scales", np.ones(16, np.float32)),
    )
    product = graph.node("MatMulIntegerToFloat", "codes", weights, one, scales, own=True)
    model = graph.model([("codes", TensorProto.UINT8, ["rows", inputs])], product)
    session = _session(model, graph.weights, 1)
    exact = all(
        (
            _run(session, {"codes": np.full((rows, inputs), 255, np.uint8)}) == 255 * 127 * inputs
        ).all()
        for rows in (1, 16)
    )
    return np.int8 if exact else np.uint8


def _session(
    model: bytes, weights: Mapping[str, Array], workers: int
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = workers
    options.enable_mem_pattern = False  # which would keep a plan for every length
    options.log_severity_level = 3
    names = list(weights)
    options.add_external_initializers(
        names, [onnxruntime.OrtValue.ortvalue_from_numpy(weights[name]) for name in names]
    )
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[Any]]) -> Floats:
    try:
        outputs: Any = session.run(None, feed)
    except Exception as error:  # its own errors derive from RuntimeError, but are not public
        raise BackendError(f"ONNX Runtime failed: {error}") from error
    states: Floats = outputs[0]
    return states


def _pooled(states: Floats, first: int, ways: Sequence[Pooling]) -> Floats:
    """Return the vector of one text; the formulas are those of :mod:`nimbed.local.pooling`.

    Args:
        states: Of shape (tokens, width).
        first: The first token that is pooled.
        ways: How; the vectors of several are joined.
    """
    parts = [_pooled_by(states, first, how) for how in ways]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _pooled_by(states: Floats, first: int, how: Pooling) -> Floats:
    pooled = states[first:]
    vector: Floats
    if how == "cls":
        vector = pooled[0]
    elif how == "lasttoken":
        vector = states[-1]
    elif how == "max":
        vector = pooled.max(0)
    elif how == "mean":
        vector = pooled.mean(0)
    elif how == "mean_sqrt_len_tokens":
        vector = pooled.sum(0) / np.float32(len(pooled) ** 0.5)
    else:
        assert how == "weightedmean"  # latent belongs to a decoder
        weights = np.arange(first + 1, len(states) + 1, dtype=np.float32)
        vector = (pooled * weights[:, None]).sum(0) / weights.sum()
    return vector
