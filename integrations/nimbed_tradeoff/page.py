"""A study in, one HTML page that needs nothing else out.

No script, no network: a content security policy in the page forbids both.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources
from string import Template
from xml.etree.ElementTree import Element, SubElement, tostring

from nimbed_tradeoff.axes import byte_axis, share_axis, time_axis
from nimbed_tradeoff.measurement import Measured
from nimbed_tradeoff.result import Tradeoff
from nimbed_tradeoff.scatter import Fill, Line, Mark, draw_mark, scatter
from nimbed_tradeoff.table_html import numbers
from nimbed_tradeoff.ways import OVERSAMPLING, TOP

__all__ = ["page"]

_SHAPES = {"float": "circle", "int8": "square", "uint8": "diamond", "ubinary": "triangle"}
_FILLS: dict[int, Fill] = {0: "full", OVERSAMPLING[0]: "hollow", OVERSAMPLING[1]: "dotted"}


def page(study: Tradeoff) -> str:
    """Return the page of a study, well-formed as XML too."""
    template = Template(resources.files("nimbed_tradeoff").joinpath("page.html").read_text("utf-8"))
    asked = study.queries_from or "first sentences of the passages"
    about = (
        f"{study.model} on {study.passages:,} passages of {study.source}; {study.queries:,} "
        f"queries: {asked}; compared with {study.judgements_from or 'the order by float'}"
    )
    return template.substitute(
        title=_text(f"What each embedding type keeps: {study.model}"),
        about=_text(about),
        recommendation=_text(study.advice.sentence),
        by_bytes=_html(_by_bytes(study)),
        by_time=_html(_by_time(study)),
        legend="".join(map(_html, _legend(study))),
        table=_html(numbers(study)),
        notes="".join(f"<li>{_text(note)}</li>" for note in study.notes),
    )


def _by_bytes(study: Tradeoff) -> Element:
    measured = study.measured
    lines = [
        Line(points=[(each.bytes_per_vector, each.recall) for each in best], style=style)
        for style, best in (
            ("alone", study.pareto(rescored=False)),
            ("pareto", study.pareto(rescored=True)),
        )
    ]
    return scatter(
        [_mark(study, each, each.bytes_per_vector) for each in _drawn(measured)],
        lines,
        x=byte_axis(each.bytes_per_vector for each in measured),
        y=share_axis(each.recall for each in measured),
        below="bytes a vector in the index",
        title=f"Recall against bytes a vector; the Pareto line joins {_listed(study)}",
        name="recall-by-bytes",
    )


def _by_time(study: Tradeoff) -> Element:
    measured = study.measured
    return scatter(
        [_mark(study, each, each.milliseconds) for each in _drawn(measured)],
        [],
        x=time_axis(each.milliseconds for each in measured),
        y=share_axis(each.recall for each in measured),
        below="milliseconds a query",
        title="Recall against the time of an exact search; the table below has the numbers",
        name="recall-by-time",
    )


def _drawn(measured: Sequence[Measured]) -> list[Measured]:
    """Return the rescored ways first: where marks meet, the plain one must not be hidden."""
    return sorted(measured, key=lambda each: -each.way.oversampling)


def _mark(study: Tradeoff, each: Measured, x: float) -> Mark:
    kind = each.way.spec.embedding_type
    return Mark(
        x=x,
        y=each.recall,
        shape=_SHAPES[kind],
        colour=kind,
        fill=_FILLS[each.way.oversampling],
        words=(
            f"{each.way.label}: {each.bytes_per_vector:,} bytes, recall@{TOP} {each.recall:.3f}, "
            f"{each.milliseconds:.3f} ms a query"
        ),
        chosen=each is study.advice.best,
    )


def _listed(study: Tradeoff) -> str:
    return "; ".join(
        f"{each.way.label} ({each.recall:.3f})" for each in study.pareto(rescored=True)
    )


def _legend(study: Tradeoff) -> list[Element]:
    kinds = dict.fromkeys(each.way.spec.embedding_type for each in study.measured)
    items = [_sample(kind, _SHAPES[kind], kind, "full") for kind in kinds]
    for times in OVERSAMPLING:
        words = f"hollow: the best {times * TOP} rescored by float"
        if _FILLS[times] == "dotted":
            words = f"with a dot: the best {times * TOP}"
        items.append(_sample(words, "circle", "float", _FILLS[times]))
    for style, words in (
        ("pareto", "Pareto line: nothing is both smaller and better"),
        ("alone", "the same without rescoring"),
    ):
        item, svg = _item()
        SubElement(svg, "path", {"class": f"line {style}", "d": "M0,10 H24"})
        _say(item, words)
        items.append(item)
    item, svg = _item()
    SubElement(svg, "circle", {"class": "ring", "cx": "12", "cy": "10", "r": "8"})
    _say(item, "recommended")
    return [*items, item]


def _sample(words: str, shape: str, colour: str, fill: Fill) -> Element:
    item, svg = _item()
    mark = Mark(x=0, y=0, shape=shape, colour=colour, fill=fill, words=words)
    draw_mark(svg, (12, 10), mark)
    _say(item, words)
    return item


def _item() -> tuple[Element, Element]:
    item = Element("li")
    return item, SubElement(item, "svg", {"viewBox": "0 0 24 20", "aria-hidden": "true"})


def _say(item: Element, words: str) -> None:
    SubElement(item, "span").text = words


def _html(element: Element) -> str:
    # Not <td/>: in HTML that would begin a cell and not end it.
    return tostring(element, encoding="unicode", short_empty_elements=False)


def _text(words: str) -> str:
    return html.escape(words, quote=False)
