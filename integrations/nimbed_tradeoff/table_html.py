"""A study in, the HTML table of all its numbers out."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement

from nimbed_tradeoff.measurement import Measured
from nimbed_tradeoff.result import Tradeoff, readable_size
from nimbed_tradeoff.ways import TOP

__all__ = ["numbers"]


def numbers(study: Tradeoff) -> Element:
    """Return a row for each way."""
    table = Element("table")
    SubElement(table, "caption").text = "All numbers"
    head = SubElement(SubElement(table, "thead"), "tr")
    for words in (
        "stored as", "dimensions", "rescored", "bytes a vector", "index", f"recall@{TOP}",
        f"nDCG@{TOP}", "ms a query", "Pareto",
    ):  # fmt: skip
        SubElement(head, "th", scope="col").text = words
    body = SubElement(table, "tbody")
    optimal = study.pareto(rescored=True)
    for each in study.measured:
        _row(body, study, each, on_line=each in optimal)
    return table


def _row(body: Element, study: Tradeoff, each: Measured, *, on_line: bool) -> None:
    spec, times = each.way.spec, each.way.oversampling
    classes = [
        *(["best"] if each is study.advice.best else []),
        *([] if times else ["first"]),
    ]
    row = SubElement(body, "tr", {"class": " ".join(classes)} if classes else {})
    SubElement(row, "th", scope="row").text = spec.embedding_type
    for words in (
        str(spec.dimensions),
        f"best {each.way.candidates}" if times else "no",
        f"{each.bytes_per_vector:,}",
        readable_size(study.index_bytes(each)),
    ):
        SubElement(row, "td").text = words
    recall = SubElement(row, "td")
    recall.text = f"{each.recall:.3f}"
    if each.recall_error:
        SubElement(recall, "span", {"class": "error"}).text = f" ± {each.recall_error:.3f}"
    for words in (f"{each.ndcg:.3f}", f"{each.milliseconds:.3f}", "yes" if on_line else ""):
        SubElement(row, "td").text = words
