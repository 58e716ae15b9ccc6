"""Several kinds of vectors from one forward pass of a local model, and their contracts.

Nothing here needs torch: contracts are known from JSON files, before any weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.cards import known
from nimbed.errors import ConfigurationError, install_line
from nimbed.kinds import EmbeddingKinds, MultiVectorBatch, SparseBatch
from nimbed.local.checkpoint import Checkpoint
from nimbed.local.colbert import tokenizing_as
from nimbed.local.head_config import AutoEncoder, ColBert, vocabulary_hash
from nimbed.local.hub import head_revision, latent_hash
from nimbed.local.models.fields import whole
from nimbed.options import KindOptions, SpecOptions
from nimbed.spec import InputType, Kind, MultiVectorSpec, SparseSpec, VectorSpec

if TYPE_CHECKING:  # which import torch
    from nimbed.local.engine import Engine
    from nimbed.local.heads import Heads
    from nimbed.local.tokenizer import InputTokenizer, Row, Tokens

__all__ = ["KindEngine", "KindResults", "KindSpecs", "encoder_of", "offered_kinds"]


def offered_kinds(checkpoint: Checkpoint, backend: str) -> tuple[Kind, ...]:
    """Return the kinds that a model gives: on ONNX Runtime only dense vectors."""
    own = checkpoint.card.kinds
    return tuple(kind for kind in own if kind == "dense") if backend == "onnxruntime" else own


def encoder_of(
    checkpoint: Checkpoint, tokenizer: InputTokenizer, input_type: InputType
) -> Callable[..., Tokens]:
    """Return what tokenizes texts of a role, as ``InputTokenizer.encode`` does."""
    facts = checkpoint.pipeline.multi
    if not isinstance(facts, ColBert):
        return tokenizer.encode
    from nimbed.local.tokenizer import TextTokenizer

    assert isinstance(tokenizer, TextTokenizer)  # no ColBERT that runs here reads images
    return tokenizing_as(input_type, tokenizer, facts, checkpoint.folder)


class KindSpecs(NamedTuple):
    """The contracts of a call; None for a kind that was not asked for."""

    dense: VectorSpec | None
    sparse: SparseSpec | None
    multi: MultiVectorSpec | None

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        backend: str,
        asked: KindOptions,
        of_dense: SpecOptions,
    ) -> KindSpecs:
        """Return the contracts of what is asked of a model; reads no weights.

        Raises:
            ConfigurationError: If the model, or its backend, does not give such vectors.
        """
        chosen = _chosen(checkpoint, backend, asked)
        dense = None
        if "dense" in chosen:
            dense = checkpoint.card.spec(**of_dense, revision=checkpoint.revision)
        return cls(
            dense,
            _sparse_spec(checkpoint, asked) if "sparse" in chosen else None,
            _multi_spec(checkpoint, asked) if "multi" in chosen else None,
        )


def _chosen(checkpoint: Checkpoint, backend: str, asked: KindOptions) -> tuple[Kind, ...]:
    """Return the kinds to give."""
    offered = offered_kinds(checkpoint, backend)
    if asked.kinds and "dense" in asked.kinds and "dense" not in checkpoint.card.kinds:
        checkpoint.card.spec()  # raises, and says what to call
    catalogued = known(checkpoint.card.id)
    for kind in asked.kinds or ():
        if catalogued and kind in catalogued.kinds and kind not in checkpoint.card.kinds:
            raise ConfigurationError(
                f"{checkpoint.card.id} gives {kind} vectors by a head that is not in "
                f"{checkpoint.pipeline.folder}; download its folder whole"
            )
    for kind in asked.kinds or offered or checkpoint.card.kinds:
        if kind not in offered and kind in checkpoint.card.kinds:
            raise ConfigurationError(
                f"sparse and multi-vector embeddings need torch; load the model with "
                f"backend='torch' ({install_line('local')})"
            )
    return asked.chosen(offered, checkpoint.card.id)


def _sparse_spec(checkpoint: Checkpoint, asked: KindOptions) -> SparseSpec:
    card, head = checkpoint.card, checkpoint.pipeline.sparse
    named = latent_hash(head) if isinstance(head, AutoEncoder) else None
    return SparseSpec(
        model=card.id,
        vocabulary=named or vocabulary_hash(checkpoint.folder),
        dimensions=(
            whole(checkpoint.config, "vocab_size") if checkpoint.pipeline.dense else card.dimensions
        ),
        revision=head_revision(checkpoint.revision, head),
        max_active=asked.max_active or checkpoint.pipeline.max_active,
        query_prompt=card.query_prompt,
        passage_prompt=card.passage_prompt,
    )


def _multi_spec(checkpoint: Checkpoint, asked: KindOptions) -> MultiVectorSpec:
    card, late = checkpoint.card, isinstance(checkpoint.pipeline.multi, ColBert)
    return MultiVectorSpec.of(
        model=card.id,
        dimensions=card.dimensions if late else whole(checkpoint.config, "hidden_size"),
        token_type=asked.token_type,
        revision=head_revision(checkpoint.revision, checkpoint.pipeline.multi),
        pool_factor=asked.pool_factor,
        query_prompt=card.query_prompt,
        passage_prompt=card.passage_prompt,
    )


class KindResults:
    """What the batches of a call gave; see :class:`nimbed.local.plan.Results`.

    Replicas share one: each writes the rows of its own batches.

    Args:
        count: Texts of the call.
        specs: Which kinds are wanted.
        dimensions: Of a full dense vector.
    """

    def __init__(self, count: int, specs: KindSpecs, *, dimensions: int) -> None:
        self._specs = specs
        self._finished: Callable[[int], None] = lambda rows: None
        self._dense = np.empty((count, dimensions if specs.dense else 0), np.float32)
        self._sparse: list[Any] = [None] * (count if specs.sparse else 0)
        self._multi: list[Any] = [None] * (count if specs.multi else 0)

    def telling(self, finished: Callable[[int], None]) -> KindResults:
        """Return the same, which from now on tells how many rows have just been done."""
        self._finished = finished
        return self

    def put(
        self, rows: NDArray[np.intp], vectors: tuple[Any, Sequence[Any], Sequence[Any]]
    ) -> None:
        """Take the dense, sparse and multi-vectors of rows."""
        dense, sparse, multi = vectors
        if self._specs.dense:
            self._dense[rows] = dense
        for row, place in enumerate(rows.tolist()):
            if self._specs.sparse:
                self._sparse[place] = sparse[row]
            if self._specs.multi:
                self._multi[place] = multi[row]
        self._finished(len(rows))

    def throttle(self) -> None:
        """Nothing is behind."""

    def flush(self) -> None:
        """Nothing is under way: each batch ends before the next begins."""

    def batches(
        self,
        *,
        input_type: InputType,
        token_counts: NDArray[np.int32],
        truncated: tuple[int, ...],
    ) -> EmbeddingKinds:
        """Return the batch of each kind."""
        shared: Any = {
            "input_type": input_type,
            "token_counts": token_counts,
            "truncated": truncated,
        }
        dense = sparse = multi = None
        if self._specs.dense:
            dense = EmbeddingBatch.from_floats(self._dense, spec=self._specs.dense, **shared)
        if self._specs.sparse:
            sparse = SparseBatch.from_rows(self._sparse, spec=self._specs.sparse, **shared)
        if self._specs.multi:
            multi = MultiVectorBatch.from_floats(self._multi, spec=self._specs.multi, **shared)
        return EmbeddingKinds(dense=dense, sparse=sparse, multi=multi)


class KindEngine:
    """A replica that gives several kinds; see :class:`nimbed.local.plan.Launcher`.

    Args:
        engine: Gives the token states.
        heads: What is made of them, on the same device.
        specs: Which kinds are wanted.
        input_type: The role of the texts.
    """

    def __init__(
        self, engine: Engine, heads: Heads, specs: KindSpecs, input_type: InputType
    ) -> None:
        self._engine, self._heads = engine, heads
        self._specs = specs
        self._input_type: InputType = input_type

    @property
    def budget(self) -> int:
        """Tokens that fill the device at once."""
        return self._engine.budget

    def plan(self, ids: Sequence[Row], *, budget: int) -> Iterator[NDArray[np.intp]]:
        """Yield the rows of each batch."""
        return self._engine.plan(ids, budget=budget)

    def launch(
        self,
        ids: Sequence[Row],
        rows: NDArray[np.intp],
        results: Any,
        /,
        *,
        skip: Sequence[int] | None = None,
        first_row: int = 0,
    ) -> None:
        """Have a batch embedded; see :meth:`nimbed.local.plan.Launcher.launch`."""
        self._engine.launch(
            ids, rows, results, skip=skip, first_row=first_row, outputs=self._outputs
        )

    def _outputs(self, ids: Sequence[Row], skip: Sequence[int] | None) -> tuple[Any, Any, Any]:
        """Return the vectors of each kind for one batch, from one run of the network."""
        batch = self._engine.states(ids, skip)
        dense = sparse = multi = None
        if self._specs.dense:
            dense = self._engine.pooled(batch.states, batch.layout).cpu().numpy()
        if self._specs.sparse and self._heads.sparse:
            sparse = self._heads.sparse(batch, self._input_type)
        if self._specs.multi and self._heads.multi:
            multi = self._heads.multi(batch, self._input_type)
        return dense, sparse, multi
