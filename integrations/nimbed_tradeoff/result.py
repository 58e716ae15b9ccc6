"""The result of a study, with the notes that a reader needs to judge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from nimbed.fusion import DAMPING
from nimbed_tradeoff.advice import Advice, frontier
from nimbed_tradeoff.kinds import FUSED, MeasuredKind, best_kind
from nimbed_tradeoff.measurement import BLOCK, Measured, Quality
from nimbed_tradeoff.quantizers import LEAST_FOR_PQ, RESCORED, MeasuredQuantizer
from nimbed_tradeoff.ways import OVERSAMPLING, TOP

__all__ = ["Tradeoff", "readable_size"]

_FEW_QUERIES = 100
# Candidates beyond this share of the passages find more than they would in a large collection.
_LARGE_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Tradeoff:
    """What every way to store some passages keeps and costs.

    Attributes:
        model: Id of the model.
        source: Where the passages came from.
        queries_from: Where the queries came from; None if they are first sentences of passages.
        judgements_from: Where relevance came from; None if it is float's order.
        passages: Distinct passages.
        queries: Queries that count.
        duplicates: Passages left out because their text had come before.
        strays: Judgements left out because their ids were unknown.
        truncated: Passages that were cut to what the model reads.
        too_long: Passages and queries left out since the model does not read so much.
        measured: Every way, the full float first.
        measured_kinds: The kinds of vectors alone, smaller and fused, where they were compared.
        measured_quantizers: Weaviate's quantisers of the full float, where they were compared.
        advice: The recommended way.
        machine: The machine on which times were measured.
        embedding_seconds: Time in the model.
        measuring_seconds: Time in all searches together.
    """

    model: str
    source: str
    queries_from: str | None
    judgements_from: str | None
    passages: int
    queries: int
    duplicates: int
    strays: int
    truncated: int
    too_long: int = 0
    measured: Sequence[Measured]
    measured_kinds: Sequence[MeasuredKind] = ()
    measured_quantizers: Sequence[MeasuredQuantizer] = ()
    advice: Advice
    machine: str
    embedding_seconds: float
    measuring_seconds: float

    @property
    def reference(self) -> str:
        """What recall and nDCG are measured against: ``float`` or ``judgements``."""
        return "float" if self.judgements_from is None else "judgements"

    def index_bytes(self, each: Measured) -> int:
        """Return the bytes of an index of all passages, stored in one way."""
        return each.bytes_per_vector * self.passages

    def pareto(self, *, rescored: bool) -> list[Measured]:
        """Return the ways that no other beats in both bytes and recall, smallest first.

        Args:
            rescored: Whether ways that need floats to rescore by are considered.
        """
        able = [each for each in self.measured if rescored or not each.way.oversampling]
        best = frontier([(each.bytes_per_vector, each.recall) for each in able])
        return [able[place] for place in best]

    @property
    def kinds_sentence(self) -> str:
        """What the comparison of kinds comes to; empty without one."""
        if not self.measured_kinds:
            return ""
        best, dense = best_kind(self.measured_kinds), self.measured_kinds[0]
        if best is dense:
            return (
                f"Dense vectors alone rank best by nDCG@{TOP}, {dense.quality.ndcg:.3f}: on these "
                f"queries the other kinds are not worth their bytes."
            )
        fused = f", fused by {best.fused_by}" if best.fused_by else ""
        return (
            f"{best.label.strip().capitalize()}{fused} rank best by nDCG@{TOP}: "
            f"{best.quality.ndcg:.3f} against {dense.quality.ndcg:.3f} of dense vectors alone, "
            f"with {best.bytes_per_passage:,.0f} bytes a passage instead of "
            f"{dense.bytes_per_passage:,.0f}."
        )

    @property
    def notes(self) -> list[str]:
        """Sentences without which the numbers would mislead."""
        said: list[str] = []
        if self.queries_from is None:
            said.append(
                f"No queries were given, so the first sentences of {self.queries:,} passages, cut "
                f"out of them, ask for the rest. Your users' queries may be harder; give them "
                f"with --queries FILE."
            )
        if self.judgements_from is None:
            said.append(
                f"Recall@{TOP} is the share of the {TOP} nearest by float that a way finds, and "
                f"nDCG@{TOP} looks at their order too. They say what a type loses, not how good "
                f"the model is; for that, give relevance judgements with --judgements FILE."
            )
        else:
            said.append(
                f"Recall@{TOP} and nDCG@{TOP} are against your judgements, float's own too. "
                f"Queries without a relevant passage do not count."
            )
        if self.queries < _FEW_QUERIES:
            worst = max(each.recall_error for each in self.measured)
            said.append(
                f"Only {self.queries} queries: recall is known to ±{2 * worst:.2f} at worst."
            )
        most = TOP * max(OVERSAMPLING)
        if most > _LARGE_SHARE * self.passages:
            said.append(
                f"{most} candidates are {min(1.0, most / self.passages):.0%} of so few passages: "
                f"rescoring will keep less of a larger collection."
            )
        said.append(
            f"Rescoring reads the full floats of its candidates, "
            f"{self.measured[0].bytes_per_vector:,} bytes each, which are kept outside the index."
        )
        if self.duplicates:
            said.append(f"Passages whose text had come before, left out: {self.duplicates:,}.")
        if self.strays:
            said.append(f"Judgements with an unknown query or passage, left out: {self.strays:,}.")
        if self.truncated:
            said.append(f"Passages that were cut to what the model reads: {self.truncated:,}.")
        if self.too_long:
            said.append(
                f"Passages and queries too long for the model, left out: {self.too_long:,}; "
                f"--chunk reads passages in parts, --truncate END the beginning."
            )
        said.append(
            "binary holds the same bits as ubinary, so its numbers are the same. So does "
            "Weaviate's quantiser bq of float vectors, an eighth of a byte a dimension in memory: "
            "a row of ubinary that is rescored is its recall with so many candidates "
            "(rescoreLimit). Its rq-8 and sq hold a byte a dimension as int8 does, at scales of "
            "their own; --weaviate measures them, and rq-1, bq and pq."
        )
        if self.measured_quantizers:
            without_pq = all(each.name != "pq" for each in self.measured_quantizers)
            left_out = (
                f" pq was left out: its 256 clusters need {LEAST_FOR_PQ:,} passages, and SciPy "
                f"(nimbed[pooling])."
            )
            said.append(
                f"Weaviate's quantisers are computed by its formulas, with other random numbers; "
                f"its graphs, and for sq and pq the vectors that it trains on, change recall a "
                f"little. It rescores {RESCORED} candidates of rq and sq by default."
                + (left_out if without_pq else "")
            )
        if self.measured_kinds:
            said.append(
                f"Kinds are fused from the best {FUSED} of each: rrf by their places (damping "
                f"{DAMPING}), sum by their scores, normalised from the best to the worst of these. "
                f"MUVERA's encodings find {FUSED} candidates for MaxSim."
            )
            if find_spec("scipy") is None:
                said.append("Pooled multi-vectors were left out: they need nimbed[pooling].")
        said.append(
            f"Times are of nimbed.search, exact and in memory, on this machine ({self.machine}), "
            f"for one query out of a block of {BLOCK}: the median, with the quartiles of the "
            f"rounds. A database has its own."
        )
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        optimal = self.pareto(rescored=True)
        alone = self.pareto(rescored=False)
        return {
            "model": self.model,
            "source": self.source,
            "queries_from": self.queries_from or "first sentences of the passages",
            "reference": self.reference,
            "judgements_from": self.judgements_from,
            "passages": self.passages,
            "queries": self.queries,
            "duplicates": self.duplicates,
            "strays": self.strays,
            "truncated": self.truncated,
            "too_long": self.too_long,
            "machine": self.machine,
            "embedding_seconds": self.embedding_seconds,
            "measuring_seconds": self.measuring_seconds,
            "ways": [
                {
                    **_facts(each),
                    "index_bytes": self.index_bytes(each),
                    "pareto": each in optimal,
                    "pareto_without_rescoring": each in alone,
                }
                for each in self.measured
            ],
            **(
                {"kinds": [_of_kind(each) for each in self.measured_kinds]}
                if self.measured_kinds
                else {}
            ),
            **(
                {"weaviate": [_of_quantizer(each) for each in self.measured_quantizers]}
                if self.measured_quantizers
                else {}
            ),
            "recommendation": {
                "keep": self.advice.keep,
                "sentence": self.advice.sentence,
                "best": _name(self.advice.best),
                "without_rescoring": _name(self.advice.alone),
            },
            "notes": self.notes,
        }


def readable_size(count: int) -> str:
    """Return bytes as a person reads them: ``3.84 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _name(each: Measured) -> dict[str, Any]:
    spec = each.way.spec
    return {
        "embedding_type": spec.embedding_type,
        "dimensions": spec.dimensions,
        "oversampling": each.way.oversampling,
    }


def _of_kind(each: MeasuredKind) -> dict[str, Any]:
    return {
        "label": each.label.strip(),
        "kinds": list(each.kinds),
        "fused_by": each.fused_by,
        "bytes_per_passage": each.bytes_per_passage,
        **_quality(each.quality),
    }


def _of_quantizer(each: MeasuredQuantizer) -> dict[str, Any]:
    return {
        "quantizer": each.name,
        "bytes_per_vector": each.bytes_per_vector,
        **_quality(each.alone),
        "rescored": _quality(each.rescored),
    }


def _facts(each: Measured) -> dict[str, Any]:
    return {
        **_name(each),
        "metric": each.way.spec.metric,
        "bytes_per_vector": each.bytes_per_vector,
        **_quality(each),
    }


def _quality(each: Quality) -> dict[str, Any]:
    return {
        "recall": each.recall,
        "recall_error": each.recall_error,
        "ndcg": each.ndcg,
        "milliseconds": each.milliseconds,
        "milliseconds_quartiles": list(each.quartiles),
    }
