"""Reads sparse vectors and multi-vectors in a server's answers, verifies them and gathers a call's.

Of nimbed's own server that is everything: count, order, role, contract, vocabulary, finiteness. The
others say no more than the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch, PartialResult, concatenate
from nimbed.errors import BackendError, ConfigurationError
from nimbed.kinds import EmbeddingKinds, MultiVectorBatch, SparseBatch
from nimbed.remote.http import Reply
from nimbed.remote.request import TextBatch
from nimbed.remote.response import (
    MalformedAnswer,
    disguised,
    from_base64,
    read_json,
    refuse_constants,
    refuse_zeros,
)
from nimbed.remote.retry import Failure
from nimbed.spec import (
    Contract,
    InputType,
    Kind,
    MultiVectorSpec,
    SparseSpec,
    Truncate,
    VectorSpec,
)

__all__ = [
    "GatheredKinds",
    "KindsAnswer",
    "contracts_in",
    "read_kinds",
    "read_pooling",
    "read_token_vectors",
    "read_token_weights",
    "read_tokens",
    "read_weights",
    "verified",
]

T = TypeVar("T")
# Ids of XLM-R's tokens, which bge-m3 has: those that begin and end a text, and all that stand for
# no word of it (<s>, <pad>, </s>, <unk>).
_XLMR_BEGIN, _XLMR_END, _XLMR_UNUSED = 0, 2, (0, 1, 2, 3)
_SPECS: Mapping[Kind, type[Contract]] = {
    "dense": VectorSpec,
    "sparse": SparseSpec,
    "multi": MultiVectorSpec,
}


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class KindsAnswer:
    """A verified answer.

    Attributes:
        found: A batch for each kind that was asked for, in the order of the inputs.
        tokens: Tokens that the server read for the whole request, or None.
    """

    found: EmbeddingKinds
    tokens: int | None = None


def verified(reply: Reply, read: Callable[[bytes], T], scrub: Callable[[str], str]) -> T | Failure:
    """Return what a reader makes of a reply, or why it cannot be trusted.

    Args:
        reply: What the server answered, with a status of success.
        read: Raises MalformedAnswer, or the error of a batch that cannot be built.
        scrub: Blots secrets out, should the server echo them.
    """
    request_id = reply.headers.get("x-request-id")
    try:
        return read(reply.body)
    except MalformedAnswer as error:
        return error.failure(request_id, scrub)
    except (ConfigurationError, BackendError) as error:
        return MalformedAnswer(str(error), lasting=True).failure(request_id, scrub)


def contracts_in(facts: Any) -> dict[Kind, Contract]:
    """Return the contracts that a server of nimbed's own states, by kind.

    Raises:
        ConfigurationError: If one was edited, or is of another version.
    """
    stated: dict[str, Any] = facts if isinstance(facts, dict) else {}
    return {kind: _SPECS[kind].from_dict(dict(stated[kind])) for kind in _SPECS if kind in stated}


def read_kinds(
    body: bytes,
    texts: Sequence[str],
    *,
    contracts: Mapping[Kind, Contract],
    dense: VectorSpec | None,
    input_type: InputType,
    may_cut: bool,
) -> KindsAnswer:
    """Read an answer of ``/v1/embeddings/kinds``, written as base64.

    Args:
        body: JSON.
        texts: What was asked for.
        contracts: What was promised of each kind that was asked for.
        dense: The contract to give dense vectors, which come as floats.
        input_type: The role that was asked for.
        may_cut: Whether the server may cut texts.

    Raises:
        MalformedAnswer: If anything differs from what was asked and promised.
        ConfigurationError: If arrays do not fit their contract.
        BackendError: If a number is not finite.
    """
    told = read_json(body)
    items = told.get("data") if isinstance(told, dict) else None
    if not isinstance(items, list):
        raise disguised(told)
    if len(items) != len(texts):
        raise MalformedAnswer(f"{len(items)} vectors for {len(texts)} inputs")
    for place, item in enumerate(items):
        if not isinstance(item, dict) or item.get("index") != place:
            raise MalformedAnswer(
                f"what stands at place {place} is not the answer to input {place}"
            )
    if told.get("input_type") != input_type:
        raise MalformedAnswer(f"vectors of a {told.get('input_type')!r}, not of a {input_type}")
    stated = contracts_in(told.get("specs"))
    for kind, promised in contracts.items():
        if stated.get(kind) != promised:
            found = "none" if kind not in stated else stated[kind].to_json()
            raise MalformedAnswer(
                f"{kind} vectors of another contract than was stated: {found} instead of "
                f"{promised.to_json()}",
                lasting=True,
            )
    cut = told.get("truncated")
    if not isinstance(cut, list) or not all(type(row) is int for row in cut):
        raise MalformedAnswer("an answer that does not say which texts were cut")
    if cut and not may_cut:
        raise MalformedAnswer(
            "the server cut a text, which its own settings or the alias make it do; pass "
            "truncate='END' if that is meant",
            cut,
            lasting=True,
        )
    counts = [item.get("tokens") for item in items]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise MalformedAnswer("an answer without the number of tokens of each text")
    shared: dict[str, Any] = {
        "input_type": input_type,
        "token_counts": np.array(counts, np.int32),
        "truncated": tuple(sorted(cut)),
    }
    batches: dict[str, Any] = {}
    for kind, promised in contracts.items():
        if isinstance(promised, SparseSpec):
            sparse = [item.get("sparse_embedding") for item in items]
            batches[kind] = _sparse(sparse, spec=promised, **shared)
        elif isinstance(promised, MultiVectorSpec):
            multi = [item.get("token_embeddings") for item in items]
            batches[kind] = _multi(multi, spec=promised, **shared)
        elif isinstance(promised, VectorSpec):
            rows = [_array(item.get("embedding"), "float32") for item in items]
            vectors = _stacked(rows, promised.dimensions)
            refuse_zeros(vectors)
            refuse_constants(vectors, texts)
            batches[kind] = EmbeddingBatch.from_floats(vectors, spec=dense or promised, **shared)
    return KindsAnswer(found=EmbeddingKinds(**batches), tokens=sum(counts))


def read_weights(
    body: bytes, *, spec: SparseSpec, input_type: InputType, counts: NDArray[np.int32]
) -> KindsAnswer:
    """Read what text-embeddings-inference answers to ``/embed_sparse``.

    Args:
        body: JSON: for each text a list of ``{"index": id, "value": weight}``.
        spec: The contract to give them, which the server does not state.
        input_type: The role that was asked for.
        counts: Estimated tokens of each text.

    Raises:
        MalformedAnswer: If it is something else, or of another number of texts.
        ConfigurationError: If a token is named twice or beyond the vocabulary.
        BackendError: If a weight is not positive and finite.
    """
    rows: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = []
    for place, row in enumerate(_texts_of(body, len(counts))):
        try:
            pairs = sorted((each["index"], each["value"]) for each in row)
            ids, weights = zip(*pairs, strict=True) if pairs else ((), ())
            if not all(type(token) is int for token in ids):
                raise TypeError
            rows.append((np.array(ids, np.int32), np.array(weights, np.float32)))
        except (TypeError, KeyError, ValueError, OverflowError):
            raise MalformedAnswer(f"no list of index and value for input {place}") from None
    batch = SparseBatch.from_rows(rows, spec=spec, input_type=input_type, token_counts=counts)
    return KindsAnswer(found=EmbeddingKinds(sparse=batch))


def read_token_vectors(
    body: bytes,
    *,
    spec_of: Callable[[int], MultiVectorSpec],
    input_type: InputType,
    counts: NDArray[np.int32],
) -> KindsAnswer:
    """Read what text-embeddings-inference answers to ``/embed_all``.

    Args:
        body: JSON: for each text a list of vectors.
        spec_of: Gives the contract for a width.
        input_type: The role that was asked for.
        counts: Estimated tokens of each text.

    Raises:
        MalformedAnswer: If it is something else, or of another number of texts.
        BackendError: If a number is not finite.
    """
    return _token_vectors(_texts_of(body, len(counts)), spec_of, input_type, counts)


def read_pooling(
    body: bytes,
    *,
    spec_of: Callable[[int], MultiVectorSpec],
    input_type: InputType,
    counts: NDArray[np.int32],
    headed: bool,
) -> KindsAnswer:
    """Read what vLLM answers to ``/pooling`` for the task ``token_embed``.

    Args:
        body: JSON.
        spec_of: As for :func:`read_token_vectors`.
        input_type: Likewise.
        counts: Likewise.
        headed: Whether the model has a head that drops the first token: without it vLLM gives the
            states before the head, which are of the same width.

    Raises:
        MalformedAnswer: If it is something else, or of another number of texts.
        BackendError: If a number is not finite.
    """
    ordered, usage = _pooled(body, len(counts))
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    answer = _token_vectors(ordered, spec_of, input_type, counts)
    assert answer.found.multi is not None
    given = len(answer.found.multi.vectors)
    if headed and tokens != given + len(counts):
        raise MalformedAnswer(
            f"{given} vectors of {tokens} tokens, which are not those of the model's multi-vector "
            f"head; start vLLM with the architecture that has it (--hf-overrides)",
            lasting=True,
        )
    return replace(answer, tokens=tokens if type(tokens) is int else None)


def read_tokens(body: bytes) -> list[int]:
    """Read what vLLM answers to ``/tokenize``: the token ids of one text, special ones included.

    Raises:
        MalformedAnswer: If it is something else.
    """
    told = read_json(body)
    tokens = told.get("tokens") if isinstance(told, dict) else None
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise disguised(told)
    return tokens


def read_token_weights(
    body: bytes,
    *,
    tokens: Sequence[Sequence[int]],
    truncate: Truncate,
    spec: SparseSpec,
    input_type: InputType,
) -> KindsAnswer:
    """Read what vLLM answers to ``/pooling`` for bge-m3 and the task ``token_classify``.

    That is a weight a token, without the beginning and the end; of a token that occurs twice the
    larger counts, as FlagEmbedding has it.

    Args:
        body: JSON.
        tokens: The token ids of each text, as ``/tokenize`` gives them.
        truncate: Which end of a text the server may have cut.
        spec: The contract to give them, which the server does not state.
        input_type: The role that was asked for.

    Raises:
        MalformedAnswer: If it is something else, or of other numbers of texts or tokens.
        BackendError: If a weight is not finite.
    """
    ordered, _ = _pooled(body, len(tokens))
    rows: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = []
    cut: list[int] = []
    for place, (ids, given) in enumerate(zip(tokens, ordered, strict=True)):
        first, last = ids[:1] == [_XLMR_BEGIN], ids[-1:] == [_XLMR_END]
        inner = np.array(ids[first : len(ids) - last], np.int32)
        try:
            weights = np.array(given, np.float32)
        except (TypeError, ValueError):
            raise MalformedAnswer(f"no list of weights for input {place}", [place]) from None
        weights = weights[:, 0] if weights.ndim == 2 and weights.shape[1] == 1 else weights
        missing = len(inner) - len(weights) if weights.ndim == 1 else 0
        if missing > 0 and truncate != "NONE":
            cut.append(place)
            inner = inner[:-missing] if truncate == "END" else inner[missing:]
        if weights.shape != inner.shape:
            raise MalformedAnswer(
                f"weights of shape {weights.shape} for {len(inner)} tokens of input {place}",
                [place],
                lasting=True,
            )
        # Not ``weights > 0``, so that NaN is kept and refused.
        meant = ~(weights <= 0) & ~np.isin(inner, _XLMR_UNUSED)
        names, places = np.unique(inner[meant], return_inverse=True)
        largest = np.zeros(len(names), np.float32)
        np.maximum.at(largest, places, weights[meant])
        rows.append((names, largest))
    counts = np.array([len(ids) for ids in tokens], np.int32)
    batch = SparseBatch.from_rows(
        rows, spec=spec, input_type=input_type, token_counts=counts, truncated=tuple(cut)
    )
    return KindsAnswer(found=EmbeddingKinds(sparse=batch))


def _pooled(body: bytes, count: int) -> tuple[list[Any], Any]:
    """Return the data of each text, and the usage, of an answer to ``/pooling``."""
    told = read_json(body)
    items = told.get("data") if isinstance(told, dict) else None
    if not isinstance(items, list):
        raise disguised(told)
    ordered: list[Any] = [None] * count
    for item in items:
        index = item.get("index") if isinstance(item, dict) else None
        if type(index) is not int or not 0 <= index < count or ordered[index] is not None:
            raise MalformedAnswer(f"vectors with index {index!r} for {count} inputs")
        ordered[index] = item.get("data")
    if len(items) != count:
        raise MalformedAnswer(f"vectors of {len(items)} texts for {count} inputs")
    return ordered, told.get("usage")


def _token_vectors(
    texts: Sequence[Any],
    spec_of: Callable[[int], MultiVectorSpec],
    input_type: InputType,
    counts: NDArray[np.int32],
) -> KindsAnswer:
    rows: list[NDArray[np.float32]] = []
    for place, text in enumerate(texts):
        try:
            rows.append(np.array(text, np.float32))
        except (TypeError, ValueError):
            rows.append(np.empty(0, np.float32))
        if rows[-1].ndim != 2 or rows[-1].shape[1] != rows[0].shape[1] or not rows[-1].size:
            raise MalformedAnswer(f"no list of vectors of one width for input {place}", [place])
        if not rows[-1].any(axis=1).all():
            raise MalformedAnswer("a vector of zeros alone", [place], lasting=True)
    batch = MultiVectorBatch.from_floats(
        rows, spec=spec_of(rows[0].shape[1]), input_type=input_type, token_counts=counts
    )
    return KindsAnswer(found=EmbeddingKinds(multi=batch))


def _texts_of(body: bytes, count: int) -> list[Any]:
    told = read_json(body)
    if not isinstance(told, list):
        raise disguised(told)
    if len(told) != count:
        raise MalformedAnswer(f"vectors of {len(told)} texts for {count} inputs")
    return told


def _sparse(cells: Sequence[Any], *, spec: SparseSpec, **shared: Any) -> SparseBatch:
    pairs = [cell if isinstance(cell, dict) else {} for cell in cells]
    ids = [_array(each.get("indices"), "int32") for each in pairs]
    weights = [_array(each.get("values"), "float32") for each in pairs]
    return SparseBatch(
        ids=np.concatenate(ids),
        weights=np.concatenate(weights),
        offsets=np.cumsum([0, *map(len, ids)], dtype=np.int64),
        spec=spec,
        **shared,
    )


def _multi(cells: Sequence[Any], *, spec: MultiVectorSpec, **shared: Any) -> MultiVectorBatch:
    arrays = [_array(cell, spec.dtype) for cell in cells]
    lengths = [len(each) // spec.width for each in arrays]
    return MultiVectorBatch(
        vectors=_stacked(arrays, spec.width),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        spec=spec,
        **shared,
    )


def _stacked(arrays: Sequence[NDArray[Any]], width: int) -> NDArray[Any]:
    for place, each in enumerate(arrays):
        if not len(each) or len(each) % width:
            raise MalformedAnswer(f"{len(each)} numbers, of vectors of {width}", [place])
    return np.concatenate(arrays).reshape(-1, width)


def _array(text: Any, dtype: str) -> NDArray[Any]:
    """Return the numbers whose little-endian bytes were written as base64."""
    try:
        return np.frombuffer(from_base64(text), np.dtype(dtype).newbyteorder("<")).astype(dtype)
    except (TypeError, ValueError):
        raise MalformedAnswer("base64 that is damaged, or missing") from None


class GatheredKinds:
    """Gathers the answers of one call, which come in any order."""

    def __init__(self, server: str) -> None:
        self.placed = 0
        self._server = server
        self._rows: list[int] = []
        self._parts: list[EmbeddingKinds] = []
        self._cut: set[int] = set()

    @property
    def cut(self) -> int:
        """How many texts were cut here."""
        return len(self._cut)

    def place(self, batch: TextBatch, answer: KindsAnswer) -> None:
        """Take in what was answered for a batch."""
        if batch.cut:
            self._cut.update(batch.rows)
        self._rows += batch.rows
        self._parts.append(answer.found)
        self.placed += len(batch)

    def reaching(self, batch: TextBatch, answer: KindsAnswer, limit: int) -> list[int]:
        """Return none: the server was told whether to cut."""
        return []

    def skip(self, rows: Iterable[int]) -> None:
        """Raise: no row is left out."""
        raise BackendError(f"rows {sorted(rows)} were left out")

    def finished(self) -> PartialResult[EmbeddingKinds] | None:
        """Return the rows that were answered, or None if none was, or they are of two spaces."""
        try:
            return PartialResult(tuple(sorted(self._rows)), self.in_order()) if self._rows else None
        except BackendError:
            return None

    def in_order(self) -> EmbeddingKinds:
        """Return everything, in the order of the caller's rows.

        Raises:
            BackendError: If the answers are of two spaces.
        """
        order = np.argsort(self._rows)
        cut_here = np.flatnonzero(np.isin(np.sort(self._rows), list(self._cut))).tolist()

        def whole(kind: str, join: Callable[[Sequence[T]], T]) -> T | None:
            parts = [getattr(part, kind) for part in self._parts]
            if parts[0] is None:
                return None
            if any(part.spec != parts[0].spec for part in parts):
                raise BackendError(
                    f"{self._server} answered with {kind} vectors of two spaces: its model was "
                    f"changed on the way"
                )
            batch: Any = join(parts)
            batch = batch.select(order)
            cut = tuple(sorted({*batch.truncated, *cut_here}))
            joined: T = replace(batch, truncated=cut)
            return joined

        return EmbeddingKinds(
            dense=whole("dense", concatenate),
            sparse=whole("sparse", SparseBatch.concatenate),
            multi=whole("multi", MultiVectorBatch.concatenate),
        )
