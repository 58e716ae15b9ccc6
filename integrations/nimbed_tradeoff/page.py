"""The page of a study: one HTML file with plots, the recommendation and a table of all numbers.

It needs nothing else: no script and no network, which its content security policy forbids.
"""

from __future__ import annotations

import html
from importlib import resources
from string import Template
from xml.etree.ElementTree import Element, SubElement, tostring

from nimbed_tradeoff.kinds import best_kind
from nimbed_tradeoff.measurement import Measured
from nimbed_tradeoff.plots import Plot, draw_plots, written_time
from nimbed_tradeoff.result import Tradeoff, readable_size
from nimbed_tradeoff.ways import OVERSAMPLING, TOP

__all__ = ["page"]


def page(study: Tradeoff) -> str:
    """Return the page of a study, well-formed as XML too.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    template = Template(resources.files("nimbed_tradeoff").joinpath("page.html").read_text("utf-8"))
    asked = study.queries_from or "first sentences of the passages"
    about = (
        f"{study.model} on {study.passages:,} passages of {study.source}; {study.queries:,} "
        f"queries: {asked}; compared with {study.judgements_from or 'the order by float'}"
    )
    bytes_plot, time_plot = draw_plots(study)
    return template.substitute(
        title=_text(f"What each embedding type keeps: {study.model}"),
        about=_text(about),
        recommendation=_text(study.advice.sentence),
        by_bytes=_html(bytes_plot.svg),
        by_time=_html(time_plot.svg),
        bytes_overlaps=_overlaps(bytes_plot),
        time_overlaps=_overlaps(time_plot),
        legend="".join(map(_html, _legend(study))),
        table=_html(_table(study)),
        kinds=_kinds(study),
        notes="".join(f"<li>{_text(note)}</li>" for note in study.notes),
    )


def _overlaps(plot: Plot) -> str:
    if not plot.overlaps:
        return ""
    lines = "".join(f"<li>{_text(line)}</li>" for line in plot.overlaps)
    return f"<figcaption>Marks that lie on each other:<ul>{lines}</ul></figcaption>"


def _legend(study: Tradeoff) -> list[Element]:
    kinds = dict.fromkeys(each.way.spec.embedding_type for each in study.measured)
    few, many = (times * TOP for times in OVERSAMPLING)
    return [
        *(_item(f"symbol {kind}", kind) for kind in kinds),
        _item("rescored", f"hollow: the best {few} rescored by float"),
        _item("rescored larger", f"larger: the best {many}"),
        _item("stroke pareto", "Pareto line: nothing is both smaller and better"),
        _item("stroke alone", "the same without rescoring"),
        _item("recommended", "recommended"),
    ]


def _item(sample: str, words: str) -> Element:
    item = Element("li")
    SubElement(item, "span", {"class": sample, "aria-hidden": "true"})
    SubElement(item, "span").text = words
    return item


def _table(study: Tradeoff) -> Element:
    """Return a table with a row for each way."""
    table = Element("table")
    SubElement(table, "caption").text = "All numbers"
    head = SubElement(SubElement(table, "thead"), "tr")
    for words in (
        "stored as", "dimensions", "rescored", "bytes a vector", "index", f"recall@{TOP}",
        f"nDCG@{TOP}", "ms a query (quartiles)", "Pareto",
    ):  # fmt: skip
        SubElement(head, "th", scope="col").text = words
    body = SubElement(table, "tbody")
    optimal = study.pareto(rescored=True)
    for each in study.measured:
        _row(body, study, each, on_line=each in optimal)
    return table


def _kinds(study: Tradeoff) -> str:
    """Return a table with a row for each kind of vector, empty where none were compared."""
    if not study.measured_kinds:
        return ""
    table = Element("table")
    SubElement(table, "caption").text = study.kinds_sentence
    head = SubElement(SubElement(table, "thead"), "tr")
    for words in (
        "kinds", "fused by", "bytes a passage", "index", f"recall@{TOP}", f"nDCG@{TOP}",
        "ms a query (quartiles)",
    ):  # fmt: skip
        SubElement(head, "th", scope="col").text = words
    body = SubElement(table, "tbody")
    best = best_kind(study.measured_kinds)
    for each in study.measured_kinds:
        row = SubElement(body, "tr", {"class": "best"} if each is best else {})
        SubElement(row, "th", scope="row").text = each.label.strip()
        for words in (
            each.fused_by or "",
            f"{each.bytes_per_passage:,.0f}",
            readable_size(round(each.bytes_per_passage * study.passages)),
            f"{each.quality.recall:.3f}",
            f"{each.quality.ndcg:.3f}",
            written_time(each.quality),
        ):
            SubElement(row, "td").text = words
    region = Element("div", {"class": "wide", "role": "region", "aria-label": "Kinds"})
    region.set("tabindex", "0")
    region.append(table)
    return _html(region)


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
    for words in (f"{each.ndcg:.3f}", written_time(each), "yes" if on_line else ""):
        SubElement(row, "td").text = words


def _html(element: Element) -> str:
    # Not <td/>: in HTML that would begin a cell and not end it.
    return tostring(element, encoding="unicode", short_empty_elements=False)


def _text(words: str) -> str:
    return html.escape(words, quote=False)
