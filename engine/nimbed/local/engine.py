"""One copy of a model on one device: pooled float32 vectors from token ids.

Plans micro-batches, runs the model on them and puts the rows back in the caller's order.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from nimbed.cards import Pooling
from nimbed.errors import BackendError, CheckpointError, ConfigurationError
from nimbed.local.attention import follow_rows
from nimbed.local.batching import LayeredModel, Layout, Model, on_device
from nimbed.local.checkpoint import Checkpoint
from nimbed.local.colbert import ExpandedRow
from nimbed.local.cuda_graphs import CudaRecorder, Graphs
from nimbed.local.device import Placement, full_batch
from nimbed.local.heads import TokenStates
from nimbed.local.models.fields import whole
from nimbed.local.models.mistral3 import Mistral3
from nimbed.local.models.nemotron_vl import NemotronVL
from nimbed.local.models.registry import MODELS, TOO_COARSE
from nimbed.local.plan import HostResults, Results, micro_batches
from nimbed.local.pooling import Module, WeightedLayers, pool, read_modules
from nimbed.local.tensors import give_back, keep_freed
from nimbed.local.tokenizer import Row, ids_of
from nimbed.local.transfer import Staging, Transfer
from nimbed.local.vision.reader import ImageReader, images_of
from nimbed.local.weights import open_tensors

__all__ = ["Engine", "build_engine"]

T = TypeVar("T")

# Batches of a main thread that warms a model up, before other threads ask.
_WARM_UP = 16

_one_thread = functools.partial(ThreadPoolExecutor, 1, thread_name_prefix="nimbed-cpu")

# Operations that take a GPU some 4 ms: a batch of fewer is worth recording, since its launches
# take the host about as long, whatever the model.
_RECORDED = 2.5e12

#: Engines of this process, for :func:`_after_fork`.
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _after_fork() -> None:
    """Make engines usable in a child, or say that they are not.

    Of the threads among which torch divides an operation a child has none, and would wait for them
    forever; with one thread it waits for nobody. Nor has it a thread to open a lock that was shut.
    """
    if _engines:
        torch.set_num_threads(1)
    for engine in _engines:
        engine.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class TokenCost(NamedTuple):
    """What one token takes, roughly.

    Attributes:
        operations: Multiplications and additions in the layers' products.
        activations: Numbers that lie in memory at once in the widest layer.
    """

    operations: int = 0
    activations: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> TokenCost:
        """Estimate it from a configuration; all architectures here have these three sizes."""
        language = config.get("text_config", config.get("llm_config", config))
        width, inner = whole(language, "hidden_size"), whole(language, "intermediate_size")
        layers = whole(language, "num_hidden_layers")
        return cls(2 * layers * (4 * width**2 + 3 * width * inner), 6 * width + 3 * inner)


class HostThread:
    """Where one model computes on the CPU: in a thread of its own, for all threads that ask.

    OpenMP keeps a team of threads for every thread that ever asked for one. Where all teams have
    more threads than there are cores, GNU's sends each to sleep after every operation, and a
    question takes twice as long. So the threads of a program share one. A main thread that asks
    again and again, and nobody else, computes itself: it has a team for whatever else it computes.
    """

    def __init__(self) -> None:
        self._pool = _one_thread()
        self._choosing, self._computing = threading.Lock(), threading.Lock()
        self._in_main = 0  # calls of the main thread since another one's

    def run(self, work: Callable[[], T]) -> T:
        """Do work with no gradients kept, and with as many threads as the caller's torch takes."""
        threads = torch.get_num_threads()
        with self._choosing:
            in_main = threading.current_thread() is threading.main_thread()
            self._in_main = self._in_main + 1 if in_main else 0
            waiting = None
            if self._in_main <= _WARM_UP:
                # It takes nothing from a program that is ending.
                with suppress(RuntimeError):
                    waiting = self._pool.submit(self._alone, [work], threads)
            elif self._in_main == _WARM_UP + 1:
                self._pool.shutdown()  # its team ends with it
                self._pool = _one_thread()
        return self._alone([work], threads) if waiting is None else waiting.result()

    def _alone(self, works: list[Callable[[], T]], threads: int) -> T:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with self._computing, torch.inference_mode():
            return works.pop()()  # the pool would keep it, and the model, a little longer


class Engine:
    """One replica of a model.

    A row of a queue is (token ids, how many of the first are not pooled); see
    :class:`nimbed.embedder.Replica`.

    Attributes:
        budget: Tokens a micro-batch; halved when the device's memory ran out.
        look_ahead: Budgets of waiting rows to look through for similar lengths.
        on_host: Whether the device is the host's own processor.

    Args:
        model: The network.
        placement: Where it runs.
        pooling: How token states become a vector; several ways, if their vectors are joined.
        modules: What follows the pooling.
        dimensions: Width of a vector.
        max_tokens: Tokens of the longest text.
        cost: What a token takes.
    """

    def __init__(
        self,
        model: Model,
        placement: Placement,
        *,
        pooling: Pooling | tuple[Pooling, ...],
        modules: Sequence[Module] = (),
        dimensions: int,
        max_tokens: int,
        cost: TokenCost,
    ) -> None:
        self._model = model
        self._thread = HostThread() if placement.on_cpu else None
        self._images = ImageReader(model) if isinstance(model, Mistral3 | NemotronVL) else None
        self._placement = placement
        self.on_host = placement.on_cpu
        self._dimensions = dimensions
        device = placement.device
        # Launches of one engine follow each other on a stream of its own, whatever stream is
        # current in the thread that calls.
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._staging = Staging(device) if self._stream is not None else None
        self._pool = functools.partial(
            _vectors, pooling=pooling, modules=tuple(modules), dimensions=dimensions
        )
        self._forward = _forward(model, self._pool)
        self._graphs: Graphs | None = None
        by_rows = follow_rows(model.attentions)
        if self._stream is not None and by_rows:
            self._graphs = Graphs(
                self._forward,
                device,
                CudaRecorder(device, self._stream),
                staging=self._staging,
                longest=max_tokens,
                most_rows=int(min(4096, max(128, _RECORDED / max(cost.operations, 1)))),
            )
        # Where attention goes length by length, a batch of few lengths is 5 to 15 % faster; more
        # than four budgets to choose from win nothing (measured).
        self.look_ahead = 1 if by_rows else 4
        self._lock = threading.Lock()
        self._lost = False
        _engines.add(self)
        self.budget = full_batch(placement, cost.activations)

    @property
    def placement(self) -> Placement:
        """Where the model runs."""
        return self._placement

    @property
    def computes_in(self) -> str:
        """The arithmetic, such as ``bfloat16``."""
        return self._placement.name

    @property
    def computes_on(self) -> str:
        """The device, such as ``cpu`` or ``cuda:0``."""
        return str(self._placement.device)

    def forked(self) -> None:
        """Know that this is a child of the process that made the engine."""
        self._lock = threading.Lock()
        self._lost = self._stream is not None
        if self._thread is not None:
            self._thread = HostThread()

    def warm_up(self) -> None:
        """Do what the first batches would otherwise have to wait for."""
        if self._graphs is not None:
            self.compute(self._graphs.record_all)

    def run(
        self,
        ids: Sequence[Row],
        out: NDArray[np.float32],
        finished: Callable[[int], None],
        *,
        skip: Sequence[int] | None = None,
    ) -> None:
        """Embed every row of ids into the same row of ``out``.

        Args:
            ids: Token ids a row, special tokens included.
            out: float32 of shape (len(ids), dimensions), filled in place.
            finished: Told how many rows have just been done.
            skip: How many of each row's first tokens are not pooled.

        Raises:
            BackendError: If the device fails, or one row alone does not fit its memory.
        """
        transfer = self.results(out, finished)
        for rows in self.plan(ids, budget=self.budget):
            self.launch(ids, rows, transfer, skip=skip)
        transfer.flush()

    def embed_rows(self, rows: Sequence[tuple[Row, int]]) -> NDArray[np.float32]:
        """Return pooled vectors of shape (len(rows), dimensions), not normalised.

        Threads may call it at once: a batch is launched while the one before it runs.
        """
        out = np.empty((len(rows), self._dimensions), np.float32)
        skips = [skip for _, skip in rows]
        transfer = self.results(out, lambda rows: None)
        self.launch(
            [ids for ids, _ in rows],
            np.arange(len(rows)),
            transfer,
            skip=skips if any(skips) else None,
        )
        transfer.flush()
        return out

    def results(self, out: NDArray[np.float32], finished: Callable[[int], None]) -> Results:
        """Return what takes the vectors of a call; see :class:`nimbed.local.plan.Engine`."""
        return (HostResults if self._stream is None else Transfer)(out, finished)

    def plan(self, ids: Sequence[Row], *, budget: int) -> Iterator[NDArray[np.intp]]:
        """Yield the micro-batches of rows; images are decoded one batch ahead."""
        if self._images is None:
            return micro_batches([len(row) for row in ids], budget=budget)
        sizes = [self._images.size(row) for row in ids]
        return self._images.ahead(ids, micro_batches(sizes, budget=budget))

    def launch(
        self,
        ids: Sequence[Row],
        rows: NDArray[np.intp],
        transfer: Results,
        *,
        skip: Sequence[int] | None = None,
        first_row: int = 0,
        outputs: Callable[[Sequence[Row], Sequence[int] | None], Any] | None = None,
    ) -> None:
        """Have the given rows embedded as one micro-batch, or as two halves if memory runs out.

        Args:
            ids: Token ids a row.
            rows: Which of them.
            transfer: Where their vectors go; flush it when everything is launched.
            skip: How many of each row's first tokens are not pooled.
            first_row: Where the first row's vector goes in the transfer's array.
            outputs: What a batch, and what of it is not pooled, is made into for the transfer;
                pooled vectors if nothing else.

        Raises:
            BackendError: If one row alone does not fit the device's memory.
        """
        if self._launched(ids, rows, transfer, skip, first_row, outputs or self._pooled):
            transfer.throttle()
            return
        # Outside the handler of the error, whose traceback keeps the failed activations alive.
        if len(rows) == 1:
            raise BackendError(
                f"one input of {len(ids[rows[0]])} tokens does not fit the memory of "
                f"{self._placement.device}; truncate it, or use a larger device"
            )
        self.budget = max(1, self.budget // 2)
        if self._stream is not None:
            transfer.flush()  # what runs still holds memory that half a batch may need
            torch.cuda.empty_cache()
        half = len(rows) // 2
        for part in (rows[:half], rows[half:]):
            self.launch(ids, part, transfer, skip=skip, first_row=first_row, outputs=outputs)

    def _launched(
        self,
        ids: Sequence[Row],
        rows: NDArray[np.intp],
        transfer: Results,
        skip: Sequence[int] | None,
        first_row: int,
        outputs: Callable[[Sequence[Row], Sequence[int] | None], Any],
    ) -> bool:
        chosen = rows.tolist()
        skipped = None if skip is None else [skip[row] for row in chosen]

        def put() -> None:
            transfer.put(rows + first_row, outputs([ids[row] for row in chosen], skipped))

        try:
            self.compute(put)
        except torch.OutOfMemoryError:
            return False
        return True

    def states(self, ids: Sequence[Row], skip: Sequence[int] | None) -> TokenStates:
        """Return the token states of one micro-batch; to be called and used within a launch."""
        flat = self._flat(ids)
        packed, layout = self._sent(flat, [len(row) for row in ids], skip)
        if any(isinstance(row, ExpandedRow) for row in ids):
            seen = [row.seen if isinstance(row, ExpandedRow) else len(row) for row in ids]
            layout = dataclasses.replace(layout, seen=tuple(seen))
        return TokenStates(flat, self._model(packed, layout), layout)

    def pooled(self, states: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return the vectors of shape (sequences, dimensions) that come of token states."""
        return self._pool(states, layout)

    def embed_ranges(
        self, documents: Sequence[list[int]], ranges: Sequence[Sequence[tuple[int, int]]]
    ) -> NDArray[np.float32]:
        """Return vectors of parts of documents; see :class:`nimbed.local.plan.ContextEngine`."""
        try:
            return self.compute(lambda: self._ranges(documents, ranges))
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"{sum(map(len, documents))} tokens do not fit the memory of "
                f"{self._placement.device}; split the documents, or use a larger device"
            ) from error

    def _ranges(
        self, documents: Sequence[list[int]], ranges: Sequence[Sequence[tuple[int, int]]]
    ) -> NDArray[np.float32]:
        found = self.states(documents, None)
        starts = np.cumsum([0, *found.layout.lengths]).tolist()
        parts = [
            (first + start, stop + start)
            for own, start in zip(ranges, starts, strict=False)
            for first, stop in own
        ]
        # Parts may overlap, so that their tokens are taken out one after the other.
        taken = torch.from_numpy(np.concatenate([np.arange(*part) for part in parts]))
        states = found.states[taken.to(found.states.device)]
        lengths = [stop - first for first, stop in parts]
        vectors = self.pooled(states, Layout.of(lengths, states.device))
        return np.asarray(vectors.float().cpu())

    def compute(self, work: Callable[[], T]) -> T:
        """Do work on this engine's device and stream, while nobody else launches there.

        Args:
            work: Run with no gradients kept.

        Raises:
            BackendError: In a child of the process that made an engine on CUDA.
        """
        if self._lost:
            raise BackendError(
                "CUDA does not survive a fork; load the model in the child process, or start it by "
                "multiprocessing.get_context('spawn')"
            )
        if self._thread is not None:
            return self._thread.run(work)
        stream = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with self._lock, torch.inference_mode(), stream:
            return work()

    def _pooled(self, ids: Sequence[Row], skip: Sequence[int] | None) -> torch.Tensor:
        flat, lengths = self._flat(ids), [len(row) for row in ids]
        images = list(images_of(ids)) if self._images is not None else []
        if self._images is not None and images:
            packed, layout = self._sent(flat, lengths, skip)
            return self._pool(self._images(packed, layout, images, budget=self.budget), layout)
        if self._graphs is not None:
            vectors = self._graphs(flat, lengths, skip=skip)
            if vectors is not None:
                return vectors
        return self._forward(*self._sent(flat, lengths, skip))

    def _sent(
        self,
        flat: NDArray[np.int64],
        lengths: Sequence[int],
        skip: Sequence[int] | None = None,
    ) -> tuple[torch.Tensor, Layout]:
        return on_device(flat, lengths, self._placement.device, skip=skip, staging=self._staging)

    def _flat(self, ids: Sequence[Row]) -> NDArray[np.int64]:
        every = itertools.chain.from_iterable([ids_of(row) for row in ids])
        flat = np.fromiter(every, np.int64, sum([len(row) for row in ids]))
        if flat.max() >= self._model.vocabulary:
            raise CheckpointError(
                f"the tokenizer gave id {flat.max()}, the model knows {self._model.vocabulary}; "
                f"tokenizer.json belongs to another model"
            )
        return flat


def build_engine(checkpoint: Checkpoint, placement: Placement) -> Engine:
    """Read a checkpoint's weights onto a device.

    Raises:
        CheckpointError: If the weights are damaged or do not fit the configuration.
        ConfigurationError: If the model does not bear the placement's dtype.
    """
    if not placement.on_cpu:
        return _engine(checkpoint, placement)
    # Laying weights out takes a team of threads, which ends with the thread that it was made for.
    with ThreadPoolExecutor(1, thread_name_prefix="nimbed-load") as loading:
        return loading.submit(_engine, checkpoint, placement).result()


def _engine(checkpoint: Checkpoint, placement: Placement) -> Engine:
    card, config = checkpoint.card, checkpoint.config
    if placement.float8 and card.architecture in TOO_COARSE:
        raise ConfigurationError(
            f"dtype 'float8' costs an encoder like {card.id} too much (of MiniLM's ten nearest it "
            f"changes one in twenty, at a mean cosine of 0.997); use dtype='bfloat16'"
        )
    with torch.inference_mode(), open_tensors(checkpoint.folder) as tensors:
        model = MODELS[card.architecture](config, tensors, placement)
        tensors.refuse_leftovers()
        layers = checkpoint.pipeline.layers
        if layers is not None:
            assert isinstance(model, LayeredModel)  # others were refused with the configuration
            model = WeightedLayers(model, layers)
        pooled = checkpoint.pipeline.modules if checkpoint.pipeline.dense else ()
        modules = read_modules(pooled, placement.device)
    give_back()
    if placement.on_cpu:
        keep_freed()
    if placement.device.type == "cuda":
        torch.cuda.synchronize(placement.device)  # the weights were copied on another stream
    return Engine(
        model,
        placement,
        pooling=card.pooling,
        modules=modules,
        dimensions=card.dimensions,
        max_tokens=card.max_tokens,
        cost=TokenCost.of(config),
    )


def _vectors(
    states: torch.Tensor,
    layout: Layout,
    *,
    pooling: Pooling | tuple[Pooling, ...],
    modules: Sequence[Module],
    dimensions: int,
) -> torch.Tensor:
    vectors = pool(states, layout, pooling)
    for module in modules:
        vectors = module(vectors)
    return vectors[:, :dimensions]


def _forward(
    model: Model, pooled: Callable[[torch.Tensor, Layout], torch.Tensor]
) -> Callable[[torch.Tensor, Layout], torch.Tensor]:
    """Join both halves without a reference to the engine, whose memory a cycle would keep."""
    return lambda packed, layout: pooled(model(packed, layout), layout)
