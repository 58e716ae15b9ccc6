"""A study of a file of passages: read, embed once, measure every way, recommend one."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nimbed.chunks import LateSplitter, Splitter
from nimbed.embedder import Embedder
from nimbed.errors import ConfigurationError, InputError
from nimbed.files.sources import Source, name_of
from nimbed.fusion import check_weights
from nimbed.options import KindOptions
from nimbed.reports import Progress
from nimbed.spec import Kind, Truncate, check_literal
from nimbed_tradeoff.advice import advise
from nimbed_tradeoff.judgements import Judgements, read_judgements
from nimbed_tradeoff.kinds import MeasuredKind, measure_kinds, select_kinds
from nimbed_tradeoff.measurement import measure
from nimbed_tradeoff.quantizers import measure_quantizers
from nimbed_tradeoff.result import Tradeoff
from nimbed_tradeoff.texts import Texts, embed_texts, first_sentences, read_texts
from nimbed_tradeoff.ways import TOP, every_way

__all__ = ["tradeoff"]


def tradeoff(
    embedder: Embedder,
    source: Source,
    *,
    queries: Source | None = None,
    judgements: Source | None = None,
    text_field: str | Sequence[str] = "text",
    id_field: str | None = None,
    kind: str | None = None,
    dimensions: Sequence[int] | None = None,
    keep: float = 0.97,
    truncate: Truncate = "NONE",
    splitter: Splitter | None = None,
    kinds: Sequence[Kind] | None = None,
    weights: Sequence[float] | None = None,
    quantizers: bool = False,
    progress: Progress = False,
) -> Tradeoff:
    """Measure what each embedding type and size keeps of float on your own passages.

    Args:
        embedder: Embeds every passage and every query once.
        source: A file of passages, as :func:`nimbed.files.embed_file` reads it.
        queries: A file of queries; None makes queries of some passages' first sentences.
        judgements: A file that says which passages answer which query, see
            :func:`nimbed_tradeoff.judgements.read_judgements`; None takes float's order as right.
        text_field: Field of the text, or several that are joined, in both files.
        id_field: Field of the id, in both files.
        kind: The format of the passages, where the name does not tell it.
        dimensions: Only these of the sizes that the model offers, beside the full float.
        keep: The share of float's recall that the recommendation must keep.
        truncate: What happens to a text that is too long; NONE leaves it out, and a note says so.
        splitter: Divides each text into chunks, which are the passages then; judgements name
            documents, each found by its best chunk.
        kinds: The kinds of vectors to compare beside the study of dense ones, and to fuse; None
            for none. They need judgements: dense vectors are no measure of the others.
        weights: What each of the kinds counts for when it is fused; None for 1 each.
        quantizers: Whether to measure what Weaviate's quantisers keep of the full float, too.
        progress: True for a bar, or a callable told (done, total) of the passages.

    Raises:
        ConfigurationError: If an option is wrong, or the model does not offer a size.
        InputError: If a file is missing or empty, or a record of it cannot be used.
        BackendError: If the model or the server failed.
    """
    check_literal("truncate", truncate, Truncate)
    if not 0 < keep <= 1:
        raise ConfigurationError(f"keep is a share of float's recall, above 0 up to 1; got {keep}")
    ways = every_way(embedder, dimensions)
    compared = _kinds(embedder, kinds, weights, judged=judgements is not None)
    if splitter is not None and len(compared) > 1:
        raise ConfigurationError("kinds are compared on whole passages; leave out one of the two")
    if quantizers and splitter is not None and judgements is not None:
        raise ConfigurationError(
            "quantizers are compared on whole passages; leave out the chunks or the judgements"
        )
    if isinstance(splitter, LateSplitter) and queries is None:
        raise ConfigurationError(
            "no query can be cut out of late chunks, which know the whole document; give a file "
            "of queries"
        )
    corpus, asked, judged = _read(source, queries, judgements, text_field, id_field, kind, splitter)
    started = time.perf_counter()
    kept, stored = embed_texts(
        embedder,
        corpus,
        input_type="passage",
        truncate=truncate,
        kinds=compared,
        progress=progress,
    )
    able, queried = embed_texts(
        embedder, asked, input_type="query", truncate=truncate, kinds=compared
    )
    embedded = time.perf_counter()
    too_long = len(corpus.texts) - len(kept) + len(asked.texts) - len(able)
    gains, documents = None, None
    if judged is not None:
        if splitter is not None:
            documents = np.array(corpus.document_of, np.intp)[kept]
        # Of documents none is left out.
        left = kept if documents is None else range(len(corpus.documents))
        gains, able = judged.among(left, able)
        queried = select_kinds(queried, able)
    passage_floats, query_floats = stored.dense, queried.dense
    assert passage_floats is not None  # they are always asked for
    assert query_floats is not None
    measured = measure(query_floats, passage_floats, ways, gains, documents)
    measured_kinds: tuple[MeasuredKind, ...] = ()
    if len(compared) > 1 and gains is not None:
        counted = None if weights is None else dict(zip(compared, weights, strict=True))
        measured_kinds = measure_kinds(queried, stored, gains, counted)
    quantized = measure_quantizers(query_floats, passage_floats, gains) if quantizers else ()
    return Tradeoff(
        model=embedder.card.id,
        source=name_of(source),
        queries_from=None if queries is None else name_of(queries),
        judgements_from=None if judgements is None else name_of(judgements),
        passages=len(passage_floats),
        queries=len(query_floats),
        duplicates=corpus.duplicates,
        strays=judged.strays if judged else 0,
        truncated=len(passage_floats.truncated),
        too_long=too_long,
        measured=measured,
        measured_kinds=measured_kinds,
        measured_quantizers=quantized,
        advice=advise(measured, keep=keep, judged=judged is not None),
        machine=f"{platform.machine()}, {os.cpu_count()} CPUs",
        embedding_seconds=embedded - started,
        measuring_seconds=time.perf_counter() - embedded,
    )


def _kinds(
    embedder: Embedder,
    kinds: Sequence[Kind] | None,
    weights: Sequence[float] | None,
    *,
    judged: bool,
) -> tuple[Kind, ...]:
    """Return the kinds to embed, dense among them.

    Raises:
        ConfigurationError: If they cannot be compared, or the model does not give one.
    """
    if kinds is None:
        if weights is not None:
            raise ConfigurationError("weights are of kinds that are fused; give kinds too")
        return ("dense",)
    offered: tuple[Kind, ...] = getattr(embedder, "kinds", ("dense",))
    chosen = KindOptions(kinds=kinds).chosen(offered, embedder.card.id)
    if "dense" not in chosen or len(chosen) < 2:
        raise ConfigurationError(
            f"kinds are compared with dense vectors; give 'dense' and others, got "
            f"{', '.join(map(repr, chosen))}"
        )
    if not judged:
        raise ConfigurationError(
            "kinds find different passages, and only judgements say which are right; give queries "
            "and judgements"
        )
    if weights is not None:
        check_weights(weights, len(chosen))
    return chosen


def _read(
    source: Source,
    queries: Source | None,
    judgements: Source | None,
    text_field: str | Sequence[str],
    id_field: str | None,
    kind: str | None,
    splitter: Splitter | None,
) -> tuple[Texts, Texts, Judgements | None]:
    """Return the passages, the queries, and what is relevant to each query if it was judged."""
    if judgements is not None and queries is None:
        raise ConfigurationError("judgements name queries; give the file of queries too")
    corpus = read_texts(
        source, text_field=text_field, id_field=id_field, kind=kind, splitter=splitter
    )
    if len(corpus.texts) <= TOP:
        raise InputError(
            f"{name_of(source)} has {len(corpus.texts)} different passages, of which every search "
            f"finds the {TOP} nearest; give some hundreds"
        )
    if queries is None:
        made = first_sentences(corpus.texts)
        asked = replace(corpus.select(made.places), texts=made.texts)
        return replace(corpus, texts=made.passages), asked, None
    asked = read_texts(queries, text_field=text_field, id_field=id_field)
    if judgements is None:
        return corpus, asked, None
    judged = read_judgements(judgements, asked.places, corpus.documents or corpus.places)
    return corpus, asked.select(judged.queries), judged
