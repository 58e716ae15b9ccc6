"""Late chunking: a document is read in one pass, and each chunk pools the states of its own tokens.

After Günther et al., Late Chunking, arXiv 2409.04701. Every token that a plain embedding pools
belongs to a chunk: what stands before the document's first (prompt, special tokens) to the first,
what stands behind to the last. A document that is one chunk so has its plain vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.errors import TooLongError
from nimbed.inputs import ContextText
from nimbed.local.backends import Loaded
from nimbed.local.plan import ContextEngine, micro_batches
from nimbed.local.tokenizer import TextTokenizer
from nimbed.reports import Progress, reporting
from nimbed.spec import InputType, VectorSpec

__all__ = ["embed_in_context"]


def embed_in_context(
    loaded: Loaded,
    texts: Sequence[Any],
    spec: VectorSpec,
    prompt: str,
    input_type: InputType,
    progress: Progress,
) -> EmbeddingBatch:
    """Embed chunks, each with the document around it.

    Args:
        loaded: A model of texts that pools by the mean.
        texts: Chunks; a plain text is a document of its own.
        spec: The contract of the vectors.
        prompt: Put before each document.
        input_type: What the batch says the chunks were embedded as.
        progress: As the caller of ``embed`` asked for it.

    Returns:
        The vectors, and how many tokens each chunk pools.

    Raises:
        TooLongError: If a document has more tokens than the model reads.
        InputError: If the tokenizer gives up on one.
        BackendError: If a document does not fit the device's memory.
    """
    engine, tokenizer = loaded.engines[0], loaded.tokenizer
    assert isinstance(engine, ContextEngine)  # a table of words has no states
    assert isinstance(tokenizer, TextTokenizer)
    of_document: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        whole = text.document if isinstance(text, ContextText) else text
        of_document.setdefault(whole, []).append(row)
    ids: list[list[int]] = []
    ranges: list[list[tuple[int, int]]] = []
    counts = np.zeros(len(texts), np.int32)
    # How many of a document's first tokens are not pooled, whatever the document.
    (skip,) = tokenizer.encode(["a"], prompt=prompt, truncate="NONE").skip or [0]
    out: NDArray[np.float32] | None = None
    rows = list(of_document.values())
    for document, own in of_document.items():
        (read,) = tokenizer.pieces([document], prompt=prompt, special=True)
        tokens = [token.id for token in read]
        # Where each ends in the document; special ones stand at 0.
        ends = np.maximum.accumulate([token.stop - len(prompt) for token in read])
        if len(tokens) > tokenizer.max_tokens:
            raise TooLongError(
                lengths=[len(tokens)] * len(own),
                limit=tokenizer.max_tokens,
                rows=own,
                mend="let nimbed.chunks.LateSplitter divide the document",
            )
        ids.append(tokens)
        ranges.append([_range(texts[row], ends, skip) for row in own])
        counts[own] = [stop - first for first, stop in ranges[-1]]
    with reporting(progress, len(texts)) as finished:
        for chosen in micro_batches([len(each) for each in ids], budget=engine.budget):
            some = chosen.tolist()
            vectors = engine.embed_ranges(
                [ids[place] for place in some], [ranges[place] for place in some]
            )
            filled = [row for place in some for row in rows[place]]
            if out is None:
                out = np.empty((len(texts), vectors.shape[1]), np.float32)
            out[filled] = vectors
            finished(len(filled))
    assert out is not None  # there is a chunk
    return EmbeddingBatch.from_floats(out, spec=spec, input_type=input_type, token_counts=counts)


def _range(text: str, ends: NDArray[np.int64], skip: int) -> tuple[int, int]:
    """Return the first of a chunk's tokens and the one behind its last; at least one is between.

    A token belongs to the chunk that its last character lies in.
    """
    first, stop = 0, len(ends)
    if isinstance(text, ContextText):
        if text.start > 0:
            first = int(np.searchsorted(ends, text.start, "right"))
        if text.stop < len(text.document):
            stop = int(np.searchsorted(ends, text.stop, "right"))
    first = max(first, skip)
    return min(first, len(ends) - 1), max(stop, min(first, len(ends) - 1) + 1)
