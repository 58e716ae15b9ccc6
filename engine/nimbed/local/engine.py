"""Token ids in, pooled float32 vectors out, on one device.

Plans micro-batches, runs the model on them and puts the rows back in the caller's order. Knows
nothing about texts, prompts or quantisation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from nimbed.cards import Pooling
from nimbed.errors import BackendError, CheckpointError
from nimbed.local.attention import follows_rows
from nimbed.local.checkpoint import Checkpoint
from nimbed.local.device import Placement
from nimbed.local.graphs import Graphs
from nimbed.local.layout import Layout
from nimbed.local.memory import give_back
from nimbed.local.models.bert import Bert
from nimbed.local.models.llama import Llama
from nimbed.local.models.ministral3 import ministral3
from nimbed.local.models.nemotron_vl import NemotronVL
from nimbed.local.models.nvembed import NvEmbed
from nimbed.local.models.xlm_roberta import xlm_roberta
from nimbed.local.outlet import Outlet
from nimbed.local.plan import micro_batches
from nimbed.local.pooling import pool
from nimbed.local.tensors import Tensors, open_tensors
from nimbed.local.vision.image_row import images_of
from nimbed.local.vision.reader import ImageReader

__all__ = ["Engine", "Model", "build_engine"]


class Model(Protocol):
    """A network over packed sequences."""

    @property
    def vocabulary(self) -> int:
        """How many token ids it knows."""
        ...

    def __call__(self, ids: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return states of shape (layout.rows, width) for packed ids of shape (layout.rows,)."""
        ...


_MODELS: dict[str, Callable[[dict[str, Any], Tensors, Placement], Model]] = {
    "bert": Bert,
    "llama": Llama,
    "ministral3": ministral3,
    "mistral": Llama,
    "nemotron_vl": NemotronVL,
    "nvembed": NvEmbed,
    "xlm_roberta": xlm_roberta,
}


class Engine:
    """One replica of a model.

    Args:
        model: The network.
        placement: Where it runs.
        pooling: How token states become a vector.
        dimensions: Width of a vector.
    """

    def __init__(
        self,
        model: Model,
        placement: Placement,
        *,
        pooling: Pooling,
        dimensions: int,
    ) -> None:
        self._model = model
        self._images = ImageReader(model) if isinstance(model, NemotronVL) else None
        self._placement = placement
        self._pooling: Pooling = pooling
        self._dimensions = dimensions
        device = placement.device
        self._graphs = (
            Graphs(lambda packed, layout: self._vectors(model(packed, layout), layout), device)
            if follows_rows(placement)
            else None
        )
        # Where attention goes length by length, a batch of few lengths is 5 to 15 % faster; more
        # than four budgets to choose from win nothing (measured).
        self.look_ahead = 1 if follows_rows(placement) else 4
        self._lock = threading.Lock()
        # Tokens a micro-batch. On the CPU 512 a thread keep its cache warm (measured flat from
        # 512 to 2048, worse beyond); on CUDA it fills the device and bounds the activations.
        threads = min(torch.get_num_threads(), 16)
        self.budget = max(1024, 512 * threads) if placement.on_cpu else 32768

    @property
    def placement(self) -> Placement:
        """Where the model runs."""
        return self._placement

    def run(
        self,
        ids: Sequence[Sequence[int]],
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
        outlet = Outlet(out, finished)
        plan = micro_batches([len(row) for row in ids], budget=self.budget)
        for rows in self.ahead(ids, plan):
            self.launch(ids, rows, outlet, skip=skip)
        outlet.flush()

    def ahead(
        self, ids: Sequence[Sequence[int]], plan: Iterator[NDArray[np.intp]]
    ) -> Iterator[NDArray[np.intp]]:
        """Yield the micro-batches of a plan; images are decoded one batch ahead."""
        return plan if self._images is None else self._images.ahead(ids, plan)

    def launch(
        self,
        ids: Sequence[Sequence[int]],
        rows: NDArray[np.intp],
        outlet: Outlet,
        *,
        skip: Sequence[int] | None = None,
    ) -> None:
        """Have the given rows embedded as one micro-batch, or as two halves if memory runs out.

        Args:
            ids: Token ids a row.
            rows: Which of them.
            outlet: Where their vectors go; flush it when everything is launched.
            skip: How many of each row's first tokens are not pooled.

        Raises:
            BackendError: If one row alone does not fit the device's memory.
        """
        try:
            chosen = rows.tolist()
            skipped = None if skip is None else [skip[row] for row in chosen]
            with self._lock, torch.inference_mode():
                vectors = self._pooled([ids[row] for row in chosen], skipped)
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                raise BackendError(
                    f"one input of {len(ids[rows[0]])} tokens does not fit the memory of "
                    f"{self._placement.device}; truncate it, or use a larger device"
                ) from error
            self.budget = max(1, self.budget // 2)
            torch.cuda.empty_cache()
            half = len(rows) // 2
            self.launch(ids, rows[:half], outlet, skip=skip)
            self.launch(ids, rows[half:], outlet, skip=skip)
        else:
            outlet.put(rows, vectors)

    def states(self, ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, Layout]:
        """Return the token states of one micro-batch, and where each row's lie in them.

        Raises:
            BackendError: If they do not fit the device's memory.
        """
        try:
            with self._lock, torch.inference_mode():
                return self._forward(ids, self._flat(ids), None)
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"{sum(map(len, ids))} tokens do not fit the memory of {self._placement.device}; "
                f"truncate the texts, or use a larger device"
            ) from error

    def _pooled(self, ids: Sequence[Sequence[int]], skip: Sequence[int] | None) -> torch.Tensor:
        flat = self._flat(ids)
        if self._graphs is not None and skip is None and next(images_of(ids), None) is None:
            vectors = self._graphs(flat, [len(row) for row in ids])
            if vectors is not None:
                return vectors
        return self._vectors(*self._forward(ids, flat, skip))

    def _vectors(self, states: torch.Tensor, layout: Layout) -> torch.Tensor:
        return pool(states, layout, self._pooling)[:, : self._dimensions]

    def _forward(
        self, ids: Sequence[Sequence[int]], flat: NDArray[np.int64], skip: Sequence[int] | None
    ) -> tuple[torch.Tensor, Layout]:
        device = self._placement.device
        layout = Layout.of([len(row) for row in ids], device, skip=skip)
        packed = torch.from_numpy(np.pad(flat, (0, layout.rows - layout.tokens)))
        if not self._placement.on_cpu:
            packed = packed.pin_memory().to(device, non_blocking=True)
        images = list(images_of(ids)) if self._images is not None else []
        if self._images is not None and images:
            return self._images(packed, layout, images, budget=self.budget), layout
        return self._model(packed, layout), layout

    def _flat(self, ids: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        flat = np.concatenate(ids, dtype=np.int64)
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
    """
    card, config = checkpoint.card, checkpoint.config
    with torch.inference_mode(), open_tensors(checkpoint.folder) as tensors:
        model = _MODELS[card.architecture](config, tensors, placement)
        tensors.refuse_leftovers()
    give_back()
    return Engine(
        model,
        placement,
        pooling=card.pooling,
        dimensions=card.dimensions,
    )
