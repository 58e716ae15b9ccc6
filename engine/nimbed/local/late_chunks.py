"""Late chunking: a document is read in one pass, and each chunk pools the states of its own tokens.

After Günther et al., Late Chunking, arXiv 2409.04701. Every token that a plain embedding pools
belongs to a chunk: what stands before the document's first (prompt, special tokens) to the first,
what stands behind to the last. A document that is one chunk so has its plain vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from nimbed.errors import TooLongError
from nimbed.inputs import ContextText
from nimbed.local.batching import Layout
from nimbed.local.engine import Engine
from nimbed.local.plan import micro_batches
from nimbed.local.tokenizer import TextTokenizer

__all__ = ["embed_in_context"]


def embed_in_context(
    engine: Engine,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    out: NDArray[np.float32],
    *,
    prompt: str,
    finished: Callable[[int], None],
) -> NDArray[np.int32]:
    """Embed chunks, each with the document around it.

    Args:
        engine: Runs a model that pools by the mean.
        tokenizer: Its tokenizer.
        texts: Chunks; a plain text is a document of its own.
        out: float32 of shape (len(texts), dimensions), filled in place; not normalised.
        prompt: Put before each document.
        finished: Told how many chunks have just been done.

    Returns:
        How many tokens each chunk pools.

    Raises:
        TooLongError: If a document has more tokens than the model reads.
        InputError: If the tokenizer gives up on one.
    """
    of_document: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        whole = text.document if isinstance(text, ContextText) else text
        of_document.setdefault(whole, []).append(row)
    ids: list[list[int]] = []
    ranges: list[list[tuple[int, int]]] = []
    counts = np.zeros(len(texts), np.int32)
    rows = list(of_document.values())
    for document, own in of_document.items():
        tokens, ends, skip = tokenizer.located(document, prompt=prompt, rows=own)
        if len(tokens) > tokenizer.max_tokens:
            raise TooLongError(
                length=len(tokens),
                limit=tokenizer.max_tokens,
                rows=own,
                mend="let nimbed.chunks.LateSplitter divide the document",
            )
        ids.append(tokens)
        ranges.append([_range(texts[row], ends, skip) for row in own])
        counts[own] = [stop - first for first, stop in ranges[-1]]
    for chosen in micro_batches([len(each) for each in ids], budget=engine.budget):
        some = chosen.tolist()
        with engine.current():
            states, layout = engine.states([ids[place] for place in some])
            starts = np.cumsum([0, *layout.lengths])
            parts = [
                (first + start, stop + start)
                for place, start in zip(some, starts.tolist(), strict=False)
                for first, stop in ranges[place]
            ]
            # Chunks may overlap, so that their tokens are taken out one after the other.
            taken = np.concatenate([np.arange(*part) for part in parts])
            lengths = [stop - first for first, stop in parts]
            own_states = states[torch.from_numpy(taken).to(states.device)]
            vectors = engine.pooled(own_states, Layout.of(lengths, states.device))
            filled = [row for place in some for row in rows[place]]
            out[filled] = vectors.float().cpu().numpy()
        finished(len(filled))
    return counts


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
