"""Relevance judgements (qrels): which passages answer which query, read from a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from nimbed.errors import InputError
from nimbed.files.sources import Source, lines, name_of

__all__ = ["Judgements", "read_judgements"]

_FIELDS = ("query_id", "passage_id", "grade")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgements:
    """What is relevant to each query that was judged.

    Attributes:
        queries: Indices of the queries that have a relevant passage, ascending.
        gains: For each of them, the grade of every relevant passage by its index.
        strays: Judgements whose query or passage is in neither file; they are left out.
    """

    queries: tuple[int, ...]
    gains: tuple[Mapping[int, float], ...]
    strays: int

    def among(
        self, passages: Sequence[int], queries: Sequence[int]
    ) -> tuple[tuple[Mapping[int, float], ...], list[int]]:
        """Return what is left of the judgements where some passages or queries are left out.

        Args:
            passages: The indices of the passages that are left, ascending; they become 0, 1, ….
            queries: Those of the queries that are left, counted among :attr:`queries`.

        Returns:
            The gains of every query that has a relevant passage left, and its place among
            ``queries``.

        Raises:
            InputError: If there is none.
        """
        place = {passage: new for new, passage in enumerate(passages)}
        left = [
            {
                place[passage]: gain
                for passage, gain in self.gains[query].items()
                if passage in place
            }
            for query in queries
        ]
        able = [at for at, gains in enumerate(left) if gains]
        if not able:
            raise InputError(
                "every relevant passage is too long for the model; pass --truncate END, or judge "
                "shorter ones"
            )
        return tuple(left[at] for at in able), able


def read_judgements(
    source: Source, queries: Mapping[str, int], passages: Mapping[str, int]
) -> Judgements:
    """Read judgements: three tab-separated columns, or JSON lines.

    Args:
        source: ``.jsonl`` with ``query_id``, ``passage_id`` and ``grade``, else a file of
            tab-separated query id, passage id and grade; a first line without a number in the
            third column is a header. Grades above 0 are relevant.
        queries: The index of every query by its id.
        passages: The index of every passage by its id.

    Raises:
        InputError: If a line cannot be read or contradicts another, or no judgement is of use.
    """
    grades: dict[tuple[str, str], float] = {}
    for number, query, passage, grade in _judgements(source):
        pair = (query, passage)
        if grades.setdefault(pair, grade) != grade:
            raise _fault(
                source,
                number,
                f"{query!r} and {passage!r} were judged differently in an earlier line",
            )
    gains: dict[int, dict[int, float]] = {}
    strays = 0
    for (query, passage), grade in grades.items():
        if query not in queries or passage not in passages:
            strays += 1
        elif grade > 0:
            relevant = gains.setdefault(queries[query], {})
            place = passages[passage]
            relevant[place] = max(grade, relevant.get(place, 0.0))
    if not gains:
        raise InputError(
            f"{name_of(source)} names no relevant passage of any query, out of {len(grades):,} "
            f"judgements, {strays:,} of them with ids that the queries or the passages lack; "
            f"say with --id-field which field holds the ids (without it they are line numbers)"
        )
    judged = tuple(sorted(gains))
    return Judgements(queries=judged, gains=tuple(gains[query] for query in judged), strays=strays)


def _judgements(source: Source) -> Iterator[tuple[int, str, str, float]]:
    """Yield (line, query id, passage id, grade)."""
    json_lines = name_of(source).removesuffix(".gz").endswith((".jsonl", ".ndjson"))
    expected = "query id, passage id and grade, separated by tabs"
    if json_lines:
        expected = f"a JSON object with {', '.join(_FIELDS)}"
    for number, line in lines(source):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise _fault(source, number, "not valid UTF-8") from None
        if not text.strip():
            continue
        cells = _json_cells(text) if json_lines else tuple(text.strip("\r\n").split("\t"))
        if cells is None or len(cells) != len(_FIELDS):
            raise _fault(source, number, f"expected {expected}")
        grade = _grade(cells[2])
        if grade is not None:
            yield number, str(cells[0]), str(cells[1]), grade
        elif json_lines or number > 1:
            raise _fault(source, number, f"the grade is {cells[2]!r}, expected a number")


def _json_cells(text: str) -> tuple[Any, ...] | None:
    try:
        record: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not all(name in record for name in _FIELDS):
        return None
    fields = cast(dict[str, Any], record)
    return tuple(fields[name] for name in _FIELDS)


def _grade(cell: Any) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, (str, int, float)):
        return None
    try:
        grade = float(cell)
    except (ValueError, OverflowError):
        return None
    return grade if math.isfinite(grade) else None


def _fault(source: Source, number: int, reason: str) -> InputError:
    return InputError(f"line {number} of {name_of(source)}: {reason}", rows=[number])
